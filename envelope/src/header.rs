//! The 160 bytes in front of every object: prefix, key block, salt, commitment.

use crate::context::Profile;
use crate::error::FormatError;
use crate::ids::{DekId, KekRef};
use crate::length::HEADER;
use sha2::{Digest, Sha256};

/// First four bytes of every object form envelope: `FB` and "KWY". 0xFB never starts UTF-8 text.
pub const MAGIC: [u8; 4] = [0xFB, b'K', b'W', b'Y'];
/// The format version that this crate writes and reads.
pub const VERSION: u8 = 1;
/// Suite 01: Cobblestone-256.
pub const SUITE_COBBLESTONE_256: u8 = 0x01;
/// Suite 02: AES-256-GCM records under keys derived as in suite 01 ([`crate::stream`]).
pub const SUITE_STREAM: u8 = 0x02;
/// Length of the salt, in bytes.
pub const SALT: usize = 24;
/// Length of the key commitment, in bytes.
pub const COMMITMENT: usize = 32;
/// Length of the prefix, in bytes.
pub const PREFIX: usize = 8;

/// How the key block leads to the DEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyBlockKind {
    /// The wrapped DEK is in the block: the HSM and the ciphertext alone recover the data.
    Inline,
    /// The block only names the DEK; the bridge's catalog has it.
    Catalog,
}

/// How the DEK is wrapped in an inline block. Recorded per wrap, never negotiated when opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WrapMechanism {
    /// Nothing is wrapped here (catalog reference).
    None,
    /// AES-256-GCM with associated data: IV 12 ‖ ciphertext 32 ‖ tag 16 (NIST SP 800-38D).
    AesGcm,
    /// AES key wrap with padding over DEK ‖ context hash 16 (NIST SP 800-38F KWP, RFC 5649): 56 bytes.
    AesKwp,
}

impl WrapMechanism {
    /// The number on the wire.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::AesGcm => 1,
            Self::AesKwp => 3,
        }
    }

    /// The way back.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::None,
            1 => Self::AesGcm,
            3 => Self::AesKwp,
            _ => return None,
        })
    }

    /// Length of what it makes of a DEK, in bytes.
    #[must_use]
    pub fn wrapped_len(self) -> usize {
        match self {
            Self::None => 0,
            Self::AesGcm => 60,
            Self::AesKwp => 56,
        }
    }
}

/// The 96 bytes that lead to a DEK.
///
/// Copied into every envelope that the DEK seals; a rewrap replaces these bytes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyBlock {
    mechanism: WrapMechanism,
    kek: KekRef,
    dek_id: DekId,
    wrapped: [u8; Self::WRAPPED_MAX],
}

impl KeyBlock {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 96;
    /// Room for the wrapped DEK, in bytes.
    pub const WRAPPED_MAX: usize = 64;

    /// A block with the wrapped DEK in it.
    ///
    /// # Errors
    /// [`FormatError::KeyBlock`] if `wrapped` has not the length that `mechanism` makes.
    pub fn inline(
        kek: KekRef,
        dek_id: DekId,
        mechanism: WrapMechanism,
        wrapped: &[u8],
    ) -> Result<Self, FormatError> {
        if mechanism == WrapMechanism::None || wrapped.len() != mechanism.wrapped_len() {
            return Err(FormatError::KeyBlock("the wrapped DEK has not its mechanism's length"));
        }
        let mut padded = [0; Self::WRAPPED_MAX];
        padded[..wrapped.len()].copy_from_slice(wrapped);
        Ok(Self { mechanism, kek, dek_id, wrapped: padded })
    }

    /// A block that only names the DEK.
    #[must_use]
    pub fn catalog(kek: KekRef, dek_id: DekId) -> Self {
        Self { mechanism: WrapMechanism::None, kek, dek_id, wrapped: [0; Self::WRAPPED_MAX] }
    }

    /// Inline or by reference.
    #[must_use]
    pub fn kind(&self) -> KeyBlockKind {
        if self.mechanism == WrapMechanism::None { KeyBlockKind::Catalog } else { KeyBlockKind::Inline }
    }

    /// How the DEK is wrapped.
    #[must_use]
    pub fn mechanism(&self) -> WrapMechanism {
        self.mechanism
    }

    /// The KEK that wrapped it (for a reference: that was primary when it was written).
    #[must_use]
    pub fn kek(&self) -> KekRef {
        self.kek
    }

