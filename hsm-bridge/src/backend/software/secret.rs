//! What a keystore is sealed under: a passphrase or a key file.

use super::format::{Header, SecretKind};
use super::storage::{self, check_private};
use crate::backend::{BackendError, SoftwareConfig};
use aws_lc_rs::hkdf;
use core::fmt;
use keyway_envelope::LockedBox;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Length of a key file, in bytes.
const KEY_FILE: usize = 32;

/// A passphrase, or the bytes of a key file. Wiped when dropped; `Debug` shows the kind only.
pub struct Secret(Inner);

enum Inner {
    Passphrase(Zeroizing<Vec<u8>>),
    KeyFile(LockedBox<Zeroizing<[u8; KEY_FILE]>>),
}

impl Secret {
    /// A passphrase.
    ///
    /// # Errors
    /// [`BackendError::Config`] if it is empty.
    pub fn passphrase(passphrase: &[u8]) -> Result<Self, BackendError> {
        if passphrase.is_empty() {
            return Err(BackendError::Config("the keystore's passphrase is empty".to_owned()));
        }
        Ok(Self(Inner::Passphrase(Zeroizing::new(passphrase.to_vec()))))
    }

    /// Reads the first line of a file as passphrase.
    ///
    /// # Errors
    /// [`BackendError::Config`] if it can't be read, is open to everybody, or is empty.
    pub fn passphrase_file(path: &Path) -> Result<Self, BackendError> {
        let line = storage::read_first_line(path, "passphrase")?;
        Self::passphrase(&line)
    }

    /// Reads a key file: 32 bytes that only its owner may read.
    ///
    /// # Errors
    /// [`BackendError::Config`] if it is absent, too open, or of another length.
    pub fn key_file(path: &Path) -> Result<Self, BackendError> {
        let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| {
            BackendError::Config(format!("can't read the key file {}: {error}", path.display()))
        })?);
        check_private(path, 0o077)?;
        let Ok(key) = <[u8; KEY_FILE]>::try_from(bytes.as_slice()) else {
            return Err(BackendError::Config(format!(
                "the key file {} has {} bytes instead of {KEY_FILE}; restore it from a backup",
                path.display(),
                bytes.len()
            )));
        };
        Ok(Self(Inner::KeyFile(LockedBox::new(Zeroizing::new(key)))))
    }

    /// As the configuration says, for reading: nothing is made.
    ///
    /// # Errors
    /// As the constructors above.
    pub fn for_reading(config: &SoftwareConfig) -> Result<Self, BackendError> {
        Self::from_config(config, false)
    }

    /// As the configuration says; `may_create` if there is no keystore yet that an absent key file would belong to.
    pub(super) fn from_config(config: &SoftwareConfig, may_create: bool) -> Result<Self, BackendError> {
        match (&config.passphrase_file, &config.key_file) {
            (Some(_), Some(_)) => Err(BackendError::Config(format!(
                "the keystore {} names both passphrase_file and key_file; it takes one",
                config.path.display()
            ))),
            (Some(passphrase), None) => Self::passphrase_file(passphrase),
            (None, key_file) => {
                let key_file = key_file.clone().unwrap_or_else(|| default_key_file(&config.path));
                if may_create {
                    create_key_file(&key_file)?;
                }
                Self::key_file(&key_file)
            }
        }
    }

    pub(super) fn kind(&self) -> SecretKind {
        match self.0 {
            Inner::Passphrase(_) => SecretKind::Passphrase,
            Inner::KeyFile(_) => SecretKind::KeyFile,
        }
    }

    /// The sealing key of a keystore with this header.
    pub(super) fn sealing_key(&self, header: &Header) -> Result<Zeroizing<[u8; 32]>, BackendError> {
        let mut key = Zeroizing::new([0; 32]);
        match &self.0 {
            Inner::Passphrase(passphrase) => {
                let argon2 = argon2::Argon2::new(
                    argon2::Algorithm::Argon2id,
                    argon2::Version::V0x13,
                    header.argon2_params()?,
                );
                argon2.hash_password_into(passphrase, &header.salt, &mut *key).map_err(|error| {
                    BackendError::Config(format!("the passphrase can't be used: {error}"))
                })?;
            }
            Inner::KeyFile(secret) => {
                let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &header.salt).extract(&secret[..]);
                prk.expand(&[b"keyway keystore v1"], hkdf::HKDF_SHA256)
                    .and_then(|okm| okm.fill(&mut *key))
                    .expect("32 bytes are within what HKDF-SHA-256 gives");
            }
        }
        Ok(key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").field(&self.kind()).finish()
    }
}

/// `PATH.key`.
fn default_key_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

/// Makes a key file of random bytes, whole or not at all; one that is there is kept.
fn create_key_file(path: &Path) -> Result<(), BackendError> {
    match path.symlink_metadata() {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(BackendError::Config(format!(
                "can't look at the key file {}: {error}",
                path.display()
            )));
        }
    }
    let mut key = Zeroizing::new([0; KEY_FILE]);
    getrandom::fill(&mut *key)
        .map_err(|error| BackendError::Unavailable(format!("no randomness: {error}")))?;
    storage::create_durably(path, &*key)
        .map_err(|error| BackendError::Config(format!("can't make the key file {}: {error}", path.display())))
}
