//! Refuses requests that no route may carry.

use crate::error::ProxyError;
use crate::server::framing::{Fault, FramingFault};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, Version};
use hyper::body::Incoming;
use tower::Layer;

/// Checks handed to the routing service below. A layer of its own, so that its place in the stack is seen.
#[derive(Clone, Debug)]
pub(super) struct GuardLayer {
    fault: FramingFault,
}

impl GuardLayer {
    pub(super) fn new(fault: FramingFault) -> Self {
        Self { fault }
    }
}

impl Layer<super::routing::Routing> for GuardLayer {
    type Service = super::routing::Guarded;

    fn layer(&self, inner: super::routing::Routing) -> super::routing::Guarded {
        super::routing::Guarded::new(inner, Guard { fault: self.fault.clone() })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Guard {
    fault: FramingFault,
}

impl Guard {
    pub(super) fn check(&self, request: &Request<Incoming>) -> Result<(), ProxyError> {
        match self.fault.found() {
            Some(Fault::Ambiguous) => return Err(ProxyError::AmbiguousFraming),
            Some(Fault::TooLarge) => return Err(ProxyError::HeaderLimits),
            None => {}
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        let (host, more) = (hosts.next(), hosts.next());
        let missing = host.is_none() && request.version() == Version::HTTP_11;
        if missing || more.is_some() {
            return Err(ProxyError::AmbiguousHost);
        }
        if *request.method() == Method::CONNECT {
            return Err(ProxyError::Unsupported("CONNECT is not carried here"));
        }
        // Upgrade is an offer (RFC 9110, 7.8), so it can be declined by answering in HTTP: h2c offers of curl are. A
        // WebSocket handshake is of no use without it.
        let websocket = request.version() < Version::HTTP_2
            && request.headers().contains_key(CONNECTION)
            && request
                .headers()
                .get(UPGRADE)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if websocket {
            return Err(ProxyError::Unsupported("WebSocket is not carried by this version"));
        }
        Ok(())
    }
}
