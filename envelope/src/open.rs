//! ``Cobblestone-256.open``: segments in, verified plaintext out, in any pieces.

use crate::Progress;
use crate::aead::{Implementation, SegmentKey};
use crate::dek::{MessageKeys, segment_nonce};
use crate::error::OpenError;
use crate::length::{MAX_SEGMENTS, RangePlan, SEALED_SEGMENT, SEGMENT, TAG};
use core::fmt;
use zeroize::Zeroize;

/// Plaintext held back until the segment after it is verified, in bytes.
///
/// A reader who counts to Content-Length must not reach it before the end of the message is proved: where the last
/// segment is empty, every plaintext byte stands in front of it.
pub const HOLD_BACK: usize = 16;

/// Output room that lets [`Opener::update`] always go on, in bytes.
pub const OPEN_ROOM: usize = SEGMENT + HOLD_BACK;

/// Opens one message, or a run of its segments. The caller has read the header and checked the commitment.
///
/// ```text
/// update(input, out)* → finish(out)
/// ```
/// Only verified plaintext comes out. After an error nothing more does.
pub struct Opener {
    key: Box<dyn SegmentKey>,
    base_nonce: [u8; 12],
    index: u64,
    /// Whether the run ends with the message's last segment.
    to_the_end: bool,
    /// Index behind the run's last segment, where it is known beforehand. A store that answers a range with fewer whole
    /// segments gives bytes that verify one by one; only the count shows that some are missing.
    run_end: Option<u64>,
    /// Sealed bytes of a segment that is not whole yet.
    pending: Vec<u8>,
    held: [u8; HOLD_BACK],
    held_len: usize,
    poisoned: bool,
}

impl Opener {
    /// An opener for a whole message. Check [`MessageKeys::verify`] first.
    #[must_use]
    pub fn new(keys: MessageKeys, implementation: Implementation) -> Self {
        Self::at(keys, implementation, 0, true, None)
    }

    /// An opener for the segments that `plan` fetches; what it gives begins at the first of them, so the caller
    /// cuts `plan.skip` and keeps `plan.take`.
    #[must_use]
    pub fn range(keys: MessageKeys, implementation: Implementation, plan: &RangePlan) -> Self {
        let run_end = plan.first_segment + plan.segments();
        Self::at(keys, implementation, plan.first_segment, plan.includes_last, Some(run_end))
    }

    fn at(
        keys: MessageKeys,
        implementation: Implementation,
        index: u64,
        to_the_end: bool,
        run_end: Option<u64>,
    ) -> Self {
        Self {
            key: keys.segment_key(implementation),
            base_nonce: keys.base_nonce(),
            index,
            to_the_end,
            run_end,
            pending: Vec::new(),
            held: [0; HOLD_BACK],
            held_len: 0,
            poisoned: false,
        }
    }

    /// Takes in as much of `input` as can be held or opened, and writes verified plaintext to `out`.
    ///
    /// Stops early when `out` has no room for one more segment and what is held back ([`OPEN_ROOM`] bytes are always
    /// enough); call again with a new `out` and the rest.
    ///
    /// # Errors
    /// [`OpenError::Tag`] if a segment was changed, moved or repeated, [`OpenError::TooLong`] past 2^38
    /// segments or past the run that was planned. Plaintext that this same call wrote before is not to be used then: its `Progress` is lost on purpose.
    pub fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<Progress, OpenError> {
        if self.poisoned {
            return Err(OpenError::Poisoned);
        }
        let mut done = Progress::default();
        loop {
            let rest = &input[done.consumed..];
            let has_room = out.len() - done.produced >= self.held_len + SEGMENT;
            if self.pending.is_empty() && rest.len() >= SEALED_SEGMENT {
                if !has_room {
                    return Ok(done);
                }
                done.produced += self.open_full(Some(&rest[..SEALED_SEGMENT]), &mut out[done.produced..])?;
                done.consumed += SEALED_SEGMENT;
                continue;
            }
            let take = rest.len().min(SEALED_SEGMENT - self.pending.len());
            if take > 0 {
                self.pending.reserve_exact(SEALED_SEGMENT - self.pending.len());
                self.pending.extend_from_slice(&rest[..take]);
                done.consumed += take;
            }
            if self.pending.len() < SEALED_SEGMENT || !has_room {
                return Ok(done);
            }
            done.produced += self.open_full(None, &mut out[done.produced..])?;
            self.pending.clear();
        }
    }

