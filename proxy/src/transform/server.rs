//! Role server: requests are opened, responses sealed.

use super::*;
use http::HeaderValue;
use http::header::{ACCEPT_RANGES, IF_RANGE, RANGE};

impl Transform {
    pub(super) async fn server(
        &self,
        route: &Arc<Route>,
        protection: &Protection,
        request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let context = protection.context.of(request.headers())?;
        let (mut parts, incoming) = request.into_parts();
        let sealed_len = headers::content_length(&parts.headers)?;
        let has_body = has_body(&parts.method, &parts.headers, &incoming, true);
        let (method, version) = (parts.method.clone(), parts.version);
        self.prepare(&mut parts)?;
        // Every response is sealed anew, so a part of one says nothing about another: always the whole.
        parts.headers.remove(RANGE);
        parts.headers.remove(IF_RANGE);
        let (body, progress) = if has_body {
            let progress = Arc::new(UploadProgress::default());
            let source = Source::client(incoming, version, self.upstream.body_idle_max())
                .with_progress(Arc::clone(&progress));
            let body = self
                .open_request(route, protection, &context, &mut parts.headers, source, sealed_len)
                .await?;
            (body, Some(progress))
        } else {
            parts.headers.remove(CONTENT_LENGTH);
            (ProxyBody::Empty, None)
        };
        let response = self.upstream.send(Request::from_parts(parts, body), progress.as_deref()).await?;
        self.seal_response(protection, &context, &method, response).await
    }

    async fn open_request(
        &self,
        route: &Arc<Route>,
        protection: &Protection,
        context: &RequestContext,
        message: &mut HeaderMap,
        mut source: Source,
        sealed_len: Option<u64>,
    ) -> Result<ProxyBody, ProxyError> {
        match self.read_header(protection, context, &mut source).await? {
            Opening::Plaintext(first) => {
                let action = protection.plaintext(false);
                route.metrics.plaintext(action);
                if let PlaintextAction::Refused = action {
                    return Err(ProxyError::PlaintextRefused { from_upstream: false });
                }
                source.put_back(first);
                Ok(ProxyBody::Source(Box::new(source)))
            }
            Opening::Sealed { keys, dek, rest } => {
                let plain_len = sealed_len
                    .map(keyway_envelope::length::plain_len)
                    .transpose()
                    .map_err(|_| ProxyError::OpenFailed { reason: "length", from_upstream: false })?;
                let opener = Opener::new(keys, Implementation::selected());
                let window = Window { skip: 0, take: plain_len, cuts: false };
                let mut body = OpenBody::new(source, rest, opener, dek, route, window);
                body.prime().await.map_err(|error| ProxyError::from_body(&error))?;
                headers::drop_digests(message);
                headers::set_content_length(message, plain_len);
                Ok(ProxyBody::Open(Box::new(body)))
            }
        }
    }

    async fn seal_response(
        &self,
        protection: &Protection,
        context: &RequestContext,
        method: &Method,
        response: Response<Source>,
    ) -> Result<Response<ProxyBody>, ProxyError> {
        let (mut head, source) = response.into_parts();
        let plain_len = headers::content_length(&head.headers)
            .map_err(|_| ProxyError::UpstreamProtocol("its Content-Length is malformed"))?;
        head.headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
        if !response_has_body(method, head.status) {
            headers::drop_digests(&mut head.headers);
            let sealed =
                plain_len.filter(|_| method == Method::HEAD).and_then(keyway_envelope::length::sealed_len);
            headers::set_content_length(&mut head.headers, sealed);
            return Ok(finish_response(Response::from_parts(head, ProxyBody::Source(Box::new(source)))));
        }
        // A digest that the service declares is of the plaintext; a wrong one breaks the response off.
        let body = self.seal(protection, context, &mut head.headers, source, plain_len, None).await.map_err(
            |error| match error {
                ProxyError::DigestMalformed(_) => {
                    ProxyError::UpstreamProtocol("a digest header of it is malformed")
                }
                other => other,
            },
        )?;
        Ok(finish_response(Response::from_parts(head, body)))
    }
}
