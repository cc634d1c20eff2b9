//! A tonic channel over our TLS.

use super::ALPN;
use crate::error::{Error, Result};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that vanished without a word (power, partition) is noticed within these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to `https://host:port` and gives a channel. When the connection is lost, the next call makes a new one.
///
/// # Errors
/// [`Error::Endpoint`], or [`Error::Connect`] if it takes longer than 5 s, is refused, or either side is not whom
/// the other trusts.
pub async fn connect(endpoint: &str, config: Arc<ClientConfig>) -> Result<Channel> {
    let uri: Uri = endpoint.parse().map_err(|_| Error::Endpoint(endpoint.to_owned()))?;
    if uri.scheme_str() != Some("https") {
        return Err(Error::Endpoint(endpoint.to_owned()));
    }
    let host = uri.host().ok_or_else(|| Error::Endpoint(endpoint.to_owned()))?;
    // An IPv6 address is in brackets in a URI, and without them everywhere else.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| Error::Endpoint(endpoint.to_owned()))?;
    let port = uri.port_u16().unwrap_or(443);

    let connector = tower::service_fn(move |_: Uri| {
        let (host, name, config) = (host.clone(), name.clone(), config.clone());
        async move { open(&host, port, name, config).await.map(TokioIo::new) }
    });
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Connect { endpoint: endpoint.to_owned(), reason: causes(&error) })
}

async fn open(
    host: &str,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect((host, port)).await?;
    // Small messages both ways: waiting to fill a segment would only delay them.
    tcp.set_nodelay(true)?;
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other("the server does not speak HTTP/2 (ALPN)"));
    }
    Ok(tls)
}

/// The causes of an error, outermost first; tonic's own says "transport error" only.
fn causes(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !all.ends_with(&cause_text) {
            all = format!("{all}: {cause_text}");
        }
        next = cause.source();
    }
    all
}
