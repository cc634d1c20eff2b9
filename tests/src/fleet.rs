//! A bridge, a sidecar and an object store: three real processes, set up as an operator would.

use crate::client;
use crate::eventually;
use crate::process::{Process, program};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Where the KEKs live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hsm {
    /// The software keystore.
    Software,
    /// A SoftHSM token through PKCS#11.
    SoftHsm,
}

/// Identity of the sidecars.
pub const SERVICE: &str = "spiffe://keyway.test/orders";
/// Identity of the operator.
pub const OPERATOR: &str = "spiffe://keyway.test/operator";
/// The routes of a sidecar in front of the object store.
pub const ROUTES: &str = r#"
      - { match: { path: "/objects/**" }, keyring: payments/default, domain: orders, mode: body }
      - { match: { path: "/invoices/**" }, keyring: payments/default, domain: invoices, mode: body }
      - { match: { path: "/foreign/**" }, keyring: other/default, domain: orders, mode: body }
      - match: { path: "/tenants/**" }
        keyring: payments/default
        domain: orders
        mode: body
        context: { tenant: "header:x-tenant" }
      - match: { path: "/old/**" }
        keyring: payments/default
        domain: orders
        mode: body
        on_plaintext: migrate
        migrate_until: "2099-01-01"
      - { match: { path: "/open/**" }, mode: pass }"#;

/// The processes and where they are.
#[derive(Debug)]
pub struct Fleet {
    // Dropped in this order: clients first, the directory last.
    proxies: BTreeMap<String, (Process, SocketAddr, SocketAddr)>,
    bridge: Option<Process>,
    store: Process,
    store_addr: SocketAddr,
    bridge_addr: SocketAddr,
    leases: (&'static str, &'static str),
    hsm: Hsm,
    dir: TempDir,
}

impl Fleet {
    /// Certificates, token or keystore, bridge, store, and one sidecar named `proxy` that is ready.
    pub async fn start(hsm: Hsm) -> Self {
        let mut fleet = Self::without_proxy(hsm, ("4h", "7d")).await;
        fleet.start_proxy("proxy").await;
        fleet
    }

    /// As [`Fleet::start`] without a sidecar; `leases` are those to seal and to open.
    pub async fn without_proxy(hsm: Hsm, leases: (&'static str, &'static str)) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let root = dir.path();
        let pki = Command::new(program("keyway"))
            .args(["pki", "--dir"])
            .arg(root.join("pki"))
            .args(["--bridge", "bridge", "--client", &format!("orders={SERVICE}")])
            .args(["--client", &format!("operator={OPERATOR}")])
            .args(["--client", "stranger=spiffe://keyway.test/stranger"])
            .output()
            .expect("keyway runs");
        assert!(pki.status.success(), "{}", String::from_utf8_lossy(&pki.stderr));
        if hsm == Hsm::SoftHsm {
            make_token(root);
        }
        let ready = root.join("store.ready");
        let store = Process::start(
            "store",
            root,
            Command::new(program("keyway"))
                .args(["store", "--no-sync", "--listen", "127.0.0.1:0", "--dir"])
                .arg(root.join("objects"))
                .arg("--ready-file")
                .arg(&ready),
        );
        let store_addr = address(&ready_file(&ready).await["store"]);
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut fleet = Self {
            proxies: BTreeMap::new(),
            bridge: None,
            store,
            store_addr,
            bridge_addr: unbound,
            leases,
            hsm,
            dir,
        };
        fleet.start_bridge().await;
        fleet
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the sidecar `proxy` listens.
    #[must_use]
    pub fn data(&self) -> SocketAddr {
        self.data_of("proxy")
    }

    /// Where a sidecar listens.
    #[must_use]
    pub fn data_of(&self, name: &str) -> SocketAddr {
        self.proxies[name].1
    }

    /// A sidecar's admin port.
    #[must_use]
    pub fn admin_of(&self, name: &str) -> SocketAddr {
        self.proxies[name].2
    }

    /// The object store's own port: what is stored, as it is stored.
    #[must_use]
    pub fn store(&self) -> SocketAddr {
        self.store_addr
    }

    /// A sidecar's process.
    #[must_use]
    pub fn proxy_mut(&mut self, name: &str) -> &mut Process {
        &mut self.proxies.get_mut(name).expect("it was started").0
    }

    /// The store's process.
    #[must_use]
    pub fn store_process(&self) -> &Process {
        &self.store
    }

    /// The bridge's process.
    #[must_use]
    pub fn bridge_mut(&mut self) -> &mut Process {
        self.bridge.as_mut().expect("it was started")
    }

