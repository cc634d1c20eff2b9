//! The key cache in this process, without a proxy around it: for more DEKs than a sidecar keeps.

use super::figures::float;
use crate::machine::Meter;
use anyhow::{Context, bail};
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, ZoneId};
use keyway_keycache::{
    CacheLimits, DekLimits, FetchedDek, KeyCache, Keyring, KeyringName, KeyringSlot, Lease, Millis,
    SealLookup,
};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const SLOT: KeyringSlot = KeyringSlot(0);
const NOW: Millis = Millis(1);
const NEVER: Millis = Millis(u64::MAX);
const VERSION: KekVersion = KekVersion(1);
const LOOKUPS: u64 = 200_000;
const SWAPS: u64 = 20;
/// A prime far from all counts: steps of it visit every DEK once before any twice.
const STRIDE: u64 = 1_000_003;

/// What DEKs cost.
pub(super) struct Costs {
    pub(super) open_ns: f64,
    pub(super) seal_ns: f64,
    pub(super) swap_us: f64,
    pub(super) bytes_per_dek: f64,
}

/// Fills a cache with so many DEKs, each for a tenant of its own, and times it.
pub(super) fn measure(deks: u64) -> anyhow::Result<Costs> {
    let entries = usize::try_from(deks)?;
    let limits = CacheLimits { entries, tenants: entries, ..CacheLimits::default() };
    let name = KeyringName::parse("payments/default").context("zone/name")?;
    let cache = KeyCache::new(vec![name.clone()], limits, || NOW);
    cache.publish(vec![(SLOT, keyring(&name, 1))]);
    let own = Meter::new(vec![std::process::id()]);
    let tenants: Vec<String> = (0..deks).map(|dek| format!("tenant-{dek}")).collect();
    let before = own.memory().resident_bytes;
    let blocks: Vec<KeyBlock> = (0..deks)
        .zip(&tenants)
        .map(|(dek, tenant)| {
            *cache.install_seal(SLOT, fetched(dek, tenant), DekLimits::default()).key_block()
        })
        .collect();
    let taken = own.memory().resident_bytes.saturating_sub(before + deks * size_of::<KeyBlock>() as u64);

    let mut reader = cache.reader();
    let mut lookups = |find: &dyn Fn(&Keyring, usize) -> anyhow::Result<()>| -> anyhow::Result<f64> {
        let begun = Instant::now();
        for lookup in 0..LOOKUPS {
            let at = usize::try_from(lookup * STRIDE % deks)?;
            find(reader.load().keyring(SLOT)?, at)?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e9 / float(LOOKUPS))
    };
    let open_ns =
        lookups(&|keyring, at| ready(cache.open(keyring, SLOT, &blocks[at], &tenants[at], NOW)?))?;
    let seal_ns = lookups(&|keyring, at| ready(cache.seal(keyring, SLOT, &tenants[at], NOW)?))?;

    let begun = Instant::now();
    for swap in 0..SWAPS {
        cache.publish(vec![(SLOT, keyring(&name, swap + 2))]);
    }
    let swap_us = begun.elapsed().as_secs_f64() * 1e6 / float(SWAPS);
    Ok(Costs { open_ns, seal_ns, swap_us, bytes_per_dek: float(taken) / float(deks) })
}

fn ready(found: SealLookup) -> anyhow::Result<()> {
    match found {
        SealLookup::Ready(dek) => {
            black_box(dek);
            Ok(())
        }
        SealLookup::Wait(_) => bail!("a DEK is not in the cache that was put there"),
    }
}

fn keyring(name: &KeyringName, generation: u64) -> Arc<Keyring> {
    Arc::new(Keyring {
        name: name.clone(),
        zone_id: ZoneId(1),
        keyring_id: KeyringId(1),
        generation,
        primary: VERSION,
        accepted: vec![VERSION],
        may_seal: true,
        may_open: true,
        lease: Arc::new(Lease::until(NEVER, NEVER)),
        limits: DekLimits::default(),
        seal_dek: None,
    })
}

fn fetched(number: u64, tenant: &str) -> FetchedDek {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    let id = DekId(id);
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: VERSION };
    FetchedDek {
        // What the key is does not matter to the cache.
        dek: Dek::new(id, [5; 32].into()),
        key_block: KeyBlock::catalog(kek, id),
        kek_version: VERSION,
        tenant: tenant.into(),
        messages: 0,
        bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_that_was_put_in_is_found() {
        for deks in [1, 1000] {
            let costs = super::measure(deks).unwrap();
            assert!(costs.open_ns > 0.0 && costs.seal_ns > 0.0 && costs.swap_us > 0.0);
        }
    }
}
