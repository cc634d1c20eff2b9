//! Mode json, in both roles: whole documents, and lines of them.

use super::*;
use crate::body::BodyError;
use crate::body::held::Held;
use crate::json::{Documents, Media, Way, lines};
use bytes::Buf as _;
use futures_util::stream::unfold;
use http::HeaderValue;
use http::header::{ACCEPT_ENCODING, ACCEPT_RANGES, IF_RANGE, RANGE};
use http_body::Frame;

impl Transform {
    pub(super) async fn json(
        &self,
        route: &Arc<Route>,
        protection: &Protection,
        request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let context = protection.context.of(request.headers())?;
        let (mut parts, incoming) = request.into_parts();
        let declared_len = headers::content_length(&parts.headers)?;
        let has_body = has_body(&parts.method, &parts.headers, &incoming, false);
        check_content(&parts, has_body)?;
        let (method, version) = (parts.method.clone(), parts.version);
        self.prepare(&mut parts)?;
        if self.role == Role::Client {
            headers::unmark_conditions(&mut parts.headers);
        }
        // Parts of a sealed document say nothing about the plain one, and into an encoded one nobody can look.
        parts.headers.remove(RANGE);
        parts.headers.remove(IF_RANGE);
        parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let way = if self.role == Role::Client { Way::Seal } else { Way::Open };
        let documents = Documents {
            route: Arc::clone(route),
            keys: self.keys.clone(),
            context,
            way,
            from_upstream: false,
            max: self.json_max,
            on_a_line: false,
        };
        let mut progress = None;
        let body = if !has_body {
            parts.headers.remove(CONTENT_LENGTH);
            ProxyBody::Empty
        } else if incoming.is_end_stream() && declared_len == Some(0) {
            ProxyBody::Empty
        } else {
            let watch = Arc::new(UploadProgress::default());
            progress = Some(Arc::clone(&watch));
            let source = Source::client(incoming, version, self.upstream.body_idle_max());
            match Media::of(&parts.headers) {
                Media::Other => return Err(ProxyError::MediaType),
                Media::Lines => {
                    let source = source.with_progress(watch);
                    self.json_body(documents.clone(), Media::Lines, &mut parts.headers, source).await?
                }
                // What is watched is what goes out, not what has come in.
                Media::Document => {
                    let read = self.json_body(documents.clone(), Media::Document, &mut parts.headers, source);
                    let read = tokio::time::timeout(self.upstream.body_idle_max(), read);
                    in_pieces(read.await.map_err(|_| ProxyError::ClientIdle)??, watch)
                }
            }
        };
        let response = self.upstream.send(Request::from_parts(parts, body), progress.as_deref()).await?;
        self.json_response(documents, protection, &method, response).await
    }

    /// One message's documents, and the headers that go with what becomes of them.
    async fn json_body(
        &self,
        documents: Documents,
        media: Media,
        message: &mut HeaderMap,
        mut source: Source,
    ) -> Result<ProxyBody, ProxyError> {
        // A digest of sealed bytes says nothing about what was sealed; the envelopes do.
        let mut declared =
            if documents.way == Way::Seal { Declared::of(message)? } else { Declared::default() };
        headers::drop_digests(message);
        if media == Media::Lines {
            message.remove(CONTENT_LENGTH);
            let documents = Documents { on_a_line: true, ..documents };
            return Ok(ProxyBody::Frames(Box::pin(lines::stream(documents, source, declared))));
        }
        let refused = |error: BodyError| match error {
            BodyError::TooLarge if documents.from_upstream => {
                ProxyError::UpstreamProtocol("its JSON body is longer than limits.json_body")
            }
            // The request has been carried out: nobody should send it again.
            BodyError::Overloaded if documents.from_upstream => {
                ProxyError::UpstreamProtocol("there is no room for its JSON body now")
            }
            error => ProxyError::from_body(&error),
        };
        let mut held = Held::default();
        let whole = source.read_whole(self.json_max, &mut held).await.map_err(&refused)?;
        declared.update(&whole);
        declared.verify().map_err(ProxyError::DigestMismatch)?;
        // Nothing at all is what many services say when there is nothing to say.
        let read = whole.len();
        let made = if whole.is_empty() { whole } else { documents.carry(whole).await.map_err(&refused)? };
        held.resize(made.len().max(read)).map_err(&refused)?;
        let mut trailers = source.take_trailers().unwrap_or_default();
        headers::drop_digests(&mut trailers);
        if trailers.is_empty() {
            headers::set_content_length(message, Some(made.len() as u64));
            return Ok(if made.is_empty() { ProxyBody::Empty } else { ProxyBody::full(held.keep(made)) });
        }
        message.remove(CONTENT_LENGTH);
        let frames = [Frame::data(held.keep(made)), Frame::trailers(trailers)];
        Ok(ProxyBody::Frames(Box::pin(futures_util::stream::iter(frames.map(Ok)))))
    }

