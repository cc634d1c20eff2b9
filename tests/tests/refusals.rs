//! Opening the wrong thing is tried, and refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::Method;
use keyway_envelope::length::{HEADER, SEALED_SEGMENT, SEGMENT};
use keyway_tests::client::{get, once, put, whole};
use keyway_tests::fleet::ROUTES;
use keyway_tests::upstream::Scripted;
use keyway_tests::{Fleet, Hsm, random};
use std::collections::BTreeMap;

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_on_a_protected_route() {
    let fleet = Fleet::start(Hsm::Software).await;
    for body in [Vec::new(), b"hello".to_vec(), random(200_000)] {
        let _ = put(fleet.store(), "/objects/plain", body).await.stored();
        let refused = get(fleet.data(), "/objects/plain").await.expect(502);
        assert_eq!(refused.code(), "plaintext-refused");
        let head = once(fleet.data(), Method::HEAD, "/objects/plain", &[], whole("")).await;
        assert_eq!(head.status, 502, "HEAD agrees with GET");
        let range = [("range", "bytes=0-1")];
        assert_eq!(once(fleet.data(), Method::GET, "/objects/plain", &range, whole("")).await.status, 502);
    }
    // A migrating route passes it, and counts it.
    let _ = put(fleet.store(), "/old/plain", "from before").await.stored();
    assert_eq!(get(fleet.data(), "/old/plain").await.expect(200).body, b"from before");
    let metrics = String::from_utf8(get(fleet.admin_of("proxy"), "/metrics").await.expect(200).body).unwrap();
    let count = |line: &str| {
        let value =
            metrics.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("{metrics}"));
        value.trim().parse::<u64>().unwrap()
    };
    assert_eq!(count(r#"keyway_plaintext_total{route="/old/**",action="migrated"}"#), 1);
    assert_eq!(count(r#"keyway_plaintext_total{route="/objects/**",action="refused"}"#), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn envelopes_of_another_domain_zone_tenant() {
    let fleet = Fleet::start(Hsm::Software).await;
    let copy = async |from: &str, to: &str, tenant: &str| {
        let sealed = get(fleet.store(), from).await.expect(200).body;
        let _ = put(fleet.store(), to, sealed).await.stored();
        let headers = [("x-tenant", tenant)];
        let answer = once(fleet.data(), Method::GET, to, &headers, whole("")).await;
        (answer.status.as_u16(), answer.code(), answer.body)
    };
    let _ = put(fleet.data(), "/objects/a", "orders").await.stored();
    let _ = put(fleet.data(), "/foreign/a", "the other zone's").await.stored();
    let tenant = [("x-tenant", "acme")];
    let _ = once(fleet.data(), Method::PUT, "/tenants/a", &tenant, whole("acme's")).await.stored();

    // Within the domain an object may be copied: the name of an object is not bound.
    assert_eq!(copy("/objects/a", "/objects/b", "-").await, (200, String::new(), b"orders".to_vec()));
    assert_eq!(copy("/tenants/a", "/tenants/b", "acme").await, (200, String::new(), b"acme's".to_vec()));
    for (from, to, tenant, what) in [
        ("/objects/a", "/invoices/a", "-", "another domain"),
        ("/foreign/a", "/objects/c", "-", "another zone"),
        ("/objects/a", "/foreign/c", "-", "another zone"),
        ("/tenants/a", "/tenants/c", "other", "another tenant"),
        ("/tenants/a", "/objects/d", "-", "a tenant's, where there is none"),
        ("/objects/a", "/tenants/d", "acme", "no tenant's, where there is one"),
    ] {
        let (status, code, _) = copy(from, to, tenant).await;
        assert_eq!((status, code.as_str()), (502, "open-failed"), "{what}");
    }
    let missing = get(fleet.data(), "/tenants/a").await.expect(400);
    assert_eq!(missing.code(), "tenant-missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_header_byte_flipped() {
    let fleet = Fleet::start(Hsm::Software).await;
    let _ = put(fleet.data(), "/objects/a", "hello").await.stored();
    let sealed = get(fleet.store(), "/objects/a").await.expect(200).body;
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1 << (at % 8);
        let _ = put(fleet.store(), "/objects/changed", changed).await.stored();
        let answer = get(fleet.data(), "/objects/changed").await;
        assert_eq!(answer.status, 502, "byte {at} was changed, and it opened");
        let code = answer.code();
        assert_eq!(code, if at < 4 { "plaintext-refused" } else { "open-failed" }, "byte {at}");
    }
    assert_eq!(get(fleet.data(), "/objects/a").await.expect(200).body, b"hello");
}

/// What came of a broken object: never all of it, and never a clean end.
async fn assert_no_clean_end(fleet: &Fleet, what: &str, plain: &[u8]) {
    let answer = get(fleet.data(), "/objects/broken").await;
    if answer.status == 200 {
        assert!(answer.broken.is_some(), "{what}: ended cleanly with {} bytes", answer.body.len());
        assert!(answer.body.len() < plain.len(), "{what}: every byte came out before the end was proved");
        assert!(plain.starts_with(&answer.body), "{what}: other bytes came out");
    } else {
        assert_eq!(answer.status, 502, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_cut_swapped_repeated_and_the_empty_last_one_broken() {
    let fleet = Fleet::start(Hsm::Software).await;
    let segments = 40;
    let plain = random(segments * SEGMENT);
    let _ = put(fleet.data(), "/objects/a", plain.clone()).await.stored();
    let sealed = get(fleet.store(), "/objects/a").await.expect(200).body;
    assert_eq!(sealed.len(), HEADER + segments * SEALED_SEGMENT + 16);
    let segment = |n: usize| HEADER + n * SEALED_SEGMENT..HEADER + (n + 1) * SEALED_SEGMENT;
    let store = async |bytes: Vec<u8>| drop(put(fleet.store(), "/objects/broken", bytes).await.stored());

    for n in 0..=segments {
        store(sealed[..HEADER + n * SEALED_SEGMENT].to_vec()).await;
        assert_no_clean_end(&fleet, &format!("cut behind segment {n}"), &plain).await;
    }
    for cut in [1, 15] {
        store(sealed[..sealed.len() - cut].to_vec()).await;
        assert_no_clean_end(&fleet, &format!("{cut} bytes cut off"), &plain).await;
    }
    for n in [0, 1, 20, segments - 1] {
        let mut without = sealed.clone();
        without.drain(segment(n));
        store(without).await;
        assert_no_clean_end(&fleet, &format!("segment {n} taken out"), &plain).await;
        let mut repeated = sealed[..segment(n).end].to_vec();
        repeated.extend_from_slice(&sealed[segment(n).start..]);
        store(repeated).await;
        assert_no_clean_end(&fleet, &format!("segment {n} repeated"), &plain).await;
    }
    let mut swapped = sealed.clone();
    swapped[segment(3)].copy_from_slice(&sealed[segment(4)]);
    swapped[segment(4)].copy_from_slice(&sealed[segment(3)]);
    store(swapped).await;
    assert_no_clean_end(&fleet, "segments 3 and 4 swapped", &plain).await;
    // Every plaintext byte stands in front of the empty last segment; Content-Length must not be reached without it.
    let mut last = sealed.clone();
    *last.last_mut().unwrap() ^= 1;
    store(last).await;
    assert_no_clean_end(&fleet, "the empty last segment broken", &plain).await;
    let mut longer = sealed.clone();
    longer.extend_from_slice(&[0; 100]);
    store(longer).await;
    assert_no_clean_end(&fleet, "bytes added", &plain).await;
    // Two objects spliced.
    let other = random(plain.len());
    let _ = put(fleet.data(), "/objects/b", other.clone()).await.stored();
    let mut spliced = get(fleet.store(), "/objects/b").await.expect(200).body;
    spliced[segment(7)].copy_from_slice(&sealed[segment(7)]);
    store(spliced).await;
    assert_no_clean_end(&fleet, "a segment of another object", &other).await;
    // Each of them is counted by its reason, also those that were found in the middle of a body.
    let metrics = String::from_utf8(get(fleet.admin_of("proxy"), "/metrics").await.expect(200).body).unwrap();
    for reason in ["tag", "length"] {
        let line = format!("keyway_open_failures_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&line), "{line} is missing:\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_off_or_lies() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let plain = random(30 * SEGMENT + 5);
    let _ = put(fleet.data(), "/objects/a", plain.clone()).await.stored();
    let sealed = get(fleet.store(), "/objects/a").await.expect(200).body;
    let half = &sealed[..sealed.len() / 2];
    let respond = |head: String, body: &[u8]| [head.as_bytes(), body].concat();
    let chunk = |body: &[u8]| [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat();
    let sized = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sealed.len());
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let responses = BTreeMap::from([
        ("/objects/short".to_owned(), respond(sized, half)),
        ("/objects/chunk-cut".to_owned(), respond(chunked.clone(), &chunk(half))),
        // A clean end of HTTP in the middle of the envelope.
        (
            "/objects/chunk-end".to_owned(),
            respond(chunked.clone(), &[&chunk(half)[..], b"0\r\n\r\n"].concat()),
        ),
        (
            "/objects/close-cut".to_owned(),
            respond("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(), half),
        ),
        // hyper believes Transfer-Encoding; whoever believed the length would end cleanly after 5 bytes.
        ("/objects/two-lengths".to_owned(), {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Length: 181\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            respond(head, &[&chunk(&sealed)[..], b"0\r\n\r\n"].concat())
        }),
        ("/objects/switch".to_owned(), b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nab".to_vec()),
        ("/objects/chunk-good".to_owned(), respond(chunked, &[&chunk(&sealed)[..], b"0\r\n\r\n"].concat())),
        ("/objects/part".to_owned(), b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\nab".to_vec()),
        ("/objects/none".to_owned(), Vec::new()),
        ("/objects/empty".to_owned(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
    ]);
    let scripted = Scripted::start(responses).await;
    fleet.start_proxy_as("scripted", "orders", &scripted.url(), "client", ROUTES).await;
    fleet.wait_ready("scripted").await;
    let data = fleet.data_of("scripted");
    for path in ["short", "chunk-cut", "chunk-end", "close-cut"] {
        let answer = get(data, &format!("/objects/{path}")).await;
        assert_eq!(answer.status, 200);
        assert!(
            answer.broken.is_some(),
            "{path}: a cut stream ended cleanly with {} bytes",
            answer.body.len()
        );
        assert!(answer.body.len() < plain.len() && plain.starts_with(&answer.body), "{path}");
    }
    assert!(get(data, "/objects/chunk-good").await.expect(200).body == plain);
    for path in ["two-lengths", "switch"] {
        assert_eq!(
            get(data, &format!("/objects/{path}")).await.expect(502).code(),
            "upstream-protocol",
            "{path}"
        );
    }
    assert_eq!(get(data, "/objects/part").await.expect(502).code(), "upstream-protocol");
    assert_eq!(get(data, "/objects/none").await.expect(502).code(), "upstream-unreachable");
    assert!(get(data, "/objects/empty").await.expect(204).body.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_of_sidecars_and_plaintext_towards_a_server() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    // client sidecar → server sidecar → store: plaintext at the two ends only.
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("server", "orders", &store, "server", ROUTES).await;
    fleet.wait_ready("server").await;
    let server = format!("http://{}", fleet.data_of("server"));
    fleet.start_proxy_as("client", "orders", &server, "client", ROUTES).await;
    fleet.wait_ready("client").await;
    let body = random(300_000);
    let _ = put(fleet.data_of("client"), "/objects/pair", body.clone()).await.stored();
    assert!(get(fleet.store(), "/objects/pair").await.expect(200).body == body, "the server sidecar opens");
    let between = get(fleet.data_of("server"), "/objects/pair").await.expect(200).body;
    assert_eq!(between[..4], [0xFB, b'K', b'W', b'Y'], "sealed between the two");
    let client = fleet.data_of("client");
    assert!(get(client, "/objects/pair").await.expect(200).body == body);
    let head = once(client, Method::HEAD, "/objects/pair", &[], whole("")).await.expect(200);
    assert_eq!(head.header("content-length"), body.len().to_string());
    let range =
        once(client, Method::GET, "/objects/pair", &[("range", "bytes=10-19")], whole("")).await.expect(200);
    assert!(range.body == body, "responses are sealed anew each time: a range of one is the whole");

    let refused = put(fleet.data_of("server"), "/objects/direct", "plaintext").await.expect(400);
    assert_eq!(refused.code(), "plaintext-refused");
    let mut broken = between;
    *broken.last_mut().unwrap() ^= 1;
    let refused = put(fleet.data_of("server"), "/objects/direct", broken).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "open-failed"));
    assert_eq!(get(fleet.store(), "/objects/direct").await.status, 404, "what did not open was stored");
}
