//! The control client against a real gRPC server behind real TLS.

mod bridge;
mod disk;
mod stream;

use super::*;
use bridge::{Bridge, Catalog, KEYRING, PATIENCE, Pki, ZONE};
use keyway_keycache::{CacheLimits, CachedDek, KeyError, KeyringName, KeyringSlot, Millis, SealLookup};
use keyway_protocol::v1::KeyringSet;
use std::sync::atomic::{AtomicU64, Ordering};

const SLOT: KeyringSlot = KeyringSlot(0);

fn timing() -> Timing {
    Timing {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        // Not under test here: too far away to happen.
        report_every: Duration::from_secs(3600),
        save_apart: Duration::from_millis(1),
        save_every: Duration::from_secs(3600),
        ..Timing::default()
    }
}

/// A proxy as far as its control plane goes: a cache with a clock in our hands.
struct Member {
    cache: Arc<KeyCache>,
    control: Control,
    clock: Arc<AtomicU64>,
    config: ControlConfig,
}

impl Member {
    fn config(pki: &Pki, endpoints: &[String]) -> ControlConfig {
        ControlConfig {
            endpoints: endpoints.to_vec(),
            identity: pki.issue("orders"),
            state_dir: pki.dir.path().join("state"),
            instance: "orders-0".into(),
            timing: timing(),
        }
    }

    fn start(config: ControlConfig) -> Self {
        Self::start_with(config, Arc::new(Traffic::default))
    }

    fn start_with(config: ControlConfig, traffic: TrafficSource) -> Self {
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let (names, now) = (vec![KeyringName::parse("payments/default").unwrap()], Arc::clone(&clock));
        let cache = KeyCache::new(names, CacheLimits::default(), move || Millis(now.load(Ordering::Relaxed)));
        let control = start(config.clone(), Arc::clone(&cache), traffic, &Handle::current()).unwrap();
        Self { cache, control, clock, config }
    }

    /// Starts again from the same directory, as after a crash: the state is not written a last time.
    async fn crash_and_restart(self) -> Self {
        self.crash().await;
        Self::start(self.config.clone())
    }

    /// Waits for what runs to end, as the death of a process does, and writes nothing.
    async fn crash(&self) {
        self.control.end().await;
        // A write that was under way in another thread ends too.
        for zone in self.control.zones.values() {
            zone.writes_ended().await;
        }
    }

    /// A proxy that has applied its first set, versions 1, from this bridge.
    async fn applied(pki: &Pki, bridge: &mut Bridge) -> Self {
        let member = Self::start(Self::config(pki, &[bridge.endpoint()]));
        bridge.hello().await;
        bridge.push(&bridge.catalog.set(1, 1, &[1]).0);
        bridge.applied().await;
        member.until(|status| status.generation == 1).await;
        member
    }

    /// Waits until the zone stands so.
    async fn until(&self, condition: impl FnMut(&ZoneStatus) -> bool) -> ZoneStatus {
        let mut watch = self.control.watch(ZONE).unwrap();
        let reached = tokio::time::timeout(PATIENCE, watch.wait_for(condition)).await;
        reached.expect("the zone never stands so").unwrap().clone()
    }

    fn seal_lookup(&self, tenant: &str) -> Result<SealLookup, KeyError> {
        let snapshot = self.cache.snapshot();
        self.cache.seal(snapshot.keyring(SLOT)?, SLOT, tenant, self.cache.now())
    }

    /// A DEK that is at hand without asking anybody.
    fn seal_at_once(&self, tenant: &str) -> Arc<CachedDek> {
        match self.seal_lookup(tenant) {
            Ok(SealLookup::Ready(dek)) => dek,
            other => panic!("not at hand: {other:?}"),
        }
    }

    async fn seal(&self, tenant: &str) -> Result<Arc<CachedDek>, KeyError> {
        match self.seal_lookup(tenant)? {
            SealLookup::Ready(dek) => Ok(dek),
            SealLookup::Wait(pending) => pending.wait(PATIENCE).await,
        }
    }

    fn open_lookup(&self, block: &keyway_envelope::KeyBlock, tenant: &str) -> Result<SealLookup, KeyError> {
        let snapshot = self.cache.snapshot();
        self.cache.open(snapshot.keyring(SLOT)?, SLOT, block, tenant, self.cache.now())
    }

    async fn open(
        &self,
        block: &keyway_envelope::KeyBlock,
        tenant: &str,
    ) -> Result<Arc<CachedDek>, KeyError> {
        match self.open_lookup(block, tenant)? {
            SealLookup::Ready(dek) => Ok(dek),
            SealLookup::Wait(pending) => pending.wait(PATIENCE).await,
        }
    }

    fn generation(&self) -> Option<u64> {
        self.cache.snapshot().keyring(SLOT).ok().map(|keyring| keyring.generation)
    }
}
