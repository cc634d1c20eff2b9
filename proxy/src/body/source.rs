//! A body as it comes from one side, with what was already read of it put in front again.

use super::BodyError;
use super::seal::UploadProgress;
use crate::upstream::Lease;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
    progress: Option<Arc<UploadProgress>>,
}

impl Source {
    pub(crate) fn client(incoming: Incoming) -> Self {
        Self {
            first: VecDeque::new(),
            first_len: 0,
            trailers: None,
            incoming,
            lease: None,
            from_upstream: false,
            progress: None,
        }
    }

    pub(crate) fn upstream(incoming: Incoming, lease: Option<Lease>) -> Self {
        let mut source = Self { lease, from_upstream: true, ..Self::client(incoming) };
        source.release_if_ended();
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
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        self.release_if_ended();
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

    fn release_if_ended(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.release();
        }
    }
}
