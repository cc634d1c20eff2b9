//! How bridges, members and operators talk.
//!
//! - [`v1`]: the messages and services of `proto/keyway.proto`.
//! - [`tls`]: TLS 1.3 with client certificates and the hybrid key exchange X25519MLKEM768, under tonic.
//! - [`dek_transport`]: a DEK on its way to a member, sealed (HPKE) to the key of the member's start.
//! - [`signing`]: keyring sets are signed; what is verified is what was signed, byte by byte.
//! - [`kat`]: known answers, by which a member proves that it can use a KEK version.

pub mod dek_transport;
mod error;
pub mod kat;
pub mod signing;
pub mod tls;

/// The messages and services of `proto/keyway.proto`, as generated.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated code; documented in the .proto file"
)]
#[allow(rustdoc::all, reason = "comments of the .proto file are not rustdoc")]
pub mod v1 {
    tonic::include_proto!("keyway.v1");
}

pub use error::{Error, Result};
