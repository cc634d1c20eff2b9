//! Known answers: the proof that a member can use a KEK version.
//!
//! For every version the bridge seals 32 random bytes into an ordinary envelope. A member gets its DEK as it would any
//! other's, opens it, and answers with a digest over all that it opened: [`digest`] is right only if every version works,
//! from the HSM through the transport into the member's own AEAD.

use crate::error::{Error, Result};
use aws_lc_rs::digest::{Context as Hash, SHA256};
use keyway_envelope::aead::Implementation;
use keyway_envelope::header::SALT;
use keyway_envelope::length::HEADER;
use keyway_envelope::{
    Context, ContextDigest, Dek, Direction, Header, KekVersion, KeyBlock, KeyringId, Profile,
};
use zeroize::Zeroize;

/// The domain of known answers. No route has a name with a colon.
pub const DOMAIN: &str = "keyway:known-answer";
/// Length of an answer, in bytes.
pub const ANSWER_LEN: usize = 32;
const DIGEST_LABEL: &[u8] = b"keyway kat v1\0";

/// What one version's known answer opened to.
pub type Answer = (KeyringId, KekVersion, [u8; ANSWER_LEN]);

/// Seals `answer` into a whole envelope. `salt` is random and new, as for any message.
#[must_use]
pub fn seal_known_answer(
    dek: &Dek,
    key_block: &KeyBlock,
    salt: [u8; SALT],
    zone: &str,
    answer: &[u8; ANSWER_LEN],
) -> Vec<u8> {
    let keys = dek.derive(&salt, &context(zone));
    let header =
        Header { profile: Profile::KnownAnswer, key_block: *key_block, salt, commitment: *keys.commitment() };
    let segments = keyway_envelope::seal::seal_whole(keys, Implementation::selected(), answer)
        .expect("32 bytes are far below the longest message");
    [header.to_bytes().as_slice(), &segments].concat()
}

/// The key block of a known answer: what to ask the bridge for.
///
/// # Errors
/// [`Error::KnownAnswerForm`] if it is not an envelope of this profile.
pub fn known_answer_key_block(envelope: &[u8]) -> Result<KeyBlock> {
    Ok(parse(envelope)?.key_block)
}

/// Opens a known answer.
///
/// # Errors
/// [`Error::KnownAnswerForm`], or [`Error::KnownAnswer`] if `dek` is not its key, the zone is another, or a byte
/// was changed.
pub fn open_known_answer(envelope: &[u8], dek: &Dek, zone: &str) -> Result<[u8; ANSWER_LEN]> {
    let header = parse(envelope)?;
    let keys = dek.derive(&header.salt, &context(zone));
    keys.verify(&header.commitment).map_err(Error::KnownAnswer)?;
    let mut opened = keyway_envelope::open::open_whole(keys, Implementation::selected(), &envelope[HEADER..])
        .map_err(Error::KnownAnswer)?;
    let answer =
        opened.as_slice().try_into().map_err(|_| Error::KnownAnswerForm("the answer has not 32 bytes"));
    opened.zeroize();
    answer
}

/// SHA-256 over label, generation, and the answers sorted by keyring and version.
///
/// The order in which they were opened makes no difference.
#[must_use]
pub fn digest(generation: u64, answers: &[Answer]) -> [u8; 32] {
    let mut sorted: Vec<&Answer> = answers.iter().collect();
    sorted.sort_unstable();
    let mut hash = Hash::new(&SHA256);
    hash.update(DIGEST_LABEL);
    hash.update(&generation.to_be_bytes());
    hash.update(&(sorted.len() as u64).to_be_bytes());
    for (keyring, version, answer) in sorted {
        hash.update(&keyring.0.to_be_bytes());
        hash.update(&version.0.to_be_bytes());
        hash.update(answer);
    }
    hash.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn parse(envelope: &[u8]) -> Result<Header> {
    let header = Header::parse(envelope).map_err(|_| Error::KnownAnswerForm("it is not an envelope"))?;
    if header.profile != Profile::KnownAnswer {
        return Err(Error::KnownAnswerForm("its context profile is another"));
    }
    Ok(header)
}

fn context(zone: &str) -> ContextDigest {
    let context = Context {
        zone,
        tenant: None,
        domain: DOMAIN,
        direction: Direction::AtRest,
        profile: Profile::KnownAnswer,
        field: None,
        object_id: None,
        content_type: None,
        peer_salt: None,
        chain: None,
    };
    context.digest()
}

#[cfg(test)]
#[path = "tests/kat.rs"]
mod tests;
