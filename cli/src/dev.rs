//! `keyway dev`: bridge, proxy and object store in one process, with real certificates between them.

mod banner;
mod config;
mod parts;
pub mod softhsm;

use crate::args::{DevArgs, Hsm, Mode, Protocol};
use crate::error::Failure;
use crate::operator::{Profile, default_data_dir};
use crate::output;
use crate::pki::{Identity, Pki};
use crate::private_file;
use crate::serve::{Stop, write_ready};
use anyhow::{Context as _, anyhow};
use config::{Backend, Sidecar};
use parts::{Parts, Prepared};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Where everything is, as the ready file has it.
#[derive(Clone, Debug, Serialize)]
pub struct Addresses {
    /// Where data clients connect.
    pub data: SocketAddr,
    /// Health, metrics and keyring of the proxy (of a pair: of the client's).
    pub proxy_admin: SocketAddr,
    /// The same of a pair's server sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_admin: Option<SocketAddr>,
    /// Where a pair's server sidecar takes what the client sidecar has sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_data: Option<SocketAddr>,
    /// Health and metrics of the bridge.
    pub bridge_admin: SocketAddr,
    /// gRPC of the bridge.
    pub bridge: SocketAddr,
    /// The object store; absent with an upstream.
    pub store: Option<SocketAddr>,
    /// Keys, catalog, certificates, objects.
    pub data_dir: PathBuf,
}

/// Runs the command until a signal.
///
/// # Errors
/// Something does not start, or the arguments ask for what is not there.
pub fn run(args: &DevArgs) -> Result<(), Failure> {
    check(args)?;
    let data_dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => default_data_dir()?,
    };
    private_file::make_directory(&data_dir).with_context(|| format!("making {}", data_dir.display()))?;
    let data_dir = fs::canonicalize(&data_dir).with_context(|| format!("finding {}", data_dir.display()))?;
    if args.hsm == Hsm::Pkcs11 {
        softhsm::configure(&data_dir)?;
        // Comes back only inside the token's configuration; nothing has been started or locked so far.
        softhsm::enter(&data_dir)?;
    }
    let _lock = lock(&data_dir)?;
    check_ports(args)?;
    let prepared = prepare(args, data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(args, prepared))
}

async fn serve(args: &DevArgs, prepared: Prepared) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let hsm_command = prepared.hsm_command.clone();
    let profile = prepared.operator.clone();
    let parts = tokio::select! {
        started = Parts::start(args, prepared) => started?,
        () = stop.next() => return Err(anyhow!("stopped before all was serving").into()),
    };
    let addresses = parts.addresses();
    Profile {
        bridge: format!("https://{}", config::reachable(addresses.bridge)),
        cert: profile.cert,
        key: profile.key,
        ca: profile.ca,
        keyring: Some(format!("{}/{}", args.zone, args.keyring)),
    }
    .write(&addresses.data_dir)?;
    write_ready(args.ready_file.as_deref(), &addresses)?;
    // The last line says that all of the above is done; scripts may wait for it.
    output::line(&banner::text(args, &addresses, hsm_command.as_deref()))?;
    tokio::select! {
        () = stop.next() => {}
        failed = parts.failed() => return Err(failed),
    }
    tracing::info!("draining; a second signal stops at once");
    tokio::select! {
        () = parts.stop() => Ok(()),
        () = stop.next() => Err(anyhow!("stopped with traffic under way").into()),
    }
}

