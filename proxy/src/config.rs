//! The configuration: parsed and checked as a whole before anything is bound.

mod units;
mod validate;

pub use units::{ByteSize, DurationText};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is wrong with a configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// Not YAML, an unknown key, a wrong type; with line and column.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// Well formed, but it can't work. All problems at once.
    #[error("{path}: {}", problems.join("\n  "))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Each names the key and says what to do.
        problems: Vec<String>,
    },
}

/// The whole configuration of a proxy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The proxy's TLS identity towards the bridge. Needed as soon as a route names a keyring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Where keys come from. Needed as soon as a route names a keyring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// The admin port: health, metrics, keyring status.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// Worker threads; by default the cores available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Bounds on what clients may take.
    #[serde(default)]
    pub limits: Limits,
    /// How long streams may go on after SIGTERM.
    #[serde(default = "default_drain_timeout")]
    pub drain_timeout: DurationText,
    /// Where traffic comes in.
    pub listeners: Vec<Listener>,
}

/// PEM files of the proxy's TLS identity.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Certificate chain; its URI SAN is the service's identity.
    pub cert: PathBuf,
    /// Private key (PKCS#8).
    pub key: PathBuf,
    /// The authority that the bridge's certificate comes from.
    pub ca: PathBuf,
}

/// Where the keyring comes from, and where its sealed copy is kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// `https://host:port` of each bridge, tried in turn.
    pub endpoints: Vec<String>,
    /// A directory of the proxy's own for the sealed last-good keyring.
    pub state_dir: PathBuf,
    /// This instance's name among those of its service; by default the host's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// Bounds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections, over all workers.
    pub connections: usize,
    /// A request's line and headers.
    pub header_bytes: ByteSize,
    /// From the first byte of a request's head to its last.
    pub header_timeout: DurationText,
    /// A connection with no request.
    pub idle_timeout: DurationText,
    /// Bodies in mode json.
    pub json_body: ByteSize,
    /// Connecting to an upstream.
    pub connect_timeout: DurationText,
    /// From the end of a request's body to the response's head.
    pub upstream_timeout: DurationText,
    /// Waiting for a DEK that is not in the cache.
    pub key_timeout: DurationText,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            header_bytes: ByteSize(64 * 1024),
            header_timeout: DurationText(Duration::from_secs(10)),
            idle_timeout: DurationText(Duration::from_secs(300)),
            json_body: ByteSize(8 * 1024 * 1024),
            connect_timeout: DurationText(Duration::from_secs(5)),
            upstream_timeout: DurationText(Duration::from_secs(60)),
            key_timeout: DurationText(Duration::from_secs(5)),
        }
    }
}

/// One listening address and what stands behind it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// A name, for logs and metrics.
    pub name: String,
    /// The address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What is spoken.
    #[serde(default)]
    pub protocol: Protocol,
    /// Which way to seal.
    #[serde(default)]
    pub role: Role,
    /// `http://host:port` or `https://host:port`; with protocol tcp, `tcp://host:port`.
    pub upstream: String,
    /// TLS towards clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// TLS towards an https upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<UpstreamTls>,
    /// Take the destination that the kernel redirected from. Not available yet.
    #[serde(default)]
    pub original_dst: bool,
    /// The first match decides; no match is 404.
    pub routes: Vec<RouteConfig>,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    #[default]
    Http,
    /// S3. Not available yet.
    S3,
    /// TCP, between a sidecar of either role.
    Tcp,
}

/// Which way to seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Beside a client: seals requests, opens responses.
    #[default]
    Client,
    /// Beside a server: opens requests, seals responses.
    Server,
}

/// TLS towards clients.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// If given, clients must show a certificate of this authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// TLS towards an upstream. Its certificate is always verified.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The authority of the upstream's certificate, PEM.
    pub ca: PathBuf,
    /// A client certificate to show, PEM; with `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name to verify; by default the upstream's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// One route.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Which requests.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// `zone/keyring`. Needed but in mode pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
    /// The stable name bound into every envelope. Needed but in mode pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// What is done with bodies.
    pub mode: Mode,
    /// What is sealed of each document. Needed in mode json, and only there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldConfig>,
    /// What else is bound into envelopes.
    #[serde(default)]
    pub context: ContextConfig,
    /// What to do with a body that should be an envelope and is none.
    #[serde(default)]
    pub on_plaintext: OnPlaintext,
    /// The day (YYYY-MM-DD, UTC) from which `migrate` refuses too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate_until: Option<String>,
}

