//! ``Ed25519[bridge](label ‖ 0x00 ‖ keyring set)`` (RFC 8032).
//!
//! The signature covers the serialised bytes as they travel; nothing is serialised again to verify it.

use crate::error::{Error, Result};
use crate::v1::{KeyringSet, SignedKeyringSet};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use core::fmt;
use prost::Message;
use zeroize::Zeroizing;

const LABEL: &[u8] = b"keyway keyring set v1\0";

/// A bridge's Ed25519 private key.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Makes a key and gives it as PKCS#8 (RFC 5958), to be stored.
    ///
    /// # Errors
    /// [`Error::SigningKey`] if the operating system gives no randomness.
    pub fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| Error::SigningKey("can't be generated"))?;
        Ok(Zeroizing::new(made.as_ref().to_vec()))
    }

    /// Reads a stored key.
    ///
    /// # Errors
    /// [`Error::SigningKey`] if it is not an Ed25519 key in PKCS#8.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        Ed25519KeyPair::from_pkcs8(pkcs8).map(Self).map_err(|_| Error::SigningKey("is not Ed25519 in PKCS#8"))
    }

    /// The public half, which members pin.
    #[must_use]
    pub fn verify_key(&self) -> VerifyKey {
        let bytes = self.0.public_key().as_ref();
        VerifyKey(bytes.try_into().expect("an Ed25519 public key has 32 bytes (RFC 8032, 5.1.5)"))
    }

    /// Serialises and signs.
    #[must_use]
    pub fn sign_keyring_set(&self, set: &KeyringSet) -> SignedKeyringSet {
        let keyring_set = set.encode_to_vec();
        let signature = self.0.sign(&signed_bytes(&keyring_set)).as_ref().to_vec();
        SignedKeyringSet { keyring_set, signature }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.verify_key()).finish()
    }
}

/// A bridge's Ed25519 public key. Its `Display` is the hexadecimal form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyKey([u8; 32]);

impl VerifyKey {
    /// Takes the 32 bytes as they come in a message or a file.
    ///
    /// # Errors
    /// [`Error::VerifyKey`]. Whether the bytes are a point of the curve shows when something is verified.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        bytes.try_into().map(Self).map_err(|_| Error::VerifyKey)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Verifies, then reads.
    ///
    /// # Errors
    /// [`Error::Signature`]; [`Error::KeyringSet`] if what was signed is not a keyring set.
    pub fn verify(&self, signed: &SignedKeyringSet) -> Result<KeyringSet> {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(&signed_bytes(&signed.keyring_set), &signed.signature)
            .map_err(|_| Error::Signature)?;
        Ok(KeyringSet::decode(signed.keyring_set.as_slice())?)
    }
}

impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({self})")
    }
}

fn signed_bytes(keyring_set: &[u8]) -> Vec<u8> {
    [LABEL, keyring_set].concat()
}

#[cfg(test)]
#[path = "tests/signing.rs"]
mod tests;
