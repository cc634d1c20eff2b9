//! Every system that is installed gives back what it was given.

use super::*;
use crate::load::{Exchange, Http, Plan};
use crate::upstream::Upstream;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

const LENGTHS: [usize; 5] = [0, 1, 1024, 64 * 1024, 1024 * 1024];
const LIMIT: Duration = Duration::from_secs(60);

/// An upstream, and what a system needs to stand in front of it.
struct Bed {
    setting: Setting,
    pki: Pki,
    _dir: TempDir,
}

impl Bed {
    fn new(tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::make(&dir.path().join("pki")).unwrap();
        let (certificate, key) = (pki.certificate(), pki.key());
        let tls_files = tls.then_some((certificate.as_path(), key.as_path()));
        let upstream = Upstream::bind("127.0.0.1:0".parse().unwrap(), tls_files).unwrap();
        let setting = Setting {
            dir: dir.path().join("system"),
            upstream: upstream.address().unwrap(),
            client_tls: tls,
            upstream_tls: tls,
            pki: pki.dir().to_owned(),
            cores: vec![*crate::machine::available_cores().last().unwrap()],
        };
        // It serves until the test program ends.
        std::thread::spawn(move || upstream.run(None));
        Self { setting, pki, _dir: dir }
    }

    async fn send(&self, address: SocketAddr, method: &str, path: &str, body: Bytes) -> (u16, Bytes) {
        let exchange = async {
            let stream = TcpStream::connect(address).await?;
            if !self.setting.client_tls {
                return exchange(stream, method, path, body).await;
            }
            let mut roots = rustls::RootCertStore::empty();
            roots.add(rustls::pki_types::CertificateDer::from_pem_file(self.pki.ca())?)?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            exchange(connector.connect("localhost".try_into()?, stream).await?, method, path, body).await
        };
        let answer = tokio::time::timeout(LIMIT, exchange).await.expect("an answer in time");
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error:#}"))
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(u16, Bytes)> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let answer = sender.send_request(request.body(Full::new(body))?).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}

/// Bytes that don't repeat, and don't compress.
fn bytes(length: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Whether a piece of 16 bytes of the plaintext is in what is stored.
fn leaks(plaintext: &[u8], stored: &[u8]) -> bool {
    let pieces: HashSet<&[u8]> = plaintext.chunks_exact(16).collect();
    stored.windows(16).any(|window| pieces.contains(window))
}

async fn round_trip(name: &str, tls: bool, lengths: &[usize]) {
    let ours = matches!(name, "direct" | "keyway" | "keyway-pass");
    if let Err(error) = install(&[name]) {
        assert!(!ours, "{error}");
        println!("{name} is left out: {error}");
        return;
    }
    let bed = Bed::new(tls);
    let system = by_name(name).unwrap();
    let version = system.version().unwrap();
    let running = system.start(&bed.setting).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    println!("{name}: {version}, {} at {}", running.pids().len(), running.address());
    assert_eq!(running.pids().is_empty(), name == "direct");
    for &length in lengths {
        let (path, body) = (format!("/objects/of-{length}"), bytes(length));
        let (status, text) = bed.send(running.address(), "PUT", &path, body.clone()).await;
        assert!((200..300).contains(&status), "{name}: PUT {length}: {status} {text:?}\n{}", running.log());
        let (status, back) = bed.send(running.address(), "GET", &path, Bytes::new()).await;
        assert_eq!(status, 200, "{name}: GET {length}: {back:?}\n{}", running.log());
        assert!(back == body, "{name}: {} bytes came back of {length}\n{}", back.len(), running.log());

        let ending = if name == "rclone-crypt" { ".bin" } else { "" };
        let stored = bed.send(bed.setting.upstream, "GET", &format!("{path}{ending}"), Bytes::new()).await;
        assert_eq!(stored.0, 200, "{name}: it is at the upstream");
        assert_eq!(stored.1 == body, !system.seals(), "{name}: what of {length} is stored");
        assert!(!system.seals() || !leaks(&body, &stored.1), "{name}: plaintext of {length} is stored");
    }
    let pids = running.pids();
    drop(running);
    let left: Vec<u32> = pids.into_iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
    assert!(left.is_empty(), "{name}: {left:?} still run");
}

macro_rules! round_trips {
    ($($test:ident: $name:literal, $tls:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            round_trip($name, $tls, &LENGTHS).await;
        }
    )*};
}

round_trips! {
    direct: "direct", false;
    direct_tls: "direct", true;
    keyway: "keyway", false;
    keyway_tls: "keyway", true;
    keyway_pass: "keyway-pass", false;
    keyway_pass_tls: "keyway-pass", true;
    nginx: "nginx", false;
    nginx_tls: "nginx", true;
    nginx_tuned: "nginx-tuned", false;
    nginx_tuned_tls: "nginx-tuned", true;
    haproxy: "haproxy", false;
    haproxy_tls: "haproxy", true;
    haproxy_tuned: "haproxy-tuned", false;
    haproxy_tuned_tls: "haproxy-tuned", true;
    nginx_lua: "nginx-lua", false;
    nginx_lua_tls: "nginx-lua", true;
    rclone_crypt: "rclone-crypt", false;
    rclone_crypt_tls: "rclone-crypt", true;
    stunnel: "stunnel", false;
    spiped: "spiped", false;
}

#[tokio::test]
async fn lua_seals_what_is_larger_than_its_buffers() {
    // Around the length of a segment, and one that nginx keeps in a file.
    round_trip("nginx-lua", false, &[65_535, 65_537, 131_072, 80 << 20]).await;
}

#[tokio::test]
async fn whoever_seals_does_it_with_large_bodies() {
    for system in all().iter().filter(|system| system.seals()) {
        round_trip(system.name(), false, &[16 << 20]).await;
    }
}

#[test]
fn http_2_where_it_is_offered() {
    let offered = [
        ("keyway", false),
        ("keyway", true),
        ("keyway-pass", true),
        ("nginx-tuned-h2c", false),
        ("nginx-tuned", true),
        ("haproxy-tuned", false),
        ("haproxy-tuned", true),
    ];
    for (name, tls) in offered {
        if install(&[name]).is_err() {
            continue;
        }
        let bed = Bed::new(tls);
        let running = by_name(name).unwrap().start(&bed.setting).unwrap();
        let sample = crate::load::run(&Plan {
            address: running.address(),
            host: "localhost".to_owned(),
            ca: tls.then(|| bed.pki.ca()),
            http: Http::Two,
            connections: 2,
            streams: 10,
            connecting: crate::load::Connecting::Once,
            exchange: Exchange::Put { path: "/objects/{n}".to_owned(), body: 10_000 },
            warm_up: Duration::from_millis(50),
            measure: Duration::from_millis(200),
            core: None,
        })
        .unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", running.log()));
        assert_eq!(sample.failures, 0, "{name}: {:?}\n{}", sample.first_failure, running.log());
        assert!(sample.requests > 0, "{name}");
    }
}

#[tokio::test]
async fn lua_does_not_give_out_what_was_changed() {
    if install(&["nginx-lua"]).is_err() {
        return;
    }
    let bed = Bed::new(false);
    let running = by_name("nginx-lua").unwrap().start(&bed.setting).unwrap();
    bed.send(running.address(), "PUT", "/objects/one", bytes(1000)).await;
    let (_, stored) = bed.send(bed.setting.upstream, "GET", "/objects/one", Bytes::new()).await;
    let mut changed = stored.to_vec();
    changed[500] ^= 1;
    bed.send(bed.setting.upstream, "PUT", "/objects/one", changed.into()).await;
    let stream = TcpStream::connect(running.address()).await.unwrap();
    let answer = exchange(stream, "GET", "/objects/one", Bytes::new()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(running.log().contains("does not open"), "{}", running.log());
}

#[tokio::test]
async fn a_fleet_rotates_and_restarts() {
    let bed = Bed::new(false);
    let mut keyway = Keyway::start(&bed.setting.dir, &bed.setting.cores).unwrap();
    keyway.start_proxy("one", &bed.setting).unwrap();
    keyway.start_proxy("two", &bed.setting).unwrap();
    let (one, two) = (keyway.address_of("one").unwrap(), keyway.address_of("two").unwrap());
    let body = bytes(10_000);
    assert!((200..300).contains(&bed.send(one, "PUT", "/objects/shared", body.clone()).await.0));
    keyway.rotate().unwrap();
    let pid = keyway.proxy_pid("two").unwrap();
    let took = keyway.restart_proxy("two").unwrap();
    assert!(took > Duration::ZERO && keyway.proxy_pid("two").unwrap() != pid);
    assert_eq!(keyway.address_of("two").unwrap(), two, "it is where it was");
    assert!(bed.send(two, "GET", "/objects/shared", Bytes::new()).await.1 == body);
    assert_ne!(keyway.bridge_pid().unwrap(), keyway.proxy_pid("one").unwrap());
    keyway.stop_proxy("one").unwrap();
    assert_eq!(keyway.proxy_pid("one"), None);
    assert!(keyway.restart_proxy("three").is_err());
}

#[test]
fn names_are_unique_and_found() {
    let names: Vec<&str> = all().iter().map(|system| system.name()).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    for name in names {
        assert_eq!(by_name(name).unwrap().name(), name);
    }
    let error = by_name("squid").err().unwrap().to_string();
    assert!(error.contains("nginx-tuned"), "{error}");
}

#[test]
fn what_does_not_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start("liar", dir.path(), &[], "sh", |command| {
        command.args(["-c", "echo no such luck; exit 3"]);
    })
    .unwrap();
    let error = process.wait_until(|| None::<()>).unwrap_err().to_string();
    assert!(error.contains("no such luck") && error.contains("exit status: 3"), "{error}");
}

#[test]
fn children_are_counted_and_end_with_their_parent() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start("family", dir.path(), &[], "sh", |command| {
        command.args(["-c", "trap '' TERM; sleep 100 & sleep 100"]);
    })
    .unwrap();
    // The shell and both of its children.
    let mut pids = process.pids();
    while pids.len() < 3 {
        std::thread::sleep(Duration::from_millis(5));
        pids = process.pids();
    }
    assert_eq!(pids[0], process.id());
    drop(process);
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()), "{pids:?} still run");
}
