//! TLS 1.3 with client certificates, under tonic.
//!
//! Both sides prove who they are; the hybrid key exchange X25519MLKEM768 comes first, so that what is recorded today
//! can't be read by a quantum computer later. tonic's own TLS feature can't choose the provider or show the key exchange,
//! so the connector ([`connect`]) and the listener ([`Incoming`]) are here.

mod connect;
mod incoming;

pub use connect::connect;
pub use incoming::{Connection, Incoming, PeerInfo};

use crate::error::{Error, Result};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// gRPC runs over HTTP/2 only.
const ALPN: &[u8] = b"h2";
/// In order of preference. No finite-field groups, and no P-384: nobody needs to offer more than this here.
const KEY_EXCHANGES: &[&dyn SupportedKxGroup] =
    &[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];

/// Where an identity and those whom it trusts are stored, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that the other side's certificate has to come from.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// The private key's DER, to derive other keys of this identity from. Wiped on drop.
    ///
    /// # Errors
    /// [`Error::Pem`].
    pub fn private_key_der(&self) -> Result<Zeroizing<Vec<u8>>> {
        let mut key = self.private_key()?;
        let der = Zeroizing::new(key.secret_der().to_vec());
        zeroize::Zeroize::zeroize(&mut key);
        Ok(der)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| Error::Pem { path: self.key.clone(), source })
    }

    fn authorities(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate)?;
        }
        Ok(Arc::new(roots))
    }
}

/// What a bridge listens with: a client certificate is required, and resumption is off, so that every connection is
/// authenticated anew and has a key exchange of its own.
///
/// # Errors
/// [`Error::Pem`], [`Error::NoCertificate`], [`Error::Tls`], [`Error::ClientAuthorities`].
pub fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(files.authorities()?, provider.clone())
        .build()
        .map_err(|error| Error::ClientAuthorities(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, files.private_key()?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a member or an operator connects with. The server's certificate has to be valid for the endpoint's host.
///
/// # Errors
/// [`Error::Pem`], [`Error::NoCertificate`], [`Error::Tls`].
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(files.authorities()?)
        .with_client_auth_cert(certificates(&files.cert)?, files.private_key()?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The SPIFFE id of a certificate: its URI subject alternative name.
///
/// None if there is no URI or more than one (X.509-SVID, section 2: "MUST contain exactly one URI SAN"), or if it has
/// another scheme.
#[must_use]
pub fn spiffe_id(der: &[u8]) -> Option<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (uri, None) = (uris.next()?, uris.next()) else { return None };
    uri.strip_prefix("spiffe://").filter(|rest| !rest.is_empty())?;
    Some(uri.to_owned())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: KEY_EXCHANGES.to_vec(), ..aws_lc_rs::default_provider() })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|source| Error::Pem { path: path.to_owned(), source })?;
    if found.is_empty() { Err(Error::NoCertificate(path.to_owned())) } else { Ok(found) }
}

#[cfg(test)]
#[path = "tests/tls.rs"]
mod tests;
