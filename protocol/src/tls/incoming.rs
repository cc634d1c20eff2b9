//! Accepted TLS connections, as the stream that tonic serves.

use super::{ALPN, spiffe_id};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// A handshake takes a few milliseconds; who needs longer than this is not trying.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at the same time. More wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 1024;
/// Pause after a failed accept. Out of file descriptors fails at once and again: without a pause that would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is on the other end of a connection; in every request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The URI name of its certificate: `spiffe://example.org/orders`.
    pub spiffe_id: String,
    /// The key exchange that was negotiated: `X25519MLKEM768`.
    pub key_exchange: String,
    /// Its address.
    pub addr: SocketAddr,
}

/// A stream of authenticated connections for tonic's `serve_with_incoming_shutdown`.
///
/// Handshakes run beside one another, each with a timeout. One that fails is logged and forgotten: the stream itself
/// neither ends nor fails. Dropping it closes the listener and ends unfinished handshakes.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    handshakes: JoinSet<Option<Connection>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Serves `listener` with `config`. Has to be polled on a tokio runtime.
    #[must_use]
    pub fn new(listener: TcpListener, config: Arc<ServerConfig>) -> Self {
        Self { listener, config, handshakes: JoinSet::new(), pause: None }
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Starts a handshake for every connection that waits, as far as there is room.
    fn accept(&mut self, cx: &mut Context<'_>) {
        while self.handshakes.len() < HANDSHAKES_MAX {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.pause = None;
            }
            match self.listener.poll_accept(cx) {
                Poll::Ready(Ok((tcp, addr))) => {
                    let config = self.config.clone();
                    self.handshakes.spawn(async move { handshake(tcp, addr, config).await });
                }
                Poll::Ready(Err(error)) => {
                    warn!(%error, "accepting a connection failed");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
                Poll::Pending => return,
            }
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.accept(cx);
            // An empty set is ready with None; then the listener or the pause wakes us.
            match ready!(self.handshakes.poll_join_next(cx)) {
                None => return Poll::Pending,
                Some(Ok(Some(connection))) => return Poll::Ready(Some(Ok(connection))),
                Some(Ok(None)) => {}
                Some(Err(error)) => warn!(%error, "a handshake's task failed"),
            }
        }
    }
}

async fn handshake(tcp: TcpStream, addr: SocketAddr, config: Arc<ServerConfig>) -> Option<Connection> {
    let accept = async {
        tcp.set_nodelay(true)?;
        let stream = TlsAcceptor::from(config).accept(tcp).await?;
        Connection::new(stream, addr)
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            debug!(%addr, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%addr, "a TLS handshake took too long");
            None
        }
    }
}

/// One accepted connection, and who it is with.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, addr: SocketAddr) -> io::Result<Self> {
        let tls = stream.get_ref().1;
        if tls.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("the client does not ask for HTTP/2 (ALPN)"));
        }
        let leaf = tls.peer_certificates().and_then(<[_]>::first);
        let spiffe_id = leaf
            .and_then(|certificate| spiffe_id(certificate))
            .ok_or_else(|| io::Error::other("the client's certificate has not exactly one spiffe:// name"))?;
        let key_exchange = tls
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name()))
            .ok_or_else(|| io::Error::other("no key exchange took place"))?;
        Ok(Self { stream, peer: PeerInfo { spiffe_id, key_exchange, addr } })
    }

    /// Who it is with.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
