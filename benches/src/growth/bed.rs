//! Bridge, sidecar and upstream of its own, which the parts of this module stop, start and fill as they need.

use super::wire::Wire;
use crate::load::{Connecting, Exchange, Http, Plan};
use crate::machine::{Memory, Meter};
use crate::systems::{Process, program};
use crate::upstream::Upstream;
use anyhow::{Context, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SERVICE: &str = "spiffe://keyway.bench/orders";
const OPERATOR: &str = "spiffe://keyway.bench/operator";
const KEYRING: &str = "payments/default";
/// More than any part opens: what is measured is the cost of connections, not the limit on them.
const CONNECTIONS_MAX: usize = 20_000;

/// Which cores the parts run on. The bridge and the upstream share the generator's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cores {
    pub(super) proxy: Option<usize>,
    pub(super) load: Option<usize>,
}

/// A directory with everything, and what runs in it. Ended when dropped.
#[derive(Debug)]
pub(super) struct Bed {
    // Dropped in this order: the sidecar first, the directory last.
    proxy: Option<Process>,
    bridge: Option<Process>,
    data: SocketAddr,
    admin: SocketAddr,
    bridge_addr: SocketAddr,
    upstream: SocketAddr,
    cores: Cores,
    first_start: Duration,
    dir: tempfile::TempDir,
}

/// An upstream on a thread of its own. It serves until the harness ends, so one is made for a whole run.
pub(super) fn upstream(core: Option<usize>) -> anyhow::Result<SocketAddr> {
    let upstream = Upstream::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None)?;
    let address = upstream.address()?;
    std::thread::Builder::new()
        .name("upstream".to_owned())
        .spawn(move || upstream.run(core))
        .context("starting the upstream's thread")?;
    Ok(address)
}

