//! TLS towards clients and upstreams: sessions resume on any worker, what was cut is never taken as whole, and certificates
//! change under connections that go on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use keyway_envelope::length::sealed_len;
use keyway_tests::client::{Body, Client, get, whole};
use keyway_tests::fleet::ROUTES;
use keyway_tests::{Fleet, Hsm, eventually, random};
use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
}

/// A client that trusts the fleet's authority; `identity` is the certificate that it shows.
fn trusting(fleet: &Fleet, identity: Option<&str>) -> Arc<ClientConfig> {
    let pki = fleet.dir().join("pki");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&pki.join("ca.crt")) {
        roots.add(certificate).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(pki.join(format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(certificates(&pki.join(format!("{name}.crt"))), key).unwrap()
        }
    })
}

/// One HTTP/1.1 connection over TLS.
struct Connection {
    sender: SendRequest<Body>,
    kind: HandshakeKind,
}

impl Connection {
    async fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind().unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, kind }
    }

    async fn send(&mut self, method: Method, path: &str, body: Body) -> (u16, Vec<u8>) {
        self.sender.ready().await.unwrap();
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let response = self.sender.send_request(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }
}

fn listener_tls(fleet: &Fleet, more: &str) -> String {
    let pki = fleet.dir().join("pki");
    format!("\n    tls: {{ cert: {0}/bridge.crt, key: {0}/bridge.key{more} }}", pki.display())
}

