//! Why a bridge does not start, or stopped.

use crate::audit::AuditError;
use crate::catalog::CatalogError;
use crate::config::ConfigError;
use crate::hsms::HsmError;
use crate::keys::KeyError;
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// Short for results of starting and running a bridge.
pub type Result<T> = std::result::Result<T, Error>;

/// A bridge can't start, or can't go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The audit file.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A key backend is configured wrongly.
    #[error("zone {zone}: {source}")]
    Hsm {
        /// The zone.
        zone: String,
        /// Which backend, and why.
        source: HsmError,
    },
    /// A first key could not be made.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Certificates, or the signing key.
    #[error(transparent)]
    Protocol(#[from] keyway_protocol::Error),
    /// The signing key's file.
    #[error("signing key {}: {source}", path.display())]
    SigningKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A port is taken, or may not be used.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A task of the bridge has ended with this.
    #[error("the bridge stopped: {0}")]
    Stopped(String),
}

impl Error {
    /// Whether the configuration is at fault, and not the machine: exit code 64.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        use crate::backend::BackendError;
        match self {
            Self::Config(_) | Self::Protocol(_) => true,
            Self::Hsm { source, .. } => matches!(source.source, BackendError::Config(_)),
            _ => false,
        }
    }
}
