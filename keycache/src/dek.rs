//! A cached DEK, its counters and limits.

use crate::keyring::{KeyError, KeyringSlot};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use keyway_envelope::{Dek, KekVersion, KeyBlock};
use std::sync::Arc;

/// How much one DEK may seal (C2SP chunked-encryption, "Security analysis"; docs/envelope.md, "Limits of use").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DekLimits {
    /// Past this many messages a new DEK is fetched in the background.
    pub soft_messages: u64,
    /// At this many messages sealing is refused.
    pub hard_messages: u64,
    /// Past this many plaintext bytes a new DEK is fetched in the background.
    pub soft_bytes: u64,
    /// At this many plaintext bytes sealing is refused.
    pub hard_bytes: u64,
}

impl Default for DekLimits {
    /// Hard at 2^32 messages or 1 PiB, soft at half of that.
    fn default() -> Self {
        Self { soft_messages: 1 << 31, hard_messages: 1 << 32, soft_bytes: 1 << 49, hard_bytes: 1 << 50 }
    }
}

/// What was done under one KEK version of one keyring since the start. Shared by all its DEKs.
#[derive(Debug, Default)]
pub struct UseCounters {
    sealed_messages: AtomicU64,
    sealed_bytes: AtomicU64,
    opened_messages: AtomicU64,
    opened_bytes: AtomicU64,
    open_failures: AtomicU64,
}

/// [`UseCounters`], read. Plaintext bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UseTotals {
    /// Messages begun to be sealed.
    pub sealed_messages: u64,
    /// Plaintext bytes sealed.
    pub sealed_bytes: u64,
    /// Messages begun to be opened.
    pub opened_messages: u64,
    /// Plaintext bytes opened.
    pub opened_bytes: u64,
    /// Messages that did not open.
    pub open_failures: u64,
}

impl UseCounters {
    /// The totals as they stand.
    #[must_use]
    pub fn totals(&self) -> UseTotals {
        UseTotals {
            sealed_messages: self.sealed_messages.load(Ordering::Relaxed),
            sealed_bytes: self.sealed_bytes.load(Ordering::Relaxed),
            opened_messages: self.opened_messages.load(Ordering::Relaxed),
            opened_bytes: self.opened_bytes.load(Ordering::Relaxed),
            open_failures: self.open_failures.load(Ordering::Relaxed),
        }
    }
}

/// A DEK with what it takes to use it.
#[derive(Debug)]
pub struct CachedDek {
    dek: Dek,
    key_block: KeyBlock,
    /// The version whose wrap gave us the DEK; it leaves the cache with that version.
    kek_version: KekVersion,
    slot: KeyringSlot,
    tenant: Box<str>,
    limits: DekLimits,
    counters: Arc<UseCounters>,
    messages: AtomicU64,
    bytes: AtomicU64,
    renewal_asked: AtomicBool,
}

impl CachedDek {
    pub(crate) fn new(
        fetched: crate::source::FetchedDek,
        slot: KeyringSlot,
        limits: DekLimits,
        counters: Arc<UseCounters>,
    ) -> Self {
        Self {
            dek: fetched.dek,
            key_block: fetched.key_block,
            kek_version: fetched.kek_version,
            slot,
            tenant: fetched.tenant,
            limits,
            counters,
            messages: AtomicU64::new(fetched.messages),
            bytes: AtomicU64::new(fetched.bytes),
            renewal_asked: AtomicBool::new(false),
        }
    }

    /// The key.
    #[must_use]
    pub fn dek(&self) -> &Dek {
        &self.dek
    }

    /// The block to write into envelopes.
    #[must_use]
    pub fn key_block(&self) -> &KeyBlock {
        &self.key_block
    }

    /// The version whose wrap gave us the DEK.
    #[must_use]
    pub fn kek_version(&self) -> KekVersion {
        self.kek_version
    }

    /// The keyring that it belongs to.
    #[must_use]
    pub fn slot(&self) -> KeyringSlot {
        self.slot
    }

    /// The tenant that it was made for; empty for none.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Messages and plaintext bytes sealed with it by this process.
    #[must_use]
    pub fn used(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Counts one message to be sealed.
    ///
    /// # Errors
    /// [`KeyError::LimitReached`] at the hard limit; nothing is counted then.
    pub fn begin_seal(&self) -> Result<(), KeyError> {
        let before = self.messages.fetch_add(1, Ordering::Relaxed);
        // >= since this message would be one more than the limit allows.
        if before >= self.limits.hard_messages || self.bytes.load(Ordering::Relaxed) >= self.limits.hard_bytes
        {
            self.messages.fetch_sub(1, Ordering::Relaxed);
            return Err(KeyError::LimitReached);
        }
        self.counters.sealed_messages.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counts plaintext bytes of a message that is being sealed.
    ///
    /// # Errors
    /// [`KeyError::LimitReached`] if the hard limit is passed in the middle of a message: it must be broken off.
    pub fn count_sealed(&self, bytes: u64) -> Result<(), KeyError> {
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.counters.sealed_bytes.fetch_add(bytes, Ordering::Relaxed);
        if total > self.limits.hard_bytes { Err(KeyError::LimitReached) } else { Ok(()) }
    }

    /// Counts one message to be opened.
    pub fn begin_open(&self) {
        self.counters.opened_messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts plaintext bytes that came out.
    pub fn count_opened(&self, bytes: u64) {
        self.counters.opened_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a message that did not open.
    pub fn count_open_failure(&self) {
        self.counters.open_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a soft limit is passed; true once, for the caller that asks for the next DEK.
    pub(crate) fn wants_renewal(&self) -> bool {
        let (messages, bytes) = self.used();
        (messages >= self.limits.soft_messages || bytes >= self.limits.soft_bytes)
            && !self.renewal_asked.swap(true, Ordering::Relaxed)
    }

    /// The renewal failed: somebody may ask again.
    pub(crate) fn renewal_failed(&self) {
        self.renewal_asked.store(false, Ordering::Relaxed);
    }
}
