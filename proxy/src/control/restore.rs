//! From disk: what the proxy served before its restart, within what is left of its leases.

use super::disk;
use super::plan::{Plan, PlannedKeyring};
use super::state::{self, DekRecord, State, StateError};
use super::zone::{Applied, Zone, after, wall_ms};
use keyway_envelope::{Dek, KekVersion, KeyBlock};
use keyway_keycache::{FetchedDek, KeyringSlot, Lease, Millis};
use keyway_protocol::v1::SignedKeyringSet;
use std::sync::Arc;
use tracing::{info, warn};
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    State(#[from] StateError),
    /// Also a set that is not signed by the pinned bridge.
    #[error(transparent)]
    Protocol(#[from] keyway_protocol::Error),
    #[error("{0}")]
    Plan(String),
}

/// Loads the state and publishes it. What can't be read or trusted is ignored, with a line in the log: the proxy then
/// serves nothing until its bridge has spoken.
pub(super) fn restore(zone: &Zone) {
    let loaded = match load(zone) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return,
        Err(error) => {
            let file = zone.state_path.display();
            warn!(zone = %zone.name, %file, %error, "the state on disk is ignored; waiting for the bridge");
            return;
        }
    };
    let (applied, state) = loaded;
    let deks = install(zone, &applied.plan, &state);
    zone.publish(&applied);
    zone.status.send_modify(|status| {
        status.generation = applied.plan.generation;
        status.epoch = applied.plan.epoch;
        status.from_disk = true;
    });
    info!(zone = %zone.name, generation = applied.plan.generation, deks, "serving from the state on disk");
    zone.restored(Arc::new(applied), state.epoch_seen);
}

fn load(zone: &Zone) -> Result<Option<(Applied, State)>, RestoreError> {
    // Without a pin there is no bridge whose word this could be: an operator took it away to begin anew.
    let Some(pin) = disk::read_pin(&zone.pin_path)? else { return Ok(None) };
    let Some(file) = disk::read(&zone.state_path)? else { return Ok(None) };
    let state = state::open(file, &zone.config.identity.private_key_der()?, &zone.name)?;
    let signed =
        SignedKeyringSet { keyring_set: state.keyring_set.clone(), signature: state.signature.clone() };
    let set = pin.verify(&signed)?;
    let plan = Plan::read(&zone.name, &set).map_err(|refusal| RestoreError::Plan(refusal.reason))?;
    let kat_digest = state.kat_digest.as_slice().try_into().map_err(|_| StateError::Content)?;
    let (now, wall) = (zone.cache.now(), wall_ms());
    let leases = plan.keyrings.iter().map(|keyring| Arc::new(lease(keyring, &state, now, wall))).collect();
    let digest = super::apply::sha256(&signed.keyring_set);
    Ok(Some((Applied { signed, plan, digest, kat_digest, leases }, state)))
}

/// What is left of a lease by the wall clock.
///
/// A clock that says less than when the state was written does not tell how long ago that was: nothing is sealed then
/// before the bridge has spoken, and there is no more than a whole lease to open in.
fn lease(keyring: &PlannedKeyring, state: &State, now: Millis, wall_ms: u64) -> Lease {
    let ends = state.leases.iter().find(|ends| ends.keyring == *keyring.name);
    let left = |until_ms: u64, whole_ms: u64| after(now, until_ms.saturating_sub(wall_ms).min(whole_ms));
    match ends {
        Some(ends) if wall_ms < state.saved_ms => {
            Lease::until(now, left(ends.open_until_ms, keyring.open_lease_ms))
        }
        Some(ends) => Lease::until(
            left(ends.seal_until_ms, keyring.seal_lease_ms),
            left(ends.open_until_ms, keyring.open_lease_ms),
        ),
        None => Lease::until(now, now),
    }
}

/// Puts the stored DEKs into the cache; gives how many.
fn install(zone: &Zone, plan: &Plan, state: &State) -> usize {
    let mut installed = 0;
    // The least recently used first, so that they are the first to be evicted again.
    let opening = state.open_deks.iter().rev().map(|record| (record, false));
    for (record, seals) in opening.chain(state.seal_deks.iter().map(|record| (record, true))) {
        let slot = zone.slots.iter().find(|(_, name)| **name == *record.keyring);
        // A keyring that is no longer configured or no longer ours.
        let (Some((slot, _)), Some(planned)) = (slot, plan.keyring(&record.keyring)) else { continue };
        let outcome = if seals {
            install_seal(zone, *slot, planned, record)
        } else {
            install_open(zone, *slot, planned, record)
        };
        match outcome {
            Some(()) => installed += 1,
            // Authentic and yet not readable: made by another version of this program.
            None => {
                warn!(zone = %zone.name, keyring = %record.keyring, "a stored DEK can't be read; left out");
            }
        }
    }
    installed
}

fn install_open(zone: &Zone, slot: KeyringSlot, planned: &PlannedKeyring, record: &DekRecord) -> Option<()> {
    for block in &record.key_blocks {
        let fetched = fetched(record, block)?;
        planned.accepts(fetched.kek_version).then_some(())?;
        zone.cache.install_open(slot, fetched, planned.limits);
    }
    Some(())
}

fn install_seal(zone: &Zone, slot: KeyringSlot, planned: &PlannedKeyring, record: &DekRecord) -> Option<()> {
    let fetched = fetched(record, record.key_blocks.first()?)?;
    planned.accepts(fetched.kek_version).then_some(())?;
    zone.cache.install_seal(slot, fetched, planned.limits);
    Some(())
}

fn fetched(record: &DekRecord, block: &[u8]) -> Option<FetchedDek> {
    let key_block = KeyBlock::parse(block.try_into().ok()?).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    (record.key.len() == key.len()).then(|| key.copy_from_slice(&record.key))?;
    Some(FetchedDek {
        dek: Dek::new(key_block.dek_id(), key),
        key_block,
        kek_version: KekVersion(u16::try_from(record.kek_version).ok()?),
        tenant: record.tenant.as_str().into(),
        messages: record.messages,
        bytes: record.bytes,
    })
}

#[cfg(test)]
#[path = "tests/restore.rs"]
mod tests;
