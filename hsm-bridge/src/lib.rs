//! The key side: KEKs in HSMs, DEKs in a catalog, keyrings pushed to the fleet, rotations that resume.
//!
//! ```text
//!  members ──► fleet ──► deks ──► keys ──► hsms ──► backend (software keystore, PKCS#11)
//!                │         │
//!  operators ──► operator  └───► catalog ◄── rotation::engine ◄── rotation::decide (pure)
//!                                              └──► audit, before every effect
//! ```
//! [`start`] runs all of it in the caller's process; the binary only parses arguments.

mod admin;
pub mod audit;
pub mod backend;
mod catalog;
mod clock;
pub mod config;
mod dek_cache;
mod deks;
mod error;
mod fleet;
mod hooks;
mod hsms;
mod keys;
mod listing;
mod metrics;
mod operator;
pub mod rotation;
mod server;
mod signing_key;
mod status;
mod zone;

pub use catalog::CatalogError;
pub use config::{Config, ConfigError};
pub use error::{Error, Result};
pub use hsms::HsmError;
pub use keys::KeyError;
pub use server::{Running, start};

#[cfg(test)]
mod tests;
