//! Closed-form arithmetic between plain and sealed lengths, and ranges.
//!
//! With S = 16384: `C = 160 + P + 16·(⌊P/S⌋ + 1)`. So Content-Length is exact both ways with nothing buffered.

use crate::error::FormatError;
use core::ops::RangeInclusive;

/// Plaintext bytes in a full segment (C2SP chunked-encryption: 16 KiB).
pub const SEGMENT: usize = 16 * 1024;
/// Length of an AES-GCM tag, in bytes.
pub const TAG: usize = 16;
/// Sealed bytes of a full segment.
pub const SEALED_SEGMENT: usize = SEGMENT + TAG;
/// Everything before the first segment: prefix 8, key block 96, salt 24, commitment 32.
pub const HEADER: usize = 160;
/// The largest number of segments in a message, the empty or short last one included (2^38).
pub const MAX_SEGMENTS: u64 = 1 << 38;
/// The longest message: 4 PiB - 1 byte.
pub const MAX_PLAIN: u64 = MAX_SEGMENTS * SEGMENT as u64 - 1;

/// Length of the segments alone for `plain` bytes, or `None` past [`MAX_PLAIN`].
#[must_use]
pub fn segments_len(plain: u64) -> Option<u64> {
    (plain <= MAX_PLAIN).then(|| plain + TAG as u64 * (plain / SEGMENT as u64 + 1))
}

/// Length of the whole envelope (object form) for `plain` bytes, or `None` past [`MAX_PLAIN`].
#[must_use]
pub fn sealed_len(plain: u64) -> Option<u64> {
    segments_len(plain).map(|segments| segments + HEADER as u64)
}

/// The plaintext's length from the length of the segments alone.
///
/// # Errors
/// [`FormatError::Length`] for a length that no plaintext has: a message cut at a segment boundary, or in the last tag.
pub fn plain_len_of_segments(segments: u64) -> Result<u64, FormatError> {
    let full = segments / SEALED_SEGMENT as u64;
    let last = segments % SEALED_SEGMENT as u64;
    if last < TAG as u64 || full >= MAX_SEGMENTS {
        return Err(FormatError::Length(segments));
    }
    Ok(full * SEGMENT as u64 + last - TAG as u64)
}

/// The plaintext's length from the length of the whole envelope (object form).
///
/// # Errors
/// [`FormatError::Length`] for a length that no plaintext has.
pub fn plain_len(sealed: u64) -> Result<u64, FormatError> {
    let segments = sealed.checked_sub(HEADER as u64).ok_or(FormatError::Length(sealed))?;
    plain_len_of_segments(segments).map_err(|_| FormatError::Length(sealed))
}

/// What to fetch, and what to cut off it, to answer a plaintext range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePlan {
    /// Index of the first segment to open.
    pub first_segment: u64,
    /// Whether the object's last segment is among those fetched; then the opener verifies the end too.
    pub includes_last: bool,
    /// Bytes of the stored envelope to fetch (offsets from its start, both inclusive).
    pub sealed: RangeInclusive<u64>,
    /// Plaintext bytes to drop at the front of what the opener gives.
    pub skip: u64,
    /// Plaintext bytes to keep after that.
    pub take: u64,
}

impl RangePlan {
    /// How many segments are fetched, a short or empty last one included.
    #[must_use]
    pub fn segments(&self) -> u64 {
        (self.sealed.end() + 1 - self.sealed.start()).div_ceil(SEALED_SEGMENT as u64)
    }
}

/// Plan for plaintext bytes `first..=last` of an object of `plain` bytes.
///
/// A range that touches the last byte also fetches the last segment when that is empty, so that the
/// object's length is authenticated (C2SP chunked-encryption, "Implementation notes").
///
/// # Panics
/// Unless `first <= last < plain <= MAX_PLAIN`: the caller has resolved the range against the length (RFC 9110, 14.1.2).
#[must_use]
pub fn range_plan(plain: u64, first: u64, last: u64) -> RangePlan {
    assert!(first <= last && last < plain && plain <= MAX_PLAIN, "range was not resolved against the length");
    let segment = SEGMENT as u64;
    let first_segment = first / segment;
    let final_segment = plain / segment;
    let last_segment = if last == plain - 1 { final_segment } else { last / segment };
    let start = HEADER as u64 + first_segment * SEALED_SEGMENT as u64;
    let includes_last = last_segment == final_segment;
    let end = if includes_last {
        HEADER as u64 + final_segment * SEALED_SEGMENT as u64 + plain % segment + TAG as u64
    } else {
        HEADER as u64 + (last_segment + 1) * SEALED_SEGMENT as u64
    };
    RangePlan {
        first_segment,
        includes_last,
        sealed: start..=end - 1,
        skip: first - first_segment * segment,
        take: last - first + 1,
    }
}
