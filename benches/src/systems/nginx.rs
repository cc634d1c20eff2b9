//! nginx as a reverse proxy: as Debian installs it, and as someone would tune it who needs it fast.

use super::process::{Process, Serving, installed, serve, version};
use super::{Running, Setting, System};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

pub(super) const PACKAGE: (&str, &str) = ("nginx", "nginx-light");

/// How it is configured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nginx {
    /// Debian's nginx.conf and `proxy_pass`. One thing is changed, without which it refuses what is measured:
    /// `client_max_body_size`; and workers are as many as its cores, not the machine's.
    Installed,
    /// For throughput: bodies pass as they come through 256 KiB buffers, connections to the upstream are kept, no access
    /// log.
    Tuned,
    /// The same for HTTP/2 without TLS, which this nginx speaks only where it speaks nothing else.
    TunedH2c,
}

/// One that runs, on its own or as part of another system.
pub(super) struct Server {
    process: Process,
    address: SocketAddr,
}

impl System for Nginx {
    fn name(&self) -> &'static str {
        match self {
            Self::Installed => "nginx",
            Self::Tuned => "nginx-tuned",
            Self::TunedH2c => "nginx-tuned-h2c",
        }
    }

    fn version(&self) -> anyhow::Result<String> {
        version(&installed(PACKAGE)?, &["-v"])
    }

    fn seals(&self) -> bool {
        false
    }

    fn start(&self, setting: &Setting) -> anyhow::Result<Box<dyn Running>> {
        Server::start(self.name(), setting, |listen| match self {
            Self::Installed => config_installed(setting, listen),
            Self::Tuned | Self::TunedH2c => {
                let http2 = if setting.client_tls || *self == Self::TunedH2c { " http2" } else { "" };
                config_tuned(setting, &format!("{listen}{http2}"), "", "", "")
            }
        })
    }
}

impl Server {
    /// Starts nginx with what `config` gives for the address to listen on.
    pub(super) fn start(
        name: &str,
        setting: &Setting,
        config: impl Fn(SocketAddr) -> String,
    ) -> anyhow::Result<Box<dyn Running>> {
        let program = installed(PACKAGE)?;
        fs::create_dir_all(&setting.dir)?;
        let file = setting.dir.join("nginx.conf");
        let (mut process, address): Serving = serve(|listen| {
            fs::write(&file, config(listen))?;
            let process = Process::start(name, &setting.dir, &setting.cores, &program, |command| {
                command.arg("-p").arg(&setting.dir).arg("-e").arg("stderr").arg("-c").arg(&file);
            })?;
            Ok(process.with_log(setting.dir.join("error.log")))
        })?;
        // The master listens before it has workers; all of them are to be counted.
        process.wait_for_children(setting.cores.len().max(1))?;
        Ok(Box::new(Self { process, address }))
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

/// What differs from a service that systemd starts: where files are, and who we are.
fn main_section(setting: &Setting, connections: usize) -> String {
    let dir = setting.dir.display();
    // Workers of root would be another user's, who may not enter our directory.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    format!(
        "daemon off;\n{user}worker_processes {workers};\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\n",
        workers = setting.cores.len().max(1)
    ) + &format!("events {{ worker_connections {connections}; }}\n")
}

fn temporary_files(dir: &Path) -> String {
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {}/{kind};\n", dir.display()))
        .concat()
}

fn server_tls(setting: &Setting) -> (&'static str, String) {
    if !setting.client_tls {
        return ("", String::new());
    }
    let pki = setting.pki.display();
    let text = format!("    ssl_certificate {pki}/server.crt;\n    ssl_certificate_key {pki}/server.key;\n");
    (" ssl", text)
}

fn upstream_tls(setting: &Setting) -> (&'static str, String) {
    if !setting.upstream_tls {
        return ("http", String::new());
    }
    let pki = setting.pki.display();
    let text = format!(
        "      proxy_ssl_trusted_certificate {pki}/ca.crt;\n      proxy_ssl_verify on;\n      \
         proxy_ssl_name localhost;\n      proxy_ssl_server_name on;\n      \
         proxy_ssl_protocols TLSv1.2 TLSv1.3;\n"
    );
    ("https", text)
}

fn config_installed(setting: &Setting, listen: SocketAddr) -> String {
    let (dir, upstream) = (setting.dir.display(), setting.upstream);
    let (ssl, server_tls) = server_tls(setting);
    let (scheme, upstream_tls) = upstream_tls(setting);
    main_section(setting, 768)
        + &format!(
            "http {{\n  sendfile on;\n  tcp_nopush on;\n  types_hash_max_size 2048;\n  \
             default_type application/octet-stream;\n  \
             ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;\n  ssl_prefer_server_ciphers on;\n  \
             access_log {dir}/access.log;\n  gzip on;\n{temporary}  client_max_body_size 0;\n  \
             server {{\n    listen {listen}{ssl};\n{server_tls}    \
             location / {{\n      proxy_pass {scheme}://{upstream};\n{upstream_tls}    }}\n  }}\n}}\n",
            temporary = temporary_files(&setting.dir),
        )
}

/// `listen` with its options; `modules`, `http` and `location` are for systems that build on it.
pub(super) fn config_tuned(
    setting: &Setting,
    listen: &str,
    modules: &str,
    http: &str,
    location: &str,
) -> String {
    let upstream = setting.upstream;
    let (ssl, server_tls) = server_tls(setting);
    let (scheme, upstream_tls) = upstream_tls(setting);
    // Directives that a system sets for itself are not set twice.
    let request_buffering = if location.contains("proxy_request_buffering") {
        ""
    } else {
        "      proxy_request_buffering off;\n"
    };
    let body_buffer = if location.contains("client_body_buffer_size") {
        ""
    } else {
        "      client_body_buffer_size 256k;\n"
    };
    format!(
        "{modules}{main}http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  tcp_nodelay on;\n  \
         default_type application/octet-stream;\n{temporary}  client_max_body_size 0;\n  \
         keepalive_requests 1000000000;\n  keepalive_timeout 300s;\n  reset_timedout_connection on;\n  \
         http2_max_concurrent_streams 1000;\n  http2_body_preread_size 1m;\n  http2_chunk_size 64k;\n  \
         ssl_protocols TLSv1.2 TLSv1.3;\n  ssl_session_cache shared:tls:10m;\n  ssl_session_tickets on;\n  \
         ssl_buffer_size 16k;\n{http}  upstream store {{\n    server {upstream};\n    keepalive 1024;\n    \
         keepalive_requests 1000000000;\n  }}\n  server {{\n    listen {listen}{ssl} reuseport backlog=65535;\n\
         {server_tls}    location / {{\n      proxy_pass {scheme}://store;\n{upstream_tls}      \
         proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_set_header Host localhost;\n\
         {request_buffering}{body_buffer}      \
         proxy_buffering off;\n      proxy_buffer_size 256k;\n      proxy_buffers 8 256k;\n{location}    }}\n  }}\n}}\n",
        main = main_section(setting, 16_384),
        temporary = temporary_files(&setting.dir),
    )
}
