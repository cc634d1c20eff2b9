//! What happens to a request and its response on a protected route.
//!
//! | role | request | response |
//! |---|---|---|
//! | client | sealed | opened |
//! | server | opened | sealed |
//!
//! In mode json it is the selected fields that are sealed and opened.

mod client;
mod json;
mod range;
mod server;

use crate::body::digest::Declared;
use crate::body::open::{self, Window};
use crate::body::seal::{self, UploadProgress};
use crate::body::{OpenBody, ProxyBody, SealBody, Source};
use crate::config::Role;
use crate::context::RequestContext;
use crate::error::ProxyError;
use crate::headers;
use crate::keys::Keys;
use crate::route::{Protection, Route, RouteMode};
use crate::telemetry::PlaintextAction;
use crate::upstream::Upstream;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use keyway_envelope::length::{HEADER, SEGMENT};
use keyway_envelope::{FormatError, Header, Implementation, MessageKeys, Opener, Profile};
use keyway_keycache::{CachedDek, KeyError};
use std::sync::Arc;

/// The innermost layer: transform and upstream of one listener.
#[derive(Clone, Debug)]
pub(crate) struct Transform {
    pub(crate) role: Role,
    pub(crate) keys: Keys,
    pub(crate) upstream: Upstream,
    /// The longest JSON document, in bytes.
    pub(crate) json_max: usize,
}

