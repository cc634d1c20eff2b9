//! Bytes to sealed bytes and back.
//!
//! This crate contains no networking code, draws no randomness and reads no clock: bytes, salts and time
//! come in as arguments, bytes go out. What it writes is specified in `docs/envelope.md`; the payload core
//! is [C2SP chunked-encryption](https://c2sp.org/chunked-encryption), instance *Cobblestone-256*.
//!
//! - [`header`]: the 160 bytes in front of every object, and the [`KeyBlock`] in them.
//! - [`context`]: what is authenticated beside the bytes.
//! - [`dek`]: the data-encryption key, in locked memory, and the key derivation.
//! - [`aead`]: three AES-256-GCM implementations behind one trait, checked and measured at start.
//! - [`seal`] and [`open`]: the streaming state machines.
//! - [`length`]: sealed length from plain length, the way back, and ranges.
//! - [`compact`]: the short form for fields and messages.
//! - [`field`]: that as the value of a JSON field.
//! - [`stream`]: records, for connections that live long.

pub mod aead;
pub mod compact;
pub mod context;
pub mod dek;
mod error;
pub mod field;
pub mod header;
mod ids;
pub mod length;
mod locked;
pub mod open;
pub mod seal;
pub mod stream;

pub use aead::Implementation;
pub use context::{Context, ContextDigest, Direction, Profile};
pub use dek::{Dek, MessageKeys};
pub use error::{FormatError, OpenError, SealError};
pub use header::{Header, KeyBlock, KeyBlockKind, WrapMechanism, kwp_context, wrap_aad};
pub use ids::{DekId, KekRef, KekVersion, KeyringId, ZoneId};
pub use locked::{LockedBox, memory_is_locked};
pub use open::Opener;
pub use seal::Sealer;

/// Bytes that one call of a state machine has taken in and put out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that were used; the caller offers the rest again.
    pub consumed: usize,
    /// Bytes of the output that were written.
    pub produced: usize,
}
