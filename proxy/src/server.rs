//! Workers: one thread, one current-thread runtime, one listening socket per listener each.

pub(crate) mod framing;
mod socket;
mod tls;

pub(crate) use socket::bind_all;
pub(crate) use tls::acceptor;

use crate::config::Limits;
use crate::stack::{self, Serving, Totals};
use crate::tcp::TcpService;
use crate::tls::TlsIo;
use crate::{upstream, worker};
use arc_swap::ArcSwap;
use framing::FramedIo;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use keyway_keycache::Reader;
use metrics::Gauge;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How often a runtime looks at the network between tasks. At tokio's default of 61, small requests beside two bulk
/// uploads waited 8 ms (p50); at 8 it is 1.1 ms, and the price was not measurable.
const EVENT_INTERVAL: u32 = 8;
/// Between the end of accepting and the closing of idle connections.
const DRAIN_GRACE: Duration = Duration::from_millis(250);
/// A TLS handshake takes no longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// HTTP/2 flow control: what one stream and one connection may have under way, in bytes.
const H2_STREAM_WINDOW: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const H2_STREAMS: u32 = 128;
/// Bytes written and not yet sent, per stream: a client that does not read holds no more than this times the streams.
const H2_SEND_BUFFER: usize = 128 * 1024;
/// Connections still taken from the backlog once a drain has begun.
const BACKLOG_MAX: u32 = 4096;

/// What the workers of one listener share.
#[derive(Debug)]
pub(crate) struct ListenerShared {
    pub(crate) name: String,
    pub(crate) service: Service,
    pub(crate) tls: ArcSwap<Option<TlsSlot>>,
    pub(crate) limits: ArcSwap<Limits>,
    pub(crate) active: Gauge,
}

/// What is done with the connections; can be replaced.
#[derive(Debug)]
pub(crate) enum Service {
    Http(Arc<ArcSwap<Serving>>),
    Tcp(ArcSwap<TcpService>),
}

/// A TLS acceptor that can be replaced.
#[derive(Clone)]
pub(crate) struct TlsSlot(pub(crate) TlsAcceptor);

impl std::fmt::Debug for TlsSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsSlot")
    }
}

/// What all workers share.
#[derive(Clone, Debug)]
pub(crate) struct WorkerShared {
    /// One permit per client connection.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) drain: CancellationToken,
    pub(crate) drain_timeout: Duration,
}

/// Runs one worker until it is drained.
pub(crate) fn run_worker(
    reader: Reader,
    listeners: Vec<(Arc<ListenerShared>, std::net::TcpListener)>,
    shared: &WorkerShared,
) -> std::io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
    worker::attach(reader);
    runtime.block_on(async {
        let mut accepting = Vec::new();
        for (listener, socket) in listeners {
            let socket = TcpListener::from_std(socket)?;
            accepting.push(tokio::spawn(accept(listener, socket, shared.clone())));
        }
        let keeping = tokio::spawn(keep_house());
        for listener in accepting {
            // A panic of one listener's task is told by the runtime; the others are still drained.
            let _ = listener.await;
        }
        keeping.abort();
        Ok(())
    })
}

/// Old keyrings and idle upstream connections don't wait for the next request to be let go.
async fn keep_house() {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        worker::refresh();
        upstream::sweep_idle();
    }
}

async fn accept(listener: Arc<ListenerShared>, socket: TcpListener, shared: WorkerShared) {
    let graceful = GracefulShutdown::new();
    let streams = TaskTracker::new();
    let mut after_drain = 0;
    loop {
        let stream = tokio::select! {
            // Connections that are in the backlog already are served before the drain begins, as many as it can hold.
            biased;
            accepted = socket.accept(), if after_drain < BACKLOG_MAX => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that was gone again.
                    warn!(listener = listener.name, %error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
            () = shared.drain.cancelled() => break,
        };
        after_drain += u32::from(shared.drain.is_cancelled());
        // At the limit a connection waits here, and those behind it in the backlog.
        let permit = tokio::select! {
            permit = Arc::clone(&shared.connections).acquire_owned() => permit.ok(),
            () = shared.drain.cancelled() => Arc::clone(&shared.connections).try_acquire_owned().ok(),
        };
        let Some(permit) = permit else { break };
        let listener = Arc::clone(&listener);
        match &listener.service {
            Service::Http(serving) => {
                let serving = Arc::clone(serving);
                tokio::spawn(serve(listener, serving, stream, shared.clone(), graceful.watcher(), permit));
            }
            Service::Tcp(tcp) => {
                let tcp = tcp.load_full();
                streams.spawn(serve_tcp(listener, tcp, stream, permit));
            }
        }
    }
    drop(socket);
    // What clients had sent before they could know is read and answered; only then idle connections are closed.
    tokio::time::sleep(DRAIN_GRACE).await;
    streams.close();
    let drained = async { tokio::join!(graceful.shutdown(), streams.wait()) };
    if tokio::time::timeout(shared.drain_timeout, drained).await.is_err() {
        warn!(listener = listener.name, "drain_timeout passed with connections still open; they are closed");
    }
}

async fn serve_tcp(
    listener: Arc<ListenerShared>,
    tcp: Arc<TcpService>,
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
) {
    listener.active.increment(1.0);
    tcp.serve(&listener.name, stream).await;
    listener.active.decrement(1.0);
}

async fn serve(
    listener: Arc<ListenerShared>,
    serving: Arc<ArcSwap<Serving>>,
    stream: TcpStream,
    shared: WorkerShared,
    watcher: hyper_util::server::graceful::Watcher,
    _permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let tls = (**listener.tls.load()).clone();
    listener.active.increment(1.0);
    match tls {
        None => serve_http(&listener, serving, stream, shared, watcher).await,
        // In a box, so that connections without TLS don't have the room for it.
        Some(TlsSlot(acceptor)) => {
            Box::pin(serve_tls(&listener, serving, acceptor, stream, shared, watcher)).await;
        }
    }
    listener.active.decrement(1.0);
}

async fn serve_tls(
    listener: &ListenerShared,
    serving: Arc<ArcSwap<Serving>>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shared: WorkerShared,
    watcher: hyper_util::server::graceful::Watcher,
) {
    match tokio::time::timeout(HANDSHAKE_MAX, TlsIo::accept(&acceptor, stream)).await {
        Ok(Ok(stream)) => serve_http(listener, serving, stream, shared, watcher).await,
        Ok(Err(error)) => debug!(listener = listener.name, %error, "TLS handshake failed"),
        Err(_) => debug!(listener = listener.name, "TLS handshake took too long"),
    }
}

async fn serve_http<IO>(
    listener: &ListenerShared,
    serving: Arc<ArcSwap<Serving>>,
    io: IO,
    shared: WorkerShared,
    watcher: hyper_util::server::graceful::Watcher,
) where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let limits = listener.limits.load_full();
    let header_bytes = usize::try_from(limits.header_bytes.0).unwrap_or(usize::MAX);
    let waits =
        framing::Limits { header_bytes, header: limits.header_timeout.0, idle: limits.idle_timeout.0 };
    let (io, fault) = FramedIo::new(io, waits);
    let stack = stack::build(serving, shared.totals, fault);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // `FramedIo` watches how long a client may be idle, and take for a head: hyper would set a timer for each request.
    builder.http1().header_read_timeout(None).half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(stack)).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        debug!(listener = listener.name, %error, "connection ended");
    }
}
