//! Our own programs: a bridge with a software keystore, and sidecars in front of the upstream.

use super::process::version;
use super::{Process, Running, Setting, System, program};
use crate::machine::other_cores;
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The keyring that every sealed route uses.
pub const KEYRING: &str = "bench/default";
const SERVICE: &str = "spiffe://keyway.bench/sidecar";
const OPERATOR: &str = "spiffe://keyway.bench/operator";
/// Each of 10,000 connections is measured, so the limit must not be.
const CONNECTIONS_MAX: usize = 100_000;
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Sealed: objects, and what is thrown away. With a DEK for each tenant: the same under `/tenants`.
const SEALING_ROUTES: &str = r#"
      - { match: { path: "/objects/**" }, keyring: bench/default, domain: objects, mode: body }
      - { match: { path: "/sink/**" }, keyring: bench/default, domain: sink, mode: body }
      - match: { path: "/tenants/**" }
        keyring: bench/default
        domain: tenants
        mode: body
        context: { tenant: "header:x-tenant" }
      - { match: { path: "/plain/**" }, mode: pass }
"#;
/// The same program with nothing to seal: the price of being a proxy at all.
const PASSING_ROUTES: &str = "\n      - { match: { path: \"/**\" }, mode: pass }\n";

/// All that is said over a connection.
const TCP_ROUTES: &str = "\n      - { keyring: bench/default, domain: wire, mode: body }\n";

/// The ways that our sidecar is measured.
#[derive(Clone, Copy)]
pub(super) enum Sidecar {
    /// Bodies are sealed.
    Sealing,
    /// Bodies pass.
    Passing,
    /// TCP, with one sidecar in front of the other.
    Pair,
}

/// What a sidecar's listener speaks.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    Http,
    /// In this role.
    Tcp(&'static str),
}

/// A bridge and any number of sidecars; stopped when dropped.
#[derive(Debug)]
pub struct Keyway {
    // Dropped in this order: sidecars before their bridge.
    proxies: BTreeMap<String, Proxy>,
    bridge: Option<Bridge>,
    dir: PathBuf,
}

#[derive(Debug)]
struct Proxy {
    process: Option<Process>,
    address: SocketAddr,
    admin: SocketAddr,
    setting: Setting,
    speaks: Speaks,
}

#[derive(Debug)]
struct Bridge {
    process: Process,
    address: SocketAddr,
}

impl System for Sidecar {
    fn name(&self) -> &'static str {
        match self {
            Self::Sealing => "keyway",
            Self::Passing => "keyway-pass",
            Self::Pair => "keyway-tcp",
        }
    }

    fn version(&self) -> anyhow::Result<String> {
        version(&program("keyway-proxy")?, &["--version"])
    }

    fn seals(&self) -> bool {
        matches!(self, Self::Sealing)
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        let mut keyway = match self {
            Self::Sealing | Self::Pair => Keyway::start(&setting.dir, &setting.cores)?,
            Self::Passing => Keyway::without_bridge(&setting.dir)?,
        };
        if matches!(self, Self::Pair) {
            keyway.start_pair(setting)?;
        } else {
            keyway.start_proxy("proxy", setting)?;
        }
        Ok(Box::new(keyway))
    }
}

impl Running for Keyway {
    fn address(&self) -> SocketAddr {
        let first = self.proxies.values().next();
        first.map_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |proxy| proxy.address)
    }

    fn pids(&self) -> Vec<u32> {
        self.proxies.values().flat_map(|proxy| proxy.process.iter().flat_map(Process::pids)).collect()
    }

    fn log(&self) -> String {
        let proxies = self.proxies.values().filter_map(|proxy| proxy.process.as_ref());
        proxies.chain(self.bridge.as_ref().map(|bridge| &bridge.process)).map(Process::log).collect()
    }
}

