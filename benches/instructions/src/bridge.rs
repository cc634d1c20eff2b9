//! Where the sealing proxy's keys come from: a bridge of its own with a software keystore. It is not counted.

use crate::pki::Pki;
use crate::process::{Process, program, ready};
use anyhow::Context;
use std::path::Path;
use std::process::Command;

const SERVICE: &str = "spiffe://keyway.bench/orders";

/// A bridge with the keyring `bench/default`.
pub(crate) struct Bridge {
    _process: Process,
    /// `https://…`
    pub(crate) url: String,
}

impl Bridge {
    /// Starts it in `dir`, where the proxy finds `orders.crt`, `orders.key` and `ca.crt` then.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let pki = Pki::new(dir)?;
        pki.identity("bridge", "spiffe://keyway.bench/bridge")?;
        pki.identity("orders", SERVICE)?;
        let config = serde_json::json!({
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "tls": {
                "cert": dir.join("bridge.crt"), "key": dir.join("bridge.key"), "client_ca": dir.join("ca.crt")
            },
            "store": format!("sqlite://{}", dir.join("bridge.db").display()),
            "audit": { "file": dir.join("audit.jsonl") },
            "zones": [{
                "name": "bench",
                "backends": [{ "name": "keys", "software": { "path": dir.join("keystore") } }],
                "admins": ["spiffe://keyway.bench/ops"],
                "keyrings": [{ "name": "default", "services": [{ "id": SERVICE, "ops": ["seal", "open"] }] }],
            }],
        });
        let (file, ready_file) = (dir.join("bridge.yaml"), dir.join("bridge.ready"));
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).context("writing bridge.yaml")?;
        let mut command = Command::new(program("keyway-bridge")?);
        command.arg("serve").arg("--config").arg(&file).arg("--ready-file").arg(&ready_file);
        let mut process = Process::start(&mut command, &dir.join("bridge.log"))?;
        let addresses = process.wait_for("the bridge's ready file", || ready(&ready_file))?;
        let address = addresses["bridge"].as_str().context("the bridge tells no address")?;
        Ok(Self { url: format!("https://{address}"), _process: process })
    }
}
