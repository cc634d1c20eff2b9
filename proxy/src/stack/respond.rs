//! Turns errors into responses.

use super::Outcome;
use super::observe::Answered;
use crate::body::ProxyBody;
use crate::error::ProxyError;
use http::{HeaderName, Method, Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower::{Layer, Service};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Clone, Copy, Debug)]
pub(super) struct RespondLayer;

impl<S> Layer<S> for RespondLayer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond { inner }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Respond<S> {
    inner: S,
}

impl<S> Service<Request<Incoming>> for Respond<S>
where
    S: Service<Request<Incoming>, Response = Outcome, Error = Infallible>,
{
    type Response = Answered;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let method = request.method().clone();
        let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        RespondFuture { inner: self.inner.call(request), method, id }
    }
}

pin_project! {
    pub(super) struct RespondFuture<F> {
        #[pin]
        inner: F,
        method: Method,
        id: Option<String>,
    }
}

impl<F: Future<Output = Result<Outcome, Infallible>>> Future for RespondFuture<F> {
    type Output = Result<Answered, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut outcome) = ready!(this.inner.poll(cx));
        let unanswered = Err(ProxyError::NoRoute);
        let response = match std::mem::replace(&mut outcome.result, unanswered) {
            Ok(response) => response,
            Err(error) => answer(&outcome, &error, this.method, this.id.take()),
        };
        Poll::Ready(Ok((outcome, response)))
    }
}

/// The client's request id, or a new one: it joins the response and the log line.
fn answer(outcome: &Outcome, error: &ProxyError, method: &Method, id: Option<String>) -> Response<ProxyBody> {
    let id = id.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        // Without randomness ids repeat; nothing else hangs from them.
        let _ = getrandom::fill(&mut bytes);
        format!("{:016x}", u64::from_be_bytes(bytes))
    });
    if let (ProxyError::OpenFailed { reason, .. }, Some(route)) = (error, &outcome.route) {
        route.metrics.open_failure(reason);
    }
    let (status, code) = error.status_and_code();
    tracing::info!(request_id = %id, %method, status = status.as_u16(), code, %error, "request refused");
    error.respond(method, &id)
}
