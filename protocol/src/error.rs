//! What can go wrong, by operation.

use keyway_envelope::{FormatError, OpenError};
use std::path::PathBuf;
use thiserror::Error;

/// Short for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation of the protocol failed. No variant carries key material.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A PEM file can't be read.
    #[error("reading {path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file has no certificate in it.
    #[error("reading {0}: no certificate in it")]
    NoCertificate(PathBuf),
    /// Certificate, key and authorities don't make a TLS configuration.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// The authorities can't be used to verify client certificates.
    #[error("TLS configuration: client certificate authorities: {0}")]
    ClientAuthorities(String),
    /// Not an `https://host:port` address.
    #[error("endpoint {0:?} is not an https:// address with a host")]
    Endpoint(String),
    /// No connection to the endpoint.
    #[error("connecting to {endpoint}: {reason}")]
    Connect {
        /// The address that was tried.
        endpoint: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// A recipient's public key is not one (RFC 7748, 32 bytes, not of low order).
    #[error("sealing a DEK to its member: the recipient's public key is not valid")]
    RecipientKey,
    /// A DEK in transport does not open: not for this key, or changed on its way.
    #[error("opening a DEK from transport: refused")]
    DekRefused,
    /// A key block is malformed.
    #[error("reading a key block: {0}")]
    KeyBlock(FormatError),
    /// A key pair can't be made or read.
    #[error("signing key: {0}")]
    SigningKey(&'static str),
    /// The verification key has not 32 bytes.
    #[error("verification key has not 32 bytes")]
    VerifyKey,
    /// The signature does not belong to these bytes and this key.
    #[error("verifying a keyring set: the signature is not good")]
    Signature,
    /// Signed, but not a message of ours.
    #[error("reading a keyring set: {0}")]
    KeyringSet(#[from] prost::DecodeError),
    /// A known answer is not an envelope of its form.
    #[error("reading a known answer: {0}")]
    KnownAnswerForm(&'static str),
    /// A known answer does not open under this key.
    #[error("opening a known answer: {}", .0.reason())]
    KnownAnswer(OpenError),
}
