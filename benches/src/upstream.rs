//! What proxies stand in front of: an HTTP store in memory, as cheap as it gets, so that it is not what is measured.
//!
//! | request | does |
//! |---|---|
//! | PUT `/objects/…` | keeps the body, up to 2 GiB |
//! | GET, HEAD `/objects/…` | gives it back, with an ETag; a single range, too |
//! | DELETE `/objects/…` | forgets it |
//! | PUT `/sink/…` | counts the body and throws it away |
//! | GET, HEAD `/plain/{size}` | so many zero bytes |
//! | OPTIONS, PROPFIND, MKCOL | as much of WebDAV as a client needs to find and store files |
//!
//! It speaks HTTP/1.1, and HTTP/1.0 to proxies that do; one thread serves all connections.

mod answer;
mod body;
mod connection;
mod request;
mod store;
#[cfg(test)]
mod tests;
mod webdav;

use crate::load::thread::{pin, raise_open_files_to_limit, runtime};
use crate::load::wire::{TLS_BUFFER_BYTES, Wire};
use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio_rustls::TlsAcceptor;

const BACKLOG: i32 = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// When no connection can be taken for want of files.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// A store that has its address, and serves once it is run.
#[derive(Debug)]
pub struct Upstream {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

impl Upstream {
    /// Listens on `listen`; with TLS if a certificate chain and its key are given, as PEM files.
    ///
    /// # Errors
    /// The address is taken, or the files are not what they should be.
    pub fn bind(listen: SocketAddr, tls: Option<(&Path, &Path)>) -> anyhow::Result<Self> {
        let tls = tls.map(|(certificate, key)| server_config(certificate, key)).transpose()?;
        let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into()).with_context(|| format!("binding {listen}"))?;
        socket.listen(BACKLOG)?;
        Ok(Self { listener: socket.into(), tls })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves on the calling thread, which is pinned to `core`; returns only with an error.
    ///
    /// # Errors
    /// There is no such core, or no runtime.
    pub fn run(self, core: Option<usize>) -> anyhow::Result<()> {
        core.map_or(Ok(()), pin)?;
        raise_open_files_to_limit()?;
        runtime()?.block_on(self.accept())
    }

    async fn accept(self) -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let acceptor = self.tls.map(TlsAcceptor::from);
        let store = Rc::new(Store::default());
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            };
            let (store, acceptor) = (Rc::clone(&store), acceptor.clone());
            tokio::task::spawn_local(async move {
                // A connection that breaks is its client's to report.
                if let Ok(wire) = wire(stream, acceptor).await {
                    let _ = connection::serve(wire, store).await;
                }
            });
        }
    }
}

/// Serves on `listen` until the process ends. With TLS if a certificate chain and its key are given; on `core` if that
/// is given. `ready_file` says where, once connections are taken: `{"address": "127.0.0.1:40123"}`.
///
/// # Errors
/// As of [`Upstream::bind`] and [`Upstream::run`]; or the file can't be written.
pub fn serve(
    listen: SocketAddr,
    tls: Option<(&Path, &Path)>,
    core: Option<usize>,
    ready_file: Option<&Path>,
) -> anyhow::Result<()> {
    let upstream = Upstream::bind(listen, tls)?;
    if let Some(path) = ready_file {
        write_ready_file(path, upstream.address()?).with_context(|| format!("writing {}", path.display()))?;
    }
    upstream.run(core)
}

fn write_ready_file(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    // Renamed into place: whoever sees the file sees all of it.
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::json!({ "address": address }).to_string())?;
    Ok(std::fs::rename(partial, path)?)
}

fn server_config(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading the key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and its key")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn wire(stream: tokio::net::TcpStream, acceptor: Option<TlsAcceptor>) -> anyhow::Result<Wire> {
    stream.set_nodelay(true)?;
    let Some(acceptor) = acceptor else { return Ok(Wire::Plain(stream)) };
    let mut stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    Ok(Wire::Tls(Box::new(stream.into())))
}
