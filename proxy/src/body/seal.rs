//! A body being sealed: header and segments in one stream, several segments per frame.

use super::digest::Declared;
use super::{BodyError, Source};
use crate::worker::{Buffer, Unwritten};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use keyway_envelope::length::{HEADER, SEGMENT, sealed_len};
use keyway_envelope::{ContextDigest, Header, Implementation, Profile, Sealer};
use keyway_keycache::CachedDek;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

/// What an upload is doing, for the one who waits for its response.
#[derive(Debug, Default)]
pub(crate) struct UploadProgress {
    /// Frames taken by the upstream; `DONE` when there are no more.
    frames: AtomicU64,
}

impl UploadProgress {
    const DONE: u64 = u64::MAX;

    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.frames() == Self::DONE
    }

    pub(crate) fn step(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn done(&self) {
        self.frames.store(Self::DONE, Ordering::Relaxed);
    }
}

enum State {
    /// Segments are being made.
    Sealing(Sealer),
    /// The last segment is out; trailers may follow.
    Sealed,
    Ended,
}

/// Counts a message, draws its salt and derives its keys.
fn begin(dek: &CachedDek, context: &ContextDigest) -> Result<([u8; HEADER], Sealer), BodyError> {
    dek.begin_seal().map_err(BodyError::Key)?;
    let mut salt = [0; 24];
    // Fresh from the kernel for each message, never from a block drawn ahead: a block would repeat after a VM
    // snapshot is resumed twice, and a salt must not.
    getrandom::fill(&mut salt).map_err(|_| BodyError::Key(keyway_keycache::KeyError::Unavailable))?;
    let keys = dek.dek().derive(&salt, context);
    let header = Header {
        profile: Profile::Object,
        key_block: *dek.key_block(),
        salt,
        commitment: *keys.commitment(),
    };
    Ok((header.to_bytes(), Sealer::new(keys, Implementation::selected())))
}

/// Seals a body that was read whole; `plain_len` is the length that it declared.
///
/// # Errors
/// As of [`SealBody`]: another length, a digest that does not match, the DEK's limit of use.
pub(crate) fn small(
    plain: &[u8],
    plain_len: usize,
    dek: &CachedDek,
    context: &ContextDigest,
    mut declared: Declared,
    from_upstream: bool,
) -> Result<Bytes, BodyError> {
    if plain.len() != plain_len {
        return Err(BodyError::Length { from_upstream });
    }
    declared.update(plain);
    declared.verify().map_err(BodyError::Digest)?;
    let (header, mut sealer) = begin(dek, context)?;
    dek.count_sealed(plain_len as u64).map_err(BodyError::Key)?;
    let len = sealed_len(plain_len as u64).and_then(|len| usize::try_from(len).ok());
    let mut out = vec![0; len.ok_or(BodyError::TooLarge)?];
    let (head, segments) = out.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    let full = plain_len / SEGMENT * SEGMENT;
    let done = sealer.update(&plain[..full], segments).map_err(|_| BodyError::TooLarge)?;
    sealer.finish(&plain[full..], &mut segments[done.produced..]).map_err(|_| BodyError::TooLarge)?;
    Ok(out.into())
}

/// Seals what comes from a [`Source`].
pub struct SealBody {
    source: Source,
    input: Bytes,
    state: State,
    header: Option<[u8; HEADER]>,
    dek: Arc<CachedDek>,
    declared: Declared,
    trailers: Option<HeaderMap>,
    /// Sealed bytes still to come, if the plaintext's length is known.
    remaining: Option<u64>,
    plain_remaining: Option<u64>,
    progress: Option<Arc<UploadProgress>>,
    unwritten: Unwritten,
}