/// Which requests a route takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// `/objects/**`: `*` stands for one segment, `**` at the end for any number of them.
    pub path: String,
    /// Methods; empty means all.
    pub methods: Vec<String>,
    /// Host without port: `*`, a name, or `*.example.org`.
    pub host: String,
}

impl Default for Match {
    fn default() -> Self {
        Self { path: "/**".into(), methods: Vec::new(), host: "*".into() }
    }
}

/// What is done with bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Whole bodies are sealed.
    Body,
    /// Fields of JSON documents are sealed, the rest passes as it is.
    Json,
    /// gRPC messages. Not available yet.
    Grpc,
    /// WebSocket messages. Not available yet.
    Websocket,
    /// Nothing: bodies pass as they are.
    Pass,
}

/// Values of JSON documents.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldConfig {
    /// Which: JSONPath (RFC 9535).
    pub select: String,
    /// Writes the wrapped DEK into each value, 72 bytes more, so that HSM and document alone recover it. Without it, the
    /// bridge's catalog has the wrap.
    #[serde(default)]
    pub inline: bool,
    /// Adds a blind index. Not available yet.
    #[serde(default)]
    pub searchable: bool,
    /// Seals with AES-SIV. Not available yet.
    #[serde(default)]
    pub deterministic: bool,
}

/// What else is bound.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextConfig {
    /// `header:NAME` takes it from each request, `value:NAME` fixes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// What to do with plaintext on a protected route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnPlaintext {
    /// An error.
    #[default]
    Refuse,
    /// It passes and is counted, until `migrate_until`.
    Migrate,
}

fn default_admin() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 7300))
}

fn default_drain_timeout() -> DurationText {
    DurationText(Duration::from_secs(30))
}

impl Config {
    /// Reads, parses and checks a file; `KEYWAY_…` variables of the environment override it.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        let env = std::env::vars().filter(|(name, _)| name.starts_with("KEYWAY_")).collect();
        Self::parse(path, &text, &env)
    }

    /// As [`Config::load`], from text.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong.
    pub fn parse(path: &Path, text: &str, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config: Self = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        let mut problems = config.apply_env(env);
        problems.extend(config.problems());
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid { path: path.to_owned(), problems })
        }
    }

    /// The JSON Schema of the file.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// How many workers there will be.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Scalars that an operator wants to set per host. Gives what could not be read.
    fn apply_env(&mut self, env: &BTreeMap<String, String>) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in env {
            let bad = |what: &str| format!("{name}: {value:?} is not {what}");
            match name.as_str() {
                "KEYWAY_ADMIN" => match value.parse() {
                    Ok(admin) => self.admin = admin,
                    Err(_) => problems.push(bad("an address like 127.0.0.1:7300")),
                },
                "KEYWAY_WORKERS" => match value.parse() {
                    Ok(workers) => self.workers = Some(workers),
                    Err(_) => problems.push(bad("a number of threads")),
                },
                "KEYWAY_BRIDGE_ENDPOINTS" => match &mut self.bridge {
                    Some(bridge) => bridge.endpoints = value.split(',').map(str::to_owned).collect(),
                    None => problems.push(format!("{name} is set, but the file has no `bridge`")),
                },
                "KEYWAY_BRIDGE_STATE_DIR" => match &mut self.bridge {
                    Some(bridge) => bridge.state_dir = value.into(),
                    None => problems.push(format!("{name} is set, but the file has no `bridge`")),
                },
                "KEYWAY_BRIDGE_INSTANCE" => match &mut self.bridge {
                    Some(bridge) => bridge.instance = Some(value.clone()),
                    None => problems.push(format!("{name} is set, but the file has no `bridge`")),
                },
                // Other programs and the log level have variables of this prefix too.
                _ => {}
            }
        }
        problems
    }
}
