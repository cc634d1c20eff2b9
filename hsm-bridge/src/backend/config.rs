//! How a backend is named in the bridge's configuration.

use core::time::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `{ name: hsm-a, pkcs11: { module: …, token: …, pin_file: … } }` or `{ name: soft, software: { path: … } }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Fields", into = "Fields")]
#[schemars(with = "Fields")]
pub struct BackendConfig {
    /// Unique in its zone; recorded with each wrap.
    pub name: String,
    /// What it is.
    pub kind: BackendKind,
}

/// What kind of backend, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// A sealed file.
    Software(SoftwareConfig),
    /// A token behind a PKCS#11 module.
    Pkcs11(Pkcs11Config),
}

/// As written: exactly one of the kinds.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "BackendConfig")]
struct Fields {
    /// Unique in its zone; recorded with each wrap.
    name: String,
    /// A sealed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    software: Option<SoftwareConfig>,
    /// A token behind a PKCS#11 module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pkcs11: Option<Pkcs11Config>,
}

impl TryFrom<Fields> for BackendConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let kind = match (fields.software, fields.pkcs11) {
            (Some(software), None) => BackendKind::Software(software),
            (None, Some(pkcs11)) => BackendKind::Pkcs11(pkcs11),
            _ => return Err(format!("backend {:?} needs exactly one of: software, pkcs11", fields.name)),
        };
        Ok(Self { name: fields.name, kind })
    }
}

impl From<BackendConfig> for Fields {
    fn from(config: BackendConfig) -> Self {
        let (software, pkcs11) = match config.kind {
            BackendKind::Software(software) => (Some(software), None),
            BackendKind::Pkcs11(pkcs11) => (None, Some(pkcs11)),
        };
        Self { name: config.name, software, pkcs11 }
    }
}

/// A keystore in a file. The file is sealed under a passphrase or a key file; with neither named, under the
/// key file `PATH.key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoftwareConfig {
    /// The keystore; made if absent.
    pub path: PathBuf,
    /// A file whose first line is the passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<PathBuf>,
    /// A file of 32 random bytes; made, with mode 0600, if neither it nor the keystore is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl SoftwareConfig {
    /// A keystore sealed under the key file `PATH.key`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), passphrase_file: None, key_file: None }
    }
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Config {
    /// The module: a shared library from the HSM's vendor.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// A file whose first line is the user PIN.
    pub pin_file: PathBuf,
    /// Sessions to open; each has a thread of its own. 1 to 64.
    #[serde(default = "default_sessions")]
    #[schemars(range(min = 1, max = 64))]
    pub sessions: usize,
    /// What one operation may take, waiting for a session included.
    #[serde(default = "default_timeout", with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

impl Pkcs11Config {
    /// With the default number of sessions and the default timeout.
    #[must_use]
    pub fn new(module: impl Into<PathBuf>, token: impl Into<String>, pin_file: impl Into<PathBuf>) -> Self {
        Self {
            module: module.into(),
            token: token.into(),
            pin_file: pin_file.into(),
            sessions: default_sessions(),
            timeout: default_timeout(),
        }
    }
}

fn default_sessions() -> usize {
    2
}

fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

/// `5s`, `500ms`.
mod duration {
    use core::time::Duration;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let duration = humantime::parse_duration(&text).map_err(D::Error::custom)?;
        if duration.is_zero() { Err(D::Error::custom("a timeout of zero")) } else { Ok(duration) }
    }
}
