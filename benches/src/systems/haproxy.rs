//! HAProxy: with the defaults of Debian's haproxy.cfg, and tuned for throughput.

use super::process::{Process, Serving, installed, serve, version};
use super::{Running, Setting, System};
use std::fs;
use std::net::SocketAddr;

pub(super) const PACKAGE: (&str, &str) = ("haproxy", "haproxy");

/// How it is configured.
#[derive(Clone, Copy)]
pub(super) enum Haproxy {
    /// Debian's `global` and `defaults`, but in the foreground and as our own user; one frontend, one server.
    Installed,
    /// Larger buffers, connections shared among clients, splicing, no log. As many connections as it may have files:
    /// that is its default.
    Tuned,
}

struct Server {
    process: Process,
    address: SocketAddr,
}

impl System for Haproxy {
    fn name(&self) -> &'static str {
        match self {
            Self::Installed => "haproxy",
            Self::Tuned => "haproxy-tuned",
        }
    }

    fn version(&self) -> anyhow::Result<String> {
        version(&installed(PACKAGE)?, &["-v"])
    }

    fn seals(&self) -> bool {
        false
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        let program = installed(PACKAGE)?;
        fs::create_dir_all(&setting.dir)?;
        let file = setting.dir.join("haproxy.cfg");
        let (process, address): Serving = serve(|listen| {
            fs::write(&file, self.config(setting, listen))?;
            Process::start(self.name(), &setting.dir, &setting.cores, &program, |command| {
                command.args(["-db", "-f"]).arg(&file);
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

impl Haproxy {
    fn config(self, setting: &Setting, listen: SocketAddr) -> String {
        let (pki, upstream) = (setting.pki.display(), setting.upstream);
        let threads = setting.cores.len().max(1);
        let (global, defaults) = match self {
            Self::Installed => (
                format!(
                    "  nbthread {threads}\n  log /dev/log local0\n  log /dev/log local1 notice\n  \
                     ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n"
                ),
                "  log global\n  mode http\n  option httplog\n  option dontlognull\n  timeout connect 5000\n  \
                 timeout client 50000\n  timeout server 50000\n",
            ),
            Self::Tuned => (
                format!(
                    "  nbthread {threads}\n  tune.bufsize 65536\n  tune.maxrewrite 8192\n  \
                     tune.h2.initial-window-size 1048576\n  tune.h2.max-concurrent-streams 1000\n  \
                     tune.pipesize 1048576\n  tune.ssl.cachesize 20000\n  tune.ssl.maxrecord 16384\n  \
                     ssl-default-bind-options ssl-min-ver TLSv1.2\n"
                ),
                "  mode http\n  option splice-auto\n  option http-keep-alive\n  \
                 http-reuse always\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n  \
                 timeout http-keep-alive 300s\n",
            ),
        };
        let bind = match (self, setting.client_tls) {
            // Without TLS it recognises HTTP/2 by its preface.
            (_, false) => String::new(),
            (Self::Installed, true) => format!(" ssl crt {pki}/server.pem"),
            (Self::Tuned, true) => format!(" ssl crt {pki}/server.pem alpn h2,http/1.1"),
        };
        let server = if setting.upstream_tls {
            format!(" ssl verify required ca-file {pki}/ca.crt sni str(localhost) verifyhost localhost")
        } else {
            String::new()
        };
        let server = match self {
            Self::Installed => server,
            Self::Tuned => format!("{server} pool-max-conn -1 pool-purge-delay 300s"),
        };
        format!(
            "global\n{global}defaults\n{defaults}frontend clients\n  bind {listen}{bind}\n  \
             default_backend store\nbackend store\n  server store {upstream}{server}\n"
        )
    }
}
