//! Where connections go, and how they are made.

use super::wire::{TLS_BUFFER_BYTES, Wire};
use super::{Connecting, Exchange, Http, Plan};
use anyhow::{Context as _, ensure};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Beyond this many connections each source address of the loopback gets its share: an address has 28,000 ports, and a
/// port that was closed on this side is not free again at once.
const CONNECTIONS_WITHOUT_SOURCE: usize = 1000;
const DIALS_PER_SOURCE: u32 = 1000;
const SOURCES: u32 = 250;

/// What a plan's connections have in common.
pub(super) struct Target {
    address: SocketAddr,
    host: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    http: Http,
    connecting: Connecting,
    exchange: Exchange,
    spreads_sources: bool,
    dials: Cell<u32>,
}

/// One connection's request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: http::Method,
    pub(super) host: String,
    pub(super) path: String,
    /// The body that is sent.
    pub(super) upload: u64,
    /// The length of the response's body, if it matters.
    pub(super) expected: Option<u64>,
    pub(super) is_tls: bool,
}

impl Target {
    pub(super) fn of(plan: &Plan) -> anyhow::Result<Self> {
        ensure!(plan.connections > 0 && plan.streams > 0, "a load without connections or requests");
        ensure!(plan.streams == 1 || plan.http == Http::Two, "several requests under way need HTTP/2");
        let is_kept = plan.connecting == Connecting::Once;
        ensure!(is_kept || plan.http == Http::One, "a connection for each request needs HTTP/1.1");
        let tls = match &plan.ca {
            Some(ca) => {
                let name = plan.host.split(':').next().unwrap_or_default().to_owned();
                let name = ServerName::try_from(name).context("the host is no name for a certificate")?;
                Some((connector(ca, plan.http, plan.connecting)?, name))
            }
            None => None,
        };
        let is_loopback = matches!(plan.address.ip(), IpAddr::V4(address) if address.is_loopback());
        Ok(Self {
            address: plan.address,
            host: plan.host.clone(),
            tls,
            http: plan.http,
            connecting: plan.connecting,
            exchange: plan.exchange.clone(),
            spreads_sources: is_loopback && (!is_kept || plan.connections > CONNECTIONS_WITHOUT_SOURCE),
            dials: Cell::new(0),
        })
    }

    pub(super) fn http(&self) -> Http {
        self.http
    }

    pub(super) fn connecting(&self) -> Connecting {
        self.connecting
    }

    /// The request of the connection `number`.
    pub(super) fn request(&self, number: usize) -> Request {
        let (method, path, upload, expected) = match &self.exchange {
            Exchange::Get { path, body } => (http::Method::GET, path, 0, Some(*body)),
            Exchange::Put { path, body } => (http::Method::PUT, path, *body, None),
        };
        let path = path.replace("{n}", &number.to_string());
        Request { method, host: self.host.clone(), path, upload, expected, is_tls: self.tls.is_some() }
    }

    /// A connection that may be written to.
    pub(super) async fn dial(&self) -> anyhow::Result<Wire> {
        let dialing = tokio::time::timeout(DIAL_TIMEOUT, self.connect());
        let wire = dialing.await.map_err(|_| anyhow::anyhow!("no connection within {DIAL_TIMEOUT:?}"));
        wire.and_then(|wire| wire).with_context(|| format!("connecting to {}", self.address))
    }

    async fn connect(&self) -> anyhow::Result<Wire> {
        let stream = self.connect_tcp().await?;
        stream.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else { return Ok(Wire::Plain(stream)) };
        let mut stream = connector.connect(name.clone(), stream).await.context("TLS handshake")?;
        stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        ensure!(self.http == Http::One || is_http2, "the server does not offer HTTP/2 (ALPN)");
        Ok(Wire::Tls(Box::new(stream.into())))
    }

    async fn connect_tcp(&self) -> std::io::Result<TcpStream> {
        let mut refused = None;
        // Ports may have run out on one address: there are others.
        for attempt in 0..4 {
            let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            let connected = match self.source(attempt).map_or(Ok(()), |source| socket.bind(source)) {
                Ok(()) => socket.connect(self.address).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {
                    refused = Some(error);
                }
                connected => return connected,
            }
        }
        Err(refused.unwrap_or_else(|| ErrorKind::AddrNotAvailable.into()))
    }

    fn source(&self, attempt: u32) -> Option<SocketAddr> {
        if !self.spreads_sources {
            return None;
        }
        let dial = self.dials.get();
        self.dials.set(dial.wrapping_add(1));
        let number = (dial / DIALS_PER_SOURCE + attempt) % SOURCES + 1;
        Some((Ipv4Addr::from(Ipv4Addr::LOCALHOST.to_bits() + number), 0).into())
    }
}

fn connector(ca: &Path, http: Http, connecting: Connecting) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let reading = || format!("reading the authority {}", ca.display());
    for certificate in CertificateDer::pem_file_iter(ca).with_context(reading)? {
        roots.add(certificate.with_context(reading)?).with_context(reading)?;
    }
    ensure!(!roots.is_empty(), "no certificate in {}", ca.display());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if connecting == Connecting::Anew {
        config.resumption = Resumption::disabled();
    }
    config.alpn_protocols = match http {
        Http::One => vec![b"http/1.1".to_vec()],
        Http::Two => vec![b"h2".to_vec()],
    };
    Ok(TlsConnector::from(Arc::new(config)))
}
