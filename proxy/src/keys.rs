//! From a route to a key: the one place where a request may wait for the bridge.

use crate::context::RequestContext;
use crate::route::Protection;
use crate::worker;
use keyway_envelope::KeyBlock;
use keyway_keycache::{CachedDek, KeyCache, KeyError, Keyring, KeyringSlot, SealLookup};
use std::sync::Arc;
use std::time::Duration;

/// How a worker gets at keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    cache: Arc<KeyCache>,
    /// How long a request waits for a DEK that is not cached.
    deadline: Duration,
}

impl Keys {
    pub(crate) fn new(cache: Arc<KeyCache>, deadline: Duration) -> Self {
        Self { cache, deadline }
    }

    /// A DEK to seal with, under the primary version.
    pub(crate) async fn seal(
        &self,
        protection: &Protection,
        context: &RequestContext,
    ) -> Result<Arc<CachedDek>, KeyError> {
        let lookup = look(protection.slot, |keyring| {
            self.cache.seal(keyring, protection.slot, &context.tenant, self.cache.now())
        })?;
        self.settle(lookup).await
    }

    /// Whether what `block` leads to may still be opened: the right and the lease that [`Keys::open`] asks for.
    pub(crate) fn may_open(&self, protection: &Protection, block: &KeyBlock) -> Result<(), KeyError> {
        look(protection.slot, |keyring| keyring.check_open(block, self.cache.now()))
    }

    /// The short form of a DEK's block.
    pub(crate) fn reference(&self, dek: &Arc<CachedDek>) -> KeyBlock {
        self.cache.reference(dek)
    }

    /// The DEK behind a block found in an envelope.
    pub(crate) async fn open(
        &self,
        protection: &Protection,
        context: &RequestContext,
        block: &KeyBlock,
    ) -> Result<Arc<CachedDek>, KeyError> {
        let lookup = look(protection.slot, |keyring| {
            self.cache.open(keyring, protection.slot, block, &context.tenant, self.cache.now())
        })?;
        self.settle(lookup).await
    }

    async fn settle(&self, lookup: SealLookup) -> Result<Arc<CachedDek>, KeyError> {
        match lookup {
            SealLookup::Ready(dek) => Ok(dek),
            SealLookup::Wait(pending) => pending.wait(self.deadline).await,
        }
    }
}

fn look<T>(slot: KeyringSlot, use_it: impl FnOnce(&Keyring) -> Result<T, KeyError>) -> Result<T, KeyError> {
    worker::with_snapshot(|snapshot| use_it(snapshot.keyring(slot)?))
}
