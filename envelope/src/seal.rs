//! ``Cobblestone-256.seal``: plaintext in, segments out, in any pieces.

use crate::Progress;
use crate::aead::{Implementation, SegmentKey};
use crate::dek::{MessageKeys, segment_nonce};
use crate::error::SealError;
use crate::length::{MAX_SEGMENTS, SEALED_SEGMENT, SEGMENT, TAG};
use core::fmt;
use zeroize::Zeroize;

/// Seals one message. The caller writes the header first; this makes the segments.
///
/// ```text
/// update(input, out)* → finish(rest, out)
/// ```
/// Any split of the input gives the same bytes. A full segment goes from the input straight into the output; only a
/// segment that straddles two inputs is put together in between.
pub struct Sealer {
    key: Box<dyn SegmentKey>,
    base_nonce: [u8; 12],
    index: u64,
    /// Plaintext of a segment that is not full yet. Empty until it is needed.
    pending: Vec<u8>,
}

impl Sealer {
    /// A sealer for one message; `keys` are used up.
    #[must_use]
    pub fn new(keys: MessageKeys, implementation: Implementation) -> Self {
        Self {
            key: keys.segment_key(implementation),
            base_nonce: keys.base_nonce(),
            index: 0,
            pending: Vec::new(),
        }
    }

    /// Takes in as much of `input` as can be held or written, and writes whole segments to `out`.
    ///
    /// Stops early when `out` has no room for one more segment ([`SEALED_SEGMENT`] bytes); call again with a
    /// new `out` and the rest.
    ///
    /// # Errors
    /// [`SealError::TooLong`] past 2^38 segments.
    pub fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<Progress, SealError> {
        let mut done = Progress::default();
        loop {
            let rest = &input[done.consumed..];
            let room = out.len() - done.produced;
            if self.pending.is_empty() && rest.len() >= SEGMENT {
                if room < SEALED_SEGMENT {
                    return Ok(done);
                }
                let nonce = self.next_nonce()?;
                self.key.seal(nonce, &[], &rest[..SEGMENT], &mut out[done.produced..][..SEALED_SEGMENT]);
                done.consumed += SEGMENT;
                done.produced += SEALED_SEGMENT;
                continue;
            }
            let take = rest.len().min(SEGMENT - self.pending.len());
            if take > 0 {
                self.pending.reserve_exact(SEGMENT - self.pending.len());
                self.pending.extend_from_slice(&rest[..take]);
                done.consumed += take;
            }
            // A full segment is never the last one, so it can go at once.
            if self.pending.len() < SEGMENT || room < SEALED_SEGMENT {
                return Ok(done);
            }
            let nonce = self.next_nonce()?;
            self.key.seal(nonce, &[], &self.pending, &mut out[done.produced..][..SEALED_SEGMENT]);
            wipe(&mut self.pending);
            done.produced += SEALED_SEGMENT;
        }
    }

    /// Writes the last segment, short or empty, with the last bytes of the message; gives its length.
    ///
    /// `rest` is what [`Sealer::update`] has not consumed: with what is pending, less than a full segment.
    /// A message that is shorter than a segment can be handed in whole here, with no call of `update`.
    ///
    /// # Errors
    /// [`SealError::OutputTooSmall`] if `out` can't hold it (16 bytes more than the last segment's plaintext), or if
    /// a full segment is still to be taken by `update`. [`SealError::TooLong`] past 2^38 segments.
    pub fn finish(mut self, rest: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        let plain = self.pending.len() + rest.len();
        if plain >= SEGMENT || out.len() < plain + TAG {
            return Err(SealError::OutputTooSmall);
        }
        let nonce = self.next_nonce()?;
        let out = &mut out[..plain + TAG];
        if self.pending.is_empty() {
            self.key.seal(nonce, &[], rest, out);
        } else {
            self.pending.extend_from_slice(rest);
            self.key.seal(nonce, &[], &self.pending, out);
        }
        Ok(plain + TAG)
    }

    fn next_nonce(&mut self) -> Result<[u8; 12], SealError> {
        if self.index >= MAX_SEGMENTS {
            return Err(SealError::TooLong);
        }
        let nonce = segment_nonce(&self.base_nonce, self.index);
        self.index += 1;
        Ok(nonce)
    }
}

/// Wipes and empties. As a slice: a `Vec` wipes itself byte by byte, which takes longer than sealing them. Behind its length
/// there is nothing to wipe, since it is never shortened otherwise and never grows past its first allocation.
fn wipe(plain: &mut Vec<u8>) {
    plain.as_mut_slice().zeroize();
    plain.clear();
}

impl Drop for Sealer {
    fn drop(&mut self) {
        wipe(&mut self.pending);
        self.base_nonce.zeroize();
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Seals a whole message into a new vector: segments only, no header.
///
/// # Errors
/// [`SealError::TooLong`].
pub fn seal_whole(
    keys: MessageKeys,
    implementation: Implementation,
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let len = crate::length::segments_len(plain.len() as u64).ok_or(SealError::TooLong)?;
    let mut out = vec![0; usize::try_from(len).map_err(|_| SealError::TooLong)?];
    let mut sealer = Sealer::new(keys, implementation);
    let full = plain.len() / SEGMENT * SEGMENT;
    let done = sealer.update(&plain[..full], &mut out)?;
    sealer.finish(&plain[full..], &mut out[done.produced..])?;
    Ok(out)
}
