//! TLS towards clients.

use crate::config::ListenerTls;
use crate::pem;
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// An acceptor with these files; ALPN offers HTTP/2 and HTTP/1.1.
pub(crate) fn acceptor(tls: &ListenerTls) -> Result<TlsAcceptor, String> {
    let provider = crate::tls::provider();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in pem::certificates(ca)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", ca.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| format!("{}: {error}", ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(pem::certificates(&tls.cert)?, pem::private_key(&tls.key)?)
        .map_err(|error| format!("{}: {error}", tls.cert.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Clients resume on any worker, however many they are, and the sidecar keeps no session for them (RFC 8446, 2.2; RFC
    // 5077). The key of the tickets is this process's own, rolls every six hours, and goes with this configuration: what
    // a reload no longer trusts doesn't resume either. No early data: it could be replayed (RFC 8446, 8).
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
