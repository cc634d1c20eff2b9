//! The bridge's configuration: parsed whole and validated whole before anything is bound.
//!
//! Unknown keys are errors with their line. What is wrong is told all at once, each with where it stands and what
//! to do about it.

mod rotation;
mod units;
mod validate;

pub use rotation::{GateConfig, Percent, RotationConfig, Wave};
pub use units::{ByteSize, Window};

use crate::backend::BackendConfig;
use core::fmt;
use core::time::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The configuration is not usable. Its text says where and what to do; exit code 64.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML, an unknown key, or a value of the wrong kind.
    #[error("{file}: {message}")]
    Parse {
        /// The file's name.
        file: String,
        /// With line and column.
        message: String,
    },
    /// Readable, but contradicting itself or the machine.
    #[error("{file}: {} problem(s)\n  {}", problems.len(), problems.join("\n  "))]
    Invalid {
        /// The file's name.
        file: String,
        /// Each: where, what, and what to do.
        problems: Vec<String>,
    },
}

/// Everything that a bridge is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "keyway-bridge configuration")]
pub struct Config {
    /// Where members and operators connect (gRPC, mutual TLS).
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where health, metrics and the read-only API are served (HTTP).
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// The bridge's own identity, and whose client certificates it accepts.
    pub tls: TlsConfig,
    /// The catalog: `sqlite:///path/to/bridge.db`. The bridge's signing key is kept beside it.
    pub store: String,
    /// The audit record.
    pub audit: AuditConfig,
    /// How often members hear that they are current. Renews their leases.
    #[serde(default = "default_heartbeat", with = "units::duration")]
    #[schemars(with = "String")]
    pub heartbeat: Duration,
    /// The isolated cryptographic domains that this bridge serves.
    pub zones: Vec<ZoneConfig>,
}

/// Certificate, key, and the authorities for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The bridge's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities whose client certificates are accepted, PEM.
    pub client_ca: PathBuf,
}

/// Where the audit record goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// An append-only file, one JSON object per line.
    pub file: PathBuf,
    /// How often the record is to be sealed by a signed checkpoint. Not in force in this version.
    #[serde(default, with = "units::duration_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub checkpoint_every: Option<Duration>,
}

/// One zone: own KEKs, own backends, own administrators, own members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZoneConfig {
    /// Bound into every wrap; never rename a zone that has keys.
    pub name: String,
    /// Where its KEKs live, in order of preference.
    pub backends: Vec<BackendConfig>,
    /// Backends under which each DEK is wrapped.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub wraps_required: usize,
    /// SPIFFE ids of those who may start rotations and see this zone.
    #[serde(default)]
    pub admins: Vec<String>,
    /// Its KEK lineages.
    pub keyrings: Vec<KeyringConfig>,
    /// How its rotations go.
    #[serde(default)]
    pub rotation: RotationConfig,
}

/// One KEK lineage and who may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyringConfig {
    /// Without the zone: `default`.
    pub name: String,
    /// When it is rotated without being asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<RotateConfig>,
    /// How long a member serves without the bridge.
    #[serde(default)]
    pub leases: LeaseConfig,
    /// How much one DEK may seal.
    #[serde(default)]
    pub limits: LimitConfig,
    /// Who may do what.
    pub services: Vec<ServiceConfig>,
}

/// A cryptoperiod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateConfig {
    /// The longest that a KEK stays primary, as in `30d`.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub every: Duration,
    /// The time of day (UTC) in which a rotation may begin, as in `02:00-04:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// Leases are relative: they run from the last message of the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseConfig {
    /// How long a member seals without the bridge.
    #[serde(default = "default_seal_lease", with = "units::duration")]
    #[schemars(with = "String")]
    pub seal: Duration,
    /// How long it opens without the bridge.
    #[serde(default = "default_open_lease", with = "units::duration")]
    #[schemars(with = "String")]
    pub open: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { seal: default_seal_lease(), open: default_open_lease() }
    }
}

/// Use limits of one DEK. Past soft a member asks for a new one; at hard it refuses to seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// Messages.
    pub soft_messages: u64,
    /// Messages.
    pub hard_messages: u64,
    /// Plaintext.
    pub soft_bytes: ByteSize,
    /// Plaintext.
    pub hard_bytes: ByteSize,
}

impl LimitConfig {
    /// C2SP chunked-encryption, "Usage limits": operated under 2^32 messages.
    pub const MESSAGES_MAX: u64 = 1 << 32;
    /// And under 1 PiB.
    pub const BYTES_MAX: u64 = 1 << 50;
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            soft_messages: Self::MESSAGES_MAX / 2,
            hard_messages: Self::MESSAGES_MAX,
            soft_bytes: ByteSize(Self::BYTES_MAX / 2),
            hard_bytes: ByteSize(Self::BYTES_MAX),
        }
    }
}

/// One service's rights in a keyring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The URI SAN of its certificate: `spiffe://trust-domain/path`.
    pub id: String,
    /// What it may do.
    pub ops: Vec<Operation>,
}

/// What a service may do in a keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Get DEKs to seal with.
    Seal,
    /// Get the DEKs behind key blocks.
    Open,
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 7200).into()
}

fn default_admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 7201).into()
}

fn default_heartbeat() -> Duration {
    Duration::from_secs(5)
}

fn default_seal_lease() -> Duration {
    Duration::from_hours(4)
}

fn default_open_lease() -> Duration {
    Duration::from_hours(7 * 24)
}

fn one() -> usize {
    1
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`]: everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file = path.display().to_string();
        let config = Self::parse(&text, &file)?;
        config.validate(&file)?;
        Ok(config)
    }

    /// Parses YAML; `file` is its name in error texts. Does not validate.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] with line and column.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Parse { file: file.to_owned(), message: error.to_string() })
    }

    /// Checks what a parser can't see, files and directories included.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem.
    pub fn validate(&self, file: &str) -> Result<(), ConfigError> {
        let problems = validate::problems(self);
        if problems.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Invalid { file: file.to_owned(), problems })
    }

    /// What the configuration asks for and this version does not do, where doing without is safe. Said at start and
    /// by `check`, so that nothing is ignored in silence. What would be unsafe is an error of [`Self::validate`].
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }

    /// The JSON Schema of the configuration.
    #[must_use]
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(Self)
    }

    /// The catalog's file.
    #[must_use]
    pub fn store_path(&self) -> Option<PathBuf> {
        self.store.strip_prefix("sqlite://").filter(|path| !path.is_empty()).map(PathBuf::from)
    }
}

impl KeyringConfig {
    /// What a service may do here; `None` if it is not named.
    #[must_use]
    pub fn rights(&self, service: &str) -> Option<Rights> {
        let service = self.services.iter().find(|known| known.id == service)?;
        Some(Rights {
            seal: service.ops.contains(&Operation::Seal),
            open: service.ops.contains(&Operation::Open),
        })
    }
}

/// What one service may do in one keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Get DEKs to seal with.
    pub seal: bool,
    /// Get the DEKs behind key blocks.
    pub open: bool,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seal => "seal",
            Self::Open => "open",
        })
    }
}

#[cfg(test)]
mod tests;
