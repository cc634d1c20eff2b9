//! The data path: services route their traffic through it; it seals and opens payloads inline.
//!
//! ```text
//! listener ─► stack (observe, respond, limits, route) ─► transform ─► upstream pool
//!                                                          │
//!                                                   key cache ◄─ control ◄─ bridge
//! ```
//! A listener of protocol tcp has no stack: `tcp.rs` carries its connections.
//!
//! One current-thread runtime per worker with its own listening sockets (`SO_REUSEPORT`), upstream pools and view of the
//! keyring: workers share nothing that is written to per request but counters. The control task and the admin port
//! run on a runtime of their own, so that a busy bridge stream never delays a body.

pub mod admin;
#[doc(hidden)]
pub mod bench;
pub mod body;
pub mod config;
mod context;
pub mod control;
pub mod error;
mod headers;
mod json;
mod keys;
mod patience;
mod pem;
pub mod route;
mod run;
mod server;
mod stack;
mod tcp;
mod telemetry;
mod tls;
mod transform;
mod upstream;
mod worker;

pub use config::{Config, ConfigError};
pub use run::{Running, StartError, start};

/// What a process that holds keys does first: logging to standard error, and no core dumps.
///
/// Log lines are text, or JSON with `KEYWAY_LOG_FORMAT=json`; `KEYWAY_LOG` filters them (default `info`).
pub fn init_process() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KEYWAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let installed = if std::env::var("KEYWAY_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    // Somebody who embeds the proxy may have a subscriber already.
    drop(installed);
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let limited = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    let undumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if limited.is_err() || undumpable.is_err() {
        tracing::warn!("core dumps could not be switched off; a crash could write keys to disk");
    }
}
