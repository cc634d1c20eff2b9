//! Watches the framing of HTTP/1.1 requests from underneath hyper.
//!
//! hyper resolves a request with both Content-Length and Transfer-Encoding in favour of the latter and hides the former
//! (RFC 9112, 6.3 allows that); this proxy refuses it, since what stands behind may have read it the other way. The same
//! watch gives a head its own time limit, apart from the time that a connection may be idle, and its own size limit.
//!
//! Bytes pass untouched. Bodies are skipped by their length, so the cost is that of scanning heads.

mod tracker;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tracker::Tracker;

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
    header_timeout: Duration,
    /// Until the first byte: hyper has no timer for that.
    first_timeout: Duration,
    has_begun: bool,
    /// Runs until the first byte, and while a head has begun and not ended.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<IO> FramedIo<IO> {
    pub(super) fn new(
        inner: IO,
        header_bytes: usize,
        header_timeout: Duration,
        first_timeout: Duration,
    ) -> (Self, FramingFault) {
        let fault = FramingFault::default();
        let io = Self {
            inner,
            tracker: Tracker::new(header_bytes),
            fault: fault.clone(),
            header_timeout,
            first_timeout,
            has_begun: false,
            deadline: None,
        };
        (io, fault)
    }

    fn watch_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.has_begun && !self.tracker.head_is_partial() {
            self.deadline = None;
            return Ok(());
        }
        let timeout = if self.has_begun { self.header_timeout } else { self.first_timeout };
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head took too long"));
        }
        Ok(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FramedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let came = buf.filled().len() > before;
        if came && !self.has_begun {
            self.has_begun = true;
            self.deadline = None;
        }
        if came && let Some(fault) = self.tracker.take_in(&buf.filled()[before..]) {
            self.fault.set(fault);
        }
        self.watch_deadline(cx)?;
        read
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
