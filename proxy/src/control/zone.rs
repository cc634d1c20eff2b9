//! One zone as this member has it: what is applied, its leases, its files.

use super::ControlConfig;
use super::calls::BridgeCalls;
use super::disk::{self, StateDir};
use super::plan::{Floor, Plan, PlannedKeyring};
use super::state::{self, DekRecord, LeaseEnds, State, StateError};
use core::fmt;
use keyway_keycache::{CachedDek, KeyCache, Keyring, KeyringName, KeyringSlot, Lease, Millis};
use keyway_protocol::dek_transport::MemberKey;
use keyway_protocol::v1::SignedKeyringSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tracing::warn;

/// Open DEKs stored at most; the most recently used of all zones together.
const OPEN_DEKS_STORED_MAX: usize = 4096;

/// How a zone stands, for people and probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneStatus {
    /// Its name.
    pub zone: Arc<str>,
    /// The bridge that we are connected to.
    pub endpoint: Option<String>,
    /// The generation served from; 0 for none.
    pub generation: u64,
    /// The leader epoch of that generation.
    pub epoch: u64,
    /// Whether that came from disk and no bridge has confirmed it yet.
    pub from_disk: bool,
    /// The last keyring set that was refused since one was applied.
    pub last_nack: Option<LastNack>,
    /// Why there is no connection, if there is none.
    pub last_error: Option<String>,
}

/// A refused keyring set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastNack {
    /// Its generation.
    pub generation: u64,
    /// `SIGNATURE`, `EPOCH`, `GENERATION`, `PARSE`, `KNOWN_ANSWER`, `PERSIST` or `DEK`.
    pub code: &'static str,
    /// For people.
    pub reason: String,
}

/// A keyring set that is (about to be) served from.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) signed: SignedKeyringSet,
    pub(super) plan: Plan,
    /// SHA-256 of the set's bytes.
    pub(super) digest: [u8; 32],
    pub(super) kat_digest: [u8; 32],
    /// One for each keyring of the plan.
    pub(super) leases: Vec<Arc<Lease>>,
}

impl Applied {
    /// The bridge has spoken at `heard`: the leases run from then.
    pub(super) fn renew(&self, heard: Millis) {
        for (keyring, lease) in self.plan.keyrings.iter().zip(&self.leases) {
            lease.renew(after(heard, keyring.seal_lease_ms), after(heard, keyring.open_lease_ms));
        }
    }
}

pub(super) fn after(from: Millis, ms: u64) -> Millis {
    Millis(from.0.saturating_add(ms))
}

#[derive(Default)]
struct Standing {
    applied: Option<Arc<Applied>>,
    epoch_seen: u64,
}

