//! Key blocks that the catalog does not know cost an HSM operation each. Somebody who makes them up must not be able to
//! keep the HSM busy: each service has an allowance, and a block that was refused once is refused again at once.

use super::DekError;
use crate::catalog::block_digest;
use keyway_envelope::KeyBlock;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Unknown blocks that a service may ask for at once.
const BURST: u64 = 200;
/// And per second after that.
const PER_SECOND: u64 = 50;
/// Refused blocks that are remembered.
const REFUSED_MAX: usize = 4096;

/// The allowances of one bridge.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Services come from verified certificates with rights here, so this is bounded by the configuration.
    buckets: HashMap<String, Bucket>,
    refused: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

/// Counted in thousandths of a block, so that a millisecond refills a whole number.
#[derive(Debug)]
struct Bucket {
    left: u64,
    filled_ms: u64,
}

impl Quota {
    /// Takes one from the service's allowance.
    pub(crate) fn admit(&self, service: &str, block: &KeyBlock, now_ms: u64) -> Result<(), DekError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.refused.contains(&block_digest(block)) {
            return Err(DekError::Argument("the key block is not one that this zone made"));
        }
        let full = BURST * 1000;
        let bucket =
            inner.buckets.entry(service.to_owned()).or_insert(Bucket { left: full, filled_ms: now_ms });
        let refill = now_ms.saturating_sub(bucket.filled_ms).saturating_mul(PER_SECOND);
        bucket.left = bucket.left.saturating_add(refill).min(full);
        bucket.filled_ms = now_ms;
        bucket.left = bucket.left.checked_sub(1000).ok_or(DekError::Quota)?;
        Ok(())
    }

    /// Remembers a block that no HSM authenticates.
    pub(crate) fn refused(&self, block: &KeyBlock) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = block_digest(block);
        if inner.refused.insert(digest) {
            inner.order.push_back(digest);
        }
        while inner.order.len() > REFUSED_MAX {
            if let Some(oldest) = inner.order.pop_front() {
                inner.refused.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyway_envelope::{DekId, KekRef, KekVersion, KeyringId, WrapMechanism, ZoneId};

    fn block(n: u8) -> KeyBlock {
        let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };
        KeyBlock::inline(kek, DekId([n; 16]), WrapMechanism::AesGcm, &[n; 60]).unwrap()
    }

    #[test]
    fn an_allowance_ends_and_fills_again() {
        let quota = Quota::default();
        for _ in 0..BURST {
            quota.admit("a", &block(1), 1000).unwrap();
        }
        assert!(matches!(quota.admit("a", &block(1), 1000), Err(DekError::Quota)));
        quota.admit("b", &block(1), 1000).unwrap();
        quota.admit("a", &block(1), 1000 + 1000 / PER_SECOND).unwrap();
        assert!(matches!(quota.admit("a", &block(1), 1000 + 1000 / PER_SECOND), Err(DekError::Quota)));
    }

    #[test]
    fn a_refused_block_costs_nothing_the_second_time() {
        let quota = Quota::default();
        quota.refused(&block(1));
        assert!(matches!(quota.admit("a", &block(1), 0), Err(DekError::Argument(_))));
        quota.admit("a", &block(2), 0).unwrap();
    }
}
