//! One HTTP/1.1 connection to an upstream, driven by the task whose exchange is on it.
//!
//! hyper's client has two halves: one takes requests and hands out responses, the other moves the bytes. Usually the
//! second is a task of its own, and each request is then handed from task to task and back. Here whoever waits for
//! something on a connection moves its bytes, so that a request goes from client to upstream and back within one task.

use super::connect::{Unflushed, UpstreamIo};
use crate::body::ProxyBody;
use crate::patience::Patience;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Both halves.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<ProxyBody>,
    /// None when it has ended, or is a task of its own.
    connection: Option<http1::Connection<TokioIo<UpstreamIo>, ProxyBody>>,
    patience: Patience,
    unflushed: Unflushed,
}

impl Link {
    pub(super) async fn new(io: TokioIo<UpstreamIo>) -> hyper::Result<Self> {
        let unflushed = io.inner().unflushed();
        let (sender, connection) = http1::Builder::new().handshake(io).await?;
        Ok(Self { sender, connection: Some(connection), patience: Patience::default(), unflushed })
    }

    /// Moves what can be moved. How a connection ended is told by the exchange that was on it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, cx);
    }

    /// Has the connection move its bytes by itself from now on. For an exchange whose two directions are both under way: a
    /// client that does not read yet must not keep its own upload from going on.
    pub(super) fn detach(&mut self) {
        if let Some(connection) = self.connection.take() {
            tokio::spawn(connection);
        }
    }

    /// Waits until a request can be sent: at once if the connection is fresh, or its last exchange has ended whole.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.drive(cx);
        ready!(self.sender.poll_ready(cx))?;
        self.unflushed.poll_flushed(cx).map(Ok)
    }

    /// Whether a request can be sent, without waiting. What this finds out wakes nobody.
    pub(super) fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        matches!(self.poll_ready(&mut cx), Poll::Ready(Ok(()))) && !self.sender.is_closed()
    }

    /// Sends a request; gives the response's head, or nothing when `timed_out` says so: it is asked whenever `max` has
    /// passed.
    pub(super) async fn exchange(
        &mut self,
        request: Request<ProxyBody>,
        max: Duration,
        mut timed_out: impl FnMut() -> bool,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<ProxyBody>>>> {
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            drive(&mut self.connection, cx);
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                self.patience.stop();
                return Poll::Ready(Some(response));
            }
            while self.patience.poll_expired(cx, max) {
                self.patience.stop();
                if timed_out() {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the last request is sent whole: an upstream may answer before it has read all of it.
    pub(super) async fn finish(&mut self) -> hyper::Result<()> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await
    }
}

fn drive(connection: &mut Option<http1::Connection<TokioIo<UpstreamIo>, ProxyBody>>, cx: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready()) {
        *connection = None;
    }
}