    /// The DEK's name.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.dek_id
    }

    /// The wrapped DEK, without padding; empty for a reference.
    #[must_use]
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped[..self.mechanism.wrapped_len()]
    }

    /// The 96 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..28].copy_from_slice(&self.fields());
        let wrapped_len = u16::try_from(self.mechanism.wrapped_len()).expect("at most 64");
        out[28..30].copy_from_slice(&wrapped_len.to_be_bytes());
        out[32..].copy_from_slice(&self.wrapped);
        out
    }

    /// kind ‖ mechanism ‖ block length ‖ KEK reference ‖ DEK id: offsets 8 to 36 of an object.
    fn fields(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[0] = match self.kind() {
            KeyBlockKind::Inline => 1,
            KeyBlockKind::Catalog => 2,
        };
        out[1] = self.mechanism.to_byte();
        out[2..4].copy_from_slice(&96u16.to_be_bytes());
        out[4..12].copy_from_slice(&self.kek.to_bytes());
        out[12..28].copy_from_slice(&self.dek_id.0);
        out
    }

    /// The way back. Strict: one block has one form, so a changed byte never reads as the same block.
    ///
    /// # Errors
    /// [`FormatError::KeyBlock`] for anything that [`KeyBlock::to_bytes`] doesn't write.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, FormatError> {
        let mechanism =
            WrapMechanism::from_byte(bytes[1]).ok_or(FormatError::KeyBlock("unknown wrap mechanism"))?;
        let mut kek = [0; KekRef::LEN];
        kek.copy_from_slice(&bytes[4..12]);
        let mut dek_id = [0; DekId::LEN];
        dek_id.copy_from_slice(&bytes[12..28]);
        let mut wrapped = [0; Self::WRAPPED_MAX];
        wrapped.copy_from_slice(&bytes[32..]);
        let block = Self { mechanism, kek: KekRef::from_bytes(kek), dek_id: DekId(dek_id), wrapped };
        // Kind, length, reserved bytes and padding have exactly one right value each.
        if block.wrapped[mechanism.wrapped_len()..].iter().any(|&byte| byte != 0) {
            return Err(FormatError::KeyBlock("padding is not zero"));
        }
        if block.to_bytes() != *bytes {
            return Err(FormatError::KeyBlock("kind, mechanism and lengths contradict each other"));
        }
        Ok(block)
    }
}

/// Associated data of a wrap: label ‖ key block fields ‖ SHA-256(label ‖ zone ‖ tenant).
///
/// Binds the zone's name, the tenant, the KEK reference, the mechanism and the DEK's id to the wrapped bytes, so
/// that a wrap never opens in another zone or for another tenant.
#[must_use]
pub fn wrap_aad(kek: KekRef, dek_id: DekId, mechanism: WrapMechanism, zone: &str, tenant: &str) -> Vec<u8> {
    let block = KeyBlock { mechanism, kek, dek_id, wrapped: [0; KeyBlock::WRAPPED_MAX] };
    let mut hash = Sha256::new();
    hash.update(b"keyway wrap scope v1\0");
    for part in [zone, tenant] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut aad = Vec::with_capacity(15 + 28 + 32);
    aad.extend_from_slice(b"keyway wrap v1\0");
    aad.extend_from_slice(&block.fields());
    aad.extend_from_slice(&hash.finalize());
    aad
}

/// What a KWP wrap carries behind the DEK, since KWP takes no associated data: the first 16 bytes of
/// SHA-256([`wrap_aad`]). Whoever unwraps compares it in constant time.
#[must_use]
pub fn kwp_context(aad: &[u8]) -> [u8; 16] {
    let hash = Sha256::digest(aad);
    let mut out = [0; 16];
    out.copy_from_slice(&hash[..16]);
    out
}

/// Everything before the first segment of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which context the opener has to rebuild.
    pub profile: Profile,
    /// Which DEK, and how to get it.
    pub key_block: KeyBlock,
    /// Random, once per message.
    pub salt: [u8; SALT],
    /// Proves the DEK and the context before any plaintext is released.
    pub commitment: [u8; COMMITMENT],
}

impl Header {
    /// The 160 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..PREFIX].copy_from_slice(&prefix(SUITE_COBBLESTONE_256, self.profile));
        out[8..104].copy_from_slice(&self.key_block.to_bytes());
        out[104..128].copy_from_slice(&self.salt);
        out[128..].copy_from_slice(&self.commitment);
        out
    }

    /// Reads the header of an object; what follows it are segments.
    ///
    /// # Errors
    /// [`FormatError::Magic`] if this is no envelope (as far as the bytes go), another variant if it is
    /// one that can't be read. Unknown suites, flags and profiles are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if !looks_sealed(bytes) {
            return Err(FormatError::Magic);
        }
        let Some(bytes) = bytes.first_chunk::<HEADER>() else { return Err(FormatError::Short) };
        let profile = parse_prefix(bytes, SUITE_COBBLESTONE_256)?;
        let mut block = [0; KeyBlock::LEN];
        block.copy_from_slice(&bytes[8..104]);
        let mut salt = [0; SALT];
        salt.copy_from_slice(&bytes[104..128]);
        let mut commitment = [0; COMMITMENT];
        commitment.copy_from_slice(&bytes[128..]);
        Ok(Self { profile, key_block: KeyBlock::parse(&block)?, salt, commitment })
    }
}

/// How an object or a stream of this suite begins.
pub(crate) fn prefix(suite: u8, profile: Profile) -> [u8; PREFIX] {
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, VERSION, suite, 0, profile.to_byte()]
}

/// The way back, of what should be of this suite. Objects and streams have profiles of their own.
pub(crate) fn parse_prefix(bytes: &[u8], suite: u8) -> Result<Profile, FormatError> {
    let [a, b, c, d, version, found, flags, profile, ..] = *bytes else { return Err(FormatError::Short) };
    if [a, b, c, d] != MAGIC {
        return Err(FormatError::Magic);
    }
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    if found != suite {
        return Err(FormatError::Suite(found));
    }
    if flags != 0 {
        return Err(FormatError::Flags(flags));
    }
    Profile::from_byte(profile)
        .filter(|profile| (*profile == Profile::Stream) == (suite == SUITE_STREAM))
        .ok_or(FormatError::Profile(profile))
}

/// Whether the bytes begin as an envelope does (as far as they go; no bytes at all don't).
#[must_use]
pub fn looks_sealed(bytes: &[u8]) -> bool {
    let n = bytes.len().min(MAGIC.len());
    n > 0 && bytes[..n] == MAGIC[..n]
}
