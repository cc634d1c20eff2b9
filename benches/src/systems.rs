//! What is measured: our own programs, and other people's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What a system is started with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// A directory of its own.
    pub dir: PathBuf,
    /// The upstream that it forwards to.
    pub upstream: SocketAddr,
    /// TLS towards clients.
    pub client_tls: bool,
    /// TLS towards the upstream.
    pub upstream_tls: bool,
    /// Certificates: `server.crt`, `server.key`, `ca.crt`, all for the name `localhost`.
    pub pki: PathBuf,
    /// The cores that it may run on, and as many workers as that.
    pub cores: Vec<usize>,
}

/// A kind of system.
pub trait System: Send + Sync {
    /// Short and stable: `keyway`, `keyway-pass`, `direct`, `nginx`, `nginx-tuned`, …
    fn name(&self) -> &'static str;

    /// Its version as it prints it.
    ///
    /// # Errors
    /// It is not installed; says which package has it.
    fn version(&self) -> anyhow::Result<String>;

    /// Whether what it stores at the upstream is encrypted.
    fn seals(&self) -> bool;

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It does not start; with what it said.
    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>>;
}

/// A system that runs; stopped when dropped.
pub trait Running: Send {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// The processes whose CPU time and memory count, children included.
    fn pids(&self) -> Vec<u32>;

    /// What it has logged, for an error message.
    fn log(&self) -> String;
}

/// The program `name` that was built beside this one.
///
/// # Errors
/// It was not built; says how.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().unwrap_or(Path::new(".")).join(name);
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --release --workspace --bins", path.display());
    Ok(path)
}
