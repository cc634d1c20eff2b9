//! The data-encryption key and what is derived from it.

use crate::aead::{Implementation, SegmentKey};
use crate::context::ContextDigest;
use crate::error::OpenError;
use crate::header::{COMMITMENT, SALT};
use crate::ids::DekId;
use crate::locked::LockedBox;
use core::fmt;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// C2SP chunked-encryption, "Key derivation": prefix, AEAD name, separator.
const INFO: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0";
/// Length of a DEK, in bytes.
pub const DEK_LEN: usize = 32;

/// A data-encryption key: 32 uniformly random bytes and its name.
///
/// Lives in locked memory, wiped when the last user drops it. `Debug` shows the name only.
pub struct Dek {
    id: DekId,
    secret: LockedBox<Secret>,
}

struct Secret {
    bytes: [u8; DEK_LEN],
    /// HMAC-SHA-512 keyed with the DEK: the inner and outer pads are hashed once per DEK, not once per message.
    mac: Hmac<Sha512>,
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl Dek {
    /// Takes the bytes over; the caller's copy is wiped.
    #[must_use]
    pub fn new(id: DekId, mut bytes: Zeroizing<[u8; DEK_LEN]>) -> Self {
        let mac = Hmac::<Sha512>::new_from_slice(&*bytes).expect("HMAC takes a key of any length");
        let secret = LockedBox::new(Secret { bytes: *bytes, mac });
        bytes.zeroize();
        Self { id, secret }
    }

    /// The key's name.
    #[must_use]
    pub fn id(&self) -> DekId {
        self.id
    }

    /// The bytes, for wrapping and for sealing to a member. Don't copy them further than that.
    #[must_use]
    pub fn expose(&self) -> &[u8; DEK_LEN] {
        &self.secret.bytes
    }

    /// `key32 ‖ nonce12 ‖ commitment32 = HKDF-Expand-SHA-512(DEK, label ‖ salt ‖ context)` (RFC 5869, 2.3).
    #[must_use]
    pub fn derive(&self, salt: &[u8; SALT], context: &ContextDigest) -> MessageKeys {
        self.derive_raw(salt, &context.for_dek(self.id))
    }

    /// As [`Dek::derive`], with the context's bytes as they are: for test vectors of the published format.
    #[must_use]
    pub fn derive_raw(&self, salt: &[u8; SALT], context: &[u8]) -> MessageKeys {
        // T(1) and T(2) give 128 bytes, of which 76 are used.
        let mut first = self.expand(&[], salt, context, 1);
        let mut second = self.expand(&first, salt, context, 2);
        let mut keys = MessageKeys { key: [0; 32], base_nonce: [0; 12], commitment: [0; COMMITMENT] };
        keys.key.copy_from_slice(&first[..32]);
        keys.base_nonce.copy_from_slice(&first[32..44]);
        keys.commitment[..20].copy_from_slice(&first[44..]);
        keys.commitment[20..].copy_from_slice(&second[..12]);
        first.zeroize();
        second.zeroize();
        keys
    }

    fn expand(&self, previous: &[u8], salt: &[u8; SALT], context: &[u8], counter: u8) -> [u8; 64] {
        let mut mac = self.secret.mac.clone();
        for part in [previous, INFO, salt, context, &[counter]] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dek").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What one message is sealed with. Used for exactly one message.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct MessageKeys {
    key: [u8; 32],
    base_nonce: [u8; 12],
    commitment: [u8; COMMITMENT],
}

impl MessageKeys {
    /// The commitment to write into the header.
    #[must_use]
    pub fn commitment(&self) -> &[u8; COMMITMENT] {
        &self.commitment
    }

    /// Compares in constant time. Has to pass before any segment is opened.
    ///
    /// # Errors
    /// [`OpenError::Commitment`]: another DEK, another context, or a changed salt.
    pub fn verify(&self, commitment: &[u8; COMMITMENT]) -> Result<(), OpenError> {
        if self.commitment.ct_eq(commitment).into() { Ok(()) } else { Err(OpenError::Commitment) }
    }

    pub(crate) fn segment_key(&self, implementation: Implementation) -> Box<dyn SegmentKey> {
        implementation.key(&self.key)
    }

    pub(crate) fn base_nonce(&self) -> [u8; 12] {
        self.base_nonce
    }
}

impl fmt::Debug for MessageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageKeys").finish_non_exhaustive()
    }
}

/// The nonce of segment `index`: base nonce XOR the index as a big-endian integer.
pub(crate) fn segment_nonce(base: &[u8; 12], index: u64) -> [u8; 12] {
    let mut nonce = *base;
    for (byte, counter) in nonce[4..].iter_mut().zip(index.to_be_bytes()) {
        *byte ^= counter;
    }
    nonce
}
