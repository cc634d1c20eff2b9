//! Role client: requests are sealed, responses opened.

mod partial;

use super::range::AskedRange;
use super::*;
use http::header::{ACCEPT_RANGES, IF_RANGE, RANGE};
use http::request;

impl Transform {
    pub(super) async fn client(
        &self,
        route: &Arc<Route>,
        protection: &Protection,
        request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let context = protection.context.of(request.headers())?;
        let (mut parts, incoming) = request.into_parts();
        let plain_len = headers::content_length(&parts.headers)?;
        let has_body = has_body(&parts.method, &parts.headers, &incoming, true);
        check_content(&parts, has_body)?;
        let version = parts.version;
        self.prepare(&mut parts)?;
        headers::unmark_conditions(&mut parts.headers);
        let exchange = Exchange { transform: self, route, protection, context };
        if has_body {
            // A PUT with no framing at all is an empty object.
            let plain_len = plain_len.or_else(|| incoming.is_end_stream().then_some(0));
            let source = Source::client(incoming, version, self.upstream.body_idle_max());
            return exchange.upload(parts, source, plain_len).await;
        }
        parts.headers.remove(CONTENT_LENGTH);
        let asked = AskedRange::take(&parts.method, &mut parts.headers);
        match (parts.method == Method::HEAD, asked) {
            // In boxes: they are rarer and larger, and every request's future would have the room for them.
            (true, _) => Box::pin(exchange.head(parts)).await,
            (false, Some(asked)) => Box::pin(exchange.range(parts, asked)).await,
            (false, None) => exchange.whole(parts).await,
        }
    }
}

/// One request on a protected route, and what is needed to answer it.
struct Exchange<'a> {
    transform: &'a Transform,
    route: &'a Arc<Route>,
    protection: &'a Protection,
    context: RequestContext,
}

impl Exchange<'_> {
    async fn upload(
        &self,
        mut parts: request::Parts,
        source: Source,
        plain_len: Option<u64>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let method = parts.method.clone();
        // A range of the answer to an upload would be one of sealed bytes.
        parts.headers.remove(RANGE);
        parts.headers.remove(IF_RANGE);
        let progress = Arc::new(UploadProgress::default());
        let watched = Some(Arc::clone(&progress));
        let body = self
            .transform
            .seal(self.protection, &self.context, &mut parts.headers, source, plain_len, watched)
            .await?;
        let response =
            self.transform.upstream.send(Request::from_parts(parts, body), Some(&progress)).await?;
        self.open_response(&method, response).await
    }

    async fn whole(&self, parts: request::Parts) -> Result<Response<ProxyBody>, ProxyError> {
        let method = parts.method.clone();
        let response =
            self.transform.upstream.send(Request::from_parts(parts, ProxyBody::Empty), None).await?;
        self.open_response(&method, response).await
    }

    /// Opens a whole response.
    async fn open_response(
        &self,
        method: &Method,
        response: Response<Source>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let (mut head, mut source) = response.into_parts();
        headers::mark_etag(&mut head.headers);
        headers::drop_digests(&mut head.headers);
        let sealed_len = upstream_length(&head.headers)?;
        if !response_has_body(method, head.status) {
            // In a 304 it would be the length of the sealed bytes (RFC 9110, 8.6).
            head.headers.remove(CONTENT_LENGTH);
            return Ok(finish_response(Response::from_parts(head, ProxyBody::Source(Box::new(source)))));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(ProxyError::UpstreamProtocol("it sent a part (206) where the whole was asked for"));
        }
        match self.transform.read_header(self.protection, &self.context, &mut source).await? {
            Opening::Plaintext(first) => self.plaintext(method, head, source, first),
            Opening::Sealed { keys, dek, mut rest } => {
                let plain_len = plain_len(sealed_len)?;
                if let (Some(plain_len), Some(sealed_len)) = (plain_len.and_then(small), sealed_len) {
                    let segments = usize::try_from(sealed_len).unwrap_or(usize::MAX).saturating_sub(HEADER);
                    if rest.len() < segments {
                        source.put_back(rest);
                        rest = source.read_at_least(segments).await.map_err(|e| ProxyError::from_body(&e))?;
                    }
                    if source.is_end_stream() {
                        let opened = open::small(&rest, plain_len, keys, &dek, true)
                            .map_err(|error| ProxyError::from_body(&error))?;
                        headers::set_content_length(&mut head.headers, Some(plain_len as u64));
                        return Ok(finish_response(Response::from_parts(head, ProxyBody::full(opened))));
                    }
                }
                let opener = Opener::new(keys, Implementation::selected());
                let window = Window { skip: 0, take: plain_len, cuts: false };
                let mut body = OpenBody::new(source, rest, opener, dek, self.route, window);
                body.prime().await.map_err(|error| ProxyError::from_body(&error))?;
                headers::set_content_length(&mut head.headers, plain_len);
                Ok(finish_response(Response::from_parts(head, ProxyBody::Open(Box::new(body)))))
            }
        }
    }

    /// A response with no envelope. What the upstream says of its own (an error, a receipt for a PUT or DELETE, an empty
    /// acknowledgement) is no stored data and passes. Anything else is refused, unless the route migrates.
    fn plaintext(
        &self,
        method: &Method,
        mut head: http::response::Parts,
        mut source: Source,
        first: Bytes,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let receipt = matches!(*method, Method::PUT | Method::DELETE)
            || (*method != Method::GET && first.is_empty() && source.is_end_stream());
        let action = self.protection.plaintext(!head.status.is_success() || receipt);
        let is_empty = first.is_empty() && source.is_end_stream();
        if !(is_empty && matches!(action, PlaintextAction::Passed)) {
            self.route.metrics.plaintext(action);
        }
        if let PlaintextAction::Refused = action {
            return Err(ProxyError::PlaintextRefused { from_upstream: true });
        }
        // Ranges are answered against opened objects only.
        head.headers.remove(ACCEPT_RANGES);
        source.put_back(first);
        Ok(finish_response(Response::from_parts(head, ProxyBody::Source(Box::new(source)))))
    }
}

fn upstream_length(headers: &HeaderMap) -> Result<Option<u64>, ProxyError> {
    headers::content_length(headers)
        .map_err(|_| ProxyError::UpstreamProtocol("its Content-Length is malformed"))
}

fn plain_len(sealed_len: Option<u64>) -> Result<Option<u64>, ProxyError> {
    sealed_len
        .map(keyway_envelope::length::plain_len)
        .transpose()
        .map_err(|_| ProxyError::OpenFailed { reason: "length", from_upstream: true })
}
