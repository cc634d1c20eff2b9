//! Servers to load.

use crate::upstream::Upstream;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// A certificate for `localhost`, and who vouches for it.
pub(super) struct Pki(TempDir);

impl Pki {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("server.crt"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("server.key"), made.signing_key.serialize_pem()).unwrap();
        Self(dir)
    }

    /// It vouches for itself.
    pub(super) fn ca(&self) -> PathBuf {
        self.0.path().join("server.crt")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("server.key")
    }
}

/// The store, on a thread that ends with the process.
pub(super) fn store(pki: Option<&Pki>) -> SocketAddr {
    let files = pki.map(|pki| (pki.ca(), pki.key()));
    let files = files.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let upstream = Upstream::bind("127.0.0.1:0".parse().unwrap(), files).unwrap();
    let address = upstream.address().unwrap();
    std::thread::spawn(move || upstream.run(None));
    address
}

/// Answers the first request of each connection with these bytes, and closes it.
pub(super) fn scripted(response: &[u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let response = response.to_vec();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, response) = (stream.unwrap(), response.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let _ = stream.write_all(&response);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                // Whatever is still sent: a reset could overtake the response.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    address
}

/// A server that speaks HTTP/2 only. GET of `/{size}` gives so many bytes, PUT takes any; `/fail` is a 500 at once, and `/cut`
/// breaks off.
pub(super) fn http2(pki: Option<&Pki>) -> SocketAddr {
    let acceptor = pki.map(|pki| {
        let chain = CertificateDer::pem_file_iter(pki.ca()).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(pki.key()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(answer);
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = match acceptor {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            server.serve_connection(TokioIo::new(stream), service).await
                        }
                    };
                });
            }
        });
    });
    address
}

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<BoxBody<Bytes, std::io::Error>>> {
    let full = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
    let path = request.uri().path().to_owned();
    if path == "/fail" {
        let mut response = Response::new(full(Bytes::from_static(b"no")));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return Ok(response);
    }
    if path == "/cut" {
        let frames = [Ok(Frame::data(Bytes::from_static(b"ab"))), Err(std::io::ErrorKind::Other.into())];
        return Ok(Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed()));
    }
    if request.method() == Method::PUT {
        let declared =
            request.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
        let received = request.into_body().collect().await?.to_bytes().len();
        anyhow::ensure!(declared.is_none_or(|declared| declared == received.to_string()));
        return Ok(Response::new(full(Bytes::new())));
    }
    let size = path.trim_start_matches('/').parse()?;
    Ok(Response::new(full(Bytes::from(vec![0; size]))))
}