/// `front` seals and speaks TLS to both sides, `back` passes what comes with TLS to the store.
async fn two_in_a_row(more: &str) -> Fleet {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let store = format!("http://{}", fleet.store());
    let tls = listener_tls(&fleet, more);
    let pass = format!("\n      - {{ match: {{ path: \"/**\" }}, mode: pass }}{}", listener_tls(&fleet, ""));
    fleet.start_proxy_as("back", "orders", &store, "client", &pass).await;
    fleet.wait_ready("back").await;
    let ca = fleet.dir().join("pki/ca.crt");
    let upstream = format!("https://localhost:{}", fleet.data_of("back").port());
    let routes = format!("{ROUTES}{tls}\n    upstream_tls: {{ ca: {} }}", ca.display());
    fleet.start_proxy_as("front", "orders", &upstream, "client", &routes).await;
    fleet.wait_ready("front").await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_length_come_back_over_tls_on_both_sides() {
    let fleet = two_in_a_row("").await;
    let mut client = Connection::open(fleet.data_of("front"), &trusting(&fleet, None)).await;
    // Around the lengths of records, segments and buffers, and one that is many of them.
    for length in [0, 1, 4095, 16_383, 16_384, 16_385, 65_536, 131_072, 1_000_003, 24 * 1024 * 1024] {
        let body = random(length);
        let path = format!("/objects/{length}");
        let (status, _) = client.send(Method::PUT, &path, whole(body.clone())).await;
        assert!((200..300).contains(&status), "{length}: {status}");
        let (status, came) = client.send(Method::GET, &path, whole("")).await;
        assert_eq!(status, 200);
        assert!(came == body, "{length} bytes went up, {} others came down", came.len());
        let stored = get(fleet.store(), &path).await.expect(200).body;
        assert_eq!(stored.len() as u64, sealed_len(length as u64).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_choose_http2_and_it_is_sealed_as_well() {
    let fleet = two_in_a_row("").await;
    let file = fleet.dir().join("sent");
    let body = random(3_000_000);
    std::fs::write(&file, &body).unwrap();
    let url = format!("https://localhost:{}/objects/curl", fleet.data_of("front").port());
    let curl = |version: &str, more: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--fail", version, "--cacert"])
            .arg(fleet.dir().join("pki/ca.crt"))
            .args(["-w", "%{stderr}%{http_version}"])
            .args(more)
            .arg(&url)
            .output()
            .unwrap();
        let version = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{version}");
        (version, output.stdout)
    };
    assert_eq!(curl("--http2", &["-T", file.to_str().unwrap()]).0, "2");
    assert_eq!(curl("--http2", &[]), ("2".to_owned(), body.clone()));
    assert_eq!(curl("--http1.1", &[]), ("1.1".to_owned(), body));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_resume_on_any_worker_until_the_configuration_is_another() {
    let mut fleet = two_in_a_row("").await;
    let (front, config) = (fleet.data_of("front"), trusting(&fleet, None));
    let mut first = Connection::open(front, &config).await;
    assert_eq!(first.kind, HandshakeKind::Full);
    let (status, _) = first.send(Method::PUT, "/objects/a", whole("kept")).await;
    assert!((200..300).contains(&status));
    // The sockets of the two workers share the connections; a ticket is good at both.
    for n in 0..12 {
        let mut next = Connection::open(front, &config).await;
        assert_eq!(next.kind, HandshakeKind::Resumed, "connection {n}");
        assert_eq!(next.send(Method::GET, "/objects/a", whole("")).await, (200, b"kept".to_vec()));
    }
    // After a reload nobody resumes what the old configuration granted, and whoever was there stays.
    fleet.proxy_mut("front").signal(Signal::HUP);
    let kind = eventually("the reload", async || {
        let next = Connection::open(front, &config).await;
        (next.kind == HandshakeKind::Full).then_some(next.kind)
    });
    assert_eq!(kind.await, HandshakeKind::Full);
    assert_eq!(first.send(Method::GET, "/objects/a", whole("")).await, (200, b"kept".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_the_certificate_that_is_asked_for_get_nothing() {
    let ca = |fleet: &Fleet| format!(", client_ca: {}", fleet.dir().join("pki/ca.crt").display());
    let mut fleet = Fleet::start(Hsm::Software).await;
    let more = ca(&fleet);
    let routes = format!("{ROUTES}{}", listener_tls(&fleet, &more));
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("strict", "orders", &store, "client", &routes).await;
    fleet.wait_ready("strict").await;
    let strict = fleet.data_of("strict");

    let known = trusting(&fleet, Some("orders"));
    let mut client = Connection::open(strict, &known).await;
    let (status, _) = client.send(Method::PUT, "/objects/mine", whole("secret")).await;
    assert!((200..300).contains(&status));

    // In TLS 1.3 a client hears of it behind its own handshake.
    let stream = TcpStream::connect(strict).await.unwrap();
    let unknown = TlsConnector::from(trusting(&fleet, None));
    let mut stream = unknown.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let _ = stream.write_all(b"GET /objects/mine HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut came = Vec::new();
    let error = stream.read_to_end(&mut came).await.unwrap_err();
    assert!(came.is_empty());
    assert!(error.to_string().contains("CertificateRequired"), "{error}");

    // Without TLS, neither.
    let mut plain = TcpStream::connect(strict).await.unwrap();
    plain.write_all(b"GET /objects/mine HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut came).await;
    assert!(!String::from_utf8_lossy(&came).contains("HTTP"), "{came:?}");
}

/// A TLS server that answers each connection's first request with `answer` and then closes as it was told.
async fn upstream(fleet: &Fleet, answer: &'static [u8], says_goodbye: bool) -> SocketAddr {
    let pki = fleet.dir().join("pki");
    let key = PrivateKeyDer::from_pem_file(pki.join("bridge.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates(&pki.join("bridge.crt")), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
            if says_goodbye {
                stream.shutdown().await.unwrap();
            } else {
                // FIN without close_notify: what somebody between could do, too (RFC 8446, 6.1).
                stream.get_mut().0.shutdown().await.unwrap();
            }
            let _ = stream.get_mut().0.read_to_end(&mut head).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_the_connection_is_whole_only_with_a_close_notify() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nas far as it goes";
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let ca = fleet.dir().join("pki/ca.crt");
    for (name, says_goodbye) in [("polite", true), ("cut", false)] {
        let address = upstream(&fleet, ANSWER, says_goodbye).await;
        let routes = format!("{ROUTES}\n    upstream_tls: {{ ca: {} }}", ca.display());
        let url = format!("https://localhost:{}", address.port());
        fleet.start_proxy_as(name, "orders", &url, "client", &routes).await;
        let mut client = Client::http1(fleet.data_of(name)).await.unwrap();
        let request = Request::get("/open/x").header("host", "localhost").body(whole("")).unwrap();
        // What was cut may be so short that not even its head is sent on.
        let came = client.send(request).await.ok().filter(|answer| answer.broken.is_none());
        assert_eq!(
            came.map(|answer| answer.body),
            says_goodbye.then(|| b"as far as it goes".to_vec()),
            "{name}"
        );
    }
}
