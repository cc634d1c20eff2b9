//! Watches the framing of HTTP/1.1 requests from underneath hyper.
//!
//! hyper resolves a request with both Content-Length and Transfer-Encoding in favour of the latter and hides the former
//! (RFC 9112, 6.3 allows that); this proxy refuses it, since what stands behind may have read it the other way. The same
//! watch gives a head its own time limit, apart from the time that a connection may be idle, and its own size limit.
//!
//! Bytes pass untouched. Bodies are skipped by their length, so the cost is that of scanning heads.

mod tracker;

use crate::patience::Patience;
use crate::worker::{self, Turn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracker::{Place, Tracker};

/// What was found wrong with the request that hyper is about to hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    /// Content-Length and Transfer-Encoding.
    Ambiguous = 1,
    /// The head is larger than allowed.
    TooLarge = 2,
}

/// Set by the connection, read by the stack's guard. Once set it stays: the connection ends with that request.
#[derive(Clone, Debug, Default)]
pub(crate) struct FramingFault(Arc<AtomicU8>);

impl FramingFault {
    pub(crate) fn found(&self) -> Option<Fault> {
        match self.0.load(Ordering::Relaxed) {
            1 => Some(Fault::Ambiguous),
            2 => Some(Fault::TooLarge),
            _ => None,
        }
    }

    fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Relaxed);
    }
}

/// A client connection whose requests are watched.
#[derive(Debug)]
pub(super) struct FramedIo<IO> {
    inner: IO,
    tracker: Tracker,
    fault: FramingFault,
    limits: Limits,
    turn: Turn,
    patience: Patience,
}

/// What a client may take its time with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The largest head, in bytes.
    pub(super) header_bytes: usize,
    /// From a head's first byte to its last.
    pub(super) header: Duration,
    /// Until a request begins.
    pub(super) idle: Duration,
}

impl<IO> FramedIo<IO> {
    pub(super) fn new(inner: IO, limits: Limits) -> (Self, FramingFault) {
        let fault = FramingFault::default();
        let io = Self {
            inner,
            tracker: Tracker::new(limits.header_bytes),
            fault: fault.clone(),
            limits,
            turn: Turn::default(),
            patience: Patience::default(),
        };
        (io, fault)
    }

    /// Something is waited for. hyper reads when it wants a head or a body, and not in between (`half_close`), so it is
    /// what the tracker is at. Bodies have a limit of their own in `body/source.rs`, and HTTP/2 has its pings.
    fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let max = match self.tracker.place() {
            Place::BeforeHead => self.limits.idle,
            Place::InHead => self.limits.header,
            Place::Elsewhere => return Ok(()),
        };
        if self.patience.poll_expired(cx, max) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no whole request head came in time"));
        }
        Ok(())
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let before = (self.tracker.place(), self.tracker.heads());
        if let Some(fault) = self.tracker.take_in(bytes) {
            self.fault.set(fault);
        }
        // A head is one wait, in however many pieces it comes, and empty lines are no progress.
        if before != (self.tracker.place(), self.tracker.heads()) {
            self.patience.stop();
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FramedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.turn.poll_take(cx));
        let before = buf.filled().len();
        let Poll::Ready(read) = worker::poll_read_share(&mut this.inner, cx, buf) else {
            this.wait(cx)?;
            return Poll::Pending;
        };
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            this.turn.count(came.len());
            this.take_in(came);
        }
        Poll::Ready(read)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for FramedIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