    /// Opens the message's last segment and gives the bytes held back. [`OPEN_ROOM`] bytes of `out` are always enough.
    ///
    /// For a run that ends before the message does, there is nothing left to open: it checks that the run is whole.
    ///
    /// # Errors
    /// [`OpenError::Truncated`] if the bytes end anywhere else than behind a last segment, [`OpenError::Tag`] if that
    /// was changed, [`OpenError::OutputTooSmall`].
    pub fn finish(self, out: &mut [u8]) -> Result<usize, OpenError> {
        self.finish_with(&[], out)
    }

    /// As [`Opener::finish`], with the last bytes of the message: `rest` is what [`Opener::update`] has not been given. A
    /// last segment that is handed in whole is opened where it stands.
    ///
    /// # Errors
    /// As [`Opener::finish`].
    pub fn finish_with(mut self, rest: &[u8], out: &mut [u8]) -> Result<usize, OpenError> {
        if self.poisoned {
            return Err(OpenError::Poisoned);
        }
        if !self.to_the_end {
            let whole = rest.is_empty()
                && self.pending.is_empty()
                && self.run_end.is_none_or(|end| end == self.index);
            return if whole { Ok(0) } else { Err(OpenError::Truncated) };
        }
        // A full segment is never the last one: without a shorter one behind it the message was cut.
        let sealed_len = self.pending.len() + rest.len();
        if !(TAG..SEALED_SEGMENT).contains(&sealed_len) {
            return Err(OpenError::Truncated);
        }
        if self.run_end.is_some_and(|end| end != self.index + 1) {
            return Err(OpenError::Truncated);
        }
        let held = self.held_len;
        let plain = sealed_len - TAG;
        if out.len() < held + plain {
            return Err(OpenError::OutputTooSmall);
        }
        let nonce = self.next_nonce()?;
        let sealed = if self.pending.is_empty() {
            rest
        } else {
            self.pending.extend_from_slice(rest);
            &self.pending
        };
        self.key.open(nonce, &[], sealed, &mut out[held..held + plain])?;
        out[..held].copy_from_slice(&self.held[..held]);
        Ok(held + plain)
    }

    /// Opens one full segment from `sealed`, or from what is pending; gives the bytes written.
    fn open_full(&mut self, sealed: Option<&[u8]>, out: &mut [u8]) -> Result<usize, OpenError> {
        let nonce = self.next_nonce()?;
        let held = self.held_len;
        let sealed = sealed.unwrap_or(&self.pending);
        if let Err(error) = self.key.open(nonce, &[], sealed, &mut out[held..held + SEGMENT]) {
            self.poisoned = true;
            return Err(error);
        }
        out[..held].copy_from_slice(&self.held[..held]);
        if !self.to_the_end {
            return Ok(SEGMENT);
        }
        let produced = held + SEGMENT - HOLD_BACK;
        let behind = &mut out[produced..produced + HOLD_BACK];
        self.held.copy_from_slice(behind);
        // Held back means: not in the caller's buffer either.
        behind.fill(0);
        self.held_len = HOLD_BACK;
        Ok(produced)
    }

    fn next_nonce(&mut self) -> Result<[u8; 12], OpenError> {
        if self.index >= self.run_end.unwrap_or(MAX_SEGMENTS) {
            self.poisoned = true;
            return Err(OpenError::TooLong);
        }
        let nonce = segment_nonce(&self.base_nonce, self.index);
        self.index += 1;
        Ok(nonce)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.held.zeroize();
        self.base_nonce.zeroize();
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Opens a whole message's segments into a new vector.
///
/// # Errors
/// As [`Opener::update`] and [`Opener::finish`].
pub fn open_whole(
    keys: MessageKeys,
    implementation: Implementation,
    segments: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let mut out = vec![0; segments.len() + OPEN_ROOM];
    let mut opener = Opener::new(keys, implementation);
    let done = opener.update(segments, &mut out)?;
    let last = opener.finish(&mut out[done.produced..])?;
    out.truncate(done.produced + last);
    Ok(out)
}
