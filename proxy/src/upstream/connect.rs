//! Connecting to an upstream, with TLS where it is asked for.

use crate::config::UpstreamTls;
use crate::pem;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An upstream can't be set up as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// Not a usable address.
    #[error("{0:?} must be http://host:port or https://host:port, with no path")]
    Address(String),
    /// Its certificates or keys are not usable.
    #[error("{0}")]
    Tls(String),
}

/// `http://host:port` or `https://host:port`.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamAddress {
    host: String,
    port: u16,
    tls: bool,
}

impl UpstreamAddress {
    /// Reads the address.
    ///
    /// # Errors
    /// [`UpstreamError::Address`].
    pub(crate) fn parse(text: &str) -> Result<Self, UpstreamError> {
        let bad = || UpstreamError::Address(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad());
        }
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }), tls })
    }
}

#[derive(Debug)]
pub(super) struct Connector {
    address: UpstreamAddress,
    host: HeaderValue,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
}

impl Connector {
    pub(super) fn new(address: UpstreamAddress, tls: Option<&UpstreamTls>) -> Result<Self, UpstreamError> {
        let bad = || UpstreamError::Address(address.host.clone());
        let bracketed =
            if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
        let host = HeaderValue::from_str(&format!("{bracketed}:{}", address.port)).map_err(|_| bad())?;
        let tls = match (address.tls, tls) {
            (false, _) => None,
            (true, None) => return Err(UpstreamError::Tls("upstream_tls is missing".to_owned())),
            (true, Some(tls)) => {
                let name = tls.server_name.clone().unwrap_or_else(|| address.host.clone());
                let name = ServerName::try_from(name).map_err(|_| bad())?;
                Some((Arc::new(client_config(tls).map_err(UpstreamError::Tls)?), name))
            }
        };
        Ok(Self { address, host, tls })
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    pub(super) async fn connect(&self) -> std::io::Result<TokioIo<UpstreamIo>> {
        let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        stream.set_nodelay(true)?;
        let io = match &self.tls {
            None => UpstreamIo::Plain(stream),
            Some((config, name)) => {
                let stream = TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await?;
                UpstreamIo::Tls(Box::new(stream))
            }
        };
        Ok(TokioIo::new(io))
    }
}

fn client_config(tls: &UpstreamTls) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in pem::certificates(&tls.ca)? {
        roots.add(cert).map_err(|error| format!("{}: {error}", tls.ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(pem::certificates(cert)?, pem::private_key(key)?)
            .map_err(|error| error.to_string())?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A connection to an upstream.
#[derive(Debug)]
pub(super) enum UpstreamIo {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