/// Why the state could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error("writing the state: {0}")]
    Io(#[from] std::io::Error),
    #[error("sealing the state: {0}")]
    Seal(#[from] StateError),
    #[error("sealing the state: {0}")]
    Identity(#[from] keyway_protocol::Error),
}

pub(super) struct Zone {
    pub(super) name: Arc<str>,
    pub(super) config: Arc<ControlConfig>,
    pub(super) cache: Arc<KeyCache>,
    pub(super) member_key: Arc<MemberKey>,
    /// The zone's configured keyrings.
    pub(super) slots: Vec<(KeyringSlot, Arc<str>)>,
    pub(super) state_path: PathBuf,
    pub(super) pin_path: PathBuf,
    /// The connection for calls, while there is one whose bridge is the pinned one.
    pub(super) bridge: watch::Sender<Option<BridgeCalls>>,
    pub(super) status: watch::Sender<ZoneStatus>,
    standing: Mutex<Standing>,
    /// One writer of the state file at a time. Held until the file is on disk, even if whoever asked is gone.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Zone {
    pub(super) fn new(
        name: Arc<str>,
        config: &Arc<ControlConfig>,
        cache: &Arc<KeyCache>,
        dir: &StateDir,
        member_key: &Arc<MemberKey>,
    ) -> Self {
        let slots = cache.names().iter().enumerate();
        let slots = slots.filter(|(_, keyring)| keyring.zone == name);
        let status = ZoneStatus {
            zone: Arc::clone(&name),
            endpoint: None,
            generation: 0,
            epoch: 0,
            from_disk: false,
            last_nack: None,
            last_error: None,
        };
        Self {
            config: Arc::clone(config),
            cache: Arc::clone(cache),
            member_key: Arc::clone(member_key),
            slots: slots.map(|(slot, keyring)| (KeyringSlot(slot), Arc::clone(&keyring.name))).collect(),
            state_path: dir.state(&name),
            pin_path: dir.pin(&name),
            bridge: watch::Sender::new(None),
            status: watch::Sender::new(status),
            standing: Mutex::default(),
            writing: Arc::default(),
            name,
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn applied(&self) -> Option<Arc<Applied>> {
        self.standing().applied.clone()
    }

    pub(super) fn floor(&self) -> Floor {
        let standing = self.standing();
        let generation = standing.applied.as_ref().map_or(0, |applied| applied.plan.generation);
        Floor { epoch: standing.epoch_seen, generation }
    }

    /// A set of this epoch had a good signature: no lower one is obeyed from now on, applied or not.
    pub(super) fn note_epoch(&self, epoch: u64) {
        let mut standing = self.standing();
        standing.epoch_seen = standing.epoch_seen.max(epoch);
    }

    /// Begins with what was on disk.
    pub(super) fn restored(&self, applied: Arc<Applied>, epoch_seen: u64) {
        let mut standing = self.standing();
        standing.epoch_seen = epoch_seen.max(applied.plan.epoch);
        standing.applied = Some(applied);
    }

    /// An operator removed the pin: the next bridge is a stranger whose epochs and generations begin anew. What is served
    /// goes on until that bridge's first set is applied.
    pub(super) fn forget_floor(&self) {
        let mut standing = self.standing();
        standing.epoch_seen = 0;
        standing.applied = None;
    }

    /// Publishes `applied`: one swap for all keyrings of the zone.
    pub(super) fn publish(&self, applied: &Applied) {
        let mut keyrings = self.keyrings(applied);
        loop {
            self.cache.publish(keyrings.clone());
            // A renewal that landed between building and publishing would be undone: put it back.
            let newer: Vec<_> =
                keyrings.iter().filter_map(|(slot, keyring)| self.newer(*slot, keyring)).collect();
            if newer.is_empty() {
                break;
            }
            keyrings = newer;
        }
        for (slot, _) in &self.slots {
            let name = self.cache.names()[slot.0].to_string();
            #[allow(clippy::cast_precision_loss, reason = "generations stay far below 2^53")]
            metrics::gauge!("keyway_keyring_generation", "keyring" => name)
                .set(applied.plan.generation as f64);
        }
    }

    fn newer(&self, slot: KeyringSlot, keyring: &Arc<Keyring>) -> Option<(KeyringSlot, Arc<Keyring>)> {
        let dek = self.cache.cached_seal(slot, keyring.primary, "")?;
        let same = keyring.seal_dek.as_ref().is_some_and(|published| Arc::ptr_eq(published, &dek));
        (!same).then(|| (slot, Arc::new(keyring.with_seal_dek(dek))))
    }

    fn keyrings(&self, applied: &Applied) -> Vec<(KeyringSlot, Arc<Keyring>)> {
        let snapshot = self.cache.snapshot();
        let mut keyrings = Vec::with_capacity(self.slots.len());
        for (slot, name) in &self.slots {
            let planned = applied.plan.keyrings.iter().zip(&applied.leases);
            match planned.into_iter().find(|(planned, _)| planned.name == *name) {
                Some((planned, lease)) => {
                    let seal_dek = self.cache.cached_seal(*slot, planned.primary, "");
                    keyrings.push((*slot, Arc::new(self.keyring(applied, planned, lease, seal_dek))));
                }
                // Withdrawn by the policy: known, but good for nothing, and its DEKs go.
                None => {
                    if let Ok(last) = snapshot.keyring(*slot) {
                        keyrings.push((*slot, Arc::new(withdrawn(last, applied.plan.generation))));
                    }
                    warn!(zone = %self.name, keyring = %name, "the bridge gives this service no such keyring");
                }
            }
        }
        keyrings
    }

    fn keyring(
        &self,
        applied: &Applied,
        planned: &PlannedKeyring,
        lease: &Arc<Lease>,
        seal_dek: Option<Arc<CachedDek>>,
    ) -> Keyring {
        Keyring {
            name: KeyringName { zone: Arc::clone(&self.name), name: Arc::clone(&planned.name) },
            zone_id: applied.plan.zone_id,
            keyring_id: planned.keyring_id,
            generation: applied.plan.generation,
            primary: planned.primary,
            accepted: planned.accepted(),
            may_seal: planned.may_seal,
            may_open: planned.may_open,
            lease: Arc::clone(lease),
            limits: planned.limits,
            seal_dek,
        }
    }

    /// Makes `next` durable, and then the one that later writes store.
    pub(super) async fn persist(&self, next: Arc<Applied>) -> Result<(), SaveError> {
        self.write(Some(next)).await
    }

    async fn write(&self, next: Option<Arc<Applied>>) -> Result<(), SaveError> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let Some(applied) = next.clone().or_else(|| self.applied()) else { return Ok(()) };
        let state = self.state(&applied, wall_ms());
        let (identity, zone) = (self.config.identity.clone(), Arc::clone(&self.name));
        let path = self.state_path.clone();
        let written = tokio::task::spawn_blocking(move || {
            let file = state::seal(&state, &identity.private_key_der()?, &zone)?;
            disk::replace(&path, &file)?;
            Ok::<_, SaveError>(writing)
        });
        let _writing = written.await.map_err(std::io::Error::other)??;
        if next.is_some() {
            self.standing().applied = next;
        }
        Ok(())
    }

    /// Waits for a write that is under way.
    #[cfg(test)]
    pub(super) async fn writes_ended(&self) {
        let _ = self.writing.lock().await;
    }

    pub(super) async fn save_logged(&self) {
        if let Err(error) = self.write(None).await {
            warn!(zone = %self.name, %error, "the state on disk is not up to date");
        }
    }

    /// Writes the state when DEKs have come, and now and then for what changes all the time.
    pub(super) async fn keep_saved(self: Arc<Self>, mut changed: watch::Receiver<()>) {
        loop {
            tokio::select! {
                alive = changed.changed() => if alive.is_err() { return },
                () = tokio::time::sleep(self.save_interval()) => {}
            }
            self.save_logged().await;
            tokio::time::sleep(self.config.timing.save_apart).await;
        }
    }

    /// So short that a restart loses at most a tenth of a seal lease.
    fn save_interval(&self) -> Duration {
        let timing = &self.config.timing;
        let applied = self.applied();
        let leases =
            applied.iter().flat_map(|applied| &applied.plan.keyrings).map(|keyring| keyring.seal_lease_ms);
        let tenth =
            leases.filter(|ms| *ms > 0).min().map_or(timing.save_every, |ms| Duration::from_millis(ms / 10));
        tenth.min(timing.save_every).max(timing.save_apart)
    }

    fn state(&self, applied: &Applied, wall_ms: u64) -> State {
        let now = self.cache.now();
        let until = |end: Millis| wall_ms.saturating_add(end.0.saturating_sub(now.0));
        let leases = applied.plan.keyrings.iter().zip(&applied.leases);
        let seal_deks = self.cache.seal_deks();
        let open_deks = self.cache.open_deks(OPEN_DEKS_STORED_MAX);
        State {
            saved_ms: wall_ms,
            keyring_set: applied.signed.keyring_set.clone(),
            signature: applied.signed.signature.clone(),
            kat_digest: applied.kat_digest.to_vec(),
            epoch_seen: self.floor().epoch,
            leases: leases
                .map(|(keyring, lease)| LeaseEnds {
                    keyring: keyring.name.to_string(),
                    seal_until_ms: until(lease.seal_until()),
                    open_until_ms: until(lease.open_until()),
                })
                .collect(),
            seal_deks: seal_deks
                .iter()
                .filter_map(|dek| self.record(applied, dek, &[*dek.key_block()]))
                .collect(),
            open_deks: open_deks
                .iter()
                .filter_map(|open| self.record(applied, &open.dek, &open.blocks))
                .collect(),
        }
    }

    /// What is stored of a DEK; nothing of another zone's, or of one that hangs from a version no longer accepted.
    fn record(
        &self,
        applied: &Applied,
        dek: &CachedDek,
        blocks: &[keyway_envelope::KeyBlock],
    ) -> Option<DekRecord> {
        let (_, name) = self.slots.iter().find(|(slot, _)| *slot == dek.slot())?;
        applied.plan.keyring(name).filter(|planned| planned.accepts(dek.kek_version()))?;
        let (messages, bytes) = dek.used();
        Some(DekRecord {
            keyring: name.to_string(),
            tenant: dek.tenant().to_owned(),
            kek_version: dek.kek_version().0.into(),
            key_blocks: blocks.iter().map(|block| block.to_bytes().to_vec()).collect(),
            key: dek.dek().expose().to_vec(),
            messages,
            bytes,
        })
    }
}

fn withdrawn(last: &Keyring, generation: u64) -> Keyring {
    Keyring {
        name: last.name.clone(),
        zone_id: last.zone_id,
        keyring_id: last.keyring_id,
        generation,
        primary: last.primary,
        accepted: Vec::new(),
        may_seal: false,
        may_open: false,
        lease: Arc::default(),
        limits: last.limits,
        seal_dek: None,
    }
}

/// Milliseconds since the Unix epoch; 0 before it.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("name", &self.name)
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}
