//! Finding DEKs among few and many, and publishing beside them.

use super::Item;
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, ZoneId};
use keyway_keycache::{
    CacheLimits, CachedDek, DekLimits, FetchedDek, KeyCache, Keyring, KeyringName, KeyringSlot, Lease,
    Millis, Reader, SealLookup,
};
use std::hint::black_box;
use std::sync::Arc;
use zeroize::Zeroizing;

const SLOT: KeyringSlot = KeyringSlot(0);
const NEVER: Millis = Millis(u64::MAX);
const NOW: Millis = Millis(1);
const DEKS: [u32; 3] = [1, 100, 10_000];
const LOOK_UPS: u64 = 1000;

pub(super) fn items() -> Vec<Item> {
    let mut items = Vec::new();
    for deks in DEKS {
        items.push(Item::new(format!("keycache/open look-up, {deks} DEKs"), LOOK_UPS, move || {
            let (cache, mut reader) = cache();
            let blocks: Vec<KeyBlock> = (0..deks).map(|n| install_open(&cache, n)).collect();
            let mut at = 0;
            Box::new(move || {
                at = (at + 7919) % blocks.len();
                let keyring = reader.load().keyring(SLOT).expect("published");
                black_box(ready(cache.open(keyring, SLOT, &blocks[at], "", NOW)));
            })
        }));
        items.push(Item::new(format!("keycache/seal look-up, {deks} tenants' DEKs"), LOOK_UPS, move || {
            let (cache, mut reader) = cache();
            let tenants: Vec<String> = (0..deks).map(|n| format!("tenant-{n:05}")).collect();
            for (n, tenant) in (0..).zip(&tenants) {
                cache.install_seal(SLOT, fetched(n, tenant), DekLimits::default());
            }
            let mut at = 0;
            Box::new(move || {
                at = (at + 7919) % tenants.len();
                let keyring = reader.load().keyring(SLOT).expect("published");
                black_box(ready(cache.seal(keyring, SLOT, &tenants[at], NOW)));
            })
        }));
        // The sweep behind the swap looks at every DEK.
        let publications = if deks > 1000 { 5 } else { 200 };
        items.push(Item::new(format!("keycache/publish, {deks} DEKs"), publications, move || {
            let (cache, _) = cache();
            for n in 0..deks {
                install_open(&cache, n);
            }
            let mut generation = 1;
            Box::new(move || {
                generation += 1;
                cache.publish(vec![(SLOT, Arc::new(keyring(generation)))]);
            })
        }));
    }
    items.push(Item::new("keycache/seal look-up, no tenant", LOOK_UPS, || {
        let (cache, mut reader) = cache();
        let own = cache.install_seal(SLOT, fetched(0, ""), DekLimits::default());
        cache.publish(vec![(SLOT, Arc::new(keyring(2).with_seal_dek(own)))]);
        Box::new(move || {
            let keyring = reader.load().keyring(SLOT).expect("published");
            black_box(ready(cache.seal(keyring, SLOT, "", NOW)));
        })
    }));
    items
}

fn name() -> KeyringName {
    KeyringName::parse("payments/default").expect("zone/name")
}

fn cache() -> (Arc<KeyCache>, Reader) {
    // Room for all of them, so that no look-up is a miss.
    let limits = CacheLimits { tenants: 65_536, ..CacheLimits::default() };
    let cache = KeyCache::new(vec![name()], limits, || Millis(0));
    cache.publish(vec![(SLOT, Arc::new(keyring(1)))]);
    let reader = cache.reader();
    (cache, reader)
}

fn keyring(generation: u64) -> Keyring {
    Keyring {
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
    }
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

fn install_open(cache: &KeyCache, n: u32) -> KeyBlock {
    *cache.install_open(SLOT, fetched(n, ""), DekLimits::default()).key_block()
}

fn ready<E>(found: Result<SealLookup, E>) -> Arc<CachedDek> {
    match found {
        Ok(SealLookup::Ready(dek)) => dek,
        _ => panic!("every DEK is cached"),
    }
}
