//! The cache against a source that the test drives by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_envelope::{
    Dek, DekId, KekRef, KekVersion, KeyBlock, KeyBlockKind, KeyringId, WrapMechanism, ZoneId,
};
use keyway_keycache::source::DekFuture;
use keyway_keycache::{
    CacheLimits, DekLimits, DekSource, FetchedDek, IssueRequest, KeyCache, KeyError, Keyring, KeyringName,
    KeyringSlot, Lease, Millis, OpenRequest, SealLookup, SourceError,
};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

const SLOT: KeyringSlot = KeyringSlot(0);
const LONG: Duration = Duration::from_secs(60);

fn block(id: u8, version: u16) -> KeyBlock {
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(version) };
    KeyBlock::inline(kek, DekId([id; 16]), WrapMechanism::AesGcm, &[id; 60]).unwrap()
}

fn fetched(id: u8, version: u16) -> FetchedDek {
    FetchedDek {
        dek: Dek::new(DekId([id; 16]), [id; 32].into()),
        key_block: block(id, version),
        kek_version: KekVersion(version),
        tenant: "".into(),
        messages: 0,
        bytes: 0,
    }
}

/// Answers once `gate` has a permit; counts the calls.
struct Source {
    gate: Arc<Semaphore>,
    issued: AtomicUsize,
    opened: AtomicUsize,
    fails: Mutex<Option<SourceError>>,
}

impl DekSource for Source {
    fn issue(&self, request: IssueRequest) -> DekFuture {
        let n = self.issued.fetch_add(1, Ordering::SeqCst);
        let (gate, fails) = (Arc::clone(&self.gate), *self.fails.lock().unwrap());
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            let mut dek = fetched(100 + u8::try_from(n).unwrap(), request.kek_version.0);
            dek.tenant = request.tenant;
            fails.map_or(Ok(dek), Err)
        })
    }

    fn open(&self, request: OpenRequest) -> DekFuture {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (gate, fails) = (Arc::clone(&self.gate), *self.fails.lock().unwrap());
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            let block = request.key_block;
            let mut dek = fetched(block.dek_id().0[0], block.kek().version.0);
            dek.key_block = block;
            fails.map_or(Ok(dek), Err)
        })
    }
}

struct Fixture {
    cache: Arc<KeyCache>,
    source: Arc<Source>,
    now: Arc<AtomicU64>,
}

fn fixture(limits: CacheLimits) -> Fixture {
    let now = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&now);
    let cache = KeyCache::new(vec![KeyringName::parse("z/r").unwrap()], limits, move || {
        Millis(clock.load(Ordering::SeqCst))
    });
    let source = Arc::new(Source {
        gate: Arc::new(Semaphore::new(0)),
        issued: AtomicUsize::new(0),
        opened: AtomicUsize::new(0),
        fails: Mutex::new(None),
    });
    cache.set_source(Arc::clone(&source) as Arc<dyn DekSource>, tokio::runtime::Handle::current());
    Fixture { cache, source, now }
}

fn keyring(primary: u16, accepted: &[u16], limits: DekLimits) -> Keyring {
    Keyring {
        name: KeyringName::parse("z/r").unwrap(),
        zone_id: ZoneId(1),
        keyring_id: KeyringId(1),
        generation: u64::from(primary),
        primary: KekVersion(primary),
        accepted: accepted.iter().map(|&v| KekVersion(v)).collect(),
        may_seal: true,
        may_open: true,
        lease: Arc::new(Lease::until(Millis(1_000_000), Millis(2_000_000))),
        limits,
        seal_dek: None,
    }
}

impl Fixture {
    fn publish(&self, keyring: Keyring) {
        self.cache.publish(vec![(SLOT, Arc::new(keyring))]);
    }

    fn seal(&self, tenant: &str) -> Result<SealLookup, KeyError> {
        let snapshot = self.cache.snapshot();
        self.cache.seal(snapshot.keyring(SLOT)?, SLOT, tenant, self.cache.now())
    }

    fn open(&self, block: &KeyBlock) -> Result<SealLookup, KeyError> {
        let snapshot = self.cache.snapshot();
        self.cache.open(snapshot.keyring(SLOT)?, SLOT, block, "", self.cache.now())
    }
}

fn pending(lookup: Result<SealLookup, KeyError>) -> keyway_keycache::cache::Pending {
    match lookup.unwrap() {
        SealLookup::Wait(pending) => pending,
        SealLookup::Ready(_) => panic!("was cached"),
    }
}

