//! The one place where failures become gRPC statuses. What a caller may not know goes to the log only.

use crate::backend::BackendError;
use crate::catalog::CatalogError;
use crate::deks::DekError;
use crate::hsms::HsmError;
use crate::keys::KeyError;
use tonic::{Code, Status};
use tracing::error;

impl From<DekError> for Status {
    fn from(error: DekError) -> Self {
        let code = match error {
            DekError::NotAllowed(_) => Code::PermissionDenied,
            DekError::Argument(_) => Code::InvalidArgument,
            DekError::Unknown => Code::NotFound,
            DekError::NotPrimary(_) => Code::FailedPrecondition,
            DekError::Quota => Code::ResourceExhausted,
            DekError::Keys(error) => return error.into(),
        };
        Self::new(code, error.to_string())
    }
}

impl From<KeyError> for Status {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Catalog(error) => error.into(),
            KeyError::Backends { .. } => Self::unavailable(error.to_string()),
            KeyError::Hsm(HsmError { ref source, .. })
                if matches!(
                    source,
                    BackendError::Timeout | BackendError::Unavailable(_) | BackendError::Pin
                ) =>
            {
                error!(%error, "a key backend does not answer");
                Self::unavailable("the key backend does not answer")
            }
            // Not one for the log each: the operation's histogram shows what is going on.
            KeyError::Hsm(HsmError { source: BackendError::Busy, .. }) => {
                Self::resource_exhausted("the key backend is busy; try again")
            }
            error => {
                error!(%error, "a key operation failed");
                Self::internal("a key operation failed; the bridge's log says why")
            }
        }
    }
}

impl From<CatalogError> for Status {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Deposed { .. } => Self::unavailable("another bridge has taken over"),
            CatalogError::RotationOpen { .. } | CatalogError::NotIssuable { .. } => {
                Self::failed_precondition(error.to_string())
            }
            error => {
                error!(%error, "the catalog failed");
                Self::unavailable("the catalog failed; the bridge's log says why")
            }
        }
    }
}
