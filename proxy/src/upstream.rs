//! The upstream side: a lean pool of HTTP/1.1 connections per worker.

mod connect;

pub(crate) use connect::UpstreamAddress;
pub(crate) use connect::UpstreamError;

use crate::body::seal::UploadProgress;
use crate::body::{BodyError, ProxyBody, Source};
use crate::config::Limits;
use crate::error::ProxyError;
use connect::Connector;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::client::conn::http1::SendRequest;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Idle connections kept per worker and upstream.
const IDLE_KEPT: usize = 256;
/// Below the keep-alive of common servers, so that we close first and not while sending.
const IDLE_MAX: Duration = Duration::from_secs(25);

type Sender = SendRequest<ProxyBody>;

struct Idle {
    sender: Sender,
    since: Instant,
}

thread_local! {
    /// By upstream; see worker.rs for why this is a thread-local.
    static POOLS: RefCell<HashMap<u64, Vec<Idle>>> = RefCell::new(HashMap::new());
}

/// One upstream, shared by the workers; the connections are each worker's own.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    id: u64,
    connector: Arc<Connector>,
    connect_timeout: Duration,
    response_timeout: Duration,
    body_idle_max: Duration,
}

/// A connection in use. Given back when the response's body has ended, closed if it is dropped before.
#[derive(Debug)]
pub(crate) struct Lease {
    upstream: u64,
    sender: Sender,
}

impl Lease {
    pub(crate) fn release(self) {
        if self.sender.is_closed() {
            return;
        }
        let _ = POOLS.try_with(|pools| {
            let mut pools = pools.borrow_mut();
            let pool = pools.entry(self.upstream).or_default();
            if pool.len() < IDLE_KEPT {
                pool.push(Idle { sender: self.sender, since: Instant::now() });
            }
        });
    }
}

/// Closes connections that were idle for too long, and those of upstreams that a reload has replaced.
pub(crate) fn sweep_idle() {
    POOLS.with(|pools| {
        pools.borrow_mut().retain(|_, pool| {
            pool.retain(|idle| idle.since.elapsed() < IDLE_MAX && !idle.sender.is_closed());
            !pool.is_empty()
        });
    });
}

