//! ``STATE[identity](last good keyring set, leases, DEKs)``: what a proxy needs to serve with its bridge away.
//!
//! A file is `KWYSTATE ‖ version 1 ‖ salt 32 ‖ ciphertext ‖ tag`: AES-256-GCM under
//! `HKDF-SHA-256(salt, PKCS#8 of the identity's private key, label ‖ zone)`. The salt is new for every file and so is the key;
//! the nonce is zero, since each key seals once. Who has not the identity's key can neither read a file nor make one;
//! after the identity got a new key the old file is foreign, and the proxy waits for its bridge.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use core::fmt;
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

const MAGIC: &[u8; 9] = b"KWYSTATE\x01";
const SALT: usize = 32;
const HEADER: usize = MAGIC.len() + SALT;
const TAG: usize = 16;
const LABEL: &[u8] = b"keyway proxy state v1\0";

/// Why a state can't be used. None of them is fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StateError {
    #[error("it is not a state file of this version")]
    Form,
    #[error("it was changed, or sealed by another identity or for another zone")]
    Foreign,
    #[error("its content is malformed")]
    Content,
    #[error("the system gives no randomness")]
    Randomness,
}

/// What is stored.
#[derive(Clone, PartialEq, Message)]
pub(super) struct State {
    /// The set as it was signed, and its signature: both are verified again when loaded.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) keyring_set: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) signature: Vec<u8>,
    /// The result of the known-answer test.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) kat_digest: Vec<u8>,
    #[prost(uint64, tag = "4")]
    pub(super) epoch_seen: u64,
    #[prost(message, repeated, tag = "5")]
    pub(super) leases: Vec<LeaseEnds>,
    #[prost(message, repeated, tag = "6")]
    pub(super) seal_deks: Vec<DekRecord>,
    #[prost(message, repeated, tag = "7")]
    pub(super) open_deks: Vec<DekRecord>,
    /// When it was written, by the wall clock.
    #[prost(uint64, tag = "8")]
    pub(super) saved_ms: u64,
}

/// Until when, in milliseconds since the Unix epoch: the monotonic clock does not survive a restart.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LeaseEnds {
    #[prost(string, tag = "1")]
    pub(super) keyring: String,
    #[prost(uint64, tag = "2")]
    pub(super) seal_until_ms: u64,
    #[prost(uint64, tag = "3")]
    pub(super) open_until_ms: u64,
}

/// One DEK. Wiped on drop, not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub(super) struct DekRecord {
    #[prost(string, tag = "1")]
    pub(super) keyring: String,
    #[prost(string, tag = "2")]
    pub(super) tenant: String,
    #[prost(uint32, tag = "3")]
    pub(super) kek_version: u32,
    /// Every known block that leads to it; the first is its own.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(super) key_blocks: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) key: Vec<u8>,
    #[prost(uint64, tag = "6")]
    pub(super) messages: u64,
    #[prost(uint64, tag = "7")]
    pub(super) bytes: u64,
}

impl Drop for DekRecord {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for DekRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DekRecord")
            .field("keyring", &self.keyring)
            .field("kek_version", &self.kek_version)
            .finish_non_exhaustive()
    }
}

/// Seals a state into a file's bytes.
pub(super) fn seal(state: &State, identity_key: &[u8], zone: &str) -> Result<Vec<u8>, StateError> {
    let mut salt = [0; SALT];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| StateError::Randomness)?;
    // One buffer from plaintext to file, large enough from the start: growing it would leave a copy behind.
    let mut file = Zeroizing::new(Vec::with_capacity(HEADER + state.encoded_len() + TAG));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&salt);
    state.encode(&mut *file).map_err(|_| StateError::Content)?;
    let (header, content) = file.split_at_mut(HEADER);
    let tag = key(&salt, identity_key, zone)
        .seal_in_place_separate_tag(nonce(), Aad::from(&*header), content)
        .map_err(|_| StateError::Content)?;
    file.extend_from_slice(tag.as_ref());
    // Ciphertext now; nothing left to wipe.
    Ok(std::mem::take(&mut *file))
}

/// The way back.
pub(super) fn open(file: Vec<u8>, identity_key: &[u8], zone: &str) -> Result<State, StateError> {
    let mut file = Zeroizing::new(file);
    if file.len() < HEADER + TAG || file[..MAGIC.len()] != *MAGIC {
        return Err(StateError::Form);
    }
    let (header, content) = file.split_at_mut(HEADER);
    let salt: &[u8; SALT] = header[MAGIC.len()..].try_into().map_err(|_| StateError::Form)?;
    let plain = key(salt, identity_key, zone)
        .open_in_place(nonce(), Aad::from(&*header), content)
        .map_err(|_| StateError::Foreign)?;
    State::decode(&*plain).map_err(|_| StateError::Content)
}

fn key(salt: &[u8; SALT], identity_key: &[u8], zone: &str) -> LessSafeKey {
    let info = [LABEL, zone.as_bytes()];
    let prk = Salt::new(HKDF_SHA256, salt).extract(identity_key);
    let okm = prk.expand(&info, &AES_256_GCM).expect("32 bytes are far below 255 hashes (RFC 5869, 2.3)");
    LessSafeKey::new(UnboundKey::from(okm))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let dek = DekRecord {
            keyring: "default".into(),
            tenant: "acme".into(),
            kek_version: 2,
            key_blocks: vec![vec![1; 96]],
            key: vec![0x5E; 32],
            messages: 7,
            bytes: 70,
        };
        State {
            saved_ms: 1,
            keyring_set: vec![1, 2, 3],
            signature: vec![4; 64],
            kat_digest: vec![5; 32],
            epoch_seen: 6,
            leases: vec![LeaseEnds { keyring: "default".into(), seal_until_ms: 1, open_until_ms: 2 }],
            seal_deks: vec![dek.clone()],
            open_deks: vec![dek],
        }
    }

    #[test]
    fn a_state_comes_back_for_its_identity_and_zone_only() {
        let file = seal(&state(), b"identity", "payments").unwrap();
        assert_eq!(open(file.clone(), b"identity", "payments").unwrap(), state());
        assert_eq!(open(file.clone(), b"identitz", "payments"), Err(StateError::Foreign));
        assert_eq!(open(file, b"identity", "payroll"), Err(StateError::Foreign));
    }

    #[test]
    fn no_key_is_in_the_file_and_no_two_files_are_alike() {
        let (one, two) = (
            seal(&state(), b"identity", "payments").unwrap(),
            seal(&state(), b"identity", "payments").unwrap(),
        );
        assert!(!one.windows(8).any(|bytes| bytes == [0x5E; 8]));
        assert_ne!(one[HEADER..], two[HEADER..]);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let good = seal(&state(), b"identity", "payments").unwrap();
        for at in 0..good.len() {
            let mut file = good.clone();
            file[at] ^= 1;
            let expected = if at < MAGIC.len() { StateError::Form } else { StateError::Foreign };
            assert_eq!(open(file, b"identity", "payments"), Err(expected), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(open(good[..len].to_vec(), b"identity", "payments").is_err(), "cut to {len}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", state());
        assert!(!shown.contains("94") && !shown.contains("5e"), "{shown}");
    }
}
