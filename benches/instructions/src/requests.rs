//! Whole requests: the real proxy under callgrind, between a client and an upstream on loopback sockets.
//!
//! Only the worker's thread counts, and of it only what one more request costs:
//! (instructions with N + M requests − instructions with N) / M. Start, the control stream and the admin port cancel out.

use crate::baseline::Counts;
use crate::bridge::Bridge;
use crate::callgrind;
use crate::process::{Process, program, ready};
use crate::upstream::Upstream;
use crate::wire::Connection;
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// N: enough for buffers and pools to be warm.
const WARM: u64 = 50;
/// M.
const REQUESTS: u64 = 400;
const SIZES: [(usize, &str); 2] = [(1 << 10, "1 KiB"), (16 << 10, "16 KiB")];
/// The proxy measures at start which AES implementation is fastest; under valgrind it may choose another than usual.
const SELECTED: &str = "selected=\"aws-lc-rs\"";
/// By what the worker's thread is known. Which thread has which number differs from start to start.
const WORKER: &str = "keyway_proxy::server::run_worker";
const STARTS_MAX: u32 = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Put,
}

struct Case {
    name: String,
    method: Method,
    size: usize,
    seals: bool,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for (seals, mode) in [(false, "pass"), (true, "sealed")] {
            for (method, verb) in [(Method::Get, "GET"), (Method::Put, "PUT")] {
                for (size, length) in SIZES {
                    cases.push(Self {
                        name: format!("request/{verb} {length}, {mode}"),
                        method,
                        size,
                        seals,
                    });
                }
            }
        }
        cases
    }

    fn path(&self) -> &'static str {
        if self.seals { "/objects/2026/order-4711" } else { "/open/2026/order-4711" }
    }
}

/// What the cases share.
struct Bed {
    dir: tempfile::TempDir,
    bridge: Bridge,
    upstream: Upstream,
}

/// Counts those that are wanted.
pub(crate) fn count_all(dir: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Counts> {
    let cases: Vec<Case> = Case::all().into_iter().filter(|case| wanted(&case.name)).collect();
    if cases.is_empty() {
        return Ok(Counts::new());
    }
    let root = tempfile::tempdir().context("making a directory")?;
    let bed = Bed { bridge: Bridge::start(root.path())?, upstream: Upstream::start()?, dir: root };
    cases
        .into_iter()
        .map(|case| {
            let profile = dir.join(case.name.replace(['/', ' ', ','], "_"));
            let count = bed.count(&case, &profile).with_context(|| format!("counting {}", case.name))?;
            Ok((case.name, count))
        })
        .collect()
}

impl Bed {
    fn count(&self, case: &Case, profile: &Path) -> anyhow::Result<u64> {
        let few = self.worker(case, WARM, &profile.with_extension("warm"))?;
        let many = self.worker(case, WARM + REQUESTS, profile)?;
        Ok(many.saturating_sub(few).div_ceil(REQUESTS))
    }

    /// Instructions of the worker of a proxy that has served so many requests.
    fn worker(&self, case: &Case, requests: u64, profile: &Path) -> anyhow::Result<u64> {
        for _ in 0..STARTS_MAX {
            let (mut proxy, data) = self.start_proxy(profile)?;
            if !proxy.log().contains(SELECTED) {
                continue;
            }
            self.drive(&mut proxy, case, data, requests)
                .with_context(|| format!("the proxy's log:\n{}", proxy.log()))?;
            proxy.terminate()?;
            return callgrind::total_of_thread(profile, WORKER);
        }
        anyhow::bail!("the proxy never logs {SELECTED} under valgrind")
    }

    fn start_proxy(&self, profile: &Path) -> anyhow::Result<(Process, SocketAddr)> {
        let (config, ready_file) = (self.configure()?, self.dir.path().join("proxy.ready"));
        // Of the one before.
        let _ = std::fs::remove_file(&ready_file);
        let mut command = callgrind::counting(profile, &["--separate-threads=yes", "--fair-sched=yes"]);
        command
            .arg(program("keyway-proxy")?)
            .arg("--config")
            .arg(config)
            .arg("--ready-file")
            .arg(&ready_file);
        // The selection of AES is read from the log.
        command.env("KEYWAY_LOG", "info").env_remove("KEYWAY_LOG_FORMAT");
        let mut proxy = Process::start(&mut command, &self.dir.path().join("proxy.log"))?;
        let addresses = proxy.wait_for("the proxy's ready file", || ready(&ready_file))?;
        let address = |value: &serde_json::Value| -> anyhow::Result<SocketAddr> {
            value.as_str().context("the proxy tells no address")?.parse().context("an address")
        };
        let admin = address(&addresses["proxy_admin"])?;
        proxy.wait_for("its keyring", || {
            let asked = Connection::to(admin)
                .and_then(|mut admin| admin.exchange(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"));
            asked.is_ok_and(|(status, _)| status == 200).then_some(())
        })?;
        Ok((proxy, address(&addresses["listeners"]["main"])?))
    }

    fn configure(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir.path();
        let config = serde_json::json!({
            "identity": {
                "cert": dir.join("orders.crt"), "key": dir.join("orders.key"), "ca": dir.join("ca.crt")
            },
            "bridge": { "endpoints": [self.bridge.url], "state_dir": dir.join("state"), "instance": "bench" },
            "admin": "127.0.0.1:0",
            "workers": 1,
            "listeners": [{
                "name": "main",
                "bind": "127.0.0.1:0",
                "upstream": format!("http://{}", self.upstream.address),
                "routes": [
                    { "match": { "path": "/open/**" }, "mode": "pass" },
                    {
                        "match": { "path": "/objects/**" },
                        "keyring": "bench/default", "domain": "orders", "mode": "body",
                    },
                ],
            }],
        });
        let file = dir.join("proxy.yaml");
        // JSON is YAML.
        std::fs::write(&file, config.to_string()).context("writing proxy.yaml")?;
        Ok(file)
    }

    fn drive(&self, proxy: &mut Process, case: &Case, data: SocketAddr, requests: u64) -> anyhow::Result<()> {
        let plain: Vec<u8> = (0..case.size).map(|n| u8::try_from(n % 251).unwrap_or_default()).collect();
        let (put, get) = (request("PUT", case.path(), &plain), request("GET", case.path(), &[]));
        let mut connection = Connection::to(data)?;
        // The first request may have to wait for its DEK.
        let (status, _) = connection.exchange(&put)?;
        ensure!(status == 201, "PUT: status {status}");
        let stored = self.upstream.stored(case.path()).context("nothing has reached the upstream")?;
        ensure!(
            (stored != plain) == case.seals,
            "what the upstream has is sealed where it should not be, or not"
        );
        for _ in 0..requests {
            match case.method {
                Method::Put => {
                    let (status, _) = connection.exchange(&put)?;
                    ensure!(status == 201, "PUT: status {status}");
                }
                Method::Get => {
                    let (status, body) = connection.exchange(&get)?;
                    ensure!(status == 200 && body == plain, "GET: status {status}, {} bytes", body.len());
                }
            }
        }
        drop(connection);
        // Still alive: it did not end by itself in between.
        proxy.wait_for("anything", || Some(()))
    }
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: objects.internal\r\nuser-agent: orders/3.2 (linux; x86_64)\r\n\
         accept: */*\r\nx-request-id: 01JD8Z5T3QW6K9X2M4N7P0R1S5\r\n"
    )
    .into_bytes();
    if method == "PUT" {
        let content = format!("content-type: application/octet-stream\r\ncontent-length: {}\r\n", body.len());
        request.extend_from_slice(content.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request
}
