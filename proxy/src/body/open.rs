//! A body being opened: verified plaintext only, the end proved before the last bytes leave.

use super::{BodyError, Source};
use crate::route::Route;
use crate::worker::{Buffer, Unwritten};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use keyway_envelope::length::SEALED_SEGMENT;
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::{Implementation, MessageKeys, OpenError, Opener};
use keyway_keycache::CachedDek;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Which part of the opened bytes is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Dropped at the front.
    pub(crate) skip: u64,
    /// Kept after that; `None` for all, of unknown length.
    pub(crate) take: Option<u64>,
    /// Whether what lies behind is to be cut off (a range), or is an error (the whole).
    pub(crate) cuts: bool,
}

/// Opens the segments of a body that was read whole, `plain_len` bytes when opened.
///
/// # Errors
/// [`BodyError::Open`] with nothing of it opened.
pub(crate) fn small(
    segments: &[u8],
    plain_len: usize,
    keys: MessageKeys,
    dek: &CachedDek,
    from_upstream: bool,
) -> Result<Bytes, BodyError> {
    dek.begin_open();
    let mut opener = Opener::new(keys, Implementation::selected());
    let mut out = vec![0; plain_len];
    let full = segments.len() / SEALED_SEGMENT * SEALED_SEGMENT;
    let opened = opener.update(&segments[..full], &mut out).and_then(|done| {
        let last = opener.finish_with(&segments[done.consumed..], &mut out[done.produced..])?;
        Ok(done.produced + last)
    });
    match opened {
        Ok(len) if len == plain_len => {
            dek.count_opened(plain_len as u64);
            Ok(out.into())
        }
        Ok(_) => Err(BodyError::Length { from_upstream }),
        Err(error) => {
            failed(dek, &error);
            Err(BodyError::Open { error, from_upstream })
        }
    }
}

/// Counts and logs a body that did not open.
fn failed(dek: &CachedDek, error: &OpenError) {
    dek.count_open_failure();
    tracing::warn!(reason = error.reason(), dek = %dek.dek().id(), "a sealed body could not be opened");
}

/// Opens what comes from a [`Source`] whose header has been read.
pub struct OpenBody {
    source: Source,
    input: Bytes,
    opener: Option<Opener>,
    dek: Arc<CachedDek>,
    route: Arc<Route>,
    skip: u64,
    remaining: Option<u64>,
    cuts: bool,
    /// Frames made before the response's head went out, by [`OpenBody::prime`].
    primed: Option<Frame<Bytes>>,
    has_begun: bool,
    trailers: Option<HeaderMap>,
    unwritten: Unwritten,
}

impl OpenBody {
    /// `input` is what has already been read behind the header.
    pub(crate) fn new(
        source: Source,
        input: Bytes,
        opener: Opener,
        dek: Arc<CachedDek>,
        route: &Arc<Route>,
        window: Window,
    ) -> Self {
        dek.begin_open();
        Self {
            source,
            input,
            opener: Some(opener),
            dek,
            route: Arc::clone(route),
            skip: window.skip,
            remaining: window.take,
            cuts: window.cuts,
            primed: None,
            has_begun: false,
            trailers: None,
            unwritten: Unwritten::default(),
        }
    }

    /// Opens the first bytes (all, if there are few) before anything is answered, so that a broken envelope
    /// is an error response and not a reset stream, as far as that can be.
    pub(crate) async fn prime(&mut self) -> Result<(), BodyError> {
        if let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            self.primed = Some(frame?);
        }
        self.has_begun = true;
        Ok(())
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.primed.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        ready!(self.unwritten.poll_room(cx));
        let mut out = Buffer::take();
        loop {
            let Some(opener) = &mut self.opener else {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            if !self.input.is_empty() {
                let done = match opener.update(&self.input, out.room()) {
                    Ok(done) => done,
                    Err(error) => return Poll::Ready(Some(Err(self.fail(error)))),
                };
                self.input.advance(done.consumed);
                out.advance(done.produced);
                if !self.input.is_empty() {
                    if let Some(frame) = self.emit(std::mem::replace(&mut out, Buffer::take()))? {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    continue;
                }
            }
            let next = match self.source.poll_frame(cx) {
                Poll::Ready(next) => next,
                // What is opened is not held back for more to come.
                Poll::Pending => match self.emit(out)? {
                    Some(frame) => return Poll::Ready(Some(Ok(frame))),
                    None => return Poll::Pending,
                },
            };
            match next {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.input = data,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok().and_then(|mut trailers| {
                            crate::headers::drop_digests(&mut trailers);
                            (!trailers.is_empty()).then_some(trailers)
                        });
                    }
                },
                Some(Err(error)) => {
                    self.opener = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if out.room().len() < OPEN_ROOM {
                        // No room for the last segment here: it goes first in the next frame.
                        if let Some(frame) = self.emit(std::mem::replace(&mut out, Buffer::take()))? {
                            return Poll::Ready(Some(Ok(frame)));
                        }
                    }
                    let opened = self.opener.take().map_or(Ok(0), |opener| opener.finish(out.room()));
                    match opened {
                        Ok(written) => out.advance(written),
                        Err(error) => return Poll::Ready(Some(Err(self.fail(error)))),
                    }
                    let frame = self.emit(out)?;
                    if self.remaining.is_some_and(|rest| rest > 0) {
                        let from_upstream = self.source.is_from_upstream();
                        return Poll::Ready(Some(Err(BodyError::Length { from_upstream })));
                    }
                    if let Some(frame) = frame {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    out = Buffer::take();
                }
            }
        }
    }

    /// Cuts the window out of opened bytes.
    fn emit(&mut self, out: Buffer) -> Result<Option<Frame<Bytes>>, BodyError> {
        if out.is_empty() {
            return Ok(None);
        }
        let mut bytes = out.freeze(&self.unwritten);
        let skip = self.skip.min(bytes.len() as u64);
        self.skip -= skip;
        bytes.advance(usize::try_from(skip).unwrap_or(usize::MAX));
        if let Some(remaining) = &mut self.remaining {
            if !self.cuts && bytes.len() as u64 > *remaining {
                // A length that is too small must not end the body cleanly in the middle of the envelope.
                self.opener = None;
                return Err(BodyError::Length { from_upstream: self.source.is_from_upstream() });
            }
            // What lies behind a range was fetched only to verify its segment.
            bytes.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
            *remaining -= bytes.len() as u64;
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        self.dek.count_opened(bytes.len() as u64);
        Ok(Some(Frame::data(bytes)))
    }

    fn fail(&mut self, error: OpenError) -> BodyError {
        self.opener = None;
        failed(&self.dek, &error);
        // Before the response's head it becomes an error, and is counted where that is answered.
        if self.has_begun {
            self.route.metrics.open_failure(error.reason());
        }
        BodyError::Open { error, from_upstream: self.source.is_from_upstream() }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.opener.is_none() && self.primed.is_none() && self.trailers.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let primed = self.primed.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        match self.remaining {
            Some(remaining) => SizeHint::with_exact(remaining + primed),
            None => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for OpenBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenBody").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