/// What this version can't do yet is said before anything is touched.
fn check(args: &DevArgs) -> Result<(), Failure> {
    let later = |what: &str| {
        Err(Failure::Usage(format!(
            "{what} comes in a later version; this one has --mode body, json and pass over --protocol http, and --protocol tcp"
        )))
    };
    match args.mode {
        Mode::Json if args.field.is_empty() => {
            let what =
                "--mode json seals what --field selects; give at least one, such as --field '$.card.number'";
            return Err(Failure::Usage(what.into()));
        }
        Mode::Body | Mode::Json | Mode::Pass => {}
        Mode::Grpc => return later("--mode grpc"),
        Mode::Websocket => return later("--mode websocket"),
    }
    match args.protocol {
        Protocol::Http => {}
        Protocol::S3 => return later("--protocol s3"),
        Protocol::Tcp if args.mode != Mode::Body => {
            return Err(Failure::Usage("--protocol tcp seals all that is said: --mode body".into()));
        }
        Protocol::Tcp if args.upstream.is_none() => {
            return Err(Failure::Usage("--protocol tcp needs --upstream tcp://HOST:PORT".into()));
        }
        Protocol::Tcp => {}
    }
    if args.mode != Mode::Json && !args.field.is_empty() {
        return Err(Failure::Usage("--field is for --mode json".into()));
    }
    if args.s3_credentials.is_some() {
        return later("--s3-credentials");
    }
    if args.workers == Some(0) {
        return Err(Failure::Usage("--workers 0 would serve nobody".into()));
    }
    let is_tcp = args.protocol == Protocol::Tcp;
    let fits = |upstream: &str| match is_tcp {
        true => upstream.starts_with("tcp://"),
        false => upstream.starts_with("http://") || upstream.starts_with("https://"),
    };
    if let Some(upstream) = args.upstream.as_deref().filter(|upstream| !fits(upstream)) {
        let wanted = if is_tcp { "not tcp://HOST:PORT" } else { "neither http:// nor https://" };
        return Err(Failure::Usage(format!("--upstream {upstream:?} is {wanted}")));
    }
    for (flag, name) in [("--zone", &args.zone), ("--keyring", &args.keyring)] {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(is_plain) {
            return Err(Failure::Usage(format!("{flag} {name:?}: use a-z, 0-9, - and _")));
        }
    }
    Ok(())
}

/// A port that is taken is told here with the flag that moves it, not by some part later.
fn check_ports(args: &DevArgs) -> Result<(), Failure> {
    let mut wanted = vec![
        ("--listen", args.listen),
        ("--admin", args.admin),
        ("--bridge-listen", args.bridge_listen),
        ("--bridge-admin", args.bridge_admin),
    ];
    if args.upstream.is_none() {
        wanted.push(("--store-listen", args.store_listen));
    }
    // Held together until all are tried, so that two flags with one address are noticed too.
    let mut held = Vec::new();
    for (flag, addr) in wanted {
        let listener = TcpListener::bind(addr).map_err(|error| {
            anyhow!(error).context(format!(
                "{addr} can't be used; choose another address with {flag} (port 0 takes a free one)"
            ))
        })?;
        held.push(listener);
    }
    Ok(())
}

fn lock(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join("dev.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(anyhow!(
            "another `keyway dev` uses {}: stop it, or choose another directory with --data-dir",
            data_dir.display()
        )
        .into()),
        Err(fs::TryLockError::Error(error)) => {
            Err(anyhow!(error).context("locking the data directory").into())
        }
    }
}

/// Certificates, token and the bridge's configuration: what can be done before a port is bound.
fn prepare(args: &DevArgs, data_dir: PathBuf) -> Result<Prepared, Failure> {
    let pki = Pki::open(&data_dir.join("pki"))?;
    let names: Vec<_> = Some(args.bridge_listen.ip())
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string())
        .into_iter()
        .collect();
    let bridge = pki.bridge("bridge", &names)?;
    let operator = pki.client("operator", &config::operator_id(&args.zone))?;
    let sidecars: &[Sidecar] =
        if args.pair { &[Sidecar::PairServer, Sidecar::PairClient] } else { &[Sidecar::Alone] };
    let sidecars = sidecars
        .iter()
        .map(|&sidecar| Ok((sidecar, pki.client(sidecar.name(), &sidecar.spiffe_id(&args.zone))?)))
        .collect::<Result<Vec<(Sidecar, Identity)>, Failure>>()?;

    let token = (args.hsm == Hsm::Pkcs11).then(|| softhsm::token(&data_dir)).transpose()?;
    let keystore = data_dir.join("keystore");
    let backend = match &token {
        Some(token) => {
            Backend::Pkcs11 { module: &token.module, token: softhsm::TOKEN, pin_file: &token.pin_file }
        }
        None => Backend::Software { path: &keystore },
    };
    let bridge_config = data_dir.join("bridge.yaml");
    write_config(&bridge_config, &config::bridge(args, &data_dir, &bridge, &backend))?;
    let hsm_command = token.as_ref().map(|token| {
        banner::pkcs11_tool(&token.configuration, &token.module, softhsm::TOKEN, &token.pin_file)
    });
    Ok(Prepared { data_dir, bridge_config, operator, sidecars, hsm_command })
}

fn write_config(path: &Path, text: &str) -> Result<(), Failure> {
    private_file::write(path, text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}