    /// Starts the bridge, on the port that it had before if it ran before.
    pub async fn start_bridge(&mut self) {
        let root = self.dir.path();
        let config = root.join("bridge.yaml");
        std::fs::write(&config, self.bridge_config()).expect("the configuration can be written");
        let ready = root.join("bridge.ready");
        let _ = std::fs::remove_file(&ready);
        let bridge = Process::start(
            "bridge",
            root,
            Command::new(program("keyway-bridge"))
                .args(["serve", "--config"])
                .arg(&config)
                .arg("--ready-file")
                .arg(&ready)
                .env("SOFTHSM2_CONF", root.join("softhsm2.conf")),
        );
        self.bridge = Some(bridge);
        let addresses = eventually("the bridge", async || {
            self.bridge.as_mut().expect("just started").assert_alive();
            read_ready(&ready)
        })
        .await;
        self.bridge_addr = address(&addresses["bridge"]);
    }

    /// SIGKILL.
    pub fn kill_bridge(&mut self) {
        self.bridge.take().expect("it runs").kill();
    }

    /// Starts a sidecar and waits until it is ready; on the port that it had before if it ran before.
    pub async fn start_proxy(&mut self, name: &str) {
        self.start_proxy_as(name, "orders", &format!("http://{}", self.store_addr), "client", ROUTES).await;
        self.wait_ready(name).await;
    }

    /// Starts a sidecar with an identity, an upstream, a role and routes of the test's own; doesn't wait for its keys.
    pub async fn start_proxy_as(
        &mut self,
        name: &str,
        identity: &str,
        upstream: &str,
        role: &str,
        routes: &str,
    ) {
        let bind = self.proxies.remove(name).map(|(process, data, _)| {
            process.kill();
            data
        });
        let bind = bind.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let root = self.dir.path();
        let config = root.join(format!("{name}.yaml"));
        let text = format!(
            "identity: {{ cert: {pki}/{identity}.crt, key: {pki}/{identity}.key, ca: {pki}/ca.crt }}\n\
             bridge: {{ endpoints: [\"https://{bridge}\"], state_dir: {root}/state-{name}, instance: {name} }}\n\
             admin: 127.0.0.1:0\n\
             workers: 2\n\
             listeners:\n  - name: main\n    bind: {bind}\n    role: {role}\n    upstream: {upstream}\n    routes:{routes}\n",
            pki = root.join("pki").display(),
            root = root.display(),
            bridge = self.bridge_addr,
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let ready = root.join(format!("{name}.ready"));
        let _ = std::fs::remove_file(&ready);
        let mut process = Process::start(
            name,
            root,
            Command::new(program("keyway-proxy"))
                .arg("--config")
                .arg(&config)
                .arg("--ready-file")
                .arg(&ready),
        );
        let addresses = eventually("the sidecar", async || {
            process.assert_alive();
            read_ready(&ready)
        })
        .await;
        let data = address(&addresses["listeners"]["main"]);
        let admin = address(&addresses["proxy_admin"]);
        self.proxies.insert(name.to_owned(), (process, data, admin));
    }

    /// Waits until a sidecar has its keyrings.
    pub async fn wait_ready(&mut self, name: &str) {
        let admin = self.admin_of(name);
        eventually("readiness", async || {
            self.proxies.get_mut(name).expect("it was started").0.assert_alive();
            (client::get(admin, "/readyz").await.status == 200).then_some(())
        })
        .await;
    }

    /// SIGKILL a sidecar; [`Fleet::start_proxy`] brings it back on its port.
    pub fn kill_proxy(&mut self, name: &str) {
        let (process, ..) = self.proxies.get(name).expect("it was started");
        process.signal(rustix::process::Signal::KILL);
    }

    /// Takes a sidecar's process out, to be terminated by the test.
    #[must_use]
    pub fn take_proxy(&mut self, name: &str) -> Process {
        self.proxies.remove(name).expect("it was started").0
    }

    /// Runs `keyway ARGUMENTS` with the operator's certificate.
    #[must_use]
    pub fn keyway(&self, arguments: &[&str]) -> Output {
        self.keyway_command(arguments).output().expect("keyway runs")
    }

    /// The command of [`Fleet::keyway`].
    #[must_use]
    pub fn keyway_command(&self, arguments: &[&str]) -> Command {
        let pki = self.dir.path().join("pki");
        let mut command = Command::new(program("keyway"));
        command
            .args(arguments)
            .arg("--bridge")
            .arg(format!("https://{}", self.bridge_addr))
            .arg("--cert")
            .arg(pki.join("operator.crt"))
            .arg("--key")
            .arg(pki.join("operator.key"))
            .arg("--ca")
            .arg(pki.join("ca.crt"))
            .env("SOFTHSM2_CONF", self.dir.path().join("softhsm2.conf"));
        command
    }

    /// `keyway ARGUMENTS --json`, parsed.
    #[must_use]
    pub fn keyway_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let output = self.keyway(&arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("--json prints JSON")
    }

    /// The states of payments/default by version.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<u64, String> {
        let keys = self.keyway_json(&["keys"]);
        let keys = keys.as_array().or_else(|| keys["keys"].as_array()).expect("a list of keys").clone();
        keys.iter()
            .filter(|key| key["zone"] == "payments" && key["keyring"] == "default")
            .map(|key| {
                let version = key["version"].as_u64().expect("a number");
                (version, key["state"].as_str().unwrap_or_default().to_owned())
            })
            .collect()
    }

