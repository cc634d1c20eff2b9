//! `rclone serve` of a `crypt` remote: files encrypted by rclone (XSalsa20-Poly1305), stored by WebDAV at the upstream.

use super::process::{Process, Serving, installed, serve, version};
use super::{Running, Setting, System};
use anyhow::Context as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

pub(super) const PACKAGE: (&str, &str) = ("rclone", "rclone");
/// It protects nothing, and key derivation is not what is measured.
const PASSWORD: &str = "keyway-bench";
/// The only directory that the upstream always has.
const ROOT: &str = "/objects";

pub(super) struct RcloneCrypt;

struct Server {
    process: Process,
    address: SocketAddr,
}

impl System for RcloneCrypt {
    fn name(&self) -> &'static str {
        "rclone-crypt"
    }

    fn version(&self) -> anyhow::Result<String> {
        version(&installed(PACKAGE)?, &["version"])
    }

    fn seals(&self) -> bool {
        true
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        let program = installed(PACKAGE)?;
        fs::create_dir_all(&setting.dir)?;
        let obscured = Command::new(&program).args(["obscure", PASSWORD]).output()?;
        anyhow::ensure!(
            obscured.status.success(),
            "rclone obscure: {}",
            String::from_utf8_lossy(&obscured.stderr)
        );
        let password = String::from_utf8(obscured.stdout).context("rclone obscures to text")?;
        let (scheme, host) =
            if setting.upstream_tls { ("https", "localhost") } else { ("http", "127.0.0.1") };
        // Names stay as they are but for their ending, so that paths are the same everywhere. Of the vendors that rclone
        // knows, it streams uploads to ownCloud: to others it would write them to a file first.
        let config = format!(
            "[store]\ntype = webdav\nvendor = owncloud\nurl = {scheme}://{host}:{port}\n\
             [sealed]\ntype = crypt\nremote = store:{ROOT}\nfilename_encryption = off\n\
             directory_name_encryption = false\npassword = {password}\n",
            port = setting.upstream.port(),
            password = password.trim(),
        );
        let file = setting.dir.join("rclone.conf");
        fs::write(&file, config)?;
        let (process, address): Serving = serve(|listen| {
            Process::start(self.name(), &setting.dir, &setting.cores, &program, |command| {
                command.args(["serve", "webdav", "sealed:", "--addr", &listen.to_string()]);
                command.arg("--baseurl").arg(ROOT);
                command.arg("--config").arg(&file).arg("--cache-dir").arg(setting.dir.join("cache"));
                // As it comes, but for time stamps, which this upstream does not keep, and for retries: what fails is
                // to be seen.
                command.args(["--no-modtime", "--retries", "1", "--low-level-retries", "1"]);
                command.arg("--ca-cert").arg(setting.pki.join("ca.crt"));
                command.env("GOMAXPROCS", setting.cores.len().max(1).to_string());
                if setting.client_tls {
                    command.arg("--cert").arg(setting.pki.join("server.crt"));
                    command.arg("--key").arg(setting.pki.join("server.key"));
                }
            })
        })?;
        Ok(Box::new(Server { process, address }))
    }
}

impl Running for Server {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        self.process.pids()
    }

    fn log(&self) -> String {
        self.process.log()
    }
}
