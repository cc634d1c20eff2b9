//! Pairs that encrypt TCP between them: what an encrypted wire costs. Both ends run on the system's cores and count.

use super::process::{Process, Serving, installed, serve, version};
use super::{Running, Setting, System};
use std::fs;
use std::net::SocketAddr;

pub(super) const STUNNEL: (&str, &str) = ("stunnel", "stunnel4");
pub(super) const SPIPED: (&str, &str) = ("spiped", "spiped");

/// Which.
#[derive(Clone, Copy)]
pub(super) enum Tunnel {
    /// TLS 1.3 with AES-256-GCM; a thread for each connection.
    Stunnel,
    /// AES-256-CTR and HMAC-SHA-256 with a shared key; one thread.
    Spiped,
}

struct Pair {
    near: Process,
    far: Process,
    address: SocketAddr,
}

#[derive(Clone, Copy)]
enum End {
    /// Clients connect here.
    Near,
    /// Connects to the upstream.
    Far,
}

impl System for Tunnel {
    fn name(&self) -> &'static str {
        match self {
            Self::Stunnel => "stunnel",
            Self::Spiped => "spiped",
        }
    }

    fn version(&self) -> anyhow::Result<String> {
        match self {
            Self::Stunnel => version(&installed(STUNNEL)?, &["-version"]),
            Self::Spiped => version(&installed(SPIPED)?, &["-v"]),
        }
    }

    fn seals(&self) -> bool {
        // The wire between the two, not what is stored.
        false
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        anyhow::ensure!(
            !setting.client_tls && !setting.upstream_tls,
            "{}: carries plain TCP and has its own encryption in between",
            self.name()
        );
        fs::create_dir_all(&setting.dir)?;
        let (far, between) = self.serve(setting, End::Far, setting.upstream)?;
        let (near, address) = self.serve(setting, End::Near, between)?;
        Ok(Box::new(Pair { near, far, address }))
    }
}

impl Tunnel {
    fn serve(self, setting: &Setting, end: End, target: SocketAddr) -> anyhow::Result<Serving> {
        serve(|listen| match self {
            Self::Stunnel => stunnel(setting, end, listen, target),
            Self::Spiped => spiped(setting, end, listen, target),
        })
    }
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }
}

fn stunnel(setting: &Setting, end: End, listen: SocketAddr, target: SocketAddr) -> anyhow::Result<Process> {
    let program = installed(STUNNEL)?;
    let (pki, name) = (setting.pki.display(), end.name());
    let role = match end {
        End::Near => {
            format!("client = yes\nCAfile = {pki}/ca.crt\nverifyChain = yes\ncheckHost = localhost\n")
        }
        End::Far => format!("cert = {pki}/server.crt\nkey = {pki}/server.key\n"),
    };
    let file = setting.dir.join(format!("stunnel-{name}.conf"));
    let config = format!(
        "foreground = yes\npid =\ndebug = err\nsyslog = no\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
         [bench]\naccept = {listen}\nconnect = {target}\nsslVersionMin = TLSv1.3\n\
         ciphersuites = TLS_AES_256_GCM_SHA384\n{role}"
    );
    fs::write(&file, config)?;
    Process::start(&format!("stunnel-{name}"), &setting.dir, &setting.cores, program, |command| {
        command.arg(&file);
    })
}

fn spiped(setting: &Setting, end: End, listen: SocketAddr, target: SocketAddr) -> anyhow::Result<Process> {
    let program = installed(SPIPED)?;
    let key = setting.dir.join("spiped.key");
    if !key.exists() {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        fs::write(&key, secret)?;
    }
    let name = format!("spiped-{}", end.name());
    Process::start(&name, &setting.dir, &setting.cores, program, |command| {
        command.arg(match end {
            End::Near => "-e",
            End::Far => "-d",
        });
        // -n 0: as many connections as there are; by default it takes 100.
        command.args(["-F", "-n", "0"]);
        command.args(["-s", &format!("[127.0.0.1]:{}", listen.port())]);
        command.args(["-t", &format!("[127.0.0.1]:{}", target.port())]);
        command.arg("-k").arg(&key).arg("-p").arg(setting.dir.join(format!("{name}.pid")));
    })
}

impl Running for Pair {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        [&self.near, &self.far].into_iter().flat_map(Process::pids).collect()
    }

    fn log(&self) -> String {
        self.near.log() + &self.far.log()
    }
}
