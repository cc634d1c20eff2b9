//! Reading the keyring while a writer swaps it each millisecond, and finding a DEK.
//!
//! `cargo bench -p keyway-benches --bench keyring`

use arc_swap::{ArcSwap, Cache};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, ZoneId};
use keyway_keycache::{
    CacheLimits, DekLimits, FetchedDek, KeyCache, Keyring, KeyringName, KeyringSlot, Lease, Millis,
    SealLookup, Snapshot,
};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;
use zeroize::Zeroizing;

const SLOT: KeyringSlot = KeyringSlot(0);
const NEVER: Millis = Millis(u64::MAX);

fn name() -> KeyringName {
    KeyringName::parse("payments/default").expect("zone/name")
}

fn keyring(generation: u64) -> Arc<Keyring> {
    Arc::new(Keyring {
        name: name(),
        zone_id: ZoneId(1),
        keyring_id: KeyringId(7),
        generation,
        primary: KekVersion(1),
        accepted: vec![KekVersion(1)],
        may_seal: true,
        may_open: true,
        lease: Arc::new(Lease::until(NEVER, NEVER)),
        limits: DekLimits::default(),
        seal_dek: None,
    })
}

fn snapshot(generation: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot { keyrings: vec![Some(keyring(generation))] })
}

/// Runs `measure` while one thread calls `swap` each millisecond and, if `rival`, another one reads as fast as it can.
fn under_a_writer(
    swap: impl Fn(Arc<Snapshot>) + Send,
    rival: Option<&mut (dyn FnMut() + Send)>,
    measure: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            for generation in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                swap(snapshot(generation));
                thread::sleep(Duration::from_millis(1));
            }
        });
        if let Some(read) = rival {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..1000 {
                        read();
                    }
                }
            });
        }
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

fn load(c: &mut Criterion) {
    let swap = Arc::new(ArcSwap::new(snapshot(0)));
    let lock = RwLock::new(snapshot(0));
    let store = |next| swap.store(next);
    let write = |next| *lock.write().expect("nobody panics") = next;
    let mut group = c.benchmark_group("keyring load");
    for threads in [1, 2] {
        let id = |way: &str| BenchmarkId::new(way, format!("{threads} thread(s)"));
        let mut rival = Cache::new(Arc::clone(&swap));
        let mut read = || {
            black_box(rival.load().keyrings.len());
        };
        under_a_writer(store, (threads == 2).then_some(&mut read as _), || {
            let mut cache = Cache::new(Arc::clone(&swap));
            group.bench_function(id("Cache per worker"), |b| {
                b.iter(|| black_box(cache.load().keyrings.len()));
            });
        });
        let mut read = || {
            black_box(swap.load().keyrings.len());
        };
        under_a_writer(store, (threads == 2).then_some(&mut read as _), || {
            group.bench_function(id("ArcSwap::load"), |b| b.iter(|| black_box(swap.load().keyrings.len())));
        });
        let mut read = || drop(black_box(swap.load_full()));
        under_a_writer(store, (threads == 2).then_some(&mut read as _), || {
            group.bench_function(id("ArcSwap::load_full"), |b| b.iter(|| black_box(swap.load_full())));
        });
        let mut read = || drop(black_box(Arc::clone(&lock.read().expect("nobody panics"))));
        under_a_writer(write, (threads == 2).then_some(&mut read as _), || {
            group.bench_function(id("RwLock<Arc>"), |b| {
                b.iter(|| black_box(Arc::clone(&lock.read().expect("nobody panics"))));
            });
        });
    }
    group.finish();
}

fn fetched(n: u32, tenant: &str) -> FetchedDek {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    let id = DekId(id);
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(7), version: KekVersion(1) };
    FetchedDek {
        dek: Dek::new(id, Zeroizing::new([5; 32])),
        key_block: KeyBlock::catalog(kek, id),
        kek_version: KekVersion(1),
        tenant: tenant.into(),
        messages: 0,
        bytes: 0,
    }
}

/// Finding the DEK of a request, with few and many of them cached.
fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("dek lookup");
    for deks in [1, 100, 10_000u32] {
        let cache = KeyCache::new(vec![name()], CacheLimits::default(), || Millis(0));
        cache.publish(vec![(SLOT, keyring(1))]);
        let limits = DekLimits::default();
        let blocks: Vec<KeyBlock> =
            (0..deks).map(|n| *cache.install_open(SLOT, fetched(n, ""), limits).key_block()).collect();
        for tenant in 0..deks.min(100) {
            cache.install_seal(SLOT, fetched(1 << 30 | tenant, &format!("tenant-{tenant}")), limits);
        }
        let mut reader = cache.reader();
        let mut at = 0;
        group.bench_function(BenchmarkId::new("open", deks), |b| {
            b.iter(|| {
                at = (at + 7919) % blocks.len();
                let keyring = reader.load().keyring(SLOT).expect("published above");
                ready(cache.open(keyring, SLOT, &blocks[at], "", Millis(1)))
            });
        });
        group.bench_function(BenchmarkId::new("seal, with tenant", deks), |b| {
            b.iter(|| {
                let keyring = reader.load().keyring(SLOT).expect("published above");
                ready(cache.seal(keyring, SLOT, black_box("tenant-0"), Millis(1)))
            });
        });
        // As the control task publishes: the DEK for routes without a tenant hangs from the keyring itself.
        let own = cache.install_seal(SLOT, fetched(1 << 31, ""), limits);
        cache.publish(vec![(SLOT, Arc::new(keyring(2).with_seal_dek(own)))]);
        group.bench_function(BenchmarkId::new("seal, no tenant", deks), |b| {
            b.iter(|| {
                let keyring = reader.load().keyring(SLOT).expect("published above");
                ready(cache.seal(keyring, SLOT, "", Millis(1)))
            });
        });
    }
    group.finish();
}

fn ready<E>(found: Result<SealLookup, E>) -> Arc<keyway_keycache::CachedDek> {
    match found {
        Ok(SealLookup::Ready(dek)) => dek,
        _ => panic!("every DEK is cached"),
    }
}

criterion_group!(benches, load, lookup);
criterion_main!(benches);
