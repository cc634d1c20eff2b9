//! KEKs in a token behind a PKCS#11 module.

use super::{BackendError, KekInfo, KeyBackend, Pkcs11Config};
use async_trait::async_trait;
use keyway_envelope::{Dek, KekRef, KeyBlock, WrapMechanism};

/// A token as a [`KeyBackend`].
#[derive(Debug)]
pub struct Pkcs11Backend {
    name: String,
}
impl Pkcs11Backend {
    /// Opens.
    pub fn open(_name: String, config: &Pkcs11Config) -> Result<Self, BackendError> {
        Err(BackendError::Config(format!("{} is not supported yet", config.module.display())))
    }
}
#[async_trait]
impl KeyBackend for Pkcs11Backend {
    fn name(&self) -> &str {
        &self.name
    }
    fn kind(&self) -> &'static str {
        "pkcs11"
    }
    fn mechanism(&self) -> WrapMechanism {
        WrapMechanism::AesGcm
    }
    async fn generate_kek(&self, kek: KekRef, _: &str) -> Result<KekInfo, BackendError> {
        Err(BackendError::NotFound { kek })
    }
    async fn find_kek(&self, _: KekRef) -> Result<Option<KekInfo>, BackendError> {
        Ok(None)
    }
    async fn list_keks(&self) -> Result<Vec<KekInfo>, BackendError> {
        Ok(vec![])
    }
    async fn wrap(&self, kek: KekRef, _: &Dek, _: &str, _: &str) -> Result<KeyBlock, BackendError> {
        Err(BackendError::NotFound { kek })
    }
    async fn unwrap(&self, _: &KeyBlock, _: &str, _: &str) -> Result<Dek, BackendError> {
        Err(BackendError::Refused)
    }
    async fn destroy_kek(&self, kek: KekRef) -> Result<(), BackendError> {
        Err(BackendError::NotFound { kek })
    }
    async fn health(&self) -> Result<(), BackendError> {
        Ok(())
    }
}