impl Keyway {
    /// Certificates and a bridge, kept off `proxy_cores` where there are others. No sidecar yet.
    ///
    /// # Errors
    /// The programs were not built, or don't start.
    pub fn start(dir: &Path, proxy_cores: &[usize]) -> anyhow::Result<Self> {
        let mut keyway = Self::without_bridge(dir)?;
        let pki = Command::new(program("keyway")?)
            .args(["pki", "--bridge", "bridge"])
            .args(["--client", &format!("sidecar={SERVICE}"), "--client", &format!("operator={OPERATOR}")])
            .arg("--dir")
            .arg(dir.join("identities"))
            .output()?;
        anyhow::ensure!(pki.status.success(), "keyway pki: {}", String::from_utf8_lossy(&pki.stderr));
        let config = dir.join("bridge.yaml");
        fs::write(&config, bridge_config(dir))?;
        let ready = dir.join("bridge.ready");
        remove(&ready)?;
        let mut process =
            Process::start("bridge", dir, &other_cores(proxy_cores), program("keyway-bridge")?, |command| {
                command.args(["serve", "--config"]).arg(&config).arg("--ready-file").arg(&ready);
            })?;
        let addresses = process.wait_until(|| read_ready(&ready))?;
        keyway.bridge = Some(Bridge { process, address: address(&addresses["bridge"])? });
        Ok(keyway)
    }

