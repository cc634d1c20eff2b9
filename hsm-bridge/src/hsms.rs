//! A zone's key backends: which there are, and which answer.

use crate::backend::{self, BackendConfig, BackendError, KekInfo, KeyBackend};
use crate::metrics::Metrics;
use keyway_envelope::{Dek, KekRef, KeyBlock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use thiserror::Error;
use tracing::{info, warn};

/// A backend failed, by name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("key backend {name}: {source}")]
pub struct HsmError {
    /// The backend's name in the configuration.
    pub name: String,
    /// What failed.
    pub source: BackendError,
}

/// The backends of one zone, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct Hsms {
    zone: String,
    slots: Vec<Arc<Hsm>>,
    /// Backends under which each DEK is wrapped.
    pub(crate) required: usize,
}

/// One backend. Absent until it could be opened: a bridge starts while an HSM is away.
#[derive(Debug)]
pub(crate) struct Hsm {
    zone: String,
    config: BackendConfig,
    opened: RwLock<Option<Arc<dyn KeyBackend>>>,
    up: AtomicBool,
    /// A token that has refused its PIN is not asked again: a few more times, and it locks.
    pin_refused: AtomicBool,
    metrics: Metrics,
}

impl Hsms {
    /// Opens them. One that is away is tried again later; one that is configured wrongly is an error.
    pub(crate) async fn open(
        zone: &str,
        configs: &[BackendConfig],
        required: usize,
        metrics: Metrics,
    ) -> Result<Self, HsmError> {
        let mut slots = Vec::with_capacity(configs.len());
        for config in configs {
            let hsm = Arc::new(Hsm {
                zone: zone.to_owned(),
                config: config.clone(),
                opened: RwLock::new(None),
                up: AtomicBool::new(false),
                pin_refused: AtomicBool::new(false),
                metrics: metrics.clone(),
            });
            match hsm.check().await {
                Err(error @ HsmError { source: BackendError::Pin | BackendError::Config(_), .. }) => {
                    return Err(error);
                }
                Err(error) => warn!(zone, %error, "starting without it; it is tried again"),
                Ok(()) => {}
            }
            slots.push(hsm);
        }
        Ok(Self { zone: zone.to_owned(), slots, required })
    }

    /// Looks after all of them: opens what is closed, proves what is open.
    pub(crate) async fn check(&self) {
        for hsm in &self.slots {
            let was_up = hsm.is_up();
            match hsm.check().await {
                Ok(()) if !was_up => info!(zone = self.zone, backend = hsm.name(), "key backend is back"),
                Err(error) if was_up => warn!(zone = self.zone, %error, "key backend is away"),
                _ => {}
            }
        }
    }

    /// Those that answer.
    pub(crate) fn up(&self) -> Vec<Arc<Hsm>> {
        self.slots.iter().filter(|hsm| hsm.is_up()).cloned().collect()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Hsm>> {
        self.slots.iter().find(|hsm| hsm.name() == name)
    }

    pub(crate) fn all(&self) -> &[Arc<Hsm>] {
        &self.slots
    }
}

impl Hsm {
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// What kind it is, if it could be opened.
    pub(crate) fn kind(&self) -> &'static str {
        self.backend().map_or("unknown", |backend| backend.kind())
    }

    pub(crate) async fn generate(&self, kek: KekRef, label: &str) -> Result<KekInfo, HsmError> {
        let backend = self.backend()?;
        self.timed("generate", async move { backend.generate_kek(kek, label).await }).await
    }

    pub(crate) async fn find(&self, kek: KekRef) -> Result<Option<KekInfo>, HsmError> {
        let backend = self.backend()?;
        self.timed("find", async move { backend.find_kek(kek).await }).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<KekInfo>, HsmError> {
        let backend = self.backend()?;
        self.timed("list", async move { backend.list_keks().await }).await
    }

    pub(crate) async fn wrap(
        &self,
        kek: KekRef,
        dek: &Dek,
        zone: &str,
        tenant: &str,
    ) -> Result<KeyBlock, HsmError> {
        let backend = self.backend()?;
        self.timed("wrap", async move { backend.wrap(kek, dek, zone, tenant).await }).await
    }

    pub(crate) async fn unwrap(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, HsmError> {
        let backend = self.backend()?;
        self.timed("unwrap", async move { backend.unwrap(block, zone, tenant).await }).await
    }

    async fn check(&self) -> Result<(), HsmError> {
        if self.pin_refused.load(Ordering::Relaxed) {
            return Err(self.error(BackendError::Pin));
        }
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner).clone();
        let checked = match opened {
            Some(backend) => self.timed("health", async move { backend.health().await }).await,
            None => self.timed("open", backend::open(&self.config)).await.map(|backend| {
                *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(backend);
            }),
        };
        if matches!(checked, Err(HsmError { source: BackendError::Pin, .. })) {
            self.pin_refused.store(true, Ordering::Relaxed);
        }
        // A canary that found no room proves nothing either way.
        if !matches!(checked, Err(HsmError { source: BackendError::Busy, .. })) {
            self.set_up(checked.is_ok());
        }
        checked
    }

    fn backend(&self) -> Result<Arc<dyn KeyBackend>, HsmError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner).clone();
        opened.ok_or_else(|| self.error(BackendError::Unavailable("it could not be opened yet".into())))
    }

    /// Runs an operation, times it, and learns from its failure.
    async fn timed<T>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, HsmError> {
        let started = Instant::now();
        let result = work.await;
        self.metrics.hsm_operation(self.name(), op, started.elapsed());
        result.map_err(|source| {
            if matches!(source, BackendError::Timeout | BackendError::Unavailable(_) | BackendError::Pin) {
                self.set_up(false);
            }
            self.error(source)
        })
    }

    /// Known to callers and to the metrics at once: an alarm does not wait for the next check.
    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        self.metrics.hsm_up(&self.zone, self.name(), up);
    }

    fn error(&self, source: BackendError) -> HsmError {
        HsmError { name: self.config.name.clone(), source }
    }
}
