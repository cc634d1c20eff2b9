//! The small object store of `keyway dev`: it keeps what it is given, so that one can look at the ciphertext.
//!
//! PUT, POST, GET, HEAD and DELETE of any path, over HTTP/1.1 and HTTP/2 with prior knowledge. Bodies of any length
//! stream from and to disk in constant memory. It knows entity tags, dates, preconditions, single ranges and
//! `Expect: 100-continue`, and verifies `Content-MD5`, `x-amz-checksum-sha256` and sha-256 of `Content-Digest` and
//! `Repr-Digest`. `GET /prefix/?list` lists. It is not meant to face a network: there is no access control.

mod body;
mod conditions;
mod digest;
mod disk;
mod meta;
mod path;
mod service;

use disk::Disk;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A client that has not sent its request head after this time is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// After this time a shutdown no longer waits for transfers.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// HTTP/2 flow control windows, in bytes: a stream may be this far ahead of the disk.
const H2_STREAM_WINDOW: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const H2_STREAMS_MAX: u32 = 1000;

/// Where the store listens, and where it keeps objects.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Made if it is missing.
    pub dir: PathBuf,
}

/// What a finished PUT promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The object survives a loss of power.
    #[default]
    Synced,
    /// It survives the end of this process. For load tests, where a disk's sync would be all that is measured.
    Cached,
}

/// The store did not start.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is taken, or not one of this machine.
    #[error("the object store can't listen on {addr}: {source}")]
    Listen {
        /// What was asked for.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The directory can't be used.
    #[error("the object store can't use {}: {source}", dir.display())]
    Directory {
        /// What was asked for.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A running store. Dropping it stops it at once; [`Running::shutdown`] lets transfers end.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Running {
    /// The address it serves on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops accepting, lets transfers end for up to 10 s, and returns.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // The task only ends early by a panic, which has been reported then.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Starts a store on the current runtime, with synced writes.
///
/// # Errors
/// [`StoreError`]; nothing is left behind then but the directory.
pub async fn start(config: StoreConfig) -> Result<Running, StoreError> {
    start_with(config, Durability::Synced).await
}

/// Starts a store on the current runtime.
///
/// # Errors
/// As [`start`].
pub async fn start_with(config: StoreConfig, durability: Durability) -> Result<Running, StoreError> {
    let StoreConfig { listen, dir } = config;
    let listen_failed = |source| StoreError::Listen { addr: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listen_failed)?;
    let addr = listener.local_addr().map_err(listen_failed)?;
    let disk = Disk::open(&dir, durability).map_err(|source| StoreError::Directory { dir, source })?;
    let (stop, stopped) = watch::channel(false);
    let accepting = tokio::spawn(accept(listener, Arc::new(disk), stopped));
    Ok(Running { addr, stop, accepting })
}

async fn accept(listener: TcpListener, disk: Arc<Disk>, mut stopped: watch::Receiver<bool>) {
    let server = server();
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => serve(&server, stream, &disk, &graceful),
            Err(error) => {
                tracing::warn!(%error, "the object store could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("the object store stops with transfers under way");
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(H2_STREAMS_MAX);
    server
}

fn serve(
    server: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    disk: &Arc<Disk>,
    graceful: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let disk = Arc::clone(disk);
    let service = service_fn(move |request| service::handle(Arc::clone(&disk), request));
    let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        // Clients go away in the middle of things; that is theirs to know.
        if let Err(error) = connection.await {
            tracing::debug!(error, "connection ended");
        }
    });
}