impl Bed {
    /// Certificates, a bridge with one zone, and one sidecar with one worker that is ready.
    pub(super) fn start(under: &Path, upstream: SocketAddr, cores: Cores) -> anyhow::Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("growth-").tempdir_in(under).context("making a directory")?;
        let unbound = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut bed = Self {
            proxy: None,
            bridge: None,
            data: unbound,
            admin: unbound,
            bridge_addr: unbound,
            upstream,
            cores,
            first_start: Duration::ZERO,
            dir,
        };
        bed.make_certificates()?;
        bed.start_bridge()?;
        bed.first_start = bed.start_proxy()?;
        Ok(bed)
    }

    /// How long the sidecar's first start took, with nothing on disk.
    pub(super) fn first_start(&self) -> Duration {
        self.first_start
    }

    /// Where clients connect.
    pub(super) fn data(&self) -> SocketAddr {
        self.data
    }

    /// What to load it with; the rest of the plan is the caller's.
    pub(super) fn plan(&self, connections: usize, exchange: Exchange) -> Plan {
        load_plan(self.data, self.cores, connections, exchange)
    }

    /// The sidecar's memory.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let memory = self.meter()?.memory();
        // A process that has ended takes none: that is no figure.
        ensure!(memory.resident_bytes > 0, "the sidecar has ended: {}", self.log());
        Ok(memory)
    }

    /// What the sidecar takes of the machine.
    pub(super) fn meter(&self) -> anyhow::Result<Meter> {
        let proxy = self.proxy.as_ref().context("the sidecar was stopped")?;
        Ok(Meter::new(vec![proxy.id()]))
    }

    /// What the sidecar has logged, for an error message.
    fn log(&self) -> String {
        self.proxy.as_ref().map(Process::log).unwrap_or_default()
    }

    /// A metric of the sidecar without labels.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (status, text) = Wire::connect(self.admin)?.get("/metrics")?;
        ensure!(status == 200, "/metrics: status {status}");
        let text = String::from_utf8(text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("the sidecar has no metric {name}"))?.trim().parse()?)
    }

    /// Ends the bridge; the sidecar goes on from what it has.
    pub(super) fn stop_bridge(&mut self) {
        self.bridge = None;
    }

    /// Starts the bridge, at the address that it had before.
    pub(super) fn start_bridge(&mut self) -> anyhow::Result<()> {
        let root = self.dir.path();
        let config = root.join("bridge.yaml");
        // JSON is YAML.
        std::fs::write(&config, self.bridge_config().to_string())?;
        let ready = root.join("bridge.ready");
        remove(&ready)?;
        let cores: Vec<usize> = self.cores.load.into_iter().collect();
        let mut bridge = Process::start("bridge", root, &cores, program("keyway-bridge")?, |command| {
            command.args(["serve", "--config"]).arg(&config).arg("--ready-file").arg(&ready);
        })?;
        self.bridge_addr = address(&bridge.wait_until(|| read_ready(&ready))?["bridge"])?;
        self.bridge = Some(bridge);
        Ok(())
    }

    /// Starts the sidecar anew; gives the time from its start until its admin port says that it is ready.
    pub(super) fn start_proxy(&mut self) -> anyhow::Result<Duration> {
        self.proxy = None;
        let root = self.dir.path();
        let config = root.join("proxy.yaml");
        std::fs::write(&config, self.proxy_config().to_string())?;
        let ready = root.join("proxy.ready");
        remove(&ready)?;
        let cores: Vec<usize> = self.cores.proxy.into_iter().collect();
        let begun = Instant::now();
        let mut proxy = Process::start("proxy", root, &cores, program("keyway-proxy")?, |command| {
            command.arg("--config").arg(&config).arg("--ready-file").arg(&ready);
        })?;
        let addresses = proxy.wait_until(|| read_ready(&ready))?;
        self.data = address(&addresses["listeners"]["main"])?;
        self.admin = address(&addresses["proxy_admin"])?;
        let admin = self.admin;
        let mut wire = Wire::connect(admin)?;
        let taken = proxy.wait_until(|| {
            let (status, _) = wire.get("/readyz").ok()?;
            (status == 200).then(|| begun.elapsed())
        })?;
        self.proxy = Some(proxy);
        Ok(taken)
    }

    /// The command that rotates the keyring and returns when the rotation is done.
    pub(super) fn rotation(&self) -> anyhow::Result<Command> {
        let pki = self.dir.path().join("pki");
        let mut command = Command::new(program("keyway")?);
        command
            .args(["rotate", "start", "--keyring", KEYRING, "--watch", "--json"])
            .args(["--bridge", &format!("https://{}", self.bridge_addr)])
            .arg("--cert")
            .arg(pki.join("operator.crt"))
            .arg("--key")
            .arg(pki.join("operator.key"))
            .arg("--ca")
            .arg(pki.join("ca.crt"));
        Ok(command)
    }

    fn make_certificates(&self) -> anyhow::Result<()> {
        let made = Command::new(program("keyway")?)
            .args(["pki", "--dir"])
            .arg(self.dir.path().join("pki"))
            .args(["--bridge", "bridge", "--client", &format!("orders={SERVICE}")])
            .args(["--client", &format!("operator={OPERATOR}")])
            .output()
            .context("running keyway pki")?;
        ensure!(made.status.success(), "keyway pki: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    fn bridge_config(&self) -> serde_json::Value {
        let root = self.dir.path();
        let pki = root.join("pki");
        serde_json::json!({
            "listen": self.bridge_addr,
            "admin": "127.0.0.1:0",
            "heartbeat": "1s",
            "tls": {
                "cert": pki.join("bridge.crt"), "key": pki.join("bridge.key"), "client_ca": pki.join("ca.crt"),
            },
            "store": format!("sqlite://{}", root.join("bridge.db").display()),
            "audit": { "file": root.join("audit.jsonl") },
            "zones": [{
                "name": "payments",
                "backends": [{ "name": "keys", "software": {
                    "path": root.join("keystore"), "key_file": root.join("keystore.key"),
                } }],
                "admins": [OPERATOR],
                "keyrings": [{ "name": "default", "services": [{ "id": SERVICE, "ops": ["seal", "open"] }] }],
            }],
        })
    }

    fn proxy_config(&self) -> serde_json::Value {
        let root = self.dir.path();
        let pki = root.join("pki");
        let sealed = |path: &str| {
            serde_json::json!({
                "match": { "path": path }, "keyring": KEYRING, "domain": "bench", "mode": "body",
            })
        };
        // A tenant has a DEK of its own: how a cache is filled with as many as wanted.
        let mut tenants = sealed("/sink/tenants/**");
        tenants["context"] = serde_json::json!({ "tenant": "header:x-tenant" });
        serde_json::json!({
            "identity": { "cert": pki.join("orders.crt"), "key": pki.join("orders.key"), "ca": pki.join("ca.crt") },
            "bridge": {
                "endpoints": [format!("https://{}", self.bridge_addr)],
                "state_dir": root.join("state"),
                "instance": "bench",
            },
            "admin": "127.0.0.1:0",
            "workers": 1,
            "drain_timeout": "1s",
            "limits": { "connections": CONNECTIONS_MAX },
            "listeners": [{
                "name": "main",
                "bind": "127.0.0.1:0",
                "upstream": format!("http://{}", self.upstream),
                "routes": [tenants, sealed("/objects/**"), sealed("/sink/**")],
            }],
        })
    }
}

/// What to load `address` with, from the generator's core; times are the caller's to set.
pub(super) fn load_plan(address: SocketAddr, cores: Cores, connections: usize, exchange: Exchange) -> Plan {
    Plan {
        address,
        host: "localhost".to_owned(),
        ca: None,
        http: Http::One,
        connections,
        streams: 1,
        connecting: Connecting::Once,
        exchange,
        warm_up: Duration::from_millis(300),
        measure: Duration::from_secs(1),
        core: cores.load,
    }
}

fn remove(path: &PathBuf) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn read_ready(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn address(value: &serde_json::Value) -> anyhow::Result<SocketAddr> {
    value.as_str().context("an address is missing in a ready file")?.parse().context("an address")
}