    /// Rotates payments/default, and waits until that is done.
    ///
    /// # Panics
    /// If it fails.
    pub async fn rotate(&self) {
        let mut command =
            self.keyway_command(&["rotate", "start", "--keyring", "payments/default", "--watch"]);
        let output = tokio::task::spawn_blocking(move || command.output().expect("keyway runs"));
        let output = output.await.expect("it does not panic");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The sum of a sidecar's counters whose lines begin with `name`.
    pub async fn metric(&self, sidecar: &str, name: &str) -> u64 {
        let text = client::get(self.admin_of(sidecar), "/metrics").await.body;
        String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    /// A sidecar `server` in front of `service`, and one named `client` in front of `sealed`, which is where the records
    /// go: to `server`, unless the test stands between.
    pub async fn start_tcp_pair(
        &mut self,
        service: SocketAddr,
        sealed: impl AsyncFnOnce(SocketAddr) -> SocketAddr,
    ) {
        const ROUTE: &str =
            "\n      - { keyring: payments/default, domain: ledger, mode: body }\n    protocol: tcp";
        self.start_proxy_as("server", "orders", &format!("tcp://{service}"), "server", ROUTE).await;
        let sealed = sealed(self.data_of("server")).await;
        self.start_proxy_as("client", "orders", &format!("tcp://{sealed}"), "client", ROUTE).await;
        for name in ["server", "client"] {
            self.wait_ready(name).await;
        }
    }

    /// The audit file's actions, in order.
    #[must_use]
    pub fn audit_actions(&self) -> Vec<String> {
        std::fs::read_to_string(self.dir.path().join("audit.jsonl"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|record| record["action"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The bridge's configuration file.
    #[must_use]
    pub fn bridge_config_path(&self) -> PathBuf {
        self.dir.path().join("bridge.yaml")
    }

    fn bridge_config(&self) -> String {
        let root = self.dir.path().display();
        let backend = |name: &str| match self.hsm {
            Hsm::Software => format!(
                "{{ name: {name}, software: {{ path: {root}/keystore-{name}, key_file: {root}/keystore-{name}.key }} }}"
            ),
            Hsm::SoftHsm => format!(
                "{{ name: {name}, pkcs11: {{ module: {SOFTHSM}, token: {name}, pin_file: {root}/pin }} }}"
            ),
        };
        let zone = |name: &str, backend: String| {
            format!(
                "  - name: {name}\n    backends:\n      - {backend}\n    admins: [ \"{OPERATOR}\" ]\n    keyrings:\n      \
                 - name: default\n        leases: {{ seal: {seal}, open: {open} }}\n        services:\n          \
                 - {{ id: \"{SERVICE}\", ops: [seal, open] }}\n",
                seal = self.leases.0,
                open = self.leases.1,
            )
        };
        format!(
            "listen: {listen}\nadmin: 127.0.0.1:0\nheartbeat: 1s\n\
             tls: {{ cert: {root}/pki/bridge.crt, key: {root}/pki/bridge.key, client_ca: {root}/pki/ca.crt }}\n\
             store: \"sqlite://{root}/bridge.db\"\naudit: {{ file: {root}/audit.jsonl }}\nzones:\n{payments}{other}",
            listen = self.bridge_addr,
            payments = zone("payments", backend("hsm-a")),
            other = zone("other", backend("hsm-b")),
        )
    }
}

/// Debian's SoftHSM.
pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

fn make_token(root: &Path) {
    assert!(Path::new(SOFTHSM).exists(), "{SOFTHSM} is missing: run ./test.sh, which installs softhsm2");
    std::fs::create_dir(root.join("tokens")).expect("a directory can be made");
    let config = root.join("softhsm2.conf");
    std::fs::write(
        &config,
        format!("directories.tokendir = {}\nobjectstore.backend = file\n", root.join("tokens").display()),
    )
    .expect("the configuration can be written");
    let pin = root.join("pin");
    std::fs::write(&pin, "1234").expect("the PIN can be written");
    std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("it is our file");
    for token in ["hsm-a", "hsm-b"] {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", token, "--pin", "1234", "--so-pin", "5678"])
            .env("SOFTHSM2_CONF", &config)
            .output()
            .expect("softhsm2-util runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

fn read_ready(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

async fn ready_file(path: &Path) -> serde_json::Value {
    eventually("a ready file", async || read_ready(path)).await
}

fn address(value: &serde_json::Value) -> SocketAddr {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no address"))
}
