//! Every error that a data client can get, and the one place that turns it into a response (RFC 9457).

use crate::body::{BodyError, ProxyBody};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use keyway_envelope::OpenError;
use keyway_keycache::KeyError;

/// Why a request got no answer from its upstream, or not all of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// No route takes the request; it never passes by accident.
    #[error("no route takes this method, host and path")]
    NoRoute,
    /// The path means one route as it is written, and another after normalisation.
    #[error("the path is ambiguous: it has dot segments, empty segments or encodings that change its route")]
    AmbiguousPath,
    /// No Host, or more than one (RFC 9112, 3.2).
    #[error("the request must have exactly one Host")]
    AmbiguousHost,
    /// Framing that two readers could understand differently (RFC 9112, 6.3).
    #[error("the request has both Content-Length and Transfer-Encoding")]
    AmbiguousFraming,
    /// An upgrade or a CONNECT that this route does not carry.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The request's tenant header is missing, repeated or not usable.
    #[error("the header {0} must name the tenant: one value of 1 to 128 visible ASCII characters")]
    Tenant(HeaderName),
    /// Head too large.
    #[error("the request's headers are too large")]
    HeaderLimits,
    /// A body that should be an envelope is none.
    #[error("the body is not sealed, and this route takes sealed bodies only")]
    PlaintextRefused {
        /// Whether the upstream sent it (else the client did).
        from_upstream: bool,
    },
    /// An envelope that does not open. Says no more: the reason is in a metric.
    #[error("the sealed body could not be opened")]
    OpenFailed {
        /// For the metric.
        reason: &'static str,
        /// Whether the upstream sent it (else the client did).
        from_upstream: bool,
    },
    /// No key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// Too much of something.
    #[error("the body is too large")]
    TooLarge,
    /// A body that is not what the route seals fields of.
    #[error(
        "this route takes JSON: Content-Type application/json, …+json or application/x-ndjson, UTF-8, no Content-Encoding"
    )]
    MediaType,
    /// A JSON document that can't be taken.
    #[error("the JSON body cannot be taken: {flaw}")]
    Json {
        /// Why not; nothing of its content.
        flaw: String,
        /// Whether the upstream sent it (else the client did).
        from_upstream: bool,
    },
    /// A value that is to be sealed is sealed already.
    #[error("a field of the body is sealed already; sealing it twice would hide it from its readers")]
    AlreadySealed {
        /// Whether the upstream sent it (else the client did).
        from_upstream: bool,
    },
    /// Too much at once.
    #[error("too much is under way; try again")]
    Overloaded,
    /// A range beyond the object.
    #[error("the range lies outside the object")]
    RangeUnsatisfiable {
        /// The object's length in plaintext bytes.
        plain_len: u64,
    },
    /// The digest that the client declared is not that of what it sent.
    #[error("the body does not match its {0} header")]
    DigestMismatch(&'static str),
    /// The client's digest header can't be read.
    #[error("the {0} header is malformed")]
    DigestMalformed(&'static str),
    /// A partial upload can't be sealed.
    #[error("a partial upload (Content-Range) would break the sealed object; send it whole")]
    PartialUpload,
    /// The client's body broke off.
    #[error("the request body broke off")]
    ClientBody,
    /// The client's body stopped coming.
    #[error("the request body stopped coming")]
    ClientIdle,
    /// No connection, or it broke before the response's head.
    #[error("the upstream cannot be reached: {0}")]
    UpstreamUnreachable(String),
    /// No response head in time.
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    /// An answer that HTTP does not allow here.
    #[error("the upstream's answer cannot be used: {0}")]
    UpstreamProtocol(&'static str),
}

impl ProxyError {
    /// Status and code.
    #[must_use]
    pub fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoRoute => (StatusCode::NOT_FOUND, "no-route"),
            Self::AmbiguousPath => (StatusCode::BAD_REQUEST, "ambiguous-path"),
            Self::AmbiguousHost => (StatusCode::BAD_REQUEST, "ambiguous-host"),
            Self::AmbiguousFraming => (StatusCode::BAD_REQUEST, "ambiguous-framing"),
            Self::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "unsupported"),
            Self::Tenant(_) => (StatusCode::BAD_REQUEST, "tenant-missing"),
            Self::HeaderLimits => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header-limits"),
            Self::PlaintextRefused { from_upstream: true } => (StatusCode::BAD_GATEWAY, "plaintext-refused"),
            Self::PlaintextRefused { .. } => (StatusCode::BAD_REQUEST, "plaintext-refused"),
            Self::OpenFailed { from_upstream: true, .. } => (StatusCode::BAD_GATEWAY, "open-failed"),
            Self::OpenFailed { .. } => (StatusCode::BAD_REQUEST, "open-failed"),
            Self::Key(KeyError::SealLeaseExpired) => (StatusCode::SERVICE_UNAVAILABLE, "seal-lease-expired"),
            Self::Key(KeyError::NotAllowed) => (StatusCode::FORBIDDEN, "key-denied"),
            Self::Key(_) => (StatusCode::SERVICE_UNAVAILABLE, "key-unavailable"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type"),
            Self::Json { from_upstream: true, .. } => (StatusCode::BAD_GATEWAY, "json-invalid"),
            Self::Json { .. } => (StatusCode::BAD_REQUEST, "json-invalid"),
            Self::AlreadySealed { from_upstream: true } => (StatusCode::BAD_GATEWAY, "already-sealed"),
            Self::AlreadySealed { .. } => (StatusCode::BAD_REQUEST, "already-sealed"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::RangeUnsatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "range-unsatisfiable"),
            Self::DigestMismatch(_) => (StatusCode::BAD_REQUEST, "digest-mismatch"),
            Self::DigestMalformed(_) => (StatusCode::BAD_REQUEST, "digest-malformed"),
            Self::PartialUpload => (StatusCode::BAD_REQUEST, "partial-upload"),
            Self::ClientIdle => (StatusCode::REQUEST_TIMEOUT, "client-idle"),
            Self::ClientBody => (StatusCode::BAD_REQUEST, "client-body"),
            Self::UpstreamUnreachable(_) => (StatusCode::BAD_GATEWAY, "upstream-unreachable"),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
            Self::UpstreamProtocol(_) => (StatusCode::BAD_GATEWAY, "upstream-protocol"),
        }
    }

    /// What the client reads. What the upstream's stack said of a failure is for the log alone.
    fn title(&self) -> String {
        match self {
            Self::UpstreamUnreachable(_) => "the upstream cannot be reached".to_owned(),
            other => other.to_string(),
        }
    }

    /// The response. `request_id` is in the log too.
    #[must_use]
    pub fn respond(&self, method: &Method, request_id: &str) -> Response<ProxyBody> {
        let (status, code) = self.status_and_code();
        let problem = serde_json::json!({
            "type": format!("urn:keyway:error:{code}"),
            "title": self.title(),
            "status": status.as_u16(),
            "instance": format!("urn:keyway:request:{request_id}"),
        });
        let text = Bytes::from(problem.to_string());
        let mut response = Response::new(ProxyBody::Empty);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert(HeaderName::from_static("x-request-id"), value);
        }
        match self {
            Self::Key(KeyError::NotAllowed) => {}
            Self::Key(_) | Self::Overloaded => {
                drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1")));
            }
            Self::RangeUnsatisfiable { plain_len } => {
                if let Ok(value) = HeaderValue::from_str(&format!("bytes */{plain_len}")) {
                    headers.insert(CONTENT_RANGE, value);
                }
            }
            Self::AmbiguousFraming | Self::AmbiguousHost | Self::HeaderLimits | Self::ClientIdle => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        if method != Method::HEAD {
            *response.body_mut() = ProxyBody::full(text);
        }
        response
    }

    /// The failure of a body that was being read or written before any response.
    pub(crate) fn from_body(error: &BodyError) -> Self {
        match error {
            BodyError::Client(_) | BodyError::Aborted => Self::ClientBody,
            BodyError::Idle { from_upstream: false } => Self::ClientIdle,
            BodyError::Idle { from_upstream: true } => Self::UpstreamTimeout,
            BodyError::Upstream(error) => Self::UpstreamUnreachable(error.to_string()),
            BodyError::Open { error, from_upstream } => {
                Self::OpenFailed { reason: error.reason(), from_upstream: *from_upstream }
            }
            BodyError::Length { from_upstream } => {
                Self::OpenFailed { reason: OpenError::Truncated.reason(), from_upstream: *from_upstream }
            }
            BodyError::Json { flaw, from_upstream } => {
                Self::Json { flaw: flaw.clone(), from_upstream: *from_upstream }
            }
            BodyError::Field { reason, from_upstream } => {
                Self::OpenFailed { reason, from_upstream: *from_upstream }
            }
            BodyError::Plaintext { from_upstream } => {
                Self::PlaintextRefused { from_upstream: *from_upstream }
            }
            BodyError::AlreadySealed { from_upstream } => {
                Self::AlreadySealed { from_upstream: *from_upstream }
            }
            BodyError::Overloaded => Self::Overloaded,
            BodyError::Digest(name) => Self::DigestMismatch(name),
            BodyError::Key(error) => Self::Key(*error),
            BodyError::TooLarge => Self::TooLarge,
        }
    }
}
