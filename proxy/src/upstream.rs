//! The upstream side: a lean pool of HTTP/1.1 connections per worker.

mod connect;
mod link;

pub(crate) use connect::UpstreamAddress;
pub(crate) use connect::UpstreamError;

use crate::body::seal::UploadProgress;
use crate::body::{BodyError, ProxyBody, Source};
use crate::config::Limits;
use crate::error::ProxyError;
use connect::Connector;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use link::Link;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

/// Idle connections kept per worker and upstream.
const IDLE_KEPT: usize = 256;
/// Below the keep-alive of common servers, so that we close first and not while sending.
const IDLE_MAX: Duration = Duration::from_secs(25);

struct Idle {
    link: Box<Link>,
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
    link: Box<Link>,
    /// Whether the request has content, which may still be on its way when the response has come.
    has_upload: bool,
}

impl Lease {
    /// Moves the connection's bytes; to be called whenever something that comes over it is waited for.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        self.link.drive(cx);
    }

    pub(crate) fn release(mut self) {
        if !self.has_upload || self.link.is_ready() {
            keep(self.upstream, self.link);
            return;
        }
        // The upstream has answered early. What it was promised is still sent.
        tokio::spawn(async move {
            if self.link.finish().await.is_ok() {
                keep(self.upstream, self.link);
            }
        });
    }
}

fn keep(upstream: u64, link: Box<Link>) {
    let _ = POOLS.try_with(|pools| {
        let mut pools = pools.borrow_mut();
        let pool = pools.entry(upstream).or_default();
        if pool.len() < IDLE_KEPT {
            pool.push(Idle { link, since: Instant::now() });
        }
    });
}

/// Closes connections that were idle for too long, those that the upstream has closed, and those to upstreams that a
/// reload has replaced.
pub(crate) fn sweep_idle() {
    POOLS.with(|pools| {
        pools.borrow_mut().retain(|_, pool| {
            pool.retain_mut(|idle| idle.since.elapsed() < IDLE_MAX && idle.link.is_ready());
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
            let (mut link, reused) = match self.checkout() {
                Some(link) => (link, true),
                None => (self.connect().await?, false),
            };
            if reused && replay.is_none() && is_replayable(&request) {
                replay = Some(clone_head(&request));
            }
            let has_upload = !matches!(request.body(), ProxyBody::Empty);
            let mut seen = progress.map_or(u64::MAX, UploadProgress::frames);
            let stands_still = || {
                let frames = progress.map_or(u64::MAX, UploadProgress::frames);
                frames == std::mem::replace(&mut seen, frames)
            };
            let sent = link.exchange(request, self.response_timeout, stands_still).await;
            let mut error = match sent.ok_or(ProxyError::UpstreamTimeout)? {
                Ok(response) => {
                    check_framing(&response)?;
                    if progress.is_some_and(|upload| !upload.is_done()) {
                        link.detach();
                    }
                    let lease = Lease { upstream: self.id, link, has_upload };
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

    /// The most recently used connection that is ready.
    fn checkout(&self) -> Option<Box<Link>> {
        POOLS.with(|pools| {
            let mut pools = pools.borrow_mut();
            let pool = pools.get_mut(&self.id)?;
            while let Some(mut idle) = pool.pop() {
                if idle.since.elapsed() < IDLE_MAX && idle.link.is_ready() {
                    return Some(idle.link);
                }
                // Closed, or too old.
            }
            None
        })
    }

    async fn connect(&self) -> Result<Box<Link>, ProxyError> {
        let unreachable = |error: &dyn std::fmt::Display| ProxyError::UpstreamUnreachable(error.to_string());
        let io = tokio::time::timeout(self.connect_timeout, self.connector.connect())
            .await
            .map_err(|_| unreachable(&"connecting took too long"))?
            .map_err(|error| unreachable(&error))?;
        let mut link = Box::new(Link::new(io).await.map_err(|error| unreachable(&error))?);
        std::future::poll_fn(|cx| link.poll_ready(cx)).await.map_err(|error| unreachable(&error))?;
        Ok(link)
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
