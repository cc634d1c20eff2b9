//! A body as it comes from one side, with what was already read of it put in front again.

use super::BodyError;
use super::held::Held;
use super::seal::UploadProgress;
use crate::patience::Patience;
use crate::upstream::Lease;
use crate::worker::Stream;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Where a body comes from.
#[derive(Debug)]
pub struct Source {
    /// Frames that were looked at before the decision what to do with the body.
    first: VecDeque<Bytes>,
    first_len: u64,
    trailers: Option<HeaderMap>,
    incoming: Incoming,
    /// The upstream connection, to be handed back when the body has ended.
    lease: Option<Lease>,
    from_upstream: bool,
    /// HTTP/2, where hyper shows a stream that was reset with NO_ERROR as one that has ended.
    http2: bool,
    progress: Option<Arc<UploadProgress>>,
    /// How long nothing may come while somebody waits for it.
    idle_max: Duration,
    patience: Patience,
    _stream: Stream,
}

impl Source {
    /// A client's body.
    pub(crate) fn client(incoming: Incoming, version: Version, idle_max: Duration) -> Self {
        Self { http2: version == Version::HTTP_2, ..Self::new(incoming, idle_max) }
    }

    fn new(incoming: Incoming, idle_max: Duration) -> Self {
        Self {
            first: VecDeque::new(),
            first_len: 0,
            trailers: None,
            incoming,
            lease: None,
            from_upstream: false,
            http2: false,
            progress: None,
            idle_max,
            patience: Patience::default(),
            _stream: Stream::begin(),
        }
    }

    /// An upstream's body.
    pub(crate) fn upstream(incoming: Incoming, lease: Option<Lease>, idle_max: Duration) -> Self {
        let mut source = Self { lease, from_upstream: true, ..Self::new(incoming, idle_max) };
        source.release_if(source.incoming.is_end_stream());
        source
    }

    /// Tells `progress` of every frame that is taken: for uploads that are passed or opened.
    pub(crate) fn with_progress(mut self, progress: Arc<UploadProgress>) -> Self {
        if self.incoming.is_end_stream() {
            progress.done();
        }
        self.progress = Some(progress);
        self
    }

    /// Whether the body has ended with trailers that nobody has taken yet.
    pub(crate) fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    pub(crate) fn is_from_upstream(&self) -> bool {
        self.from_upstream
    }

    /// Reads until at least `wanted` bytes are at hand, or the body has ended; gives them all in one piece and keeps
    /// nothing back (see [`Source::put_back`]).
    pub(crate) async fn read_at_least(&mut self, wanted: usize) -> Result<Bytes, BodyError> {
        let mut got = Bytes::new();
        while got.len() < wanted {
            let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await else { break };
            match frame?.into_data() {
                Ok(data) if got.is_empty() => got = data,
                Ok(data) => {
                    let mut joined = Vec::with_capacity(got.len() + data.len());
                    joined.extend_from_slice(&got);
                    joined.extend_from_slice(&data);
                    got = joined.into();
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    break;
                }
            }
        }
        Ok(got)
    }

    /// Reads the whole body; its trailers stay to be taken. At most `max` bytes, and no more than `memory` has room for.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`], [`BodyError::Overloaded`], and why the body broke off.
    pub(crate) async fn read_whole(&mut self, max: usize, memory: &mut Held) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            match frame?.into_data() {
                Ok(data) => {
                    if data.len() > max - whole.len() {
                        return Err(BodyError::TooLarge);
                    }
                    memory.grow(data.len())?;
                    whole.extend_from_slice(&data);
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    break;
                }
            }
        }
        Ok(whole.freeze())
    }

    /// The trailers behind a body that was read whole.
    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Puts bytes in front of what is still to come.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.first_len += bytes.len() as u64;
            self.first.push_front(bytes);
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(bytes) = self.first.pop_front() {
            self.first_len -= bytes.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        // A body whose length is known has ended with its last byte. hyper's server tells of the end only when it reads on,
        // which it does not do for a request that was answered before: the last segment would wait for the next request.
        if self.incoming.is_end_stream() {
            self.release_if(true);
            self.step(true);
            return Poll::Ready(None);
        }
        let mut frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if let (Poll::Pending, Some(lease)) = (&frame, &mut self.lease) {
            lease.drive(cx);
            frame = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        let Poll::Ready(frame) = frame else {
            if self.patience.poll_expired(cx, self.idle_max) {
                self.lease = None;
                return Poll::Ready(Some(Err(BodyError::Idle { from_upstream: self.from_upstream })));
            }
            return Poll::Pending;
        };
        self.patience.stop();
        if frame.is_none() && self.http2 && !self.incoming.is_end_stream() {
            return Poll::Ready(Some(Err(BodyError::Aborted)));
        }
        self.release_if(frame.is_none() || self.incoming.is_end_stream());
        self.step(frame.is_none());
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                // The connection is in an unknown state: never used again.
                self.lease = None;
                if self.from_upstream { BodyError::Upstream(error) } else { BodyError::Client(error) }
            })
        }))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.trailers.is_none() && self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + self.first_len);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + self.first_len);
        }
        hint
    }

    fn step(&self, ended: bool) {
        match &self.progress {
            Some(progress) if ended || self.incoming.is_end_stream() => progress.done(),
            Some(progress) => progress.step(),
            None => {}
        }
    }

    fn release_if(&mut self, has_ended: bool) {
        if has_ended && let Some(lease) = self.lease.take() {
            lease.release();
        }
    }
}
