//! Where KEKs live: one trait over HSMs and keystores.
//!
//! A [`KeyBackend`] makes KEKs that never leave it, and wraps and opens DEKs under them. The bridge knows
//! nothing else about HSMs. What a backend can do is found out when it is opened, by doing it
//! ([`probe()`]): some tokens advertise mechanisms that fail, or accept what they should refuse.
//!
//! - [`software`]: one sealed file; for development, tests and small installations.
//! - [`pkcs11`]: any HSM with a PKCS#11 module.

pub mod config;
mod error;
pub mod pkcs11;
mod probe;
pub mod software;

pub use config::{BackendConfig, BackendKind, Pkcs11Config, SoftwareConfig};
pub use error::BackendError;
pub use probe::{Advertised, Outcome, ProbeReport, Trial, probe};

use async_trait::async_trait;
use core::fmt::Debug;
use keyway_envelope::{Dek, KekRef, KeyBlock, WrapMechanism};
use std::sync::Arc;

/// A KEK, as its backend describes it. Never its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekInfo {
    /// Which KEK.
    pub kek: KekRef,
    /// For people: `keyway:zone/keyring:vN`.
    pub label: String,
    /// Whether the backend would ever give the key's bytes away. True only for the software keystore.
    pub extractable: bool,
    /// What DEKs are wrapped with under this KEK.
    pub mechanism: WrapMechanism,
}

/// Makes KEKs, keeps them, and wraps and opens DEKs under them.
///
/// Each call has a deadline of the backend's own. Calls may run at the same time. Dropping a call's future is safe:
/// what it began ends by itself, and making a KEK may be repeated.
#[async_trait]
pub trait KeyBackend: Send + Sync + Debug {
    /// Its name in the configuration, as in logs and metrics.
    fn name(&self) -> &str;

    /// `software` or `pkcs11`.
    fn kind(&self) -> &'static str;

    /// What new wraps are made with; chosen by trial when the backend was opened.
    fn mechanism(&self) -> WrapMechanism;

    /// Makes a KEK, or returns the one that there is: after a crash the caller asks again.
    ///
    /// # Errors
    /// [`BackendError::Duplicate`] if the backend holds two objects of that name.
    async fn generate_kek(&self, kek: KekRef, label: &str) -> Result<KekInfo, BackendError>;

    /// Looks a KEK up.
    ///
    /// # Errors
    /// [`BackendError::Duplicate`] as above.
    async fn find_kek(&self, kek: KekRef) -> Result<Option<KekInfo>, BackendError>;

    /// All KEKs, in the order of their references.
    ///
    /// # Errors
    /// The backend's own.
    async fn list_keks(&self) -> Result<Vec<KekInfo>, BackendError>;

    /// Wraps a DEK for a zone and tenant. The block has been opened again before it is returned.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is no such KEK.
    async fn wrap(&self, kek: KekRef, dek: &Dek, zone: &str, tenant: &str) -> Result<KeyBlock, BackendError>;

    /// Opens an inline block.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if its KEK is not here, [`BackendError::Refused`] if the block does not
    /// authenticate for that zone and tenant.
    async fn unwrap(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, BackendError>;

    /// Destroys a KEK for good. What is wrapped by it alone is lost; the caller has proved that nothing is.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is none.
    async fn destroy_kek(&self, kek: KekRef) -> Result<(), BackendError>;

    /// Proves that the backend works, by a round trip of a canary; asking for its status proves nothing.
    ///
    /// # Errors
    /// Why it does not.
    async fn health(&self) -> Result<(), BackendError>;
}

/// Opens a backend: finds its store or token, logs in, and tries out what it can do.
///
/// May block (argon2, login, trials), for seconds at worst; it moves to a blocking thread by itself.
///
/// # Errors
/// [`BackendError::Config`] with what to do about it, [`BackendError::Pin`] for a refused PIN, and others.
pub async fn open(config: &BackendConfig) -> Result<Arc<dyn KeyBackend>, BackendError> {
    let name = config.name.clone();
    match &config.kind {
        BackendKind::Software(software) => {
            let software = software.clone();
            let open = move || software::SoftwareBackend::open(name, &software);
            Ok(Arc::new(blocking(open).await?))
        }
        BackendKind::Pkcs11(pkcs11) => {
            let pkcs11 = pkcs11.clone();
            let open = move || pkcs11::Pkcs11Backend::open(name, &pkcs11);
            Ok(Arc::new(blocking(open).await?))
        }
    }
}

/// Runs what waits for a disk or a library on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(BackendError::Unavailable(format!("the operation was ended: {error}"))))
}

/// The name of a wrap mechanism, as in reports and metrics.
#[must_use]
pub fn mechanism_name(mechanism: WrapMechanism) -> &'static str {
    match mechanism {
        WrapMechanism::None => "none",
        WrapMechanism::AesGcm => "aes-gcm",
        WrapMechanism::AesKwp => "aes-kwp",
    }
}
