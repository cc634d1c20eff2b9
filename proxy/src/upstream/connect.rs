//! Connecting to an upstream, with TLS where it is asked for.

use crate::config::UpstreamTls;
use crate::pem;
use crate::tls::{self, TlsIo};
use crate::worker::{self, Turn};
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

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
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Stream::Tls(Box::new(TlsIo::connect(&connector, name.clone(), stream).await?))
            }
        };
        Ok(TokioIo::new(UpstreamIo { stream, turn: Turn::default(), unflushed: Unflushed::default() }))
    }
}

fn client_config(tls: &UpstreamTls) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in pem::certificates(&tls.ca)? {
        roots.add(cert).map_err(|error| format!("{}: {error}", tls.ca.display()))?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
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
pub(super) struct UpstreamIo {
    stream: Stream,
    turn: Turn,
    unflushed: Unflushed,
}

/// Whether hyper has bytes that have not all gone to the kernel. It counts a request as sent once it has queued the last of
/// it, and drops the queue when nobody holds its sender any more; but it flushes the stream only when the queue is empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Unflushed(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    is_unflushed: AtomicBool,
    flushed: AtomicWaker,
}

impl Unflushed {
    /// Waits until everything is with the kernel.
    pub(super) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let flushed = || !self.0.is_unflushed.load(Ordering::Acquire);
        if flushed() {
            return Poll::Ready(());
        }
        self.0.flushed.register(cx.waker());
        if flushed() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn set(&self) {
        self.0.is_unflushed.store(true, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.is_unflushed.store(false, Ordering::Release);
        self.0.flushed.wake();
    }
}

impl UpstreamIo {
    pub(super) fn unflushed(&self) -> Unflushed {
        self.unflushed.clone()
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsIo>),
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        ready!(this.turn.poll_take(cx));
        let before = buf.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(stream) => worker::poll_read_share(stream, cx, buf),
            Stream::Tls(stream) => worker::poll_read_share(stream, cx, buf),
        };
        this.turn.count(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.unflushed.set();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.unflushed.set();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        if matches!(flushed, Poll::Ready(Ok(()))) {
            this.unflushed.clear();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