    async fn json_response(
        &self,
        documents: Documents,
        protection: &Protection,
        method: &Method,
        response: Response<Source>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let (mut head, mut source) = response.into_parts();
        if self.role == Role::Client {
            headers::mark_etag(&mut head.headers);
        }
        head.headers.remove(ACCEPT_RANGES);
        headers::content_length(&head.headers)
            .map_err(|_| ProxyError::UpstreamProtocol("its Content-Length is malformed"))?;
        if !response_has_body(method, head.status) {
            headers::drop_digests(&mut head.headers);
            head.headers.remove(CONTENT_LENGTH);
            return Ok(finish_response(Response::from_parts(head, ProxyBody::Source(Box::new(source)))));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(ProxyError::UpstreamProtocol("it sent a part (206) where the whole was asked for"));
        }
        let way = match self.role {
            Role::Server => Way::Seal,
            Role::Client if head.status.is_success() => Way::Open,
            Role::Client => Way::OpenSealed,
        };
        let documents = Documents { way, from_upstream: true, ..documents };
        let media = Media::of(&head.headers);
        if media != Media::Other {
            let body = self.json_body(documents, media, &mut head.headers, source).await.map_err(
                |error| match error {
                    ProxyError::DigestMalformed(_) | ProxyError::DigestMismatch(_) => {
                        ProxyError::UpstreamProtocol("its body does not match its digest header")
                    }
                    other => other,
                },
            )?;
            return Ok(finish_response(Response::from_parts(head, body)));
        }
        let first = source.read_at_least(1).await.map_err(|error| ProxyError::from_body(&error))?;
        if !first.is_empty() {
            if self.role == Role::Server {
                // Nobody can tell what is in it, and on this side it is plaintext.
                return Err(ProxyError::UpstreamProtocol(
                    "it is no JSON, of which this route would seal fields",
                ));
            }
            let receipt = matches!(*method, Method::PUT | Method::DELETE);
            let action = protection.plaintext(!head.status.is_success() || receipt);
            documents.route.metrics.plaintext(action);
            if let PlaintextAction::Refused = action {
                return Err(ProxyError::PlaintextRefused { from_upstream: true });
            }
        }
        source.put_back(first);
        Ok(finish_response(Response::from_parts(head, ProxyBody::Source(Box::new(source)))))
    }
}

/// What is sent of a whole body at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// A long body in pieces, so that the one who waits for the response sees it go out.
fn in_pieces(body: ProxyBody, progress: Arc<UploadProgress>) -> ProxyBody {
    match body {
        ProxyBody::Full(Some(bytes)) if bytes.len() > PIECE => {
            let pieces = unfold((bytes, progress), |(mut bytes, progress)| async move {
                if !bytes.has_remaining() {
                    progress.done();
                    return None;
                }
                progress.step();
                let piece = bytes.split_to(bytes.len().min(PIECE));
                Some((Ok(Frame::data(piece)), (bytes, progress)))
            });
            ProxyBody::Frames(Box::pin(pieces))
        }
        body => {
            progress.done();
            body
        }
    }
}
