//! ``Stream[DEK](records)``: one direction of a connection between two sidecars.
//!
//! ```text
//! ◄─ challenge 32
//! set-up 160 │ DATA │ DATA │ … │ REKEY │ DATA │ … │ FIN        record = type 1 ‖ length 2 ‖ ciphertext ‖ tag 16
//! ```
//! The set-up is an object's header of suite 2 and profile 3. Type and length of a record are its associated data, and its
//! nonce is the base nonce ⊕ its number: no record can be changed, left out, repeated or moved. FIN is the only end; a
//! connection that closes without it was cut off. REKEY comes under the old keys and brings those for what follows, whose
//! derivation binds the old ones: a stream goes on through a rotation, and can't be put together from two.
//!
//! The side that was connected to speaks first: a challenge, that the set-up of the way there binds. The set-up of the way
//! back binds the salt of the other. So the two directions have keys of their own, belong together, and neither can be
//! played again.

use crate::aead::{Implementation, SegmentKey};
use crate::context::{Context, ContextDigest, Direction, Profile};
use crate::dek::{Dek, MessageKeys, segment_nonce};
use crate::error::{FormatError, OpenError, SealError};
use crate::header::{COMMITMENT, KeyBlock, PREFIX, SALT, SUITE_STREAM, parse_prefix, prefix};
use crate::length::{HEADER, SEGMENT, TAG};
use core::fmt;
use sha2::{Digest, Sha256};

/// Length of the set-up, in bytes.
pub const SETUP: usize = HEADER;
/// Length of the challenge, in bytes.
pub const CHALLENGE: usize = PREFIX + SALT;
/// Type and length in front of each record, in bytes.
pub const RECORD_HEADER: usize = 3;
/// The longest plaintext of a record, in bytes.
pub const RECORD_MAX: usize = SEGMENT;
/// What a record takes more than its plaintext, in bytes.
pub const RECORD_MORE: usize = RECORD_HEADER + TAG;
/// The whole record of a REKEY, in bytes.
pub const REKEY_RECORD: usize = REKEY + RECORD_MORE;
/// Key block, salt and commitment: the plaintext of a REKEY.
const REKEY: usize = KeyBlock::LEN + SALT + COMMITMENT;

/// From so many records on under the same keys, others are asked for ([`StreamSealer::wants_rekey`]).
const RECORDS_SOFT: u64 = 1 << 30;
/// No more than these (far below 2^45 messages of suite 01's analysis).
const RECORDS_MAX: u64 = 1 << 32;

const TYPE_DATA: u8 = 1;
const TYPE_REKEY: u8 = 2;
const TYPE_FIN: u8 = 3;

/// What both ends know of a stream without being told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamContext {
    /// The zone's name.
    pub zone: String,
    /// The tenant, where the route has one.
    pub tenant: Option<String>,
    /// The stable name of what is spoken over it.
    pub domain: String,
    /// Which of the two directions.
    pub way: Way,
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who has connected, who was sent a challenge with this nonce.
    There([u8; SALT]),
    /// To who has connected, on the connection whose other direction has this salt in its set-up.
    Back([u8; SALT]),
}

impl StreamContext {
    fn digest(&self, chain: Option<&[u8; 32]>) -> ContextDigest {
        let (direction, peer_salt) = match &self.way {
            Way::There(nonce) => (Direction::Request, nonce),
            Way::Back(salt) => (Direction::Response, salt),
        };
        let object = Context::object(&self.zone, self.tenant.as_deref(), &self.domain);
        Context { direction, profile: Profile::Stream, peer_salt: Some(peer_salt), chain, ..object }.digest()
    }
}

/// What the side that was connected to says first; `nonce` is random, and new for each connection.
#[must_use]
pub fn challenge(nonce: &[u8; SALT]) -> [u8; CHALLENGE] {
    let mut out = [0; CHALLENGE];
    out[..PREFIX].copy_from_slice(&prefix(SUITE_STREAM, Profile::Stream));
    out[PREFIX..].copy_from_slice(nonce);
    out
}

