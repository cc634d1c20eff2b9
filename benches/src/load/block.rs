//! What uploads consist of.

use bytes::Bytes;
use std::sync::LazyLock;

/// Small enough to stay in a core's cache, large enough for writes that cost little per byte.
pub(super) const BLOCK_BYTES: usize = 256 * 1024;

static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    // SplitMix64 with a fixed seed: the same bytes in every run, and nothing in them that compresses.
    let mut state = 0x6b65_7977_6179_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    words.take(BLOCK_BYTES / 8).flat_map(u64::to_le_bytes).collect()
});

/// Bytes of a body of `length` bytes that consists of the block over and over, from `offset` on: as many as lie
/// together. Empty at the end.
pub(super) fn piece(offset: u64, length: u64) -> Bytes {
    let block = &*BLOCK;
    let within = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or_default();
    let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
    block.slice(within..within.saturating_add(left).min(BLOCK_BYTES))
}
