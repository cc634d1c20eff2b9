//! A bridge of its own to measure: certificates, configuration, keystore or token, and the process.

use crate::machine::{Meter, Reading};
use crate::systems::Process;
use anyhow::{Context, ensure};
use keyway_bridge::Config;
use keyway_bridge::backend::{BackendConfig, BackendKind, Pkcs11Config, SoftwareConfig};
use keyway_protocol::tls::{TlsFiles, client_config, connect};
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::operator_client::OperatorClient;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tonic::transport::Channel;

pub(super) const ZONE: &str = "bench";
pub(super) const KEYRING: &str = "default";
const SERVICE: &str = "spiffe://keyway.bench/orders";
const STRANGER: &str = "spiffe://keyway.bench/stranger";
const OPERATOR: &str = "spiffe://keyway.bench/ops";
/// Debian's, Fedora's and others' places of the module.
const SOFTHSM: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];
const TOKEN: &str = "bench";
const PIN: &str = "1234";

/// Where KEKs live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keystore {
    /// The sealed file.
    Software,
    /// A SoftHSM token with this many sessions.
    SoftHsm(usize),
}

impl Keystore {
    pub(super) fn label(self) -> String {
        match self {
            Self::Software => "software".to_owned(),
            Self::SoftHsm(sessions) => format!("SoftHSM, {sessions} sessions"),
        }
    }
}

/// A directory with everything, and the bridge that runs in it.
pub(super) struct Bed {
    // Before the directory: it writes there until it ends.
    pub(super) bridge: Process,
    pub(super) addr: SocketAddr,
    pub(super) admin: SocketAddr,
    service: Arc<rustls::ClientConfig>,
    stranger: Arc<rustls::ClientConfig>,
    operator: Arc<rustls::ClientConfig>,
    dir: tempfile::TempDir,
}

impl Bed {
    /// Starts a bridge with one zone of one keyring. `core` is the one that it may run on.
    pub(super) fn start(under: &Path, keystore: Keystore, core: Option<usize>) -> anyhow::Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("bridge-").tempdir_in(under).context("making a directory")?;
        let root = dir.path();
        let pki = Pki::new(root)?;
        let bridge = pki.identity("bridge", "spiffe://keyway.bench/bridge")?;
        let config = configuration(root, &bridge, backend(root, keystore)?);
        let file = root.join("bridge.yaml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).context("writing the configuration")?;
        Config::load(&file).context("the harness's own configuration")?;
        let program = crate::systems::program("keyway-bridge")?;
        let ready = root.join("ready.json");
        let cores: Vec<usize> = core.into_iter().collect();
        let mut bridge = Process::start("bridge", root, &cores, program, |command| {
            command.arg("serve").arg("--config").arg(&file).arg("--ready-file").arg(&ready);
            command.env("SOFTHSM2_CONF", root.join("softhsm2.conf"));
        })?;
        let addresses: serde_json::Value = bridge.wait_until(|| {
            let text = std::fs::read(&ready).ok()?;
            serde_json::from_slice(&text).ok()
        })?;
        let address = |name: &str| -> anyhow::Result<SocketAddr> {
            addresses[name].as_str().context("an address is missing")?.parse().context("an address")
        };
        Ok(Self {
            addr: address("bridge")?,
            admin: address("bridge_admin")?,
            service: client_config(&pki.identity("orders", SERVICE)?)?,
            stranger: client_config(&pki.identity("stranger", STRANGER)?)?,
            operator: client_config(&pki.identity("ops", OPERATOR)?)?,
            bridge,
            dir,
        })
    }

    /// A connection of its own, as a sidecar has one.
    pub(super) async fn member(&self) -> anyhow::Result<FleetClient<Channel>> {
        Ok(FleetClient::new(self.channel(&self.service).await?))
    }

    /// Somebody with a certificate and no right: what a call costs that is refused.
    pub(super) async fn stranger(&self) -> anyhow::Result<FleetClient<Channel>> {
        Ok(FleetClient::new(self.channel(&self.stranger).await?))
    }

