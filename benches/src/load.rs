//! Requests, as fast as they are answered.
//!
//! One thread makes the load, so that what it costs is known and it can be kept off the cores of what is measured. It
//! is closed-loop: a connection asks again when it was answered. The exception is [`pace`], which asks by the clock.
//! Every answer is checked; a figure that comes with failures is no figure.
//!
//! ```text
//! run, run_together, pace, IdleConnections
//!        │ opens            │ counts
//!      client ───────────► tally ───► Sample
//!      ├─ http1: bytes rendered once, one read buffer for all connections
//!      └─ http2: crate h2
//! ```

mod block;
pub(crate) mod chunked;
mod client;
mod http1;
mod http2;
mod idle;
mod open_loop;
mod response;
mod tally;
mod target;
#[cfg(test)]
mod tests;
pub(crate) mod thread;
mod timer;
mod window;
pub(crate) mod wire;

pub use idle::IdleConnections;
pub use open_loop::pace;
pub use window::{run, run_together};

use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The version of HTTP that clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1 with keep-alive.
    One,
    /// HTTP/2: with prior knowledge, or by ALPN with TLS.
    Two,
}

/// Whether a connection is kept for the next request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connecting {
    /// Kept; made again only if it is lost.
    #[default]
    Once,
    /// Another for each request, with a whole handshake where it speaks TLS. Its latency has the connecting in it.
    Anew,
    /// As that, with TLS sessions that are resumed (RFC 8446, section 2.2).
    Resumed,
}

/// What every connection does, over and over.
#[derive(Clone, Debug)]
pub enum Exchange {
    /// GET of `path`.
    Get {
        /// Path of the target; `{n}` stands for the connection's number.
        path: String,
        /// Length that every response's body must have, in bytes.
        body: u64,
    },
    /// PUT of pseudo-random bytes to `path`.
    Put {
        /// As above.
        path: String,
        /// Length of the body, in bytes.
        body: u64,
    },
}

/// What to load, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub address: SocketAddr,
    /// The Host, and the name in the certificate.
    pub host: String,
    /// The authority to trust, PEM: speaks TLS if given.
    pub ca: Option<PathBuf>,
    /// Which HTTP.
    pub http: Http,
    /// Connections, all opened before the clock starts.
    pub connections: usize,
    /// Requests under way on each; more than one needs HTTP/2.
    pub streams: usize,
    /// Whether they are kept; anything but [`Connecting::Once`] needs HTTP/1.1.
    pub connecting: Connecting,
    /// What they do.
    pub exchange: Exchange,
    /// Before the clock starts.
    pub warm_up: Duration,
    /// How long it runs.
    pub measure: Duration,
    /// The core that the generator's one thread runs on.
    pub core: Option<usize>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Responses that were right: status 2xx, whole, of the length that was expected.
    pub requests: u64,
    /// Anything else, lost connections included.
    pub failures: u64,
    /// Bytes of bodies, sent or received, that moved while it was measured: also of requests that were still under
    /// way when it ended, but not of failed ones.
    pub bytes: u64,
    /// By the generator's clock.
    pub elapsed: Duration,
    /// From a request's first byte out to its response's last byte in, in nanoseconds.
    pub latency: Histogram<u64>,
    /// What the first failure was.
    pub first_failure: Option<String>,
}
