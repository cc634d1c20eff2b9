//! The rules of a keyring: what it may be used for, and until when.

use crate::dek::{CachedDek, DekLimits};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use keyway_envelope::{KekVersion, KeyBlock, KeyringId, ZoneId};
use std::sync::Arc;

/// Milliseconds on the proxy's monotonic clock, from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// A keyring's full name: `zone/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyringName {
    /// The zone's name.
    pub zone: Arc<str>,
    /// The keyring's name in it.
    pub name: Arc<str>,
}

impl KeyringName {
    /// Reads `zone/name`; both parts are non-empty and hold no further `/`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (zone, name) = text.split_once('/')?;
        (!zone.is_empty() && !name.is_empty() && !name.contains('/'))
            .then(|| Self { zone: zone.into(), name: name.into() })
    }
}

impl fmt::Display for KeyringName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.zone, self.name)
    }
}

/// Index of a configured keyring: fixed for the life of the [`crate::KeyCache`], so that a look-up hashes no string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyringSlot(pub usize);

/// Until when a member may work without hearing from its bridge. Renewed in place by heartbeats.
#[derive(Debug, Default)]
pub struct Lease {
    seal_until: AtomicU64,
    open_until: AtomicU64,
}

impl Lease {
    /// A lease that ends at these times.
    #[must_use]
    pub fn until(seal: Millis, open: Millis) -> Self {
        Self { seal_until: AtomicU64::new(seal.0), open_until: AtomicU64::new(open.0) }
    }

    /// Sets new ends. The bridge is alive and says so; ends may also come nearer when the policy does.
    pub fn renew(&self, seal: Millis, open: Millis) {
        self.seal_until.store(seal.0, Ordering::Relaxed);
        self.open_until.store(open.0, Ordering::Relaxed);
    }

    /// When sealing ends.
    #[must_use]
    pub fn seal_until(&self) -> Millis {
        Millis(self.seal_until.load(Ordering::Relaxed))
    }

    /// When opening ends.
    #[must_use]
    pub fn open_until(&self) -> Millis {
        Millis(self.open_until.load(Ordering::Relaxed))
    }
}

/// Why a key can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No keyring has been applied yet.
    #[error("no keyring has been applied yet")]
    NoKeyring,
    /// The bridge's policy gives this service no such operation on the keyring.
    #[error("this service may not do that with this keyring")]
    NotAllowed,
    /// The seal lease has run out; the bridge has not been heard for too long.
    #[error("the seal lease has expired")]
    SealLeaseExpired,
    /// The open lease has run out.
    #[error("the open lease has expired")]
    OpenLeaseExpired,
    /// The bridge or its HSM gives no answer (in time), or the cache's wait queue is full.
    #[error("the key is not in the cache and the bridge does not answer")]
    Unavailable,
    /// The key block is not one that this keyring's bridge made, or it names another zone, keyring or tenant.
    #[error("the key block was refused")]
    Refused,
    /// The DEK's hard limit of use is reached, and no new one has come.
    #[error("the key has reached its limit of use")]
    LimitReached,
}

/// One keyring of a snapshot. Immutable, but for the lease that heartbeats renew.
#[derive(Debug)]
pub struct Keyring {
    /// Its full name.
    pub name: KeyringName,
    /// Its zone's number.
    pub zone_id: ZoneId,
    /// Its number in the zone.
    pub keyring_id: KeyringId,
    /// The generation of the set that it came with.
    pub generation: u64,
    /// The one version to seal under.
    pub primary: KekVersion,
    /// The accept set; `primary` is in it.
    pub accepted: Vec<KekVersion>,
    /// Whether this service may seal.
    pub may_seal: bool,
    /// Whether this service may open.
    pub may_open: bool,
    /// Until when.
    pub lease: Arc<Lease>,
    /// Limits of use of one DEK.
    pub limits: DekLimits,
    /// The DEK to seal with where a route has no tenant: at hand before the keyring is published.
    pub seal_dek: Option<Arc<CachedDek>>,
}

impl Keyring {
    /// The same keyring with another DEK to seal with.
    #[must_use]
    pub fn with_seal_dek(&self, dek: Arc<CachedDek>) -> Self {
        Self {
            name: self.name.clone(),
            zone_id: self.zone_id,
            keyring_id: self.keyring_id,
            generation: self.generation,
            primary: self.primary,
            accepted: self.accepted.clone(),
            may_seal: self.may_seal,
            may_open: self.may_open,
            lease: Arc::clone(&self.lease),
            limits: self.limits,
            seal_dek: Some(dek),
        }
    }

    /// Whether `version` is in the accept set.
    #[must_use]
    pub fn accepts(&self, version: KekVersion) -> bool {
        self.accepted.contains(&version)
    }

    /// Whether sealing is allowed at `now`.
    ///
    /// # Errors
    /// [`KeyError::NotAllowed`], [`KeyError::SealLeaseExpired`].
    pub fn check_seal(&self, now: Millis) -> Result<(), KeyError> {
        if !self.may_seal {
            return Err(KeyError::NotAllowed);
        }
        // `now` equal to the end is past it: a lease of zero allows nothing.
        if now >= self.lease.seal_until() {
            return Err(KeyError::SealLeaseExpired);
        }
        Ok(())
    }

    /// Whether opening what `block` leads to is allowed at `now`.
    ///
    /// # Errors
    /// [`KeyError::NotAllowed`], [`KeyError::OpenLeaseExpired`]; [`KeyError::Refused`] for a block of another zone
    /// or keyring: that is told from the block alone, so it never reaches the bridge.
    pub fn check_open(&self, block: &KeyBlock, now: Millis) -> Result<(), KeyError> {
        if !self.may_open {
            return Err(KeyError::NotAllowed);
        }
        if now >= self.lease.open_until() {
            return Err(KeyError::OpenLeaseExpired);
        }
        if block.kek().zone != self.zone_id || block.kek().keyring != self.keyring_id {
            return Err(KeyError::Refused);
        }
        Ok(())
    }
}

/// Every configured keyring as it stands; one immutable value.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By slot; `None` until the first set of its zone was applied.
    pub keyrings: Vec<Option<Arc<Keyring>>>,
}

impl Snapshot {
    /// The keyring in `slot`.
    ///
    /// # Errors
    /// [`KeyError::NoKeyring`].
    pub fn keyring(&self, slot: KeyringSlot) -> Result<&Arc<Keyring>, KeyError> {
        self.keyrings.get(slot.0).and_then(Option::as_ref).ok_or(KeyError::NoKeyring)
    }

    /// Whether every configured keyring is there: what `/readyz` asks.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.keyrings.iter().all(Option::is_some)
    }

    /// A copy with some keyrings replaced; the control task builds the next snapshot with it.
    #[must_use]
    pub fn with(&self, replaced: impl IntoIterator<Item = (KeyringSlot, Arc<Keyring>)>) -> Self {
        let mut keyrings = self.keyrings.clone();
        for (slot, keyring) in replaced {
            keyrings[slot.0] = Some(keyring);
        }
        Self { keyrings }
    }
}

/// The rule for what stays cached when a snapshot is published: only what came by an accepted version.
///
/// Used by [`crate::KeyCache`]; a function of its own so that it is tested alone.
#[must_use]
pub fn stays(snapshot: &Snapshot, slot: KeyringSlot, version: KekVersion) -> bool {
    snapshot.keyring(slot).is_ok_and(|keyring| keyring.accepts(version))
}
