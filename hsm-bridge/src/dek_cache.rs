//! DEKs that were opened lately, in locked memory, with a bound.

use keyway_envelope::{Dek, DekId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries. A fleet that restarts asks for the same few DEKs again and again; the HSM answers once.
const CAPACITY: usize = 4096;

/// First in, first out: an entry that was pushed out costs one HSM operation more.
#[derive(Debug, Default)]
pub(crate) struct DekCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<DekId, Arc<Dek>>,
    order: VecDeque<DekId>,
}

impl DekCache {
    pub(crate) fn get(&self, id: DekId) -> Option<Arc<Dek>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.get(&id).cloned()
    }

    pub(crate) fn insert(&self, dek: Dek) -> Arc<Dek> {
        let dek = Arc::new(dek);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.entries.insert(dek.id(), dek.clone()).is_none() {
            inner.order.push_back(dek.id());
        }
        while inner.order.len() > CAPACITY {
            if let Some(oldest) = inner.order.pop_front() {
                inner.entries.remove(&oldest);
            }
        }
        dek
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let cache = DekCache::default();
        let id = |n: usize| DekId((n as u128).to_be_bytes());
        for n in 0..=CAPACITY {
            cache.insert(Dek::new(id(n), zeroize::Zeroizing::new([7; 32])));
        }
        assert!(cache.get(id(0)).is_none());
        assert!(cache.get(id(1)).is_some() && cache.get(id(CAPACITY)).is_some());
    }
}
