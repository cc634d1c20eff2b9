//! What can go wrong at a key backend.

use keyway_envelope::KekRef;
use thiserror::Error;

/// A key operation failed. No variant holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend does not hold this KEK.
    #[error("no KEK for {kek}")]
    NotFound {
        /// The one that was asked for.
        kek: KekRef,
    },
    /// The block does not authenticate: changed bytes, another zone, another tenant or another KEK.
    #[error("the wrapped key was refused")]
    Refused,
    /// No answer within the backend's timeout. The operation may still take place.
    #[error("the key backend did not answer in time")]
    Timeout,
    /// The backend can't serve now; trying again later may work.
    #[error("the key backend is unavailable: {0}")]
    Unavailable(String),
    /// More callers wait than it takes on. It works, and it will be free again.
    #[error("the key backend is busy: its queue is full")]
    Busy,
    /// The token refused the PIN. The same PIN is not tried again: tokens lock after a few wrong ones.
    #[error(
        "the token refused the PIN; it is not tried again, so that the token does not lock: correct pin_file"
    )]
    Pin,
    /// Several objects have this KEK's name. Which one is right can't be told, so none is used.
    #[error("several objects are named {kek}; remove the wrong ones")]
    Duplicate {
        /// The ambiguous name.
        kek: KekRef,
    },
    /// The key is not what a KEK has to be, for example it could be extracted.
    #[error("the key for {kek} is not fit to be a KEK: {reason}")]
    Unfit {
        /// Which.
        kek: KekRef,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration, or what it points to, has to be corrected first.
    #[error("{0}")]
    Config(String),
}

impl BackendError {
    /// Whether the backend has answered that the block is none of its own.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused | Self::NotFound { .. })
    }

    /// Whether the same call may succeed later with nothing changed by hand.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout | Self::Unavailable(_) | Self::Busy)
    }
}
