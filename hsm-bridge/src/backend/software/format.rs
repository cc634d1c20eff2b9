//! The keystore's file, byte by byte (see the module above).

use super::Secret;
use crate::backend::BackendError;
use keyway_envelope::{KekRef, LockedBox};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

const MAGIC: [u8; 4] = [0xFB, b'K', b'W', b'K'];
const VERSION: u8 = 1;
pub(super) const HEADER: usize = 48;
const TAG: usize = 16;
const KEY: usize = 32;

/// RFC 9106, section 4, second recommended option: 64 MiB, three passes, four lanes.
const ARGON2: Argon2Cost = Argon2Cost { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
/// A damaged header must not make the reader take all memory, or minutes.
const ARGON2_MAX: Argon2Cost = Argon2Cost { memory_kib: 1024 * 1024, passes: 32, lanes: 16 };

/// A KEK at rest in this process: shared between snapshots of the keystore, wiped with the last of them.
#[derive(Clone)]
pub(super) struct StoredKek {
    pub(super) label: String,
    pub(super) key: Arc<LockedBox<Zeroizing<[u8; KEY]>>>,
}

pub(super) type Keks = BTreeMap<KekRef, StoredKek>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretKind {
    Passphrase,
    KeyFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Argon2Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Argon2Cost {
    const NONE: Self = Self { memory_kib: 0, passes: 0, lanes: 0 };
}

/// The first 48 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: SecretKind,
    pub(super) argon2: Argon2Cost,
    pub(super) salt: [u8; 16],
    pub(super) nonce: [u8; 12],
}

impl Header {
    /// Of a new keystore; its nonce comes with the first write.
    pub(super) fn new(secret: &Secret, salt: [u8; 16]) -> Self {
        let kind = secret.kind();
        let argon2 = match kind {
            SecretKind::Passphrase => ARGON2,
            SecretKind::KeyFile => Argon2Cost::NONE,
        };
        Self { kind, argon2, salt, nonce: [0; 12] }
    }

    pub(super) fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = match self.kind {
            SecretKind::Passphrase => 1,
            SecretKind::KeyFile => 2,
        };
        out[8..12].copy_from_slice(&self.argon2.memory_kib.to_be_bytes());
        out[12..16].copy_from_slice(&self.argon2.passes.to_be_bytes());
        out[16..20].copy_from_slice(&self.argon2.lanes.to_be_bytes());
        out[20..36].copy_from_slice(&self.salt);
        out[36..].copy_from_slice(&self.nonce);
        out
    }

    /// Splits a file into header and ciphertext; the reason if it is no keystore.
    pub(super) fn split(file: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        if file.is_empty() {
            return Err("it is empty");
        }
        let Some((header, sealed)) = file.split_first_chunk::<HEADER>() else {
            return Err("it is cut short");
        };
        if header[..4] != MAGIC {
            return Err("it is no keystore");
        }
        if header[4] != VERSION {
            return Err("a later version of this program wrote it");
        }
        if sealed.len() < TAG + 4 {
            return Err("it is cut short");
        }
        let argon2 = Argon2Cost {
            memory_kib: u32_at(header, 8),
            passes: u32_at(header, 12),
            lanes: u32_at(header, 16),
        };
        let in_bounds = argon2.memory_kib <= ARGON2_MAX.memory_kib
            && argon2.passes <= ARGON2_MAX.passes
            && argon2.lanes <= ARGON2_MAX.lanes;
        let kind = match (header[5], &header[6..8]) {
            (1, [0, 0]) if in_bounds => SecretKind::Passphrase,
            (2, [0, 0]) if argon2 == Argon2Cost::NONE => SecretKind::KeyFile,
            _ => return Err("its header is damaged"),
        };
        let mut salt = [0; 16];
        salt.copy_from_slice(&header[20..36]);
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&header[36..]);
        Ok((Self { kind, argon2, salt, nonce }, sealed))
    }

    pub(super) fn argon2_params(&self) -> Result<argon2::Params, BackendError> {
        argon2::Params::new(self.argon2.memory_kib, self.argon2.passes, self.argon2.lanes, Some(KEY))
            .map_err(|error| BackendError::Config(format!("the keystore's header is damaged: {error}")))
    }
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// The plaintext of the file.
pub(super) fn encode(keks: &Keks) -> Result<Zeroizing<Vec<u8>>, BackendError> {
    let too_large = || BackendError::Unavailable("the keystore is full".to_owned());
    let room = 4 + TAG + keks.values().map(|kek| KekRef::LEN + 2 + kek.label.len() + KEY).sum::<usize>();
    // Never grows beyond its room, so no copy of a key is left behind by a reallocation.
    let mut out = Zeroizing::new(Vec::with_capacity(room));
    out.extend_from_slice(&u32::try_from(keks.len()).map_err(|_| too_large())?.to_be_bytes());
    for (kek, stored) in keks {
        out.extend_from_slice(&kek.to_bytes());
        out.extend_from_slice(&u16::try_from(stored.label.len()).map_err(|_| too_large())?.to_be_bytes());
        out.extend_from_slice(stored.label.as_bytes());
        out.extend_from_slice(&stored.key[..]);
    }
    Ok(out)
}

/// The way back; `None` if it is not what [`encode`] writes (its tag has been verified, so that would be a bug).
pub(super) fn decode(mut plain: &[u8]) -> Option<Keks> {
    let (count, rest) = plain.split_first_chunk::<4>()?;
    plain = rest;
    let mut keks = Keks::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (reference, rest) = plain.split_first_chunk::<{ KekRef::LEN }>()?;
        let (label_len, rest) = rest.split_first_chunk::<2>()?;
        let (label, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*label_len)))?;
        let (key, rest) = rest.split_first_chunk::<KEY>()?;
        plain = rest;
        let label = core::str::from_utf8(label).ok()?.to_owned();
        let key = Arc::new(LockedBox::new(Zeroizing::new(*key)));
        let reference = KekRef::from_bytes(*reference);
        let ascending = keks.last_key_value().is_none_or(|(last, _)| *last < reference);
        if !ascending {
            return None;
        }
        keks.insert(reference, StoredKek { label, key });
    }
    plain.is_empty().then_some(keks)
}