impl Transform {
    /// Carries one request to the upstream and its response back.
    ///
    /// # Errors
    /// [`ProxyError`]; nothing has been sent to the client then.
    pub(crate) async fn call(
        &self,
        route: &Arc<Route>,
        request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        match (&route.mode, self.role) {
            (RouteMode::Pass, _) => self.pass(request).await,
            (RouteMode::Body(protection), Role::Client) => self.client(route, protection, request).await,
            (RouteMode::Body(protection), Role::Server) => self.server(route, protection, request).await,
            // In a box: every request's future would have the room for it.
            (RouteMode::Json(protection, _), _) => Box::pin(self.json(route, protection, request)).await,
        }
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Response<ProxyBody>, ProxyError> {
        let (mut parts, incoming) = request.into_parts();
        let has_body = has_body(&parts.method, &parts.headers, &incoming, false);
        let version = parts.version;
        self.prepare(&mut parts)?;
        let (body, progress) = if has_body {
            let progress = Arc::new(UploadProgress::default());
            let source = Source::client(incoming, version, self.upstream.body_idle_max());
            (ProxyBody::Source(Box::new(source.with_progress(Arc::clone(&progress)))), Some(progress))
        } else {
            parts.headers.remove(CONTENT_LENGTH);
            (ProxyBody::Empty, None)
        };
        let request = Request::from_parts(parts, body);
        let response = self.upstream.send(request, progress.as_deref()).await?;
        Ok(finish_response(response.map(|source| ProxyBody::Source(Box::new(source)))))
    }

    /// Host, Via, origin-form target, HTTP/1.1: what every request needs on its way out.
    fn prepare(&self, parts: &mut http::request::Parts) -> Result<(), ProxyError> {
        headers::prepare_request(&mut parts.headers, &parts.uri, parts.version, self.upstream.host());
        // Origin form already, but for HTTP/2 and absolute-form.
        if parts.uri.authority().is_some() || parts.uri.path_and_query().is_none() {
            let target = parts.uri.path_and_query().cloned();
            parts.uri = target.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")).into();
        }
        parts.version = http::Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        Ok(())
    }

    /// Seals `source` and sets the headers that go with it.
    async fn seal(
        &self,
        protection: &Protection,
        context: &RequestContext,
        message: &mut HeaderMap,
        mut source: Source,
        plain_len: Option<u64>,
        progress: Option<Arc<UploadProgress>>,
    ) -> Result<ProxyBody, ProxyError> {
        let declared = Declared::of(message)?;
        if let Some(plain_len) = plain_len.and_then(small) {
            // One more than there are: to the end of the body, which may come after its last byte.
            let plain = source.read_at_least(plain_len + 1).await;
            let plain = plain.map_err(|error| ProxyError::from_body(&error))?;
            if source.has_trailers() {
                source.put_back(plain);
            } else {
                // Only now: a client that is slow to send does not hold an old key or outlive a lease.
                let dek = self.keys.seal(protection, context).await?;
                let from_upstream = source.is_from_upstream();
                let sealed = seal::small(&plain, plain_len, &dek, &context.digest, declared, from_upstream)
                    .map_err(|error| ProxyError::from_body(&error))?;
                if let Some(progress) = &progress {
                    progress.done();
                }
                headers::drop_digests(message);
                headers::set_content_length(message, Some(sealed.len() as u64));
                return Ok(ProxyBody::full(sealed));
            }
        }
        let dek = self.keys.seal(protection, context).await?;
        let body = SealBody::new(source, dek, &context.digest, plain_len, declared, progress)
            .map_err(|error| ProxyError::from_body(&error))?;
        headers::drop_digests(message);
        headers::set_content_length(message, body.exact_len());
        Ok(ProxyBody::Seal(Box::new(body)))
    }

    /// Reads an envelope's header from `source`, gets its DEK and checks the commitment. Everything read behind the
    /// header comes with it.
    async fn read_header(
        &self,
        protection: &Protection,
        context: &RequestContext,
        source: &mut Source,
    ) -> Result<Opening, ProxyError> {
        let from_upstream = source.is_from_upstream();
        let mut first = source.read_at_least(HEADER).await.map_err(|error| ProxyError::from_body(&error))?;
        let header = match Header::parse(&first) {
            Ok(header) if header.profile == Profile::Object => header,
            Ok(_) => return Err(ProxyError::OpenFailed { reason: "profile", from_upstream }),
            Err(FormatError::Magic) => return Ok(Opening::Plaintext(first)),
            Err(_) => return Err(ProxyError::OpenFailed { reason: "format", from_upstream }),
        };
        let dek = match self.keys.open(protection, context, &header.key_block).await {
            Ok(dek) => dek,
            // To a peer, a block that was refused and a body that does not open are one and the same.
            Err(KeyError::Refused) => {
                return Err(ProxyError::OpenFailed { reason: "key_block", from_upstream });
            }
            Err(error) => return Err(error.into()),
        };
        let keys = dek.dek().derive(&header.salt, &context.digest);
        if let Err(error) = keys.verify(&header.commitment) {
            dek.count_open_failure();
            return Err(ProxyError::OpenFailed { reason: error.reason(), from_upstream });
        }
        let rest = first.split_off(HEADER);
        Ok(Opening::Sealed { keys, dek, rest })
    }
}

/// What stood at the beginning of a body.
pub(super) enum Opening {
    /// No envelope; these bytes were read.
    Plaintext(Bytes),
    /// An envelope whose commitment is right; `rest` was read behind its header.
    Sealed { keys: MessageKeys, dek: Arc<CachedDek>, rest: Bytes },
}

/// The length of a body that is read, sealed or opened and sent in one piece, without the machinery of streams: one
/// full segment at most, and the empty one that ends it.
fn small(plain_len: u64) -> Option<usize> {
    usize::try_from(plain_len).ok().filter(|&len| len <= SEGMENT)
}

/// Whether a request has content (RFC 9110, 6.4): its framing says so. A PUT always has: storing nothing is storing
/// an empty object, and that is sealed as well. Methods without content may still say `Content-Length: 0`.
fn has_body(method: &Method, headers: &HeaderMap, incoming: &Incoming, protected: bool) -> bool {
    if !incoming.is_end_stream() {
        return true;
    }
    let contentless = matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    (protected && method == Method::PUT)
        || (!contentless && (headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)))
}

/// Refuses content that can't be sealed or opened as a whole.
fn check_content(parts: &http::request::Parts, has_body: bool) -> Result<(), ProxyError> {
    if has_body && parts.headers.contains_key(CONTENT_RANGE) {
        return Err(ProxyError::PartialUpload);
    }
    if has_body && parts.method == Method::HEAD {
        return Err(ProxyError::Unsupported("a HEAD request with content is not carried"));
    }
    Ok(())
}

/// Whether a response has content (RFC 9110, 6.4.1).
fn response_has_body(method: &Method, status: StatusCode) -> bool {
    method != Method::HEAD
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
        && !status.is_informational()
}

/// The last touch on the way to the client.
fn finish_response(mut response: Response<ProxyBody>) -> Response<ProxyBody> {
    headers::strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = http::Version::HTTP_11;
    response
}
