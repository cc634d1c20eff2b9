//! The keys of one keystore, in memory.

use super::Secret;
use super::format::{self, Header, Keks, SecretKind, StoredKek};
use super::storage::{self, check_private};
use crate::backend::{BackendError, KekInfo};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use core::fmt;
use keyway_envelope::dek::DEK_LEN;
use keyway_envelope::{Dek, DekId, KekRef, KeyBlock, LockedBox, WrapMechanism, wrap_aad};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of an IV, in bytes.
const IV: usize = 12;
/// IV, ciphertext, tag.
const WRAPPED: usize = IV + DEK_LEN + 16;

/// A keystore's KEKs, and what to seal them under. Cheap to clone; `Debug` shows references and labels only.
#[derive(Clone)]
pub struct Keystore {
    header: Header,
    sealing_key: Arc<LockedBox<Zeroizing<[u8; 32]>>>,
    keks: Keks,
}

impl Keystore {
    /// An empty one; nothing is written.
    pub(super) fn new(secret: &Secret) -> Result<Self, BackendError> {
        let header = Header::new(secret, random()?);
        let sealing_key = Arc::new(LockedBox::new(secret.sealing_key(&header)?));
        Ok(Self { header, sealing_key, keks: Keks::new() })
    }

    /// Reads a keystore without taking it: a bridge may be using it. For recovery from keystore and ciphertext alone.
    ///
    /// # Errors
    /// [`BackendError::Config`]: the file is absent, too open or damaged, or the secret is not the one that it
    /// was sealed under. Each says what to do.
    pub fn open(path: &Path, secret: &Secret) -> Result<Self, BackendError> {
        let file = storage::read(path).map_err(|error| {
            BackendError::Config(format!("can't read the keystore {}: {error}", path.display()))
        })?;
        check_private(path, 0o077)?;
        let damaged = |reason: &str| {
            BackendError::Config(format!(
                "the keystore {} can't be used: {reason}; restore it from a backup",
                path.display()
            ))
        };
        let (header, sealed) = Header::split(&file).map_err(damaged)?;
        if header.kind != secret.kind() {
            let needs = match header.kind {
                SecretKind::Passphrase => "a passphrase: set passphrase_file",
                SecretKind::KeyFile => "a key file: set key_file and not passphrase_file",
            };
            return Err(BackendError::Config(format!(
                "the keystore {} is sealed under {needs}",
                path.display()
            )));
        }
        let sealing_key = Arc::new(LockedBox::new(secret.sealing_key(&header)?));
        let plain = open_file(&sealing_key, &header, sealed).ok_or_else(|| {
            let what = match header.kind {
                SecretKind::Passphrase => "the passphrase is wrong",
                SecretKind::KeyFile => "the key file belongs to another keystore",
            };
            BackendError::Config(format!(
                "the keystore {} can't be opened: {what}, or the file is damaged; check the secret, then restore the file from a backup",
                path.display()
            ))
        })?;
        let keks = format::decode(&plain).ok_or_else(|| damaged("its contents are malformed"))?;
        Ok(Self { header, sealing_key, keks })
    }