    pub(super) async fn operator(&self) -> anyhow::Result<OperatorClient<Channel>> {
        Ok(OperatorClient::new(self.channel(&self.operator).await?))
    }

    /// What the bridge takes of the machine.
    pub(super) fn meter(&self) -> Meter {
        Meter::new(vec![self.bridge.id()])
    }

    /// CPU time of the bridge since an earlier reading of [`Bed::meter`], in seconds.
    pub(super) fn cpu_s_since(&self, earlier: &Reading) -> f64 {
        self.meter().read().since(earlier).cpu.as_secs_f64()
    }

    pub(super) fn audit_file(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    async fn channel(&self, identity: &Arc<rustls::ClientConfig>) -> anyhow::Result<Channel> {
        let endpoint = format!("https://{}", self.addr);
        connect(&endpoint, identity.clone()).await.context("connecting to the bridge")
    }
}

fn configuration(root: &Path, tls: &TlsFiles, backend: BackendConfig) -> serde_json::Value {
    serde_json::json!({
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "tls": { "cert": tls.cert, "key": tls.key, "client_ca": tls.ca },
        "store": format!("sqlite://{}", root.join("bridge.db").display()),
        // A stream whose member leaves a ping unanswered for a heartbeat is closed. One thread that is ten thousand members
        // answers later than any of them would.
        "heartbeat": "30s",
        "audit": { "file": root.join("audit.jsonl") },
        "zones": [{
            "name": ZONE,
            "backends": [backend],
            "admins": [OPERATOR],
            "keyrings": [{ "name": KEYRING, "services": [{ "id": SERVICE, "ops": ["seal", "open"] }] }],
        }],
    })
}

/// The keystore's configuration; a token is made.
pub(super) fn backend(root: &Path, keystore: Keystore) -> anyhow::Result<BackendConfig> {
    let kind = match keystore {
        Keystore::Software => BackendKind::Software(SoftwareConfig::new(root.join("keystore"))),
        Keystore::SoftHsm(sessions) => {
            let module = make_token(root)?;
            let pkcs11 = Pkcs11Config::new(module, TOKEN, root.join("pin"));
            BackendKind::Pkcs11(Pkcs11Config { sessions, ..pkcs11 })
        }
    };
    Ok(BackendConfig { name: "keys".to_owned(), kind })
}

/// Whether SoftHSM can be measured here.
pub(super) fn softhsm() -> anyhow::Result<&'static Path> {
    let found = SOFTHSM.iter().map(Path::new).find(|path| path.exists());
    found.context("SoftHSM is not installed: apt-get install softhsm2")
}

fn make_token(root: &Path) -> anyhow::Result<&'static Path> {
    let module = softhsm()?;
    let tokens = root.join("tokens");
    std::fs::create_dir(&tokens).context("making the tokens' directory")?;
    let conf = root.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&conf, text).context("writing softhsm2.conf")?;
    let pin = root.join("pin");
    std::fs::write(&pin, PIN).context("writing the PIN")?;
    std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", TOKEN, "--pin", PIN, "--so-pin", PIN])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .context("softhsm2-util does not run: apt-get install softhsm2")?;
    ensure!(made.status.success(), "softhsm2-util: {}", String::from_utf8_lossy(&made.stderr));
    Ok(module)
}

/// An authority, and what it has signed, as files.
struct Pki<'a> {
    root: &'a Path,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl<'a> Pki<'a> {
    fn new(root: &'a Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(root.join("ca.crt"), authority.pem())?;
        Ok(Self { root, authority })
    }

    fn identity(&self, name: &str, uri: &str) -> anyhow::Result<TlsFiles> {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        let (cert, private) = (self.root.join(format!("{name}.crt")), self.root.join(format!("{name}.key")));
        std::fs::write(&cert, certificate.pem())?;
        std::fs::write(&private, key.serialize_pem())?;
        Ok(TlsFiles { cert, key: private, ca: self.root.join("ca.crt") })
    }
}
