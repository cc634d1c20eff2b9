//! The DEKs.
//!
//! Look-ups never wait and never call the bridge: they give a DEK, or a [`Pending`] that many may wait on while one
//! flight is under way on the control runtime, or a refusal. What is refused once is refused from memory for a while.

mod flight;
mod table;

use crate::cell::{Publisher, Reader};
use crate::dek::{CachedDek, DekLimits, UseCounters, UseTotals};
use crate::keyring::{KeyError, Keyring, KeyringName, KeyringSlot, Millis, Snapshot, stays};
use crate::source::{DekSource, FetchedDek, SourceError};
use dashmap::DashMap;
use flight::{FlightKey, Flights};
use keyway_envelope::{KekVersion, KeyBlock};
use std::fmt;
use std::sync::{Arc, OnceLock};
use table::{NegativeTable, OpenTable};
use tokio::sync::Notify;

pub use flight::Pending;
pub use table::OpenDek;

/// Bounds on everything that a peer could make grow.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// DEKs kept for opening; the longest unused go first.
    pub entries: usize,
    /// Tenants whose DEKs are kept for sealing, per keyring and version.
    pub tenants: usize,
    /// After this long a DEK is asked for again, in the background: so a revoked one goes.
    pub ttl_ms: u64,
    /// How long a refusal is remembered.
    pub negative_ttl_ms: u64,
    /// Refusals remembered.
    pub negative_entries: usize,
    /// Flights under way at once; past it a miss is [`KeyError::Unavailable`].
    pub flights: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 65_536,
            tenants: 4_096,
            ttl_ms: 60 * 60 * 1000,
            negative_ttl_ms: 10_000,
            negative_entries: 16_384,
            flights: 1_024,
        }
    }
}

/// The outcome of a look-up for sealing.
#[derive(Debug)]
pub enum SealLookup {
    /// Here it is.
    Ready(Arc<CachedDek>),
    /// It is being fetched.
    Wait(Pending),
}

/// The outcome of a look-up for opening.
pub type OpenLookup = SealLookup;

type TenantDeks = DashMap<Box<str>, Arc<CachedDek>>;
type Clock = Box<dyn Fn() -> Millis + Send + Sync>;

/// The snapshot's publisher and the DEKs that hang from it. One per process, shared by all workers.
pub struct KeyCache {
    names: Vec<KeyringName>,
    limits: CacheLimits,
    clock: Clock,
    publisher: Publisher,
    source: OnceLock<(Arc<dyn DekSource>, tokio::runtime::Handle)>,
    open: OpenTable,
    seal: DashMap<(KeyringSlot, KekVersion), Arc<TenantDeks>>,
    negative: NegativeTable,
    flights: Flights,
    counters: DashMap<(KeyringSlot, KekVersion), Arc<UseCounters>>,
    changed: Notify,
}