/// The nonce of a challenge.
///
/// # Errors
/// [`FormatError`]; [`FormatError::Magic`] if who was connected to speaks no stream of ours.
pub fn parse_challenge(challenge: &[u8; CHALLENGE]) -> Result<[u8; SALT], FormatError> {
    behind_prefix(challenge).copied()
}

fn behind_prefix<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], FormatError> {
    parse_prefix(bytes, SUITE_STREAM)?;
    bytes[PREFIX..].first_chunk().ok_or(FormatError::Short)
}

/// What leads to a stream's keys: the set-up, or the plaintext of a REKEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keying {
    /// Which DEK, and how to get it.
    pub key_block: KeyBlock,
    /// Random, once per set of keys.
    pub salt: [u8; SALT],
    /// Proves DEK and context.
    pub commitment: [u8; COMMITMENT],
}

impl Keying {
    /// Reads the set-up.
    ///
    /// # Errors
    /// [`FormatError`]; [`FormatError::Magic`] if this is no stream of ours.
    pub fn parse(setup: &[u8; SETUP]) -> Result<Self, FormatError> {
        Self::parse_parts(behind_prefix(setup)?)
    }

    fn setup(&self) -> [u8; SETUP] {
        let mut out = [0; SETUP];
        out[..PREFIX].copy_from_slice(&prefix(SUITE_STREAM, Profile::Stream));
        out[PREFIX..].copy_from_slice(&self.parts());
        out
    }

    fn parse_parts(parts: &[u8; REKEY]) -> Result<Self, FormatError> {
        let (block, rest) = parts.split_first_chunk::<{ KeyBlock::LEN }>().ok_or(FormatError::Short)?;
        let (salt, rest) = rest.split_first_chunk::<SALT>().ok_or(FormatError::Short)?;
        let commitment = rest.first_chunk::<COMMITMENT>().ok_or(FormatError::Short)?;
        Ok(Self { key_block: KeyBlock::parse(block)?, salt: *salt, commitment: *commitment })
    }

    fn parts(&self) -> [u8; REKEY] {
        let mut out = [0; REKEY];
        let (block, rest) = out.split_at_mut(KeyBlock::LEN);
        block.copy_from_slice(&self.key_block.to_bytes());
        rest[..SALT].copy_from_slice(&self.salt);
        rest[SALT..].copy_from_slice(&self.commitment);
        out
    }
}

/// The keys at hand, and how often they were used.
struct Keys {
    key: Box<dyn SegmentKey>,
    base_nonce: [u8; 12],
    commitment: [u8; COMMITMENT],
    records: u64,
}

impl Keys {
    fn of(keys: &MessageKeys, by: Implementation) -> Self {
        Self {
            key: keys.segment_key(by),
            base_nonce: keys.base_nonce(),
            commitment: *keys.commitment(),
            records: 0,
        }
    }

    fn next_nonce(&mut self) -> Option<[u8; 12]> {
        let nonce = (self.records < RECORDS_MAX).then(|| segment_nonce(&self.base_nonce, self.records))?;
        self.records += 1;
        Some(nonce)
    }

    /// What keys are bound to that follow these behind `records` records, the REKEY included.
    fn chain(&self, records: u64) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"keyway stream chain v1\0");
        hash.update(self.commitment);
        hash.update(records.to_be_bytes());
        hash.finalize().into()
    }
}

/// Makes the records of one direction.
pub struct StreamSealer {
    context: StreamContext,
    by: Implementation,
    keys: Keys,
    has_ended: bool,
}