fn ready(lookup: Result<SealLookup, KeyError>) -> Arc<keyway_keycache::CachedDek> {
    match lookup.unwrap() {
        SealLookup::Ready(dek) => dek,
        SealLookup::Wait(_) => panic!("was not cached"),
    }
}

#[tokio::test]
async fn nothing_before_the_first_keyring() {
    let f = fixture(CacheLimits::default());
    assert_eq!(f.seal("").unwrap_err(), KeyError::NoKeyring);
    assert!(!f.cache.snapshot().is_complete());
}

#[tokio::test]
async fn one_flight_for_all_who_wait() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    let waiting: Vec<_> = (0..50).map(|_| pending(f.open(&block(1, 1)))).collect();
    f.source.gate.add_permits(1);
    for pending in waiting {
        assert_eq!(pending.wait(LONG).await.unwrap().dek().id(), DekId([1; 16]));
    }
    assert_eq!(f.source.opened.load(Ordering::SeqCst), 1);
    assert_eq!(ready(f.open(&block(1, 1))).dek().id(), DekId([1; 16]));
}

#[tokio::test]
async fn a_waiter_who_leaves_does_not_end_the_flight() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    drop(pending(f.open(&block(1, 1))));
    let second = pending(f.open(&block(1, 1)));
    f.source.gate.add_permits(1);
    second.wait(LONG).await.unwrap();
    assert_eq!(f.source.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_and_the_answer_is_there_for_the_next() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    let first = pending(f.open(&block(1, 1)));
    let second = pending(f.open(&block(1, 1)));
    assert_eq!(first.wait(Duration::from_secs(5)).await.unwrap_err(), KeyError::Unavailable);
    f.source.gate.add_permits(1);
    second.wait(LONG).await.unwrap();
    ready(f.open(&block(1, 1)));
}

#[tokio::test]
async fn a_changed_block_of_a_cached_dek_is_asked_for_and_its_refusal_remembered() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    f.cache.install_open(SLOT, fetched(1, 1), DekLimits::default());
    ready(f.open(&block(1, 1)));

    let mut bytes = block(1, 1).to_bytes();
    bytes[40] ^= 1;
    let changed = KeyBlock::parse(&bytes).unwrap();
    *f.source.fails.lock().unwrap() = Some(SourceError::Refused);
    f.source.gate.add_permits(10);
    assert_eq!(pending(f.open(&changed)).wait(LONG).await.unwrap_err(), KeyError::Refused);
    assert_eq!(f.open(&changed).unwrap_err(), KeyError::Refused);
    assert_eq!(f.source.opened.load(Ordering::SeqCst), 1, "the second time it is refused from memory");
    // The true block still opens.
    ready(f.open(&block(1, 1)));
    // The refusal runs out.
    f.now.store(10_001, Ordering::SeqCst);
    pending(f.open(&changed));
}

#[tokio::test]
async fn a_dek_opens_by_its_reference_without_asking_once_that_was_written() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    let waiting = pending(f.seal(""));
    f.source.gate.add_permits(1);
    let dek = waiting.wait(LONG).await.unwrap();
    let reference = f.cache.reference(&dek);
    assert_eq!((reference.kind(), reference.dek_id()), (KeyBlockKind::Catalog, dek.dek().id()));
    assert!(Arc::ptr_eq(&ready(f.open(&reference)), &dek));
    assert_eq!(f.cache.reference(&dek), reference);
    assert_eq!(f.source.opened.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_unavailable_bridge_is_not_a_refusal() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    *f.source.fails.lock().unwrap() = Some(SourceError::Unavailable);
    f.source.gate.add_permits(10);
    assert_eq!(pending(f.open(&block(1, 1))).wait(LONG).await.unwrap_err(), KeyError::Unavailable);
    *f.source.fails.lock().unwrap() = None;
    pending(f.open(&block(1, 1))).wait(LONG).await.unwrap();
}

