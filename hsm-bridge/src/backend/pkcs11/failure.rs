//! What a failed PKCS#11 call means, and so what is done about it.

use crate::backend::BackendError;
use cryptoki::error::{Error, RvError};
use keyway_envelope::KekRef;

/// `CKR_AEAD_DECRYPT_FAILED` (PKCS#11 3.0), which cryptoki has no name for.
const AEAD_DECRYPT_FAILED: u64 = 0x42;

/// An operation on a session failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Settled: the caller gets this.
    Backend(BackendError),
    /// A call failed; its class says what comes next.
    Call(Error),
    /// The module does not list the token.
    Absent {
        /// What it lists instead.
        text: String,
        /// Whether some slot could not be read. SoftHSM keeps a token that another process was writing to while the
        /// module was initialised as broken, until the module is initialised again.
        unreadable: bool,
    },
    /// Opening a wrap failed in a way that a hostile blob and a sick HSM share: the canary decides.
    Suspect {
        /// The KEK that the wrap names.
        kek: KekRef,
        /// What the HSM said.
        error: Error,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The arguments, the template or the mechanism: the same call would fail again.
    Caller,
    /// The session is gone, logged out or stuck in an operation: open a new one, try once more.
    Session,
    /// The key's handle is stale: find it again, try once more.
    Handle,
    /// The module has been finalised: initialise it again, try once more.
    Module,
    /// The token is gone from the module's list: initialise the module again, try once more.
    Absent,
    /// The PIN was refused: stop.
    Pin,
    /// Any of these, or the device is sick: the canary decides.
    Ambiguous,
}

impl Failure {
    /// What is done about it.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Backend(_) => Class::Caller,
            Self::Absent { .. } => Class::Absent,
            Self::Call(error) => classify(error),
            Self::Suspect { .. } => Class::Ambiguous,
        }
    }

    /// The KEK whose wrap is suspected.
    pub(super) fn suspect(&self) -> Option<KekRef> {
        match self {
            Self::Suspect { kek, .. } => Some(*kek),
            _ => None,
        }
    }

    /// What the caller gets if the HSM is to blame, or nothing is known.
    pub(super) fn settle(self) -> BackendError {
        match self {
            Self::Backend(error) => error,
            Self::Absent { text, .. } => BackendError::Unavailable(text),
            Self::Call(error) | Self::Suspect { error, .. } => settle(&error),
        }
    }

    /// What the caller gets if the HSM has been shown to work.
    pub(super) fn at_fault(self) -> BackendError {
        match self {
            Self::Suspect { .. } => BackendError::Refused,
            failure => failure.settle(),
        }
    }
}

/// The class of a failed call.
pub(super) fn classify(error: &Error) -> Class {
    let Error::Pkcs11(rv, _) = error else { return Class::Caller };
    match rv {
        RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::UserNotLoggedIn
        | RvError::OperationActive
        | RvError::OperationNotInitialized
        | RvError::FunctionCanceled
        | RvError::SlotIdInvalid
        | RvError::SessionReadOnly => Class::Session,
        RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid => Class::Handle,
        RvError::CryptokiNotInitialized => Class::Module,
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked => Class::Pin,
        RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::FunctionRejected
        | RvError::HostMemory
        | RvError::DeviceError
        | RvError::DeviceMemory
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::VendorDefined(_)
        | RvError::UnknownErrorCode(_) => Class::Ambiguous,
        _ => Class::Caller,
    }
}

/// Whether the HSM says clearly that a ciphertext does not authenticate.
pub(super) fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Pkcs11(RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange, _) => true,
        Error::Pkcs11(RvError::UnknownErrorCode(code), _) => *code == AEAD_DECRYPT_FAILED,
        _ => false,
    }
}

/// Call and return value, as in `C_Decrypt: DeviceError`. Neither holds a secret.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(RvError::VendorDefined(code), call) => format!("C_{call:?}: vendor error {code:#x}"),
        Error::Pkcs11(RvError::UnknownErrorCode(code), call) => format!("C_{call:?}: error {code:#x}"),
        Error::Pkcs11(rv, call) => format!("C_{call:?}: {rv:?}"),
        other => other.to_string(),
    }
}

/// As [`Failure::settle`].
fn settle(error: &Error) -> BackendError {
    match classify(error) {
        Class::Pin => BackendError::Pin,
        _ => BackendError::Unavailable(describe(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    /// A table of every class, so that a change of one is seen.
    #[test]
    fn classes() {
        let class = |rv| classify(&Error::Pkcs11(rv, Function::Decrypt));
        for (rv, expected) in [
            (RvError::SessionHandleInvalid, Class::Session),
            (RvError::SessionClosed, Class::Session),
            (RvError::UserNotLoggedIn, Class::Session),
            (RvError::OperationActive, Class::Session),
            (RvError::KeyHandleInvalid, Class::Handle),
            (RvError::ObjectHandleInvalid, Class::Handle),
            (RvError::CryptokiNotInitialized, Class::Module),
            (RvError::PinIncorrect, Class::Pin),
            (RvError::PinLocked, Class::Pin),
            (RvError::GeneralError, Class::Ambiguous),
            (RvError::DeviceError, Class::Ambiguous),
            (RvError::VendorDefined(0x8000_0001), Class::Ambiguous),
            (RvError::MechanismInvalid, Class::Caller),
            (RvError::TemplateInconsistent, Class::Caller),
            (RvError::EncryptedDataInvalid, Class::Caller),
        ] {
            assert_eq!(class(rv), expected, "{rv:?}");
        }
    }

    #[test]
    fn only_clear_refusals_are_refusals() {
        let refusal = |rv| is_refusal(&Error::Pkcs11(rv, Function::Decrypt));
        assert!(refusal(RvError::EncryptedDataInvalid));
        assert!(refusal(RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED)));
        assert!(!refusal(RvError::UnknownErrorCode(0x43)));
        assert!(!refusal(RvError::GeneralError));
    }

    #[test]
    fn a_refused_pin_is_told_as_such() {
        assert_eq!(settle(&Error::Pkcs11(RvError::PinLocked, Function::Login)), BackendError::Pin);
        assert_eq!(
            settle(&Error::Pkcs11(RvError::DeviceError, Function::Decrypt)),
            BackendError::Unavailable("C_Decrypt: DeviceError".to_owned())
        );
    }
}
