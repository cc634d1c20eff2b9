//! Single flight: one call to the bridge for all who wait for the same key.

use crate::dek::CachedDek;
use crate::keyring::{KeyError, KeyringSlot};
use core::future::Future;
use core::time::Duration;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use keyway_envelope::{KekVersion, KeyBlock};
use std::sync::Arc;
use tokio::sync::watch;

type Answer = Option<Result<Arc<CachedDek>, KeyError>>;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum FlightKey {
    Issue(KeyringSlot, KekVersion, Box<str>),
    Open(KeyringSlot, KeyBlock),
}

pub(super) struct Flights {
    under_way: Arc<DashMap<FlightKey, watch::Receiver<Answer>>>,
    max: usize,
}

impl Flights {
    pub(super) fn new(max: usize) -> Self {
        Self { under_way: Arc::new(DashMap::new()), max }
    }

    /// Joins the flight for `key`, or starts it on `runtime`. It goes on when those who wait have left: the next
    /// one finds the answer in the cache.
    pub(super) fn join<F, Fut>(
        &self,
        key: FlightKey,
        runtime: &tokio::runtime::Handle,
        fetch: F,
    ) -> Result<Pending, KeyError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Arc<CachedDek>, KeyError>> + Send + 'static,
    {
        if let Some(flight) = self.under_way.get(&key) {
            return Ok(Pending::new(flight.clone()));
        }
        // Blocks are made up by anybody; a quarter of the places is for sealing.
        let max = match key {
            FlightKey::Open(..) => self.max - self.max / 4,
            FlightKey::Issue(..) => self.max,
        };
        if self.under_way.len() >= max {
            return Err(KeyError::Unavailable);
        }
        match self.under_way.entry(key.clone()) {
            Entry::Occupied(flight) => Ok(Pending::new(flight.get().clone())),
            Entry::Vacant(place) => {
                let (answer, waiting) = watch::channel(None);
                place.insert(waiting.clone());
                let guard = Landing { under_way: Arc::clone(&self.under_way), key };
                let fetch = fetch();
                runtime.spawn(async move {
                    let result = fetch.await;
                    // The cache holds the DEK by now, so whoever misses the flight finds it there.
                    drop(guard);
                    let _ = answer.send(Some(result));
                });
                Ok(Pending::new(waiting))
            }
        }
    }
}

/// Takes the flight off the list however it ends, a panic or a runtime that shuts down included.
struct Landing {
    under_way: Arc<DashMap<FlightKey, watch::Receiver<Answer>>>,
    key: FlightKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.under_way.remove(&self.key);
    }
}

/// A flight under way.
#[derive(Clone, Debug)]
pub struct Pending {
    answer: watch::Receiver<Answer>,
    made_for: Option<(KeyringSlot, Box<str>)>,
}

impl Pending {
    fn new(answer: watch::Receiver<Answer>) -> Self {
        Self { answer, made_for: None }
    }

    pub(super) fn for_tenant(mut self, slot: KeyringSlot, tenant: &str) -> Self {
        self.made_for = Some((slot, tenant.into()));
        self
    }

    /// Waits for the answer, `deadline` at most. Needs a tokio runtime with a timer.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] if the deadline passes first; the flight goes on for the next one who asks.
    pub async fn wait(mut self, deadline: Duration) -> Result<Arc<CachedDek>, KeyError> {
        let answer = match tokio::time::timeout(deadline, self.answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(KeyError::Unavailable)),
            Ok(Err(_)) | Err(_) => Err(KeyError::Unavailable),
        }?;
        match self.made_for {
            Some((slot, tenant)) if answer.slot() != slot || answer.tenant() != &*tenant => {
                Err(KeyError::Refused)
            }
            _ => Ok(answer),
        }
    }
}
