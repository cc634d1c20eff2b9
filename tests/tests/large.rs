//! Bodies far larger than memory allows: constant memory, over TLS and HTTP/2 too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use keyway_tests::client::{Client, get, request, stepwise, whole};
use keyway_tests::fleet::ROUTES;
use keyway_tests::{Fleet, Hsm, random};
use std::process::Command;

/// Peak resident memory of a process, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// 2 GiB up and down, in both versions of HTTP, with a reader slower than its writer: the sidecar holds a few buffers.
#[tokio::test(flavor = "multi_thread")]
async fn gigabytes_pass_in_constant_memory() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 1024;
    let mut fleet = Fleet::start(Hsm::Software).await;
    let pid = fleet.proxy_mut("proxy").id();
    let piece = Bytes::from(random(PIECE));
    for (name, http2) in [("one", false), ("two", true)] {
        let connect = async || {
            if http2 { Client::http2(fleet.data()).await } else { Client::http1(fleet.data()).await }
        };
        let path = format!("/objects/large-{name}");
        let (pieces, body) = stepwise();
        let mut client = connect().await.unwrap();
        let put = request(Method::PUT, &path, &[], body);
        let upload = tokio::spawn(async move { client.send(put).await.unwrap() });
        for n in 0..PIECES {
            // Each piece is told from the others by its first bytes.
            let mut numbered = piece.to_vec();
            numbered[..8].copy_from_slice(&(n as u64).to_be_bytes());
            pieces.send(numbered.into()).await.unwrap();
        }
        drop(pieces);
        let _ = upload.await.unwrap().expect(201);

        let mut client = connect().await.unwrap();
        let response = client.start(request(Method::GET, &path, &[], whole(""))).await.unwrap();
        assert_eq!(response.headers()["content-length"], (PIECE * PIECES).to_string());
        let mut body = response.into_body();
        let mut at = 0usize;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            check(&data, at, &piece);
            at += data.len();
        }
        assert_eq!(at, PIECE * PIECES);
    }
    let peak = peak_memory(pid);
    assert!(peak < 100 << 20, "the sidecar took {} MiB", peak >> 20);
}

/// Compares `data`, which stands at offset `at`, with what was sent.
fn check(data: &[u8], at: usize, piece: &[u8]) {
    let mut offset = 0;
    while offset < data.len() {
        let (n, within) = ((at + offset) / piece.len(), (at + offset) % piece.len());
        let take = (piece.len() - within).min(data.len() - offset);
        let mut expected = piece[within..within + take].to_vec();
        for (byte, value) in (n as u64).to_be_bytes().into_iter().enumerate() {
            if byte >= within && byte - within < take {
                expected[byte - within] = value;
            }
        }
        assert!(data[offset..offset + take] == expected, "changed at {}", at + offset);
        offset += take;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_alpn_chooses_the_version_of_http() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let pki = fleet.dir().join("pki");
    // A sidecar that terminates TLS in front of one that is reached through TLS: both sides of it, with real curl.
    let store = format!("http://{}", fleet.store());
    let routes = format!(
        "{ROUTES}\n    tls: {{ cert: {pki}/bridge.crt, key: {pki}/bridge.key }}",
        pki = pki.display()
    );
    fleet.start_proxy_as("tls", "orders", &store, "client", &routes).await;
    fleet.wait_ready("tls").await;
    let file = fleet.dir().join("file");
    std::fs::write(&file, random(3_000_000)).unwrap();
    let url = format!("https://localhost:{}/objects/tls", fleet.data_of("tls").port());
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["-sSf", "--cacert"])
            .arg(pki.join("ca.crt"))
            .args(arguments)
            .arg(&url)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let said = curl(&[option, "-o", "/dev/null", "-w", "%{http_version}", "-T", file.to_str().unwrap()]);
        assert_eq!(String::from_utf8_lossy(&said), version);
        assert!(curl(&[option]) == std::fs::read(&file).unwrap());
    }
    // Origination: the certificate is verified, against the authority that is configured.
    let upstream = format!("https://localhost:{}", fleet.data_of("tls").port());
    let pass = |ca: &str| {
        format!(
            "\n      - {{ match: {{ path: \"/**\" }}, mode: pass }}\n    upstream_tls: {{ ca: {} }}",
            fleet.dir().join(ca).display()
        )
    };
    let (good, bad) = (pass("pki/ca.crt"), pass("pki/orders.crt"));
    fleet.start_proxy_as("front", "orders", &upstream, "client", &good).await;
    let through = get(fleet.data_of("front"), "/objects/tls").await.expect(200);
    assert!(through.body == std::fs::read(&file).unwrap());
    fleet.start_proxy_as("wary", "orders", &upstream, "client", &bad).await;
    assert_eq!(get(fleet.data_of("wary"), "/objects/tls").await.expect(502).code(), "upstream-unreachable");
}
