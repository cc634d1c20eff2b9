//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The tool of operators.
#[derive(Debug, Parser)]
#[command(name = "keyway", version, about = "Keyway: an encryption sidecar whose keys are rooted in an HSM")]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 64 bad configuration.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything in one process: bridge, proxy, and an object store that shows the ciphertext
    Dev(DevArgs),
    /// Start and follow rotations
    #[command(subcommand)]
    Rotate(RotateCommand),
    /// List KEK versions, where they live and what they still wrap
    Keys(ListArgs),
    /// List the proxies, what they have applied and how long their leases run
    Members(ListArgs),
    /// Explain an envelope's header byte by byte
    Inspect {
        /// The envelope; `-` is standard input
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Recover a stored object from HSM and ciphertext alone, without the bridge's database
    Open(OpenArgs),
    /// Make certificates for development: an authority, a bridge, members, administrators
    Pki(PkiArgs),
    /// Serve the object store of `dev` alone
    #[command(hide = true)]
    Store(StoreArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Where KEKs live in dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hsm {
    /// A sealed file
    Software,
    /// A SoftHSM token
    Pkcs11,
}

/// What is done with bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The whole body is sealed
    Body,
    /// Fields of JSON documents
    Json,
    /// gRPC messages
    Grpc,
    /// WebSocket messages
    Websocket,
    /// Nothing is sealed
    Pass,
}

/// Which protocol the listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2
    Http,
    /// S3
    S3,
    /// TCP
    Tcp,
}

/// On which side of the traffic the sidecar stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Seal requests, open responses
    Client,
    /// Open requests, seal responses
    Server,
}

/// `keyway dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Where data clients connect; port 0 takes a free one, here and below
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Send traffic on to this URL instead of the built-in object store
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Keys, catalog, certificates and objects [default: $XDG_STATE_HOME/keyway/dev or ~/.keyway/dev]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the KEKs live
    #[arg(long, value_enum, default_value = "software")]
    pub hsm: Hsm,
    /// What is done with bodies
    #[arg(long, value_enum, default_value = "body")]
    pub mode: Mode,
    /// A field to seal, with --mode json (repeatable)
    #[arg(long, value_name = "PATH")]
    pub field: Vec<String>,
    /// Which protocol data clients speak
    #[arg(long, value_enum, default_value = "http")]
    pub protocol: Protocol,
    /// Credentials for --protocol s3
    #[arg(long, value_name = "ID:SECRET")]
    pub s3_credentials: Option<String>,
    /// On which side of the traffic the sidecar stands
    #[arg(long, value_enum, default_value = "client")]
    pub role: Role,
    /// A client sidecar and a server sidecar in a row in front of the upstream
    #[arg(long, requires = "upstream", conflicts_with = "role")]
    pub pair: bool,
    /// Worker threads of the proxy [default: the cores available]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// The zone
    #[arg(long, default_value = "dev", value_name = "NAME")]
    pub zone: String,
    /// The keyring in the zone
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub keyring: String,
    /// Health, metrics and keyring of the proxy
    #[arg(long, default_value = "127.0.0.1:7300", value_name = "ADDR")]
    pub admin: SocketAddr,
    /// gRPC of the bridge, for members and operators
    #[arg(long, default_value = "127.0.0.1:7200", value_name = "ADDR")]
    pub bridge_listen: SocketAddr,
    /// Health and metrics of the bridge
    #[arg(long, default_value = "127.0.0.1:7201", value_name = "ADDR")]
    pub bridge_admin: SocketAddr,
    /// The object store
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub store_listen: SocketAddr,
    /// Write the addresses as JSON once all is serving
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// How an operator finds the bridge.
#[derive(Clone, Debug, Args)]
pub struct BridgeArgs {
    /// The bridge, as in https://127.0.0.1:7200 [default: that of `keyway dev`]
    #[arg(long, value_name = "URL", env = "KEYWAY_BRIDGE", requires_all = ["cert", "key", "ca"])]
    pub bridge: Option<String>,
    /// Certificate of an administrator, PEM
    #[arg(long, value_name = "FILE", env = "KEYWAY_CERT", requires = "bridge")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "KEYWAY_KEY", requires = "bridge")]
    pub key: Option<PathBuf>,
    /// The authority of the bridge's certificate, PEM
    #[arg(long, value_name = "FILE", env = "KEYWAY_CA", requires = "bridge")]
    pub ca: Option<PathBuf>,
    /// The data directory of the `keyway dev` to talk to; goes before --bridge
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `keyway rotate …`.
#[derive(Debug, Subcommand)]
pub enum RotateCommand {
    /// Start a rotation
    Start {
        /// What to rotate, as ZONE/NAME [default: that of `keyway dev`]
        #[arg(long, value_name = "ZONE/NAME")]
        keyring: Option<String>,
        /// Why; goes to the audit record
        #[arg(long, default_value = "on demand", value_name = "TEXT")]
        reason: String,
        /// Follow it to its end
        #[arg(long)]
        watch: bool,
        /// Print JSON: one object, or with --watch one on each line
        #[arg(long)]
        json: bool,
        /// How to find the bridge.
        #[command(flatten)]
        bridge: BridgeArgs,
    },
    /// Show rotations
    Status {
        /// One of them [default: all]
        id: Option<String>,
        /// Follow it to its end
        #[arg(long, requires = "id")]
        watch: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// How to find the bridge.
        #[command(flatten)]
        bridge: BridgeArgs,
    },
}

/// `keyway keys`, `keyway members`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this zone [default: all that the caller may see]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub zone: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How to find the bridge.
    #[command(flatten)]
    pub bridge: BridgeArgs,
}

/// `keyway open`.
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// The envelope, as it is stored
    pub file: PathBuf,
    /// The bridge's configuration, for its key backends [default: that of `keyway dev`]
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub config: Option<PathBuf>,
    /// The data directory of a `keyway dev`
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The zone that it was sealed in [default: the configuration's, if it has only one]
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// The tenant that it was sealed for, if the route has one
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// The domain that the route gave it
    #[arg(long, value_name = "NAME")]
    pub domain: String,
    /// Where the plaintext goes; it appears there only once everything is verified. `-` is standard output, which
    /// gets bytes before the end of the object is verified: use them only if the command succeeds
    /// [default: FILE with the ending .plain]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `keyway pki`.
#[derive(Debug, Args)]
pub struct PkiArgs {
    /// Where certificates and keys are; what is there and still good is kept
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Make a bridge's identity, NAME.crt and NAME.key [default with --host: bridge]
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "bridge")]
    pub bridge: Option<String>,
    /// A host name or address of the bridge, besides localhost and the loopback addresses (repeatable)
    #[arg(long, visible_alias = "bridge-san", value_name = "HOST")]
    pub host: Vec<String>,
    /// A member's or an administrator's identity (repeatable) [default name: the last part of the id]
    #[arg(long, visible_aliases = ["member", "admin"], value_name = "[NAME=]SPIFFE")]
    pub client: Vec<String>,
}

/// `keyway store`.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Where it serves
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where objects are kept
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Don't sync objects to the disk: for load tests
    #[arg(long)]
    pub no_sync: bool,
    /// Write the address as JSON once it serves
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bridge_needs_all_of_its_identity() {
        assert!(Cli::try_parse_from(["keyway", "keys", "--bridge", "https://b:7200"]).is_err());
        assert!(Cli::try_parse_from(["keyway", "keys", "--cert", "c"]).is_err());
        let all = ["keyway", "keys", "--bridge", "https://b:7200", "--cert", "c", "--key", "k", "--ca", "a"];
        assert!(Cli::try_parse_from(all).is_ok());
    }
}