impl StreamSealer {
    /// A stream that begins, and its set-up. `salt` has never been used with this DEK.
    #[must_use]
    pub fn begin(
        dek: &Dek,
        key_block: &KeyBlock,
        salt: [u8; SALT],
        context: StreamContext,
        by: Implementation,
    ) -> (Self, [u8; SETUP]) {
        let keys = Keys::of(&dek.derive(&salt, &context.digest(None)), by);
        let setup = Keying { key_block: *key_block, salt, commitment: keys.commitment }.setup();
        (Self { context, by, keys, has_ended: false }, setup)
    }

    /// Seals up to [`RECORD_MAX`] bytes as one record, at the front of `out`; gives its length: that of `plain` and
    /// [`RECORD_MORE`].
    ///
    /// # Errors
    /// [`SealError`]; [`SealError::TooLong`] for more plaintext than a record takes.
    pub fn data(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        self.record(TYPE_DATA, plain, out)
    }

    /// Whether it is time for other keys.
    #[must_use]
    pub fn wants_rekey(&self) -> bool {
        self.keys.records >= RECORDS_SOFT
    }

    /// Goes on under another DEK (or the same with another salt); gives the record that says so.
    ///
    /// # Errors
    /// [`SealError::Ended`], [`SealError::KeysUsedUp`].
    pub fn rekey(
        &mut self,
        dek: &Dek,
        key_block: &KeyBlock,
        salt: [u8; SALT],
    ) -> Result<[u8; REKEY_RECORD], SealError> {
        let chain = self.keys.chain(self.keys.records + 1);
        let next = Keys::of(&dek.derive(&salt, &self.context.digest(Some(&chain))), self.by);
        let parts = Keying { key_block: *key_block, salt, commitment: next.commitment }.parts();
        let mut record = [0; REKEY_RECORD];
        self.record(TYPE_REKEY, &parts, &mut record)?;
        self.keys = next;
        Ok(record)
    }

    /// The end. Nothing can follow.
    ///
    /// # Errors
    /// [`SealError::Ended`], [`SealError::KeysUsedUp`].
    pub fn finish(&mut self) -> Result<[u8; RECORD_MORE], SealError> {
        let mut record = [0; RECORD_MORE];
        self.record(TYPE_FIN, &[], &mut record)?;
        self.has_ended = true;
        Ok(record)
    }

    fn record(&mut self, kind: u8, plain: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        if self.has_ended {
            return Err(SealError::Ended);
        }
        if plain.len() > RECORD_MAX {
            return Err(SealError::TooLong);
        }
        let len = plain.len() + RECORD_MORE;
        let Some(out) = out.get_mut(..len) else { return Err(SealError::OutputTooSmall) };
        let nonce = self.keys.next_nonce().ok_or(SealError::KeysUsedUp)?;
        let (header, sealed) = out.split_at_mut(RECORD_HEADER);
        header.copy_from_slice(&record_header(kind, plain.len()));
        self.keys.key.seal(nonce, header, plain, sealed);
        Ok(len)
    }
}

fn record_header(kind: u8, plain: usize) -> [u8; RECORD_HEADER] {
    let length = u16::try_from(plain + TAG).expect("a record's plaintext is at most 16384 bytes");
    let [high, low] = length.to_be_bytes();
    [kind, high, low]
}

/// What a record was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// So many bytes at the front of the output.
    Data(usize),
    /// Other keys from here on: [`StreamOpener::rekey`] with the DEK that its block leads to comes next.
    Rekey(Box<Keying>),
    /// The end.
    Fin,
}

enum State {
    Open,
    /// What follows is under keys that are bound to this.
    KeysDue([u8; 32]),
    Ended,
    Failed,
}

/// Opens the records of one direction, in order.
pub struct StreamOpener {
    context: StreamContext,
    by: Implementation,
    keys: Keys,
    state: State,
}

impl StreamOpener {
    /// A stream whose set-up has come, with the DEK that it leads to.
    ///
    /// # Errors
    /// [`OpenError::Commitment`]: another DEK, another context, the other direction, or of another connection.
    pub fn begin(
        setup: &Keying,
        dek: &Dek,
        context: StreamContext,
        by: Implementation,
    ) -> Result<Self, OpenError> {
        let keys = verified(setup, dek, &context.digest(None), by)?;
        Ok(Self { context, by, keys, state: State::Open })
    }

