//! What can go wrong, by operation.

use thiserror::Error;

/// The bytes are not an envelope of ours, or not one that this version reads.
///
/// Says what is wrong with the *form*; never anything that depends on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The first four bytes are not the magic: this is no envelope.
    #[error("no envelope: the magic FB 4B 57 59 is missing")]
    Magic,
    /// Shorter than its form can be.
    #[error("envelope is cut short: its header is incomplete")]
    Short,
    /// Made by a later version.
    #[error("envelope version {0} is not supported (this program reads version 1)")]
    Version(u8),
    /// An unknown suite; refused, never guessed.
    #[error("envelope suite {0:#04x} is not supported")]
    Suite(u8),
    /// A flag that this version does not know.
    #[error("envelope has unknown flags {0:#04x}")]
    Flags(u8),
    /// An unknown context profile.
    #[error("envelope context profile {0:#04x} is not supported")]
    Profile(u8),
    /// The key block's kind, mechanism, lengths or padding contradict each other.
    #[error("envelope key block is malformed: {0}")]
    KeyBlock(&'static str),
    /// No plaintext has a sealed length like this.
    #[error("no plaintext seals to {0} bytes")]
    Length(u64),
}

/// Sealing was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SealError {
    /// The message would exceed 2^38 segments (C2SP chunked-encryption, "Message chunking").
    #[error("message is longer than 4 PiB - 1 byte")]
    TooLong,
    /// A stream has used its keys up: it needs others first.
    #[error("the stream's keys are used up")]
    KeysUsedUp,
    /// A stream has ended.
    #[error("the stream has ended")]
    Ended,
    /// The output slice can't hold what has to be written at once.
    #[error("output buffer is smaller than one sealed segment")]
    OutputTooSmall,
}

/// Opening failed. One opaque error for callers of ours: the variant goes to a metric, never to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The commitment does not match: another key, another context, or a changed salt.
    #[error("could not be opened")]
    Commitment,
    /// A segment's tag does not verify.
    #[error("could not be opened")]
    Tag,
    /// The bytes end before the last segment.
    #[error("could not be opened")]
    Truncated,
    /// The opener has already failed; nothing more comes out of it.
    #[error("could not be opened")]
    Poisoned,
    /// More than 2^38 segments, or more than the range that was planned.
    #[error("could not be opened")]
    TooLong,
    /// A record that may not stand here: behind the end, or data where new keys are due.
    #[error("could not be opened")]
    Order,
    /// A caller's mistake: the output slice can't hold what has to be written at once.
    #[error("output buffer is smaller than one segment")]
    OutputTooSmall,
}

impl OpenError {
    /// A label for metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Commitment => "commitment",
            Self::Tag => "tag",
            Self::Truncated => "truncated",
            Self::Poisoned => "poisoned",
            Self::TooLong => "too_long",
            Self::Order => "order",
            Self::OutputTooSmall => "output_too_small",
        }
    }
}
