//! ``HPKE.Base[member key](info, AAD, DEK)``: a DEK on its way from the bridge to one start of one member.
//!
//! RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; info is `keyway dek v1`; the associated
//! data is key block, zone, keyring and tenant, each with its length (u32, big-endian) in front. TLS around it
//! ends in whatever terminates it; this ends in the member's own memory.

use crate::error::{Error, Result};
use crate::v1::DekResponse;
use core::fmt;
use hpke::aead::{AeadTag, AesGcm256};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use keyway_envelope::dek::DEK_LEN;
use keyway_envelope::{Dek, KeyBlock};
use zeroize::{Zeroize, Zeroizing};

const INFO: &[u8] = b"keyway dek v1";
/// Length of a public key (RFC 9180, 7.1: Npk), in bytes.
pub const PUBLIC_KEY_LEN: usize = 32;
/// Length of a sealed DEK, in bytes: ciphertext and tag.
pub const SEALED_DEK_LEN: usize = DEK_LEN + 16;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// The key pair of one start of a member. Never stored: what was sealed to it is lost with the process.
pub struct MemberKey {
    // Boxed so that moving the owner leaves no copy behind; x25519-dalek wipes it on drop.
    private: Box<PrivateKey>,
    public: [u8; PUBLIC_KEY_LEN],
}

impl MemberKey {
    /// A new key pair from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let (private, public) = X25519HkdfSha256::gen_keypair();
        Self { private: Box::new(private), public: public.to_bytes().into() }
    }

    /// The public half, for `recipient_key` of the requests.
    #[must_use]
    pub fn public(&self) -> [u8; PUBLIC_KEY_LEN] {
        self.public
    }

    /// Opens the DEK of an answer. Key block, keyring and tenant of the answer are authenticated by this.
    ///
    /// # Errors
    /// [`Error::KeyBlock`] if the key block is malformed, [`Error::DekRefused`] for everything else.
    pub fn open(&self, response: &DekResponse, zone: &str) -> Result<Dek> {
        let block = parse_key_block(&response.key_block)?;
        let sealed: &[u8; SEALED_DEK_LEN] =
            response.sealed_dek.as_slice().try_into().map_err(|_| Error::DekRefused)?;
        let encapsulated =
            EncappedKey::from_bytes(&response.encapsulated_key).map_err(|_| Error::DekRefused)?;
        let (cipher, tag) = sealed.split_at(DEK_LEN);
        let tag = AeadTag::<AesGcm256>::from_bytes(tag).map_err(|_| Error::DekRefused)?;
        let mut dek = Zeroizing::new([0; DEK_LEN]);
        dek.copy_from_slice(cipher);
        hpke::single_shot_open_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapsulated,
            INFO,
            InOutBuf::from(&mut dek[..]),
            &associated_data(&response.key_block, zone, &response.keyring, &response.tenant),
            &tag,
        )
        .map_err(|_| Error::DekRefused)?;
        Ok(Dek::new(block.dek_id(), dek))
    }
}

impl fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberKey").finish_non_exhaustive()
    }
}

/// Seals `dek` to a member's public key; gives the encapsulated key and the sealed DEK, as in [`DekResponse`].
///
/// `key_block`, `keyring` and `tenant` have to be those of the answer.
///
/// # Errors
/// [`Error::RecipientKey`].
pub fn seal_dek(
    recipient_key: &[u8],
    dek: &Dek,
    key_block: &KeyBlock,
    zone: &str,
    keyring: &str,
    tenant: &str,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let recipient = PublicKey::from_bytes(recipient_key).map_err(|_| Error::RecipientKey)?;
    // From the plaintext to the ciphertext in one buffer: no copy of the DEK stays behind.
    let mut sealed = vec![0; SEALED_DEK_LEN];
    sealed[..DEK_LEN].copy_from_slice(dek.expose());
    let outcome = hpke::single_shot_seal_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &recipient,
        INFO,
        InOutBuf::from(&mut sealed[..DEK_LEN]),
        &associated_data(&key_block.to_bytes(), zone, keyring, tenant),
    );
    let Ok((encapsulated, tag)) = outcome else {
        // Encapsulation refuses points of low order (RFC 9180, 7.1.4); nothing was encrypted then.
        sealed.zeroize();
        return Err(Error::RecipientKey);
    };
    sealed[DEK_LEN..].copy_from_slice(&tag.to_bytes());
    Ok((encapsulated.to_bytes().to_vec(), sealed))
}

/// Reads the 96 bytes of a key block as they come in a message.
///
/// # Errors
/// [`Error::KeyBlock`].
pub fn parse_key_block(bytes: &[u8]) -> Result<KeyBlock> {
    let bytes = bytes
        .try_into()
        .map_err(|_| Error::KeyBlock(keyway_envelope::FormatError::KeyBlock("it has not 96 bytes")))?;
    KeyBlock::parse(bytes).map_err(Error::KeyBlock)
}

fn associated_data(key_block: &[u8], zone: &str, keyring: &str, tenant: &str) -> Vec<u8> {
    let parts = [key_block, zone.as_bytes(), keyring.as_bytes(), tenant.as_bytes()];
    let mut aad = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        let len = u32::try_from(part.len()).expect("a gRPC message is far shorter than 4 GiB");
        aad.extend_from_slice(&len.to_be_bytes());
        aad.extend_from_slice(part);
    }
    aad
}

#[cfg(test)]
#[path = "tests/dek_transport.rs"]
mod tests;