    /// How many bytes follow a record's header.
    ///
    /// # Errors
    /// [`OpenError::TooLong`] or [`OpenError::Truncated`] for a length that no record has.
    pub fn sealed_len(header: [u8; RECORD_HEADER]) -> Result<usize, OpenError> {
        let len = usize::from(u16::from_be_bytes([header[1], header[2]]));
        match len {
            len if len < TAG => Err(OpenError::Truncated),
            len if len > RECORD_MAX + TAG => Err(OpenError::TooLong),
            len => Ok(len),
        }
    }

    /// Opens one record; `out` has room for its plaintext: [`RECORD_MAX`] is always enough.
    ///
    /// # Errors
    /// [`OpenError`], and from then on [`OpenError::Poisoned`].
    pub fn open(
        &mut self,
        header: [u8; RECORD_HEADER],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<Record, OpenError> {
        match self.state {
            State::Open => {}
            State::Failed => return Err(OpenError::Poisoned),
            State::KeysDue(_) | State::Ended => return Err(self.fail(OpenError::Order)),
        }
        match self.open_next(header, sealed, out) {
            Ok(record) => {
                match &record {
                    Record::Data(_) => {}
                    Record::Rekey(_) => self.state = State::KeysDue(self.keys.chain(self.keys.records)),
                    Record::Fin => self.state = State::Ended,
                }
                Ok(record)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn open_next(
        &mut self,
        header: [u8; RECORD_HEADER],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<Record, OpenError> {
        if sealed.len() != Self::sealed_len(header)? {
            return Err(OpenError::Truncated);
        }
        let plain = sealed.len() - TAG;
        let out = out.get_mut(..plain).ok_or(OpenError::OutputTooSmall)?;
        let nonce = self.keys.next_nonce().ok_or(OpenError::TooLong)?;
        self.keys.key.open(nonce, &header, sealed, out)?;
        match (header[0], plain) {
            (TYPE_DATA, len) => Ok(Record::Data(len)),
            (TYPE_FIN, 0) => Ok(Record::Fin),
            (TYPE_REKEY, REKEY) => {
                let parts = out.first_chunk::<REKEY>().ok_or(OpenError::Order)?;
                Ok(Record::Rekey(Box::new(Keying::parse_parts(parts).map_err(|_| OpenError::Order)?)))
            }
            _ => Err(OpenError::Order),
        }
    }

    /// Goes on with the DEK that a [`Record::Rekey`] leads to.
    ///
    /// # Errors
    /// [`OpenError::Commitment`], or [`OpenError::Order`] where no keys are due.
    pub fn rekey(&mut self, keying: &Keying, dek: &Dek) -> Result<(), OpenError> {
        let State::KeysDue(chain) = self.state else { return Err(self.fail(OpenError::Order)) };
        match verified(keying, dek, &self.context.digest(Some(&chain)), self.by) {
            Ok(keys) => {
                self.keys = keys;
                self.state = State::Open;
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Whether the end has come; a connection that closes before was cut off.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn fail(&mut self, error: OpenError) -> OpenError {
        self.state = State::Failed;
        error
    }
}

fn verified(
    keying: &Keying,
    dek: &Dek,
    context: &ContextDigest,
    by: Implementation,
) -> Result<Keys, OpenError> {
    if dek.id() != keying.key_block.dek_id() {
        return Err(OpenError::Commitment);
    }
    let keys = dek.derive(&keying.salt, context);
    keys.verify(&keying.commitment)?;
    Ok(Keys::of(&keys, by))
}

impl fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSealer").field("records", &self.keys.records).finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOpener").field("records", &self.keys.records).finish_non_exhaustive()
    }
}