    /// Sidecars that pass everything need no keys.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn without_bridge(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { proxies: BTreeMap::new(), bridge: None, dir: dir.to_owned() })
    }

    /// Starts the sidecar `name` and waits until it has its keys. Gives the time from its start until then.
    ///
    /// # Errors
    /// It does not get ready; with its log.
    pub fn start_proxy(&mut self, name: &str, setting: &Setting) -> anyhow::Result<Duration> {
        let unbound = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        self.launch(name, setting, unbound, Speaks::Http)
    }

    /// `client` in front of `server` in front of the upstream. By its name the former is the first, which clients connect to.
    fn start_pair(&mut self, setting: &Setting) -> anyhow::Result<()> {
        anyhow::ensure!(!setting.client_tls && !setting.upstream_tls, "keyway-tcp: carries plain TCP");
        let unbound = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        self.launch("server", setting, unbound, Speaks::Tcp("server"))?;
        let before = Setting { upstream: self.address_of("server")?, ..setting.clone() };
        self.launch("client", &before, unbound, Speaks::Tcp("client"))?;
        Ok(())
    }

    /// Stops a sidecar; [`Keyway::restart_proxy`] brings it back.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn stop_proxy(&mut self, name: &str) -> anyhow::Result<()> {
        self.proxies.get_mut(name).with_context(|| unknown(name))?.process = None;
        Ok(())
    }

    /// Stops a sidecar if it runs, and starts it on the same port with the keyring that it has on its disk. Gives the time
    /// from its start until it was ready.
    ///
    /// # Errors
    /// There is none of that name, or it does not get ready.
    pub fn restart_proxy(&mut self, name: &str) -> anyhow::Result<Duration> {
        self.stop_proxy(name)?;
        let proxy = self.proxies.get(name).with_context(|| unknown(name))?;
        let (address, setting, speaks) = (proxy.address, proxy.setting.clone(), proxy.speaks);
        self.launch(name, &setting, address, speaks)
    }

    /// Where a sidecar's clients connect.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn address_of(&self, name: &str) -> anyhow::Result<SocketAddr> {
        Ok(self.proxies.get(name).with_context(|| unknown(name))?.address)
    }

    /// A sidecar's admin port: `/metrics`, `/keyring`, `/readyz`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn admin_of(&self, name: &str) -> anyhow::Result<SocketAddr> {
        Ok(self.proxies.get(name).with_context(|| unknown(name))?.admin)
    }

    /// A sidecar's process; none while it is stopped.
    #[must_use]
    pub fn proxy_pid(&self, name: &str) -> Option<u32> {
        self.proxies.get(name)?.process.as_ref().map(Process::id)
    }

    /// The bridge's process.
    #[must_use]
    pub fn bridge_pid(&self) -> Option<u32> {
        self.bridge.as_ref().map(|bridge| bridge.process.id())
    }

    /// Rotates [`KEYRING`] and waits until that is done, rewrapping included. Gives the time that it took.
    ///
    /// # Errors
    /// There is no bridge, or the rotation failed; with what `keyway` printed.
    pub fn rotate(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.operate(&["rotate", "start", "--watch", "--json", "--keyring", KEYRING])?;
        Ok(begun.elapsed())
    }

    /// Runs `keyway ARGUMENTS` against the bridge, as its operator. Gives what it prints.
    ///
    /// # Errors
    /// There is no bridge, or the command failed.
    pub fn operate(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let bridge = self.bridge.as_ref().context("these sidecars have no bridge")?;
        let identities = self.dir.join("identities");
        // Pinned nowhere: a few milliseconds of an operator's tool, wherever the kernel finds room.
        let output = Command::new(program("keyway")?)
            .args(arguments)
            .args(["--bridge", &format!("https://{}", bridge.address)])
            .arg("--cert")
            .arg(identities.join("operator.crt"))
            .arg("--key")
            .arg(identities.join("operator.key"))
            .arg("--ca")
            .arg(identities.join("ca.crt"))
            .output()?;
        let problem = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "keyway {}: {problem}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn launch(
        &mut self,
        name: &str,
        setting: &Setting,
        bind: SocketAddr,
        speaks: Speaks,
    ) -> anyhow::Result<Duration> {
        let config = self.dir.join(format!("{name}.yaml"));
        fs::write(&config, self.proxy_config(name, setting, bind, speaks))?;
        let ready = self.dir.join(format!("{name}.ready"));
        remove(&ready)?;
        let begun = Instant::now();
        let mut process =
            Process::start(name, &self.dir, &setting.cores, program("keyway-proxy")?, |command| {
                command.arg("--config").arg(&config).arg("--ready-file").arg(&ready);
            })?;
        let addresses = process.wait_until(|| read_ready(&ready))?;
        let admin = address(&addresses["proxy_admin"])?;
        process.wait_until(|| is_ready(admin).ok().filter(|ready| *ready))?;
        let took = begun.elapsed();
        let address = address(&addresses["listeners"]["main"])?;
        let proxy = Proxy { process: Some(process), address, admin, setting: setting.clone(), speaks };
        self.proxies.insert(name.to_owned(), proxy);
        Ok(took)
    }

    fn proxy_config(&self, name: &str, setting: &Setting, bind: SocketAddr, speaks: Speaks) -> String {
        let (dir, pki) = (self.dir.display(), setting.pki.display());
        let keys = self.bridge.as_ref().map_or_else(String::new, |bridge| {
            format!(
                "identity: {{ cert: {dir}/identities/sidecar.crt, key: {dir}/identities/sidecar.key, \
                 ca: {dir}/identities/ca.crt }}\n\
                 bridge: {{ endpoints: [\"https://{}\"], state_dir: {dir}/state-{name}, instance: {name} }}\n",
                bridge.address,
            )
        });
        let client_tls = if setting.client_tls {
            format!("    tls: {{ cert: {pki}/server.crt, key: {pki}/server.key }}\n")
        } else {
            String::new()
        };
        let (scheme, more) = match speaks {
            Speaks::Tcp(role) => ("tcp", format!("    protocol: tcp\n    role: {role}\n")),
            Speaks::Http if setting.upstream_tls => {
                ("https", format!("    upstream_tls: {{ ca: {pki}/ca.crt, server_name: localhost }}\n"))
            }
            Speaks::Http => ("http", String::new()),
        };
        let routes = match speaks {
            Speaks::Tcp(_) => TCP_ROUTES,
            Speaks::Http if self.bridge.is_some() => SEALING_ROUTES,
            Speaks::Http => PASSING_ROUTES,
        };
        format!(
            "{keys}admin: 127.0.0.1:0\nworkers: {workers}\ndrain_timeout: 1s\n\
             limits: {{ connections: {CONNECTIONS_MAX} }}\n\
             listeners:\n  - name: main\n    bind: {bind}\n    upstream: {scheme}://{upstream}\n\
             {client_tls}{more}    routes:{routes}",
            workers = setting.cores.len().max(1),
            upstream = setting.upstream,
        )
    }
}

fn bridge_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n\
         tls: {{ cert: {dir}/identities/bridge.crt, key: {dir}/identities/bridge.key, \
         client_ca: {dir}/identities/ca.crt }}\n\
         store: \"sqlite://{dir}/bridge.db\"\naudit: {{ file: {dir}/audit.jsonl }}\n\
         zones:\n  - name: bench\n    backends:\n      \
         - {{ name: hsm, software: {{ path: {dir}/keystore, key_file: {dir}/keystore.key }} }}\n    \
         admins: [ \"{OPERATOR}\" ]\n    keyrings:\n      - name: default\n        services:\n          \
         - {{ id: \"{SERVICE}\", ops: [seal, open] }}\n"
    )
}

fn unknown(name: &str) -> String {
    format!("there is no sidecar {name}")
}

fn remove(ready: &Path) -> std::io::Result<()> {
    match fs::remove_file(ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_ready(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn address(value: &Value) -> anyhow::Result<SocketAddr> {
    let text = value.as_str().with_context(|| format!("{value} in a ready file is no address"))?;
    Ok(text.parse()?)
}

fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