impl SealBody {
    /// Seals `source` with `dek`; `plain_len` is the plaintext's length if it is known.
    ///
    /// # Errors
    /// [`BodyError::Key`] at the DEK's limit of use, [`BodyError::TooLarge`].
    pub(crate) fn new(
        source: Source,
        dek: Arc<CachedDek>,
        context: &ContextDigest,
        plain_len: Option<u64>,
        declared: Declared,
        progress: Option<Arc<UploadProgress>>,
    ) -> Result<Self, BodyError> {
        let remaining = match plain_len {
            Some(plain) => Some(sealed_len(plain).ok_or(BodyError::TooLarge)?),
            None => None,
        };
        let (header, sealer) = begin(&dek, context)?;
        Ok(Self {
            source,
            input: Bytes::new(),
            state: State::Sealing(sealer),
            header: Some(header),
            dek,
            declared,
            trailers: None,
            remaining,
            plain_remaining: plain_len,
            progress,
            unwritten: Unwritten::default(),
        })
    }

    /// The envelope's length, if the plaintext's is known.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        self.remaining
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.unwritten.poll_room(cx));
        let mut out = Buffer::take();
        loop {
            let State::Sealing(sealer) = &mut self.state else {
                return Poll::Ready(self.after_last().map(Ok));
            };
            if let Some(header) = self.header.take() {
                out.room()[..HEADER].copy_from_slice(&header);
                out.advance(HEADER);
            }
            if !self.input.is_empty() {
                let done = sealer.update(&self.input, out.room()).map_err(|_| BodyError::TooLarge)?;
                self.input.advance(done.consumed);
                out.advance(done.produced);
                if !self.input.is_empty() {
                    return Poll::Ready(Some(Ok(self.emit(out))));
                }
            }
            match self.source.poll_frame(cx) {
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Some(Ok(self.emit(out)))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take_in(data)?,
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(self.fail(error)))),
                Poll::Ready(None) => {
                    if out.room().len() < SEGMENT + 16 {
                        // No room for the last segment here: it goes first in the next frame.
                        return Poll::Ready(Some(Ok(self.emit(out))));
                    }
                    self.finish(&mut out)?;
                    return Poll::Ready(Some(Ok(self.emit(out))));
                }
            }
        }
    }

    fn take_in(&mut self, data: Bytes) -> Result<(), BodyError> {
        let len = data.len() as u64;
        // Also while no segment is full yet: an upload that trickles is no upstream that hangs.
        if let Some(progress) = &self.progress {
            progress.step();
        }
        if let Some(remaining) = &mut self.plain_remaining {
            *remaining = remaining
                .checked_sub(len)
                .ok_or(BodyError::Length { from_upstream: self.source.is_from_upstream() })?;
        }
        self.dek.count_sealed(len).map_err(BodyError::Key)?;
        self.declared.update(&data);
        self.input = data;
        Ok(())
    }

    /// The end of the input: everything that was declared has to be true before the last segment makes it whole.
    fn finish(&mut self, out: &mut Buffer) -> Result<(), BodyError> {
        if self.plain_remaining.is_some_and(|rest| rest > 0) {
            return Err(BodyError::Length { from_upstream: self.source.is_from_upstream() });
        }
        self.declared.verify().map_err(BodyError::Digest)?;
        if let State::Sealing(sealer) = std::mem::replace(&mut self.state, State::Sealed) {
            let written = sealer.finish(&[], out.room()).map_err(|_| BodyError::TooLarge)?;
            out.advance(written);
        }
        if self.trailers.is_none() {
            self.end();
        }
        Ok(())
    }

    fn after_last(&mut self) -> Option<Frame<Bytes>> {
        self.end();
        let mut trailers = self.trailers.take()?;
        crate::headers::drop_digests(&mut trailers);
        (!trailers.is_empty()).then(|| Frame::trailers(trailers))
    }

    fn end(&mut self) {
        self.state = State::Ended;
        if let Some(progress) = &self.progress {
            progress.done();
        }
    }

    fn emit(&mut self, out: Buffer) -> Frame<Bytes> {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(out.as_ref().len() as u64);
        }
        if let Some(progress) = &self.progress
            && !progress.is_done()
        {
            progress.step();
        }
        Frame::data(out.freeze(&self.unwritten))
    }

    fn fail(&mut self, error: BodyError) -> BodyError {
        self.state = State::Ended;
        error
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended) && self.trailers.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl std::fmt::Debug for SealBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealBody").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