#[tokio::test]
async fn blocks_of_other_zones_and_keyrings_never_reach_the_bridge() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    for (zone, ring) in [(2, 1), (1, 2)] {
        let kek = KekRef { zone: ZoneId(zone), keyring: KeyringId(ring), version: KekVersion(1) };
        let foreign = KeyBlock::inline(kek, DekId([1; 16]), WrapMechanism::AesGcm, &[0; 60]).unwrap();
        assert_eq!(f.open(&foreign).unwrap_err(), KeyError::Refused);
    }
    assert_eq!(f.source.opened.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn dropping_a_version_drops_its_deks_but_bodies_in_flight_keep_theirs() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1, 2], DekLimits::default()));
    f.cache.install_seal(SLOT, fetched(1, 1), DekLimits::default());
    f.cache.install_open(SLOT, fetched(2, 2), DekLimits::default());
    let in_flight = ready(f.open(&block(1, 1)));
    f.publish(keyring(2, &[2], DekLimits::default()));
    assert_eq!(f.cache.entries(), 1);
    assert!(f.cache.cached_seal(SLOT, KekVersion(1), "").is_none());
    assert_eq!(Arc::strong_count(&in_flight), 1, "only the body holds it: it is wiped when the body ends");
    assert_eq!(in_flight.dek().expose(), &[1; 32]);
    ready(f.open(&block(2, 2)));
}

#[tokio::test]
async fn a_dek_that_comes_again_by_the_new_version_outlives_the_old_one() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1, 2], DekLimits::default()));
    f.cache.install_open(SLOT, fetched(1, 1), DekLimits::default());
    assert_eq!(f.cache.hanging_from(SLOT, KekVersion(1)).len(), 1);
    let mut again = fetched(1, 1);
    again.kek_version = KekVersion(2);
    f.cache.install_open(SLOT, again, DekLimits::default());
    assert!(f.cache.hanging_from(SLOT, KekVersion(1)).is_empty());
    f.publish(keyring(2, &[2], DekLimits::default()));
    ready(f.open(&block(1, 1)));
}

#[tokio::test]
async fn a_flight_that_lands_after_its_version_went_leaves_nothing() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    let late = pending(f.open(&block(1, 1)));
    f.publish(keyring(2, &[2], DekLimits::default()));
    f.source.gate.add_permits(1);
    late.wait(LONG).await.unwrap();
    assert_eq!(f.cache.entries(), 0);
}

#[tokio::test]
async fn what_is_fetched_ahead_outlives_the_publication_of_another_keyring() {
    const OTHER: KeyringSlot = KeyringSlot(1);
    let names = ["z/r", "other/r"].map(|name| KeyringName::parse(name).unwrap());
    let cache = KeyCache::new(names.to_vec(), CacheLimits::default(), || Millis(0));
    let publish = |slot, keyring| cache.publish(vec![(slot, Arc::new(keyring))]);
    // Before its own first publication, and before one that will replace its whole accept set.
    cache.install_seal(SLOT, fetched(1, 1), DekLimits::default());
    publish(OTHER, keyring(1, &[1], DekLimits::default()));
    assert!(cache.cached_seal(SLOT, KekVersion(1), "").is_some());
    publish(SLOT, keyring(1, &[1], DekLimits::default()));
    cache.install_seal(SLOT, fetched(2, 2), DekLimits::default());
    publish(OTHER, keyring(2, &[2], DekLimits::default()));
    assert!(cache.cached_seal(SLOT, KekVersion(2), "").is_some());
    publish(SLOT, keyring(2, &[2], DekLimits::default()));
    assert!(cache.cached_seal(SLOT, KekVersion(1), "").is_none());
    assert!(cache.cached_seal(SLOT, KekVersion(2), "").is_some());
}

#[tokio::test]
async fn leases_and_rights_are_checked_before_anything_else() {
    let f = fixture(CacheLimits::default());
    let mut reader_only = keyring(1, &[1], DekLimits::default());
    reader_only.may_seal = false;
    f.publish(reader_only);
    assert_eq!(f.seal("").unwrap_err(), KeyError::NotAllowed);
    f.publish(keyring(1, &[1], DekLimits::default()));
    f.cache.install_seal(SLOT, fetched(1, 1), DekLimits::default());
    ready(f.seal(""));
    f.now.store(1_000_000, Ordering::SeqCst);
    assert_eq!(f.seal("").unwrap_err(), KeyError::SealLeaseExpired);
    ready(f.open(&block(1, 1)));
    f.now.store(2_000_000, Ordering::SeqCst);
    assert_eq!(f.open(&block(1, 1)).unwrap_err(), KeyError::OpenLeaseExpired);
    f.cache.snapshot().keyring(SLOT).unwrap().lease.renew(Millis(3_000_000), Millis(3_000_000));
    ready(f.seal(""));
}

