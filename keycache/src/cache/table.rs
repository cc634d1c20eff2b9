//! The tables behind the cache: DEKs by id, and refusals by block. Both are bounded.

use crate::dek::CachedDek;
use crate::keyring::{KeyError, Millis};
use core::sync::atomic::{AtomicU64, Ordering};
use dashmap::DashMap;
use keyway_envelope::{DekId, KeyBlock};
use std::sync::Arc;

/// Blocks remembered per DEK. Its own, and one for every version that it was rewrapped under and read with.
const BLOCKS_PER_DEK: usize = 8;

struct Entry {
    dek: Arc<CachedDek>,
    /// Blocks that the bridge has confirmed to lead to this DEK. A block with a changed byte is not among them.
    blocks: Vec<KeyBlock>,
    expires: AtomicU64,
    used: AtomicU64,
}

pub(super) struct Found {
    pub(super) dek: Arc<CachedDek>,
    pub(super) expired: bool,
}

/// A cached DEK with the blocks that lead to it.
#[derive(Debug)]
pub struct OpenDek {
    /// The key.
    pub dek: Arc<CachedDek>,
    /// Every block that the bridge has confirmed.
    pub blocks: Vec<KeyBlock>,
}

pub(super) struct OpenTable {
    entries: DashMap<DekId, Entry>,
    max: usize,
}

impl OpenTable {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: DashMap::new(), max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The DEK, if exactly this block is known to lead to it.
    pub(super) fn find(&self, block: &KeyBlock, now: Millis) -> Option<Found> {
        let entry = self.entries.get(&block.dek_id())?;
        if !entry.blocks.contains(block) {
            return None;
        }
        entry.used.store(now.0, Ordering::Relaxed);
        Some(Found { dek: Arc::clone(&entry.dek), expired: now.0 >= entry.expires.load(Ordering::Relaxed) })
    }

    pub(super) fn extend(&self, block: &KeyBlock, expires: Millis) {
        if let Some(entry) = self.entries.get(&block.dek_id()) {
            entry.expires.store(expires.0, Ordering::Relaxed);
        }
    }

    /// Adds a DEK or one more block of it. A DEK that came again replaces the old one if it came by a newer version.
    pub(super) fn insert(
        &self,
        dek: Arc<CachedDek>,
        block: KeyBlock,
        now: Millis,
        expires: Millis,
    ) -> Arc<CachedDek> {
        let inserted = {
            let mut entry = self.entries.entry(dek.dek().id()).or_insert_with(|| Entry {
                dek: Arc::clone(&dek),
                blocks: Vec::with_capacity(1),
                expires: AtomicU64::new(0),
                used: AtomicU64::new(0),
            });
            if dek.kek_version() > entry.dek.kek_version() {
                entry.dek = dek;
            }
            if !entry.blocks.contains(&block) {
                if entry.blocks.len() == BLOCKS_PER_DEK {
                    entry.blocks.remove(0);
                }
                entry.blocks.push(block);
            }
            entry.expires.fetch_max(expires.0, Ordering::Relaxed);
            entry.used.fetch_max(now.0, Ordering::Relaxed);
            Arc::clone(&entry.dek)
        };
        if self.entries.len() > self.max {
            self.evict();
        }
        inserted
    }

    pub(super) fn remove(&self, block: &KeyBlock) {
        self.entries.remove_if(&block.dek_id(), |_, entry| entry.blocks.contains(block));
    }

    pub(super) fn retain(&self, mut keep: impl FnMut(&CachedDek) -> bool) {
        self.entries.retain(|_, entry| keep(&entry.dek));
    }

    pub(super) fn recent(&self, max: usize) -> Vec<OpenDek> {
        let mut all: Vec<(u64, OpenDek)> = self
            .entries
            .iter()
            .map(|entry| {
                let open = OpenDek { dek: Arc::clone(&entry.dek), blocks: entry.blocks.clone() };
                (entry.used.load(Ordering::Relaxed), open)
            })
            .collect();
        all.sort_by_key(|(used, _)| core::cmp::Reverse(*used));
        all.truncate(max);
        all.into_iter().map(|(_, open)| open).collect()
    }

    /// Drops the longest unused sixteenth. Runs where DEKs land, on the control runtime; in one go, so that its cost is
    /// spread over as many insertions as it makes room for.
    fn evict(&self) {
        let mut used: Vec<(u64, DekId)> =
            self.entries.iter().map(|entry| (entry.used.load(Ordering::Relaxed), *entry.key())).collect();
        used.sort_unstable();
        let surplus = used.len().saturating_sub(self.max) + self.max / 16;
        for (_, id) in used.into_iter().take(surplus) {
            self.entries.remove(&id);
        }
    }
}

pub(super) struct NegativeTable {
    entries: DashMap<KeyBlock, (Millis, KeyError)>,
    max: usize,
}

impl NegativeTable {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: DashMap::new(), max }
    }

    pub(super) fn find(&self, block: &KeyBlock, now: Millis) -> Option<KeyError> {
        let entry = self.entries.get(block)?;
        (now < entry.0).then_some(entry.1)
    }

    /// A flood of made-up blocks fills the table; then it forgets what has run out, and past that remembers no more:
    /// the bound on flights still holds it off the bridge.
    pub(super) fn insert(&self, block: KeyBlock, error: KeyError, now: Millis, until: Millis) {
        if self.entries.len() >= self.max {
            self.entries.retain(|_, (until, _)| now < *until);
        }
        if self.entries.len() < self.max {
            self.entries.insert(block, (until, error));
        }
    }
}
