//! The one tower stack that every request of a listener goes through.

mod guard;
mod observe;
mod respond;
mod routing;

use crate::body::ProxyBody;
use crate::error::ProxyError;
use crate::route::{Route, RouteTable};
use crate::server::framing::FramingFault;
use crate::transform::Transform;
use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tower::{Service, ServiceBuilder};

/// What a listener serves from; a reload replaces it whole. Requests under way keep theirs.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) routes: RouteTable,
    pub(crate) transform: Transform,
}

/// Totals of all listeners, for the reports to the bridge.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl Totals {
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

/// How a request went, on its way up through the layers.
pub(crate) struct Outcome {
    /// Known as soon as routing has found it.
    route: Option<Arc<Route>>,
    serving: Arc<Serving>,
    /// Whether an error of our own making was answered, and not what the upstream said.
    is_ours: bool,
    result: Result<Response<ProxyBody>, ProxyError>,
}

/// Builds the stack for one connection.
pub(crate) fn build(
    serving: Arc<ArcSwap<Serving>>,
    totals: Arc<Totals>,
    fault: FramingFault,
) -> impl Service<Request<Incoming>, Response = Response<ProxyBody>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    ServiceBuilder::new()
        // Outermost: it counts what the client really gets, errors of every layer below included.
        .layer(observe::ObserveLayer::new(totals))
        // Above everything that can fail: the only place where an error becomes a response.
        .layer(respond::RespondLayer)
        // Before routing: framing that two readers may understand differently is refused whatever the route.
        .layer(guard::GuardLayer::new(fault))
        // Innermost but the transform: no route, no upstream. What it finds is pinned for the whole request.
        .service(routing::Routing::new(serving))
}