    /// The whole file, under a fresh nonce.
    pub(super) fn seal(&self) -> Result<Vec<u8>, BackendError> {
        let header = Header { nonce: random()?, ..self.header.clone() };
        let head = header.to_bytes();
        // Encrypted in place, so that no plaintext outlives this call; then it is no secret.
        let mut body = format::encode(&self.keks)?;
        let tag = aes(&self.sealing_key)
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(header.nonce),
                Aad::from(head),
                body.as_mut_slice(),
            )
            .map_err(|_| BackendError::Unavailable("the keystore can't be sealed".to_owned()))?;
        Ok([head.as_slice(), body.as_slice(), tag.as_ref()].concat())
    }

    /// Whether `file` holds exactly these KEKs, sealed under this keystore's key.
    pub(super) fn is_stored_in(&self, file: &[u8]) -> bool {
        let Ok((header, sealed)) = Header::split(file) else { return false };
        let Some(plain) = open_file(&self.sealing_key, &header, sealed) else { return false };
        format::encode(&self.keks).is_ok_and(|expected| expected.as_slice().ct_eq(&plain).into())
    }

    /// A round trip with every KEK.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        let canary = Dek::new(DekId(random()?), Zeroizing::new(random()?));
        self.keks.keys().try_for_each(|&kek| self.wrap(kek, &canary, "canary", "").map(drop))
    }

    /// Looks a KEK up.
    #[must_use]
    pub fn find(&self, kek: KekRef) -> Option<KekInfo> {
        self.keks.get(&kek).map(|stored| info(kek, stored))
    }

    /// All KEKs, in the order of their references.
    #[must_use]
    pub fn list(&self) -> Vec<KekInfo> {
        self.keks.iter().map(|(&kek, stored)| info(kek, stored)).collect()
    }

    pub(super) fn generate(&mut self, kek: KekRef, label: &str) -> Result<KekInfo, BackendError> {
        // Somebody may have made it between the caller's look and the lock.
        if let Some(found) = self.find(kek) {
            return Ok(found);
        }
        let key = Arc::new(LockedBox::new(Zeroizing::new(random()?)));
        let stored = StoredKek { label: label.to_owned(), key };
        let made = info(kek, &stored);
        self.keks.insert(kek, stored);
        Ok(made)
    }

    pub(super) fn destroy(&mut self, kek: KekRef) -> Result<(), BackendError> {
        self.keks.remove(&kek).map(drop).ok_or(BackendError::NotFound { kek })
    }

    /// As [`KeyBackend::wrap`](crate::backend::KeyBackend::wrap).
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is no such KEK.
    pub fn wrap(&self, kek: KekRef, dek: &Dek, zone: &str, tenant: &str) -> Result<KeyBlock, BackendError> {
        let key = self.key(kek)?;
        let mechanism = WrapMechanism::AesGcm;
        let aad = wrap_aad(kek, dek.id(), mechanism, zone, tenant);
        let iv: [u8; IV] = random()?;
        let mut wrapped = Zeroizing::new([0; WRAPPED]);
        wrapped[..IV].copy_from_slice(&iv);
        wrapped[IV..IV + DEK_LEN].copy_from_slice(dek.expose());
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(iv),
                Aad::from(aad),
                &mut wrapped[IV..IV + DEK_LEN],
            )
            .map_err(|_| BackendError::Unavailable("AES-GCM failed".to_owned()))?;
        wrapped[IV + DEK_LEN..].copy_from_slice(tag.as_ref());
        let block = KeyBlock::inline(kek, dek.id(), mechanism, &*wrapped)
            .expect("12 + 32 + 16 bytes are what the mechanism makes");
        let opened = self.unwrap(&block, zone, tenant)?;
        if bool::from(opened.expose().ct_eq(dek.expose())) {
            Ok(block)
        } else {
            Err(BackendError::Unavailable("a fresh wrap did not open to its key".to_owned()))
        }
    }

    /// As [`KeyBackend::unwrap`](crate::backend::KeyBackend::unwrap).
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if its KEK is not here, [`BackendError::Refused`] if it does not authenticate.
    pub fn unwrap(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, BackendError> {
        if block.mechanism() != WrapMechanism::AesGcm {
            return Err(BackendError::Refused);
        }
        let key = self.key(block.kek())?;
        let aad = wrap_aad(block.kek(), block.dek_id(), block.mechanism(), zone, tenant);
        let (iv, sealed) = block.wrapped().split_first_chunk::<IV>().expect("a GCM wrap has 60 bytes");
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = key
            .open_in_place(Nonce::assume_unique_for_key(*iv), Aad::from(aad), &mut sealed)
            .map_err(|_| BackendError::Refused)?;
        let mut dek = Zeroizing::new([0; DEK_LEN]);
        dek.copy_from_slice(opened);
        Ok(Dek::new(block.dek_id(), dek))
    }

    /// A KEK's bytes: lets a test show that an independent reader opens what was sealed. Not in default builds.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is no such KEK.
    #[cfg(feature = "test-reveal")]
    pub fn reveal_kek_for_tests(&self, kek: KekRef) -> Result<Zeroizing<[u8; 32]>, BackendError> {
        let stored = self.keks.get(&kek).ok_or(BackendError::NotFound { kek })?;
        Ok(Zeroizing::clone(&stored.key))
    }

    /// The key schedule is built for each use (0.1 µs) and wiped after it: at rest there is one copy, in locked memory.
    fn key(&self, kek: KekRef) -> Result<LessSafeKey, BackendError> {
        self.keks.get(&kek).map(|stored| aes(&stored.key)).ok_or(BackendError::NotFound { kek })
    }
}

impl fmt::Debug for Keystore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keystore").field("keks", &self.list()).finish_non_exhaustive()
    }
}

fn info(kek: KekRef, stored: &StoredKek) -> KekInfo {
    KekInfo { kek, label: stored.label.clone(), extractable: true, mechanism: WrapMechanism::AesGcm }
}

fn aes(key: &LockedBox<Zeroizing<[u8; 32]>>) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has 32 bytes"))
}

fn open_file(
    key: &LockedBox<Zeroizing<[u8; 32]>>,
    header: &Header,
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(header.nonce);
    let len = aes(key).open_in_place(nonce, Aad::from(header.to_bytes()), &mut plain).ok()?.len();
    plain.truncate(len);
    Some(plain)
}

fn random<const N: usize>() -> Result<[u8; N], BackendError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| BackendError::Unavailable(format!("no randomness: {error}")))?;
    Ok(bytes)
}
