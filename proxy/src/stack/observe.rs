//! Counts and times every request.

use super::{Outcome, Totals};
use crate::body::ProxyBody;
use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tower::{Layer, Service};

#[derive(Clone, Debug)]
pub(super) struct ObserveLayer {
    totals: Arc<Totals>,
}

impl ObserveLayer {
    pub(super) fn new(totals: Arc<Totals>) -> Self {
        Self { totals }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, totals: Arc::clone(&self.totals) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Observe<S> {
    inner: S,
    totals: Arc<Totals>,
}

/// An outcome whose error has become a response.
pub(super) type Answered = (Outcome, Response<ProxyBody>);

impl<S> Service<Request<Incoming>> for Observe<S>
where
    S: Service<Request<Incoming>, Response = Answered, Error = Infallible>,
{
    type Response = Response<ProxyBody>;
    type Error = Infallible;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = self.inner.call(request);
        ObserveFuture { inner, totals: Arc::clone(&self.totals), started: Instant::now() }
    }
}

pin_project! {
    pub(super) struct ObserveFuture<F> {
        #[pin]
        inner: F,
        totals: Arc<Totals>,
        started: Instant,
    }
}

impl<F: Future<Output = Result<Answered, Infallible>>> Future for ObserveFuture<F> {
    type Output = Result<Response<ProxyBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok((outcome, response)) = ready!(this.inner.poll(cx));
        let code = response.status().as_u16();
        let seconds = this.started.elapsed().as_secs_f64();
        match &outcome.route {
            Some(route) => route.metrics.count(code, seconds),
            None => outcome.serving.routes.unrouted.count(code, seconds),
        }
        this.totals.requests.fetch_add(1, Ordering::Relaxed);
        if outcome.is_ours && response.status().is_server_error() {
            this.totals.errors.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(response))
    }
}
