//! What is measured: our own programs, and other people's.

mod direct;
mod haproxy;
mod keyway;
mod nginx;
mod nginx_lua;
mod pki;
mod process;
mod rclone;
#[cfg(test)]
mod tests;
mod tunnel;

pub use keyway::{KEYRING, Keyway};
pub use pki::Pki;
pub use process::Process;

use anyhow::Context as _;
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
    /// Certificates: `server.crt`, `server.key`, `ca.crt`, all for the name `localhost`; made by [`Pki::make`].
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

/// All of them, ours first.
#[must_use]
pub fn all() -> Vec<Box<dyn System>> {
    vec![
        Box::new(direct::Direct),
        Box::new(keyway::Sidecar::Sealing),
        Box::new(keyway::Sidecar::Passing),
        Box::new(keyway::Sidecar::Pair),
        Box::new(nginx::Nginx::Installed),
        Box::new(nginx::Nginx::Tuned),
        Box::new(nginx::Nginx::TunedH2c),
        Box::new(haproxy::Haproxy::Installed),
        Box::new(haproxy::Haproxy::Tuned),
        Box::new(nginx_lua::NginxLua),
        Box::new(rclone::RcloneCrypt),
        Box::new(tunnel::Tunnel::Stunnel),
        Box::new(tunnel::Tunnel::Spiped),
    ]
}

/// The one of this name.
///
/// # Errors
/// There is none; says which there are.
pub fn by_name(name: &str) -> anyhow::Result<Box<dyn System>> {
    let mut systems = all();
    let known: Vec<&str> = systems.iter().map(|system| system.name()).collect();
    let known = known.join(", ");
    let at = systems.iter().position(|system| system.name() == name);
    let at = at.with_context(|| format!("there is no system {name:?}; there are {known}"))?;
    Ok(systems.swap_remove(at))
}

/// The Debian packages that the named systems need and that are not installed.
///
/// # Errors
/// A name that is none; see [`by_name`].
pub fn missing_packages(names: &[&str]) -> anyhow::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for name in names {
        by_name(name)?;
        let needed: &[(&str, &str)] = match *name {
            "nginx" | "nginx-tuned" | "nginx-tuned-h2c" => &[nginx::PACKAGE],
            "nginx-lua" => &[nginx::PACKAGE, nginx_lua::PACKAGE],
            "haproxy" | "haproxy-tuned" => &[haproxy::PACKAGE],
            "rclone-crypt" => &[rclone::PACKAGE],
            "stunnel" => &[tunnel::STUNNEL],
            "spiped" => &[tunnel::SPIPED],
            _ => &[],
        };
        missing.extend(
            needed.iter().filter(|(file, _)| process::find(file).is_none()).map(|(_, package)| *package),
        );
    }
    missing.sort_unstable();
    missing.dedup();
    Ok(missing)
}

/// Checks that the named systems can be started.
///
/// # Errors
/// Packages are missing; with the line that installs them.
pub fn install(names: &[&str]) -> anyhow::Result<()> {
    let missing = missing_packages(names)?;
    anyhow::ensure!(
        missing.is_empty(),
        "not installed: {0}. Run benches/install-peers.sh, or: apt-get install --no-install-recommends {0}",
        missing.join(" ")
    );
    Ok(())
}

/// The program `name` that was built beside this one.
///
/// # Errors
/// It was not built; says how.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut dir = own.parent().unwrap_or(Path::new("."));
    // Tests, benches and examples are one directory further down.
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir = dir.parent().unwrap_or(dir);
    }
    let path = dir.join(name);
    let profile = if dir.ends_with("release") { " --release" } else { "" };
    anyhow::ensure!(path.exists(), "{} is missing: cargo build{profile} --workspace --bins", path.display());
    Ok(path)
}