impl KeyCache {
    /// A cache for these keyrings, nothing applied yet. `clock` is the proxy's monotonic clock.
    #[must_use]
    pub fn new(
        names: Vec<KeyringName>,
        limits: CacheLimits,
        clock: impl Fn() -> Millis + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            publisher: Publisher::new(names.len()),
            names,
            limits,
            clock: Box::new(clock),
            source: OnceLock::new(),
            open: OpenTable::new(limits.entries),
            seal: DashMap::new(),
            negative: NegativeTable::new(limits.negative_entries),
            flights: Flights::new(limits.flights),
            counters: DashMap::new(),
            changed: Notify::new(),
        })
    }

    /// Connects the cache to where DEKs come from; `runtime` drives the flights. Only the first call counts.
    pub fn set_source(&self, source: Arc<dyn DekSource>, runtime: tokio::runtime::Handle) {
        let _ = self.source.set((source, runtime));
    }

    /// The proxy's monotonic clock.
    #[must_use]
    pub fn now(&self) -> Millis {
        (self.clock)()
    }

    /// The slot of a configured keyring.
    #[must_use]
    pub fn slot(&self, name: &KeyringName) -> Option<KeyringSlot> {
        self.names.iter().position(|known| known == name).map(KeyringSlot)
    }

    /// All configured keyrings, by slot.
    #[must_use]
    pub fn names(&self) -> &[KeyringName] {
        &self.names
    }

    /// A reader for one worker thread.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// The current snapshot, pinned; for the control side.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.publisher.load()
    }

    /// Cached DEKs that came by `version`: the control task asks the bridge for them anew *before* it publishes an accept
    /// set without that version, and hands them to [`KeyCache::install_open`], so that readers notice nothing.
    #[must_use]
    pub fn hanging_from(&self, slot: KeyringSlot, version: KekVersion) -> Vec<OpenDek> {
        let mut all = self.open.recent(usize::MAX);
        all.retain(|open| open.dek.slot() == slot && open.dek.kek_version() == version);
        all
    }

    /// Publishes keyrings with one swap, then drops every cached DEK that came by a version no longer accepted.
    ///
    /// Bodies in flight keep theirs until they end.
    pub fn publish(&self, keyrings: Vec<(KeyringSlot, Arc<Keyring>)>) {
        let slots: Vec<KeyringSlot> = keyrings.iter().map(|(slot, _)| *slot).collect();
        let snapshot = self.publisher.publish(|current| current.with(keyrings));
        // In this order: a flight that lands now either sees the new snapshot, or is swept. See tests/loom.rs.
        // Only what is published is swept: of other keyrings a set may be in preparation, with DEKs fetched ahead.
        let keep = |slot, version| !slots.contains(&slot) || stays(&snapshot, slot, version);
        self.open.retain(|dek| keep(dek.slot(), dek.kek_version()));
        self.seal.retain(|(slot, version), _| keep(*slot, *version));
        self.counters
            .retain(|(slot, version), counters| keep(*slot, *version) || Arc::strong_count(counters) > 1);
    }

    /// A DEK to seal with, for `tenant` (empty for none), under the keyring's primary version.
    ///
    /// # Errors
    /// [`KeyError`]: not allowed, lease expired, or too many flights under way.
    pub fn seal(
        self: &Arc<Self>,
        keyring: &Keyring,
        slot: KeyringSlot,
        tenant: &str,
        now: Millis,
    ) -> Result<SealLookup, KeyError> {
        keyring.check_seal(now)?;
        let found = match &keyring.seal_dek {
            Some(dek) if tenant.is_empty() => Some(Arc::clone(dek)),
            _ => self.cached_seal(slot, keyring.primary, tenant),
        };
        if let Some(dek) = found {
            if dek.wants_renewal() {
                // In the background: this request still has a good key.
                if self.issue_flight(slot, keyring.primary, tenant, keyring.limits).is_err() {
                    dek.renewal_failed();
                }
            }
            return Ok(SealLookup::Ready(dek));
        }
        self.issue_flight(slot, keyring.primary, tenant, keyring.limits).map(SealLookup::Wait)
    }

    /// The DEK behind `block`, which has to have been made for `tenant` in this keyring.
    ///
    /// # Errors
    /// [`KeyError`]: not allowed, lease expired, refused (now or lately), or too many flights under way.
    pub fn open(
        self: &Arc<Self>,
        keyring: &Keyring,
        slot: KeyringSlot,
        block: &KeyBlock,
        tenant: &str,
        now: Millis,
    ) -> Result<OpenLookup, KeyError> {
        keyring.check_open(block, now)?;
        if let Some(found) = self.open.find(block, now) {
            if found.dek.slot() != slot || found.dek.tenant() != tenant {
                return Err(KeyError::Refused);
            }
            if found.expired {
                self.open.extend(block, Millis(now.0 + self.limits.ttl_ms));
                let _ = self.open_flight(slot, block);
            }
            return Ok(OpenLookup::Ready(found.dek));
        }
        if let Some(refused) = self.negative.find(block, now) {
            return Err(refused);
        }
        self.open_flight(slot, block).map(|pending| OpenLookup::Wait(pending.for_tenant(slot, tenant)))
    }

    /// Makes a fetched DEK the one to seal with for its tenant under its version, and cached for opening too.
    ///
    /// The control task calls it before it publishes a new primary, so that no request waits for it.
    pub fn install_seal(&self, slot: KeyringSlot, fetched: FetchedDek, limits: DekLimits) -> Arc<CachedDek> {
        let dek = self.cached(slot, fetched, limits);
        let tenants = Arc::clone(&self.seal.entry((slot, dek.kek_version())).or_default());
        if tenants.len() >= self.limits.tenants && !tenants.contains_key(dek.tenant()) {
            // Tenants are named by clients: past the bound one of the others has to be asked for again. Any will do, but
            // the one for requests without a tenant.
            let other = tenants.iter().map(|entry| entry.key().clone()).find(|tenant| !tenant.is_empty());
            other.and_then(|tenant| tenants.remove(&tenant));
        }
        tenants.insert(dek.tenant().into(), Arc::clone(&dek));
        let now = self.now();
        self.open.insert(Arc::clone(&dek), *dek.key_block(), now, Millis(now.0 + self.limits.ttl_ms));
        self.changed.notify_one();
        dek
    }

    /// Caches a fetched DEK for opening what carries its block.
    pub fn install_open(&self, slot: KeyringSlot, fetched: FetchedDek, limits: DekLimits) -> Arc<CachedDek> {
        let dek = self.cached(slot, fetched, limits);
        let block = *dek.key_block();
        let now = self.now();
        let dek = self.open.insert(dek, block, now, Millis(now.0 + self.limits.ttl_ms));
        self.changed.notify_one();
        dek
    }

    /// The catalog reference of a DEK, to be written in place of its wrap. From now on what carries it opens here without
    /// asking the bridge.
    pub fn reference(&self, dek: &Arc<CachedDek>) -> KeyBlock {
        let block = KeyBlock::catalog(dek.key_block().kek(), dek.key_block().dek_id());
        let now = self.now();
        if self.open.find(&block, now).is_none() {
            self.open.insert(Arc::clone(dek), block, now, Millis(now.0 + self.limits.ttl_ms));
            self.changed.notify_one();
        }
        block
    }

    /// The DEK at hand to seal with, if there is one.
    #[must_use]
    pub fn cached_seal(
        &self,
        slot: KeyringSlot,
        version: KekVersion,
        tenant: &str,
    ) -> Option<Arc<CachedDek>> {
        self.seal.get(&(slot, version))?.get(tenant).map(|dek| Arc::clone(&dek))
    }

    /// Tenants that this proxy seals for, under any version: those to prefetch for before a promotion.
    #[must_use]
    pub fn tenants_in_use(&self, slot: KeyringSlot) -> Vec<Box<str>> {
        let mut tenants: Vec<Box<str>> = self
            .seal
            .iter()
            .filter(|entry| entry.key().0 == slot)
            .flat_map(|entry| entry.value().iter().map(|dek| dek.key().clone()).collect::<Vec<_>>())
            .collect();
        tenants.sort_unstable();
        tenants.dedup();
        tenants
    }

    /// DEKs cached to seal with: what the state on disk needs to let a restarted proxy go on.
    #[must_use]
    pub fn seal_deks(&self) -> Vec<Arc<CachedDek>> {
        self.seal
            .iter()
            .flat_map(|entry| entry.value().iter().map(|dek| Arc::clone(&dek)).collect::<Vec<_>>())
            .collect()
    }

    /// DEKs cached for opening with the blocks that lead to them, the most recently used first, `max` at most.
    #[must_use]
    pub fn open_deks(&self, max: usize) -> Vec<OpenDek> {
        self.open.recent(max)
    }

    /// How many DEKs are cached for opening.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.open.len()
    }

    /// Resolves when a DEK has been cached since the last time: the state on disk is stale then.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What was done since the start, by keyring and version.
    #[must_use]
    pub fn use_totals(&self) -> Vec<(KeyringSlot, KekVersion, UseTotals)> {
        self.counters.iter().map(|entry| (entry.key().0, entry.key().1, entry.value().totals())).collect()
    }

    fn cached(&self, slot: KeyringSlot, fetched: FetchedDek, limits: DekLimits) -> Arc<CachedDek> {
        let counters = Arc::clone(&self.counters.entry((slot, fetched.kek_version)).or_default());
        Arc::new(CachedDek::new(fetched, slot, limits, counters))
    }

    fn issue_flight(
        self: &Arc<Self>,
        slot: KeyringSlot,
        version: KekVersion,
        tenant: &str,
        limits: DekLimits,
    ) -> Result<Pending, KeyError> {
        let key = FlightKey::Issue(slot, version, tenant.into());
        let (source, runtime) = self.source.get().ok_or(KeyError::Unavailable)?;
        let request = crate::source::IssueRequest {
            keyring: self.names[slot.0].clone(),
            tenant: tenant.into(),
            kek_version: version,
        };
        let cache = Arc::clone(self);
        let source = Arc::clone(source);
        self.flights.join(key, runtime, move || async move {
            match source.issue(request).await {
                Ok(fetched) => Ok(cache.land_issued(slot, version, fetched, limits)),
                Err(error) => {
                    cache.renewal_failed(slot, version);
                    Err(key_error(error))
                }
            }
        })
    }

    /// A DEK that a miss or a soft limit asked for has come.
    fn land_issued(
        &self,
        slot: KeyringSlot,
        version: KekVersion,
        fetched: FetchedDek,
        limits: DekLimits,
    ) -> Arc<CachedDek> {
        let for_all = fetched.tenant.is_empty();
        let dek = self.install_seal(slot, fetched, limits);
        if for_all {
            self.publisher.publish(|current| match current.keyring(slot) {
                Ok(keyring) if keyring.primary == version => {
                    current.with([(slot, Arc::new(keyring.with_seal_dek(Arc::clone(&dek))))])
                }
                _ => current.with([]),
            });
        }
        self.sweep_if_dropped(&dek);
        dek
    }

    fn renewal_failed(&self, slot: KeyringSlot, version: KekVersion) {
        if let Some(tenants) = self.seal.get(&(slot, version)) {
            tenants.iter().for_each(|dek| dek.renewal_failed());
        }
    }

    fn open_flight(self: &Arc<Self>, slot: KeyringSlot, block: &KeyBlock) -> Result<Pending, KeyError> {
        let (source, runtime) = self.source.get().ok_or(KeyError::Unavailable)?;
        let request = crate::source::OpenRequest { keyring: self.names[slot.0].clone(), key_block: *block };
        let cache = Arc::clone(self);
        let source = Arc::clone(source);
        let block = *block;
        self.flights.join(FlightKey::Open(slot, block), runtime, move || async move {
            match source.open(request).await {
                Ok(fetched) if fetched.dek.id() == block.dek_id() => {
                    let dek = cache.install_open(slot, fetched, DekLimits::default());
                    cache.sweep_if_dropped(&dek);
                    Ok(dek)
                }
                Ok(_) => Err(KeyError::Refused),
                Err(error) => {
                    if error != SourceError::Unavailable {
                        // A refusal of this block says nothing of other blocks of the DEK, but access may have been
                        // withdrawn: the next use asks anew.
                        cache.open.remove(&block);
                        let until = Millis(cache.now().0 + cache.limits.negative_ttl_ms);
                        cache.negative.insert(block, key_error(error), cache.now(), until);
                    }
                    Err(key_error(error))
                }
            }
        })
    }

    /// The other half of the order in [`KeyCache::publish`]: inserted first, looked again, removed if it came too late.
    fn sweep_if_dropped(&self, dek: &CachedDek) {
        let snapshot = self.publisher.load();
        // Before the first publish nothing is accepted, and nothing can be looked up either.
        if snapshot.keyring(dek.slot()).is_ok() && !stays(&snapshot, dek.slot(), dek.kek_version()) {
            self.open.retain(|cached| {
                cached.dek().id() != dek.dek().id() || cached.kek_version() != dek.kek_version()
            });
            self.seal.remove(&(dek.slot(), dek.kek_version()));
        }
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCache")
            .field("names", &self.names)
            .field("entries", &self.entries())
            .finish_non_exhaustive()
    }
}

fn key_error(error: SourceError) -> KeyError {
    match error {
        SourceError::Unavailable => KeyError::Unavailable,
        SourceError::Refused => KeyError::Refused,
        SourceError::NotAllowed => KeyError::NotAllowed,
    }
}
