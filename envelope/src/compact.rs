//! The compact form: fields and short messages, 98 bytes over the plaintext.
//!
//! `version|form ‖ suite ‖ KEK reference 8 ‖ DEK id 16 ‖ salt 24 ‖ commitment 32 ‖ segments`, with the DEK by catalog
//! reference; form 2 carries the 96-byte key block in place of reference and id.

use crate::aead::Implementation;
use crate::context::ContextDigest;
use crate::dek::Dek;
use crate::error::{FormatError, OpenError, SealError};
use crate::header::{COMMITMENT, KeyBlock, KeyBlockKind, SALT, SUITE_COBBLESTONE_256};
use crate::ids::{DekId, KekRef};
use crate::length::plain_len_of_segments;

/// Version 1, DEK by catalog reference.
const FORM_CATALOG: u8 = 0x11;
/// Version 1, key block inline.
const FORM_INLINE: u8 = 0x12;

/// A parsed compact envelope; borrows the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compact<'a> {
    /// Which DEK, and how to get it.
    pub key_block: KeyBlock,
    /// Random, once per message.
    pub salt: [u8; SALT],
    /// Proves the DEK and the context.
    pub commitment: [u8; COMMITMENT],
    /// What follows.
    pub segments: &'a [u8],
}

/// Seals one short message.
///
/// `key_block` is the DEK's own; of a catalog block only reference and id are written (98 bytes over the plaintext), an
/// inline block is written whole (170). `salt` has never been used with this DEK.
///
/// # Errors
/// [`SealError::TooLong`].
pub fn seal(
    dek: &Dek,
    key_block: &KeyBlock,
    salt: [u8; SALT],
    context: &ContextDigest,
    implementation: Implementation,
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let keys = dek.derive(&salt, context);
    let mut out = Vec::with_capacity(98 + 72 + plain.len() + 16 * (plain.len() / crate::length::SEGMENT));
    match key_block.kind() {
        KeyBlockKind::Catalog => {
            out.extend_from_slice(&[FORM_CATALOG, SUITE_COBBLESTONE_256]);
            out.extend_from_slice(&key_block.kek().to_bytes());
            out.extend_from_slice(&key_block.dek_id().0);
        }
        KeyBlockKind::Inline => {
            out.extend_from_slice(&[FORM_INLINE, SUITE_COBBLESTONE_256]);
            out.extend_from_slice(&key_block.to_bytes());
        }
    }
    out.extend_from_slice(&salt);
    out.extend_from_slice(keys.commitment());
    out.extend_from_slice(&crate::seal::seal_whole(keys, implementation, plain)?);
    Ok(out)
}

impl<'a> Compact<'a> {
    /// Reads the form; no key is needed.
    ///
    /// # Errors
    /// [`FormatError`] for anything that [`seal`] doesn't write.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let [form, suite, rest @ ..] = bytes else { return Err(FormatError::Short) };
        if *form != FORM_CATALOG && *form != FORM_INLINE {
            return Err(FormatError::Version(*form));
        }
        if *suite != SUITE_COBBLESTONE_256 {
            return Err(FormatError::Suite(*suite));
        }
        let (key_block, rest) = if *form == FORM_CATALOG {
            let (kek, rest) = rest.split_first_chunk::<{ KekRef::LEN }>().ok_or(FormatError::Short)?;
            let (id, rest) = rest.split_first_chunk::<{ DekId::LEN }>().ok_or(FormatError::Short)?;
            (KeyBlock::catalog(KekRef::from_bytes(*kek), DekId(*id)), rest)
        } else {
            let (block, rest) = rest.split_first_chunk::<{ KeyBlock::LEN }>().ok_or(FormatError::Short)?;
            let block = KeyBlock::parse(block)?;
            if block.kind() != KeyBlockKind::Inline {
                return Err(FormatError::KeyBlock("a reference is written in the short form"));
            }
            (block, rest)
        };
        let (salt, rest) = rest.split_first_chunk::<SALT>().ok_or(FormatError::Short)?;
        let (commitment, segments) = rest.split_first_chunk::<COMMITMENT>().ok_or(FormatError::Short)?;
        plain_len_of_segments(segments.len() as u64)?;
        Ok(Self { key_block, salt: *salt, commitment: *commitment, segments })
    }

    /// Opens it with the DEK that `key_block` led to.
    ///
    /// # Errors
    /// [`OpenError`], which tells a peer nothing. A DEK of another id than the block's is refused as
    /// [`OpenError::Commitment`].
    pub fn open(
        &self,
        dek: &Dek,
        context: &ContextDigest,
        implementation: Implementation,
    ) -> Result<Vec<u8>, OpenError> {
        // The derivation binds the id of the key at hand, so an id that was changed on the way has to be compared.
        if dek.id() != self.key_block.dek_id() {
            return Err(OpenError::Commitment);
        }
        let keys = dek.derive(&self.salt, context);
        keys.verify(&self.commitment)?;
        crate::open::open_whole(keys, implementation, self.segments)
    }
}
