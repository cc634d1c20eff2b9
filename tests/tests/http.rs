//! HTTP done right: lengths, ranges, conditions, digests, framing, through a real sidecar in front of a real store.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use keyway_envelope::length::sealed_len;
use keyway_tests::client::{Client, get, once, put, request, stepwise, whole};
use keyway_tests::upstream::Scripted;
use keyway_tests::{Fleet, Hsm, eventually, random};
use sha2::Digest;
use std::collections::BTreeMap;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Around every boundary of segments and buffers.
const LENGTHS: [usize; 11] =
    [0, 1, 100, 16_383, 16_384, 16_385, 32_768, 131_072, 131_200, 1_000_000, 5_000_000];

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_length_come_back_bit_for_bit_over_http1_and_http2() {
    let fleet = Fleet::start(Hsm::Software).await;
    let mut http1 = Client::http1(fleet.data()).await.unwrap();
    let mut http2 = Client::http2(fleet.data()).await.unwrap();
    for len in LENGTHS {
        let body = random(len);
        for (name, client) in [("one", &mut http1), ("two", &mut http2)] {
            let path = format!("/objects/{name}-{len}");
            let stored = client.send(request(Method::PUT, &path, &[], whole(body.clone()))).await.unwrap();
            let _ = stored.expect(201);
            let opened = client.send(request(Method::GET, &path, &[], whole(""))).await.unwrap().expect(200);
            assert_eq!(opened.header("content-length"), len.to_string());
            assert!(opened.body == body, "{path} came back changed");
            let sealed = get(fleet.store(), &path).await.expect(200);
            assert_eq!(sealed.body.len() as u64, sealed_len(len as u64).unwrap());
            assert_eq!(sealed.body[..4], [0xFB, b'K', b'W', b'Y']);
            if len >= 100 {
                assert!(
                    !sealed.body.windows(32).any(|window| window == &body[..32]),
                    "plaintext in the store"
                );
            }
            let head = client.send(request(Method::HEAD, &path, &[], whole(""))).await.unwrap().expect(200);
            for name in ["content-length", "etag", "last-modified", "content-type"] {
                assert_eq!(head.header(name), opened.header(name), "HEAD and GET disagree on {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_sealed_as_it_comes() {
    let fleet = Fleet::start(Hsm::Software).await;
    let mut client = Client::http1(fleet.data()).await.unwrap();
    let (pieces, body) = stepwise();
    let sending = tokio::spawn(async move {
        client.send(request(Method::PUT, "/objects/chunked", &[], body)).await.unwrap()
    });
    let mut whole_body = Vec::new();
    for n in 0..50 {
        let piece = random(n * 997);
        whole_body.extend_from_slice(&piece);
        pieces.send(piece.into()).await.unwrap();
    }
    drop(pieces);
    let _ = sending.await.unwrap().expect(201);
    let opened = get(fleet.data(), "/objects/chunked").await.expect(200);
    assert!(opened.body == whole_body);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_those_of_the_plaintext() {
    let fleet = Fleet::start(Hsm::Software).await;
    for len in [0usize, 1, 16_384, 100_000] {
        let body = random(len);
        let path = format!("/objects/ranged-{len}");
        let _ = put(fleet.data(), &path, body.clone()).await.expect(201);
        for range in
            ["0-0", "0-", "-1", "-100", "16383-16384", "1-16384", "50000-99999", "99999-", "0-999999999"]
        {
            let asked = format!("bytes={range}");
            let answer = once(fleet.data(), Method::GET, &path, &[("range", &asked)], whole("")).await;
            match resolve(range, len) {
                Some((first, last)) => {
                    let answer = answer.expect(206);
                    assert!(answer.body == body[first..=last], "{asked} of {len}");
                    assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{len}"));
                    assert_eq!(answer.header("content-length"), (last - first + 1).to_string());
                }
                None => {
                    let answer = answer.expect(416);
                    assert_eq!(answer.header("content-range"), format!("bytes */{len}"));
                    assert_eq!(answer.code(), "range-unsatisfiable");
                }
            }
        }
        // Several ranges, another unit, nonsense: the whole.
        for odd in ["bytes=0-1,3-4", "lines=0-1", "bytes=nonsense"] {
            let answer =
                once(fleet.data(), Method::GET, &path, &[("range", odd)], whole("")).await.expect(200);
            assert!(answer.body == body);
        }
    }
}

fn resolve(range: &str, len: usize) -> Option<(usize, usize)> {
    let (first, last) = range.split_once('-').unwrap();
    let end = len.checked_sub(1)?;
    if first.is_empty() {
        return Some((len.saturating_sub(last.parse().unwrap()), end));
    }
    let first: usize = first.parse().unwrap();
    (first <= end).then(|| (first, last.parse().unwrap_or(end).min(end)))
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_work_on_the_tags_that_clients_see() {
    let fleet = Fleet::start(Hsm::Software).await;
    let body = random(40_000);
    let _ = put(fleet.data(), "/objects/tagged", body.clone()).await.expect(201);
    let seen = get(fleet.data(), "/objects/tagged").await.expect(200);
    let stored = get(fleet.store(), "/objects/tagged").await.expect(200);
    let etag = seen.header("etag").to_owned();
    assert_ne!(
        etag,
        stored.header("etag"),
        "a tag of the sealed bytes must not look like one of the plaintext"
    );
    let ask = async |headers: &[(&str, &str)]| {
        once(fleet.data(), Method::GET, "/objects/tagged", headers, whole("")).await
    };
    let unchanged = ask(&[("if-none-match", &etag)]).await.expect(304);
    assert!(unchanged.body.is_empty());
    assert_eq!(unchanged.header("etag"), etag);
    assert_eq!(unchanged.header("content-length"), "", "a 304 must not tell the sealed length");
    let _ = ask(&[("if-none-match", "\"other\"")]).await.expect(200);
    let _ = ask(&[("if-match", "\"other\"")]).await.expect(412);
    assert!(ask(&[("if-match", &etag)]).await.expect(200).body == body);
    let part = ask(&[("if-range", &etag), ("range", "bytes=5-9")]).await.expect(206);
    assert_eq!(part.body, body[5..=9]);
    assert!(ask(&[("if-range", "\"other\""), ("range", "bytes=5-9")]).await.expect(200).body == body);
    let gone = get(fleet.data(), "/objects/absent").await;
    assert_eq!(gone.status, 404, "the store's own errors pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_digests_are_checked_and_never_forwarded_stale() {
    let fleet = Fleet::start(Hsm::Software).await;
    let body = random(100_000);
    let sha256 = BASE64.encode(sha2::Sha256::digest(&body));
    let wrong = BASE64.encode(sha2::Sha256::digest(b"other"));
    let good: [(&str, String); 4] = [
        ("x-amz-checksum-sha256", sha256.clone()),
        ("digest", format!("SHA-256={sha256}")),
        ("repr-digest", format!("sha-256=:{sha256}:")),
        ("content-digest", format!("sha-256=:{sha256}:")),
    ];
    for (name, value) in &good {
        let path = format!("/objects/{name}");
        let _ =
            once(fleet.data(), Method::PUT, &path, &[(name, value)], whole(body.clone())).await.expect(201);
        for address in [fleet.store(), fleet.data()] {
            assert_eq!(
                get(address, &path).await.expect(200).header(name),
                "",
                "{name} is of other bytes there"
            );
        }
        let lie = value.replace(&sha256, &wrong);
        let refused = once(fleet.data(), Method::PUT, "/objects/lie", &[(name, &lie)], whole(body.clone()))
            .await
            .expect(400);
        assert_eq!(refused.code(), "digest-mismatch");
        assert_eq!(
            get(fleet.store(), "/objects/lie").await.status,
            404,
            "a body that was refused was stored"
        );
    }
    let refused =
        once(fleet.data(), Method::PUT, "/objects/x", &[("content-md5", "?")], whole("")).await.expect(400);
    assert_eq!(refused.code(), "digest-malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_encoding_is_sealed_as_it_is() {
    let fleet = Fleet::start(Hsm::Software).await;
    let compressed = random(5_000);
    let headers =
        [("content-encoding", "gzip"), ("content-type", "text/x-notes"), ("x-amz-meta-owner", "ops")];
    let put = once(fleet.data(), Method::PUT, "/objects/encoded", &headers, whole(compressed.clone())).await;
    let _ = put.expect(201);
    let answer = get(fleet.data(), "/objects/encoded").await.expect(200);
    assert!(answer.body == compressed);
    for (name, value) in headers {
        assert_eq!(answer.header(name), value);
    }
}

async fn raw(fleet: &Fleet, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(fleet.data()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn framing_that_can_be_read_two_ways_is_refused() {
    let fleet = Fleet::start(Hsm::Software).await;
    for (head, code) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "ambiguous-framing"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", "ambiguous-framing"),
    ] {
        let request =
            format!("PUT /objects/smuggled HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        let answer = raw(&fleet, request.as_bytes()).await;
        let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains(code), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    for head in
        ["Content-Length: 3\r\nContent-Length: 4", "Content-Length: +3", "Transfer-Encoding: identity, gzip"]
    {
        let request = format!("PUT /objects/smuggled HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\nabc");
        let answer = raw(&fleet, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head}: {answer}");
    }
    let long = format!(
        "GET /objects/x HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\nConnection: close\r\n\r\n",
        "y".repeat(70_000)
    );
    let answer = raw(&fleet, long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(get(fleet.store(), "/objects/smuggled").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_gets_its_continue() {
    let fleet = Fleet::start(Hsm::Software).await;
    let mut stream = TcpStream::connect(fleet.data()).await.unwrap();
    let head = "PUT /objects/expected HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(get(fleet.data(), "/objects/expected").await.expect(200).body, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_found_by_what_the_upstream_will_see() {
    let fleet = Fleet::start(Hsm::Software).await;
    for path in [
        "/open/../objects/x",
        "/open/%2e%2e/objects/x",
        "/open/%252e%252e/objects/x",
        "//objects/x",
        "/%6fbjects/x",
        "/open/..%2fobjects/x",
        "/open/../objects//../open/x",
        "/open/../objects/..;/open/x",
        "/objects/../open/x",
    ] {
        let answer = raw(
            &fleet,
            format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
                .as_bytes(),
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("ambiguous-path")
                || answer.starts_with("HTTP/1.1 404 "),
            "{path}: {answer}"
        );
    }
    let unrouted = get(fleet.data(), "/elsewhere").await.expect(404);
    assert_eq!(unrouted.code(), "no-route");
    let _ = put(fleet.data(), "/open/plain", "as it is").await.expect(201);
    assert_eq!(get(fleet.store(), "/open/plain").await.expect(200).body, b"as it is");
    assert_eq!(get(fleet.data(), "/open/plain").await.expect(200).body, b"as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_that_routes_is_the_host_that_the_upstream_sees() {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let response = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let scripted = Scripted::start(BTreeMap::from([("/x".to_owned(), response)])).await;
    let routes = r#"
      - { match: { host: "secure.test" }, keyring: payments/default, domain: orders, mode: body }
      - { match: { path: "/**" }, mode: pass }"#;
    fleet.start_proxy_as("proxy", "orders", &scripted.url(), "client", routes).await;
    fleet.wait_ready("proxy").await;
    let put = async |target: &str, hosts: &str| {
        raw(
            &fleet,
            format!("PUT {target} HTTP/1.1\r\n{hosts}Content-Length: 3\r\nConnection: close\r\n\r\nabc")
                .as_bytes(),
        )
        .await
    };
    for (target, hosts) in [("/x", ""), ("/x", "Host: public.test\r\nHost: secure.test\r\n")] {
        let answer = put(target, hosts).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("ambiguous-host"),
            "{hosts}: {answer}"
        );
    }
    assert!(scripted.heads().is_empty());
    // Sealed: the names that mean the protected host. The length tells.
    for (target, hosts) in [
        ("/x", "Host: secure.test\r\n"),
        ("/x", "Host: SECURE.test.:8080\r\n"),
        ("http://secure.test/x", "Host: public.test\r\n"),
    ] {
        assert!(put(target, hosts).await.contains("201"), "{target} {hosts}");
        let head = scripted.heads().pop().unwrap().to_lowercase();
        assert!(head.contains("content-length: 179"), "{head}");
        assert!(head.contains("host: secure.test") && !head.contains("public"), "{head}");
    }
    assert!(put("http://public.test/x", "Host: secure.test\r\n").await.contains("201"));
    let head = scripted.heads().pop().unwrap().to_lowercase();
    assert!(
        head.contains("content-length: 3") && head.contains("host: public.test") && !head.contains("secure"),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_go_through_and_stale_digests_in_them_do_not() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let _ = put(fleet.data(), "/objects/a", "hello").await.stored();
    let sealed = get(fleet.store(), "/objects/a").await.expect(200).body;
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-note, content-md5\r\n\r\n{:x}\r\n",
        sealed.len()
    )
    .into_bytes();
    response.extend_from_slice(&sealed);
    response.extend_from_slice(b"\r\n0\r\nx-note: kept\r\ncontent-md5: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n");
    let scripted = Scripted::start(BTreeMap::from([("/objects/trailed".to_owned(), response)])).await;
    fleet.start_proxy_as("proxy", "orders", &scripted.url(), "client", keyway_tests::fleet::ROUTES).await;
    fleet.wait_ready("proxy").await;
    let request = "GET /objects/trailed HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n"
        .as_bytes();
    let answer = raw(&fleet, request).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(body.contains("hello") && body.contains("x-note: kept"), "{answer}");
    assert!(!body.contains("content-md5"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_of_zero_is_no_content() {
    let fleet = Fleet::start(Hsm::Software).await;
    let body = random(20_000);
    let _ = put(fleet.data(), "/objects/zero", body.clone()).await.stored();
    let ask = async |method: &str, more: &str| {
        raw(
            &fleet,
            format!("{method} /objects/zero HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await
    };
    assert!(ask("GET", "Range: bytes=0-9\r\n").await.starts_with("HTTP/1.1 206 "));
    let head = ask("HEAD", "").await.to_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-length: 20000"), "{head}");
    assert!(ask("PUT", "").await.starts_with("HTTP/1.1 20"));
    assert!(
        get(fleet.data(), "/objects/zero").await.expect(200).body.is_empty(),
        "a PUT of nothing is an empty object"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let response =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-End: 1\r\n\r\nok";
    let scripted = Scripted::start(BTreeMap::from([("/open/x".to_owned(), response.to_vec())])).await;
    fleet.start_proxy_as("proxy", "orders", &scripted.url(), "client", keyway_tests::fleet::ROUTES).await;
    fleet.wait_ready("proxy").await;
    let headers = [("connection", "x-mine"), ("x-mine", "1"), ("te", "trailers"), ("x-kept", "1")];
    let answer = once(fleet.data(), Method::GET, "/open/x", &headers, whole("")).await.expect(200);
    assert_eq!((answer.header("x-hop"), answer.header("x-end")), ("", "1"));
    let head = scripted.heads().concat().to_lowercase();
    assert!(head.contains("x-kept: 1") && head.contains("via: 1.1 keyway"), "{head}");
    assert!(!head.contains("x-mine") && !head.contains("\r\nte:"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_and_its_http2_get_what_they_put() {
    let fleet = Fleet::start(Hsm::Software).await;
    let file = fleet.dir().join("file");
    std::fs::write(&file, random(3_000_000)).unwrap();
    let url = format!("http://{}/objects/curl", fleet.data());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let put = Command::new("curl").args(["-sSf", version, "-T"]).arg(&file).arg(&url).output().unwrap();
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        let got = Command::new("curl").args(["-sSf", version, &url]).output().unwrap();
        assert!(got.stdout == std::fs::read(&file).unwrap(), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_streams_end_and_sighup_takes_new_routes() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    // A reload that can't work keeps the old routes; one that can takes the new ones.
    let config = fleet.dir().join("proxy.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "listeners: [").unwrap();
    fleet.proxy_mut("proxy").signal(rustix::process::Signal::HUP);
    eventually("the refusal", async || fleet.proxy_mut("proxy").log().contains("not reloaded").then_some(()))
        .await;
    assert_eq!(get(fleet.data(), "/elsewhere").await.status, 404);
    let data = fleet.data().to_string();
    let text =
        text.replace("/open/**", "/elsewhere/**").replace("bind: 127.0.0.1:0", &format!("bind: {data}"));
    // The admin and data ports were asked for as 0, and stay what they are.
    let text = if text.contains(&data) { text.replace(&data, "127.0.0.1:0") } else { text };
    std::fs::write(&config, text).unwrap();
    fleet.proxy_mut("proxy").signal(rustix::process::Signal::HUP);
    let _ = eventually("the reload", async || {
        let answer = put(fleet.data(), "/elsewhere/x", "new").await;
        (answer.status == 201).then_some(answer)
    })
    .await;

    let mut client = Client::http1(fleet.data()).await.unwrap();
    let (pieces, body) = stepwise();
    let upload = tokio::spawn(async move {
        client.send(request(Method::PUT, "/objects/draining", &[], body)).await.unwrap()
    });
    pieces.send(vec![7; 100_000].into()).await.unwrap();
    let admin = fleet.admin_of("proxy");
    eventually("the upload to be under way", async || {
        let metrics = String::from_utf8(get(admin, "/metrics").await.body).unwrap();
        let line = "keyway_sealed_bytes_total{keyring=\"payments/default\",kek_version=\"1\"} ";
        let sealed = metrics.lines().find_map(|found| found.strip_prefix(line))?;
        (sealed.parse::<u64>().unwrap() >= 100_000).then_some(())
    })
    .await;
    let (data, process) = (fleet.data(), fleet.take_proxy("proxy"));
    let ended = tokio::task::spawn_blocking(move || process.terminate());
    eventually("the end of accepting", async || TcpStream::connect(data).await.is_err().then_some(())).await;
    pieces.send(vec![8; 100_000].into()).await.unwrap();
    drop(pieces);
    let _ = upload.await.unwrap().expect(201);
    assert!(ended.await.unwrap().success());
    fleet.start_proxy("proxy").await;
    assert_eq!(get(fleet.data(), "/objects/draining").await.expect(200).body.len(), 200_000);
}
