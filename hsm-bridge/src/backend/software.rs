//! KEKs in one sealed file: the software keystore.
//!
//! For development, tests and installations without an HSM: whoever reads the file *and* its passphrase or key file
//! has the KEKs. In memory each KEK sits in locked memory and is wiped when it is dropped.
//!
//! # The file
//! Integers are big-endian.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | magic: FB 4B 57 4B |
//! | 4 | 1 | version = 1 |
//! | 5 | 1 | secret: 1 passphrase, 2 key file |
//! | 6 | 2 | zero |
//! | 8 | 4 | Argon2id memory, KiB (zero for a key file) |
//! | 12 | 4 | Argon2id passes (zero for a key file) |
//! | 16 | 4 | Argon2id lanes (zero for a key file) |
//! | 20 | 16 | salt, random when the keystore is made |
//! | 36 | 12 | nonce, random with each write |
//! | 48 | n + 16 | AES-256-GCM ciphertext ‖ tag; associated data are the first 48 bytes |
//!
//! The sealing key is `Argon2id(passphrase, salt)` (version 0x13, 32 bytes; RFC 9106), or
//! `HKDF-SHA-256(key file's 32 bytes, salt, info = "keyway keystore v1")` (RFC 5869).
//!
//! The plaintext is `count u32`, then for each KEK, in ascending order of reference:
//! `reference 8 ‖ label length u16 ‖ label (UTF-8) ‖ key 32`. The reference is `zone u16 ‖ keyring u32 ‖ version u16`,
//! as in an envelope's key block.
//!
//! A wrap is `IV 12 ‖ ciphertext 32 ‖ tag 16` of AES-256-GCM under the KEK, with [`keyway_envelope::wrap_aad`] as
//! associated data and a random IV.
//!
//! # Writes
//! A change is written beside the file (`PATH.new`), synced, renamed over it, and the folder is synced: after a crash the
//! file is the old or the new one. One process may write: it holds a lock on `PATH.lock`. Reading
//! ([`Keystore::open`]) needs no lock, so that `keyway open` works beside a running bridge.

mod format;
mod keystore;
mod secret;
mod storage;

pub use keystore::Keystore;
pub use secret::Secret;
pub(super) use storage::read_first_line;

use super::{BackendError, KekInfo, KeyBackend, SoftwareConfig, blocking};
use async_trait::async_trait;
use keyway_envelope::{Dek, KekRef, KeyBlock, WrapMechanism};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use storage::Storage;

/// The keystore as a [`KeyBackend`].
#[derive(Debug)]
pub struct SoftwareBackend {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What serves; replaced only after its file is durable.
    keystore: RwLock<Keystore>,
    /// The one writer at a time.
    storage: Mutex<Storage>,
}

impl SoftwareBackend {
    /// Opens the keystore for this process alone; makes it if it is absent.
    ///
    /// # Errors
    /// [`BackendError::Config`], with what to do about it.
    pub fn open(name: String, config: &SoftwareConfig) -> Result<Self, BackendError> {
        let storage = Storage::lock(&config.path)?;
        let exists = storage.exists()?;
        let secret = Secret::from_config(config, !exists)?;
        let keystore = if exists {
            Keystore::open(&config.path, &secret)?
        } else {
            let keystore = Keystore::new(&secret)?;
            storage.write(&keystore.seal()?)?;
            keystore
        };
        tracing::debug!(backend = name, keks = keystore.list().len(), "opened the software keystore");
        let shared = Shared { keystore: RwLock::new(keystore), storage: Mutex::new(storage) };
        Ok(Self { name, shared: Arc::new(shared) })
    }

    fn read<T>(&self, look: impl FnOnce(&Keystore) -> T) -> T {
        look(&self.shared.keystore.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// Applies a change to a copy, makes that durable, then serves it.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Keystore) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.keystore.read().unwrap_or_else(PoisonError::into_inner).clone();
        let outcome = change(&mut next)?;
        storage.write(&next.seal()?)?;
        *self.keystore.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(outcome)
    }

    /// The file still opens, holds what is served, and every KEK wraps and opens.
    fn check(&self) -> Result<(), BackendError> {
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = storage.read()?;
        let keystore = self.keystore.read().unwrap_or_else(PoisonError::into_inner);
        if keystore.is_stored_in(&bytes) {
            keystore.check()
        } else {
            Err(BackendError::Unavailable(format!(
                "{} is no longer the keystore that was opened; restore it from a backup",
                storage.path().display()
            )))
        }
    }
}

#[async_trait]
impl KeyBackend for SoftwareBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "software"
    }

    fn mechanism(&self) -> WrapMechanism {
        WrapMechanism::AesGcm
    }

    async fn generate_kek(&self, kek: KekRef, label: &str) -> Result<KekInfo, BackendError> {
        if let Some(found) = self.read(|keystore| keystore.find(kek)) {
            return Ok(found);
        }
        let (shared, label) = (Arc::clone(&self.shared), label.to_owned());
        blocking(move || shared.change(|keystore| keystore.generate(kek, &label))).await
    }

    async fn find_kek(&self, kek: KekRef) -> Result<Option<KekInfo>, BackendError> {
        Ok(self.read(|keystore| keystore.find(kek)))
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, BackendError> {
        Ok(self.read(Keystore::list))
    }

    async fn wrap(&self, kek: KekRef, dek: &Dek, zone: &str, tenant: &str) -> Result<KeyBlock, BackendError> {
        self.read(|keystore| keystore.wrap(kek, dek, zone, tenant))
    }

    async fn unwrap(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, BackendError> {
        self.read(|keystore| keystore.unwrap(block, zone, tenant))
    }

    async fn destroy_kek(&self, kek: KekRef) -> Result<(), BackendError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.change(|keystore| keystore.destroy(kek))).await
    }

    async fn health(&self) -> Result<(), BackendError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.check()).await
    }
}
