//! TLS over TCP, on either side of the proxy.
//!
//! rustls reads 4 KiB at a time and hands out one record at a time. What lies between here takes what the socket has in
//! one read, and gives out all records that came with it: four records of 16 KiB were some twenty system calls.

use crate::worker::Buffer;
use keyway_envelope::aead::Implementation;
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// AWS-LC, with its hybrid key exchange first. Where ring's AES-256-GCM is the faster one, ring has the records: the same
/// cipher suites in the same order.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if Implementation::selected() == Implementation::Ring {
        provider.cipher_suites = ring::default_provider().cipher_suites;
    }
    Arc::new(provider)
}

/// A TLS connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct TlsIo {
    stream: TlsStream<Socket>,
    /// Found behind bytes that were still good, and told at the next read.
    failed: Option<io::Error>,
}

impl TlsIo {
    /// As the server.
    pub(crate) async fn accept(acceptor: &TlsAcceptor, socket: TcpStream) -> io::Result<Self> {
        Ok(Self::new(acceptor.accept(Socket::new(socket)).await?.into()))
    }

    /// As the client of `name`.
    pub(crate) async fn connect(
        connector: &TlsConnector,
        name: rustls::pki_types::ServerName<'static>,
        socket: TcpStream,
    ) -> io::Result<Self> {
        Ok(Self::new(connector.connect(name, Socket::new(socket)).await?.into()))
    }

    fn new(stream: TlsStream<Socket>) -> Self {
        Self { stream, failed: None }
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        let first = buf.filled().len();
        loop {
            let before = buf.filled().len();
            let read = Pin::new(&mut this.stream).poll_read(cx, buf);
            let came = buf.filled().len() - before;
            match read {
                Poll::Ready(Ok(()))
                    if came > 0 && buf.remaining() > 0 && this.stream.get_ref().0.has_unread() => {}
                Poll::Ready(Err(error)) if before > first => {
                    this.failed = Some(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if before > first => return Poll::Ready(Ok(())),
                read => return read,
            }
        }
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// The socket beneath, read with the worker's large buffers. An idle connection holds none.
#[derive(Debug)]
struct Socket {
    tcp: TcpStream,
    unread: Option<Unread>,
}

struct Unread {
    buffer: Buffer,
    taken: usize,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.buffer.as_ref().len() - self.taken)
    }
}

impl Socket {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, unread: None }
    }

    fn has_unread(&self) -> bool {
        self.unread.is_some()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut unread = match this.unread.take() {
            Some(unread) => unread,
            None => {
                let mut buffer = Buffer::take();
                let mut read = ReadBuf::new(buffer.room());
                ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut read))?;
                let came = read.filled().len();
                buffer.advance(came);
                Unread { buffer, taken: 0 }
            }
        };
        let rest = &unread.buffer.as_ref()[unread.taken..];
        let part = &rest[..rest.len().min(buf.remaining())];
        buf.put_slice(part);
        if part.len() < rest.len() {
            unread.taken += part.len();
            this.unread = Some(unread);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
