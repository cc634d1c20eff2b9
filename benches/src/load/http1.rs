//! HTTP/1.1, as cheap as it gets: the request is rendered once, and of the response only what must be known is read.

use super::response::Response;
use super::tally::Meter;
use super::target::{Request, Target};
use super::thread::YIELD_AFTER_BYTES;
use super::wire::Wire;
use super::{Connecting, block};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite as _;

/// So much of a body goes out in one write with the head.
const BODY_WITH_HEAD_BYTES: usize = 64 * 1024;

/// A connection with HTTP/1.1.
pub(super) struct Http1 {
    target: Rc<Target>,
    request: Rendered,
    wire: Option<Wire>,
}

/// A request as it is sent.
struct Rendered {
    /// The head and the beginning of the body.
    opening: Bytes,
    head_bytes: u64,
    upload: u64,
    expected: Option<u64>,
}

impl Http1 {
    pub(super) fn new(target: Rc<Target>, number: usize) -> Self {
        let request = Rendered::of(&target.request(number));
        Self { target, request, wire: None }
    }

    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        // Where every request has a connection of its own, connecting is part of what is measured.
        if self.wire.is_none() && self.target.connecting() == Connecting::Once {
            self.wire = Some(self.target.dial().await?);
        }
        Ok(())
    }

    pub(super) async fn exchange(&mut self, meter: &mut Meter) -> anyhow::Result<()> {
        if self.target.connecting() != Connecting::Once {
            self.wire = Some(self.target.dial().await?);
        }
        let wire = self.wire.as_mut().context("the connection was not opened")?;
        let mut response = Response::new();
        let ended = match send(wire, &self.request, &mut response, meter).await {
            Ok(()) => receive(wire, &self.request, &mut response, meter).await,
            Err(error) => Err(error),
        };
        // A response in the middle of an upload leaves a connection that nothing more can be said on.
        let is_kept = response.keeps_alive() && self.target.connecting() == Connecting::Once;
        if ended.is_err() || !is_kept {
            self.wire = None;
        }
        ended.and_then(|()| response.verdict(self.request.expected))
    }

    pub(super) async fn closed(&mut self) {
        if let Some(wire) = &mut self.wire {
            // Nothing was asked: whatever comes, the connection is of no use any more. TLS has tickets to read first,
            // which it does not show.
            let _ = poll_fn(|cx| wire.poll_read_with(cx, |_| ())).await;
        }
    }
}

impl Rendered {
    fn of(request: &Request) -> Self {
        let mut opening =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.path, request.host);
        if request.method == http::Method::PUT {
            opening += &format!("Content-Length: {}\r\n", request.upload);
        }
        opening += "\r\n";
        let head_bytes = opening.len() as u64;
        let mut opening = opening.into_bytes();
        let mut body = block::piece(0, request.upload);
        body.truncate(BODY_WITH_HEAD_BYTES);
        opening.extend_from_slice(&body);
        Self { opening: opening.into(), head_bytes, upload: request.upload, expected: request.expected }
    }

    fn length(&self) -> u64 {
        self.head_bytes + self.upload
    }

    /// What goes out behind `sent` bytes.
    fn piece(&self, sent: u64) -> Bytes {
        match usize::try_from(sent) {
            Ok(sent) if sent < self.opening.len() => self.opening.slice(sent..),
            _ => block::piece(sent - self.head_bytes, self.upload),
        }
    }
}

/// Sends the request; ends early, and with an error, when it is answered before it is whole.
async fn send(
    wire: &mut Wire,
    request: &Rendered,
    response: &mut Response,
    meter: &mut Meter,
) -> anyhow::Result<()> {
    let (mut sent, mut until_yield) = (0, YIELD_AFTER_BYTES);
    while sent < request.length() {
        let piece = request.piece(sent);
        let written = poll_fn(|cx| poll_send(wire, &piece, sent > 0, response, cx)).await?;
        if written == 0 {
            // Its status tells more than that it came early.
            receive(wire, request, response, meter).await?;
            response.verdict(None)?;
            anyhow::bail!("answered after {sent} of {} bytes", request.length());
        }
        let written = written as u64;
        meter.moved((sent + written).saturating_sub(sent.max(request.head_bytes)));
        sent += written;
        if until_yield <= written && sent < request.length() {
            until_yield = YIELD_AFTER_BYTES;
            tokio::task::yield_now().await;
        } else {
            until_yield = until_yield.saturating_sub(written);
        }
    }
    poll_fn(|cx| Pin::new(&mut *wire).poll_flush(cx)).await.context("the connection was lost")
}

/// Writes some of `piece`; none if the response has begun.
fn poll_send(
    wire: &mut Wire,
    piece: &[u8],
    mut looks_for_answer: bool,
    response: &mut Response,
    cx: &mut Context<'_>,
) -> Poll<anyhow::Result<usize>> {
    loop {
        // Costs no call of the kernel unless something came.
        if looks_for_answer {
            match wire.poll_read_with(cx, |read| response.feed(read)) {
                Poll::Ready(Ok(Ok(_))) if response.has_begun() => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(Ok(_))) => continue,
                Poll::Ready(Ok(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
                Poll::Pending => {}
            }
        }
        match Pin::new(&mut *wire).poll_write(cx, piece) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(anyhow::anyhow!("the connection takes no more"))),
            Poll::Ready(Ok(written)) => return Poll::Ready(Ok(written)),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
            Poll::Pending if looks_for_answer => return Poll::Pending,
            Poll::Pending => looks_for_answer = true,
        }
    }
}

/// Reads the rest of the response.
async fn receive(
    wire: &mut Wire,
    request: &Rendered,
    response: &mut Response,
    meter: &mut Meter,
) -> anyhow::Result<()> {
    let mut until_yield = YIELD_AFTER_BYTES;
    while !response.is_done() {
        let (read, body) = poll_fn(|cx| {
            wire.poll_read_with(cx, |read| response.feed(read).map(|body| (read.len() as u64, body)))
        })
        .await
        .map_err(lost)??;
        if request.upload == 0 {
            meter.moved(body);
        }
        ensure!(read > 0 || response.is_done(), "the connection was closed");
        until_yield = until_yield.saturating_sub(read);
        if until_yield == 0 && !response.is_done() {
            until_yield = YIELD_AFTER_BYTES;
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn lost(error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("the connection was lost")
}
