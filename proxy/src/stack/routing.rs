//! Finds the route, and pins it with the transform for the whole request.

use super::guard::Guard;
use super::{Outcome, Serving};
use crate::error::ProxyError;
use crate::route::Route;
use arc_swap::ArcSwap;
use http::Request;
use http::header::HOST;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::Service;

#[derive(Clone, Debug)]
pub(super) struct Routing {
    serving: Arc<ArcSwap<Serving>>,
}

impl Routing {
    pub(super) fn new(serving: Arc<ArcSwap<Serving>>) -> Self {
        Self { serving }
    }
}

/// [`Routing`] behind a [`Guard`].
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    inner: Routing,
    guard: Guard,
}

impl Guarded {
    pub(super) fn new(inner: Routing, guard: Guard) -> Self {
        Self { inner, guard }
    }
}

/// The one box of a request.
type OutcomeFuture = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Guarded {
    type Response = Outcome;
    type Error = Infallible;
    type Future = OutcomeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> OutcomeFuture {
        let serving = self.inner.serving.load_full();
        let found = self.guard.check(&request).and_then(|()| route(&serving, &request));
        Box::pin(async move {
            let (route, result) = match found {
                Ok(route) => {
                    let result = serving.transform.call(&route, request).await;
                    (Some(route), result)
                }
                Err(error) => (None, Err(error)),
            };
            Ok(Outcome { route, serving, is_ours: result.is_err(), result })
        })
    }
}

fn route(serving: &Serving, request: &Request<Incoming>) -> Result<Arc<Route>, ProxyError> {
    let uri = request.uri();
    // HTTP/2 and absolute-form have it in the target (RFC 9112, 3.2.2), others in Host.
    let host = match uri.host() {
        Some(host) => host,
        None => {
            let header = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            host_without_port(header)
        }
    };
    // A name with its root dot is the same name.
    let host = host.strip_suffix('.').unwrap_or(host);
    serving.routes.find(request.method(), host, uri.path()).cloned()
}

fn host_without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An IPv6 literal has colons of its own, inside its brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}
