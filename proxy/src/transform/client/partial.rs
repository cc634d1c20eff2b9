//! HEAD and ranges: answered from the envelope's header and the segments needed, nothing more.

use super::{Exchange, plain_len, upstream_length};
use crate::body::open::Window;
use crate::body::{OpenBody, ProxyBody};
use crate::error::ProxyError;
use crate::headers;
use crate::telemetry::PlaintextAction;
use crate::transform::range::{AskedRange, content_range};
use crate::transform::{Opening, finish_response};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request, response};
use keyway_envelope::length::{RangePlan, range_plan};
use keyway_envelope::{Implementation, Opener};

/// Asks for the envelope's header only.
const HEADER_RANGE: HeaderValue = HeaderValue::from_static("bytes=0-159");

impl Exchange<'_> {
    /// HEAD agrees with GET: it is a GET of the envelope's header, so that it can be checked.
    pub(super) async fn head(&self, mut parts: request::Parts) -> Result<Response<ProxyBody>, ProxyError> {
        parts.method = Method::GET;
        parts.headers.insert(RANGE, HEADER_RANGE);
        let request = Request::from_parts(parts, ProxyBody::Empty);
        let (mut head, mut source) = self.transform.upstream.send(request, None).await?.into_parts();
        headers::mark_etag(&mut head.headers);
        headers::drop_digests(&mut head.headers);
        let sealed_len = match head.status {
            StatusCode::PARTIAL_CONTENT => Some(part_of(&head, 0)?),
            StatusCode::OK => upstream_length(&head.headers)?,
            // No byte is stored there: even an empty object has an envelope.
            StatusCode::RANGE_NOT_SATISFIABLE => return self.plaintext_head(head, Some(0)),
            status => {
                if status == StatusCode::NOT_MODIFIED {
                    head.headers.remove(CONTENT_LENGTH);
                }
                return Ok(finish_response(Response::from_parts(head, ProxyBody::Empty)));
            }
        };
        match self.transform.read_header(self.protection, &self.context, &mut source).await? {
            Opening::Plaintext(_) => self.plaintext_head(head, sealed_len),
            Opening::Sealed { .. } => {
                head.status = StatusCode::OK;
                head.headers.remove(CONTENT_RANGE);
                headers::set_content_length(&mut head.headers, plain_len(sealed_len)?);
                Ok(finish_response(Response::from_parts(head, ProxyBody::Empty)))
            }
        }
    }

    fn plaintext_head(
        &self,
        mut head: response::Parts,
        length: Option<u64>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        self.migrate_or_refuse()?;
        headers::set_content_length(&mut head.headers, length);
        head.status = StatusCode::OK;
        head.headers.remove(CONTENT_RANGE);
        head.headers.remove(ACCEPT_RANGES);
        Ok(finish_response(Response::from_parts(head, ProxyBody::Empty)))
    }

    fn migrate_or_refuse(&self) -> Result<(), ProxyError> {
        let action = self.protection.plaintext(false);
        self.route.metrics.plaintext(action);
        match action {
            PlaintextAction::Refused => Err(ProxyError::PlaintextRefused { from_upstream: true }),
            _ => Ok(()),
        }
    }

    /// A range of the plaintext: first the envelope's header, which also tells the object's length, then the segments.
    pub(super) async fn range(
        &self,
        parts: request::Parts,
        asked: AskedRange,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let mut first = copy_head(&parts);
        first.headers_mut().insert(RANGE, HEADER_RANGE);
        let response = self.transform.upstream.send(first, None).await?;
        let (mut head, mut source) = match response.status() {
            StatusCode::PARTIAL_CONTENT => response.into_parts(),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.migrate_or_refuse()?;
                return Err(ProxyError::RangeUnsatisfiable { plain_len: 0 });
            }
            // If-Range did not hold, the upstream knows no ranges, or it is an error: whatever it is, it is whole.
            _ => return self.open_response(&Method::GET, response).await,
        };
        let sealed_len = part_of(&head, 0)?;
        let opening = self.transform.read_header(self.protection, &self.context, &mut source).await?;
        let Opening::Sealed { keys, dek, .. } = opening else {
            self.migrate_or_refuse()?;
            return self.whole(without_conditions(parts)).await;
        };
        let plain_len = plain_len(Some(sealed_len))?.unwrap_or_default();
        let (from, to) = asked.resolve(plain_len).ok_or(ProxyError::RangeUnsatisfiable { plain_len })?;
        let plan = range_plan(plain_len, from, to);
        let source = self.fetch_segments(parts, &plan, &head.headers, sealed_len).await?;

        let opener = Opener::range(keys, Implementation::selected(), &plan);
        let window = Window { skip: plan.skip, take: Some(plan.take), cuts: true };
        let mut body = OpenBody::new(source, Bytes::new(), opener, dek, self.route, window);
        body.prime().await.map_err(|error| ProxyError::from_body(&error))?;
        headers::mark_etag(&mut head.headers);
        headers::drop_digests(&mut head.headers);
        head.headers.insert(CONTENT_RANGE, value(&format!("bytes {from}-{to}/{plain_len}"))?);
        headers::set_content_length(&mut head.headers, Some(plan.take));
        Ok(finish_response(Response::from_parts(head, ProxyBody::Open(Box::new(body)))))
    }

    /// The sealed bytes of a range. They have to come from the object that the header came from.
    async fn fetch_segments(
        &self,
        parts: request::Parts,
        plan: &RangePlan,
        first: &HeaderMap,
        sealed_len: u64,
    ) -> Result<crate::body::Source, ProxyError> {
        let mut request = Request::from_parts(without_conditions(parts), ProxyBody::Empty);
        let wanted = format!("bytes={}-{}", plan.sealed.start(), plan.sealed.end());
        request.headers_mut().insert(RANGE, value(&wanted)?);
        let etag = strong_etag(first);
        if let Some(etag) = etag {
            request.headers_mut().insert(IF_MATCH, etag.clone());
        }
        let (part, source) = self.transform.upstream.send(request, None).await?.into_parts();
        let unchanged = part.status == StatusCode::PARTIAL_CONTENT
            && part_of(&part, *plan.sealed.start())? == sealed_len
            && strong_etag(&part.headers) == etag;
        if unchanged {
            Ok(source)
        } else {
            Err(ProxyError::UpstreamProtocol("the object changed while a range of it was read"))
        }
    }
}

/// The total that a 206 names; its part has to begin at `first`.
fn part_of(head: &response::Parts, first: u64) -> Result<u64, ProxyError> {
    match content_range(head.headers.get(CONTENT_RANGE)) {
        Some((Some((begins, _)), total)) if begins == first => Ok(total),
        _ => Err(ProxyError::UpstreamProtocol("its Content-Range is missing or is not what was asked for")),
    }
}

fn strong_etag(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"))
}

fn value(text: &str) -> Result<HeaderValue, ProxyError> {
    HeaderValue::from_str(text).map_err(|_| ProxyError::UpstreamProtocol("a header value is malformed"))
}

fn copy_head(parts: &request::Parts) -> Request<ProxyBody> {
    let mut copy = Request::new(ProxyBody::Empty);
    *copy.method_mut() = parts.method.clone();
    *copy.uri_mut() = parts.uri.clone();
    *copy.headers_mut() = parts.headers.clone();
    copy
}

/// The conditions held when the first part came; the second has its own.
fn without_conditions(mut parts: request::Parts) -> request::Parts {
    for name in [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE] {
        parts.headers.remove(name);
    }
    parts
}