#[tokio::test]
async fn the_soft_limit_renews_in_the_background_and_the_hard_limit_refuses() {
    let limits = DekLimits { soft_messages: 2, hard_messages: 4, soft_bytes: 1000, hard_bytes: 2000 };
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], limits));
    let first = f.cache.install_seal(SLOT, fetched(1, 1), limits);
    for _ in 0..2 {
        ready(f.seal("")).begin_seal().unwrap();
    }
    assert_eq!(f.source.issued.load(Ordering::SeqCst), 0);
    // Past soft: still served with the old key, and one renewal is under way however many ask.
    for _ in 0..2 {
        ready(f.seal("")).begin_seal().unwrap();
    }
    assert_eq!(ready(f.seal("")).begin_seal().unwrap_err(), KeyError::LimitReached);
    let renewal =
        pending(f.cache.seal(f.cache.snapshot().keyring(SLOT).unwrap(), SLOT, "other", f.cache.now()));
    f.source.gate.add_permits(2);
    renewal.wait(LONG).await.unwrap();
    while ready(f.seal("")).dek().id() == first.dek().id() {
        tokio::task::yield_now().await;
    }
    assert_eq!(f.source.issued.load(Ordering::SeqCst), 2);
    ready(f.seal("")).begin_seal().unwrap();
    assert_eq!(first.count_sealed(2001).unwrap_err(), KeyError::LimitReached);
}

#[tokio::test]
async fn entries_are_bounded_and_the_longest_unused_go() {
    let f = fixture(CacheLimits { entries: 64, ..CacheLimits::default() });
    f.publish(keyring(1, &[1], DekLimits::default()));
    for id in 0..200u8 {
        f.now.fetch_add(1, Ordering::SeqCst);
        f.cache.install_open(SLOT, fetched(id, 1), DekLimits::default());
        // Number 0 is in constant use.
        ready(f.open(&block(0, 1)));
    }
    assert!(f.cache.entries() <= 64);
    ready(f.open(&block(0, 1)));
    ready(f.open(&block(199, 1)));
    pending(f.open(&block(5, 1)));
}

#[tokio::test]
async fn flights_are_bounded() {
    let f = fixture(CacheLimits { flights: 2, ..CacheLimits::default() });
    f.publish(keyring(1, &[1], DekLimits::default()));
    let _first = pending(f.open(&block(1, 1)));
    let _second = pending(f.open(&block(2, 1)));
    assert_eq!(f.open(&block(3, 1)).unwrap_err(), KeyError::Unavailable);
}

#[tokio::test]
async fn tenants_are_bounded_and_the_one_for_all_stays() {
    let f = fixture(CacheLimits { tenants: 4, ..CacheLimits::default() });
    f.publish(keyring(1, &[1], DekLimits::default()));
    f.cache.install_seal(SLOT, fetched(0, 1), DekLimits::default());
    for n in 1..100u8 {
        let mut dek = fetched(n, 1);
        dek.tenant = format!("tenant-{n}").into();
        f.cache.install_seal(SLOT, dek, DekLimits::default());
        assert!(f.cache.cached_seal(SLOT, KekVersion(1), &format!("tenant-{n}")).is_some());
    }
    assert_eq!(f.cache.tenants_in_use(SLOT).len(), 4);
    assert!(f.cache.cached_seal(SLOT, KekVersion(1), "").is_some());
}

#[tokio::test]
async fn past_its_time_to_live_a_dek_is_asked_for_again_and_a_revoked_one_goes() {
    let f = fixture(CacheLimits { ttl_ms: 100, ..CacheLimits::default() });
    f.publish(keyring(1, &[1], DekLimits::default()));
    f.cache.install_open(SLOT, fetched(1, 1), DekLimits::default());
    f.now.store(100, Ordering::SeqCst);
    *f.source.fails.lock().unwrap() = Some(SourceError::NotAllowed);
    ready(f.open(&block(1, 1)));
    f.source.gate.add_permits(1);
    while f.cache.entries() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(f.open(&block(1, 1)).unwrap_err(), KeyError::NotAllowed);
}

#[tokio::test]
async fn another_tenants_dek_is_refused() {
    let f = fixture(CacheLimits::default());
    f.publish(keyring(1, &[1], DekLimits::default()));
    let mut dek = fetched(1, 1);
    dek.tenant = "acme".into();
    f.cache.install_open(SLOT, dek, DekLimits::default());
    assert_eq!(f.open(&block(1, 1)).unwrap_err(), KeyError::Refused);
}