impl Upstream {
    pub(crate) fn new(
        address: &str,
        tls: Option<&crate::config::UpstreamTls>,
        limits: &Limits,
    ) -> Result<Self, UpstreamError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            connector: Arc::new(Connector::new(UpstreamAddress::parse(address)?, tls)?),
            connect_timeout: limits.connect_timeout.0,
            response_timeout: limits.upstream_timeout.0,
            body_idle_max: limits.idle_timeout.0,
        })
    }

    /// How long a body may go without a byte, in either direction.
    pub(crate) fn body_idle_max(&self) -> Duration {
        self.body_idle_max
    }

    /// The Host for requests that bring none.
    pub(crate) fn host(&self) -> &HeaderValue {
        self.connector.host()
    }

    /// Sends a request and waits for the response's head. `progress` tells of an upload under way: the clock runs
    /// from its last step, so that a long upload is not an upstream that hangs.
    ///
    /// # Errors
    /// [`ProxyError`]: unreachable, timed out, or what stopped the request's own body.
    pub(crate) async fn send(
        &self,
        mut request: Request<ProxyBody>,
        progress: Option<&UploadProgress>,
    ) -> Result<Response<Source>, ProxyError> {
        // A request without a body can be sent again if a kept connection turns out to be dead.
        let mut replay = None;
        loop {
            let (mut sender, reused) = match self.checkout() {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            if reused && replay.is_none() && is_replayable(&request) {
                replay = Some(clone_head(&request));
            }
            let sent = self.respond_in_time(sender.try_send_request(request), progress).await?;
            let mut error = match sent {
                Ok(response) => {
                    check_framing(&response)?;
                    let lease = Lease { upstream: self.id, sender };
                    return Ok(response.map(|body| Source::upstream(body, Some(lease), self.body_idle_max)));
                }
                Err(error) => error,
            };
            request = match (error.take_message(), &replay) {
                (Some(unsent), _) if reused => unsent,
                (None, Some(head)) if reused && error.error().source_is_closed() => clone_head(head),
                _ => return Err(failure(error.error())),
            };
        }
    }

    async fn respond_in_time<T>(
        &self,
        response: impl Future<Output = T>,
        progress: Option<&UploadProgress>,
    ) -> Result<T, ProxyError> {
        let mut response = std::pin::pin!(response);
        let mut seen = progress.map_or(u64::MAX, UploadProgress::frames);
        loop {
            match tokio::time::timeout(self.response_timeout, &mut response).await {
                Ok(done) => return Ok(done),
                Err(_) => {
                    let frames = progress.map_or(u64::MAX, UploadProgress::frames);
                    if frames == seen {
                        return Err(ProxyError::UpstreamTimeout);
                    }
                    seen = frames;
                }
            }
        }
    }

    /// The most recently used connection that is ready.
    fn checkout(&self) -> Option<Sender> {
        POOLS.with(|pools| {
            let mut pools = pools.borrow_mut();
            let pool = pools.get_mut(&self.id)?;
            while let Some(idle) = pool.pop() {
                if idle.sender.is_ready() && idle.since.elapsed() < IDLE_MAX {
                    return Some(idle.sender);
                }
                // Closed, too old, or its last exchange has not quite ended: not worth waiting for.
            }
            None
        })
    }

    async fn connect(&self) -> Result<Sender, ProxyError> {
        let io = tokio::time::timeout(self.connect_timeout, self.connector.connect())
            .await
            .map_err(|_| ProxyError::UpstreamUnreachable("connecting took too long".to_owned()))?
            .map_err(|error| ProxyError::UpstreamUnreachable(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake(io)
            .await
            .map_err(|error| ProxyError::UpstreamUnreachable(error.to_string()))?;
        tokio::spawn(async move {
            // How a connection ended is told by the exchange that was on it.
            let _ = connection.await;
        });
        sender.ready().await.map_err(|error| ProxyError::UpstreamUnreachable(error.to_string()))?;
        Ok(sender)
    }
}

/// What no HTTP/1.1 server sends to a request of ours. hyper lets Transfer-Encoding win over a Content-Length beside it
/// and leaves both in the headers: the length would then be believed by whoever reads on.
fn check_framing<T>(response: &Response<T>) -> Result<(), ProxyError> {
    if response.headers().contains_key(TRANSFER_ENCODING) && response.headers().contains_key(CONTENT_LENGTH) {
        return Err(ProxyError::UpstreamProtocol("it has both Content-Length and Transfer-Encoding"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(ProxyError::UpstreamProtocol("it switched protocols, which nobody asked for"));
    }
    Ok(())
}

trait Closed {
    fn source_is_closed(&self) -> bool;
}

impl Closed for hyper::Error {
    fn source_is_closed(&self) -> bool {
        let reset = std::error::Error::source(self)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .is_some_and(|error| {
                matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
            });
        self.is_incomplete_message() || self.is_closed() || self.is_canceled() || reset
    }
}

/// Safe or idempotent, and with no body: sending it twice does no harm (RFC 9110, 9.2.2).
fn is_replayable(request: &Request<ProxyBody>) -> bool {
    matches!(request.body(), ProxyBody::Empty)
        && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE)
}

fn clone_head(request: &Request<ProxyBody>) -> Request<ProxyBody> {
    let mut copy = Request::new(ProxyBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// An exchange failed: by the request's own body, or by the upstream.
fn failure(error: &hyper::Error) -> ProxyError {
    match BodyError::find(error) {
        Some(body) => ProxyError::from_body(body),
        None => ProxyError::UpstreamUnreachable(error.to_string()),
    }
}
