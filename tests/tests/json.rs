//! Mode json: what the selectors choose is sealed and comes back with its very token; all else passes byte for byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keyway_envelope::compact::Compact;
use keyway_envelope::{KeyBlockKind, field};
use keyway_tests::client::{Answer, Client, get, once, request, stepwise, whole};
use keyway_tests::{Fleet, Hsm};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const ROUTES: &str = r#"
      - match: { path: "/cards/**" }
        keyring: payments/default
        domain: cards
        mode: json
        fields: [ { select: "$.card.number" }, { select: "$.card" }, { select: "$.items[*].pan", inline: true }, { select: "$..secret" } ]
      - match: { path: "/kinds/**" }
        keyring: payments/default
        domain: cards
        mode: json
        fields: [ { select: "$.all[?@.kind == 'card'].number" } ]
      - match: { path: "/selfish/**" }
        keyring: payments/default
        domain: cards
        mode: json
        fields: [ { select: "$.all[?@.number == '4111'].number" } ]
      - match: { path: "/whole/**" }
        keyring: payments/default
        domain: cards
        mode: json
        fields: [ { select: "$" } ]
      - match: { path: "/old/**" }
        keyring: payments/default
        domain: cards
        mode: json
        on_plaintext: migrate
        migrate_until: "2099-01-01"
        fields: [ { select: "$.secret" } ]
limits: { json_body: 64KiB }"#;

async fn fleet() -> Fleet {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("proxy", "orders", &store, "client", ROUTES).await;
    fleet.wait_ready("proxy").await;
    fleet
}

async fn put(address: SocketAddr, path: &str, body: impl Into<Bytes>) -> Answer {
    once(address, Method::PUT, path, &[JSON], whole(body)).await
}

/// What is stored, as text.
async fn stored(fleet: &Fleet, path: &str) -> String {
    String::from_utf8(get(fleet.store(), path).await.expect(200).body).unwrap()
}

fn kind(value: &Value) -> KeyBlockKind {
    let bytes = field::decode(value.as_str().unwrap()).unwrap();
    Compact::parse(&bytes).unwrap().key_block.kind()
}

fn kek_version(value: &Value) -> u16 {
    let bytes = field::decode(value.as_str().unwrap()).unwrap();
    Compact::parse(&bytes).unwrap().key_block.kek().version.0
}

#[tokio::test(flavor = "multi_thread")]
async fn selected_values_are_sealed_and_everything_else_passes_byte_for_byte() {
    let fleet = fleet().await;
    let text = concat!(
        " {\"id\" : 7.10,\t\"card\": { \"number\": \"4111 1111\" , \"cvv\":1e400},\r\n",
        "\"items\":[{\"pan\":41.1000},{\"pan\":null,\"n\":0},{},{\"pan\":[true,{\"secret\":2}]}],",
        "\"\\u0061/b\":\"\\ud83d\\ude00\", \"deep\":{\"secret\":false,\"z\":-0.0} } "
    );
    let _ = put(fleet.data(), "/cards/a", text).await.stored();
    let sealed = stored(&fleet, "/cards/a").await;
    for secret in ["4111", "1e400", "41.1000", "[true", "\"secret\":false"] {
        assert!(!sealed.contains(secret), "{sealed}");
    }
    assert!(sealed.starts_with(" {\"id\" : 7.10,\t\"card\": \"keyway:1:"), "{sealed}");
    assert!(sealed.ends_with(",\"z\":-0.0} } "), "{sealed}");
    assert!(sealed.contains("\"\\u0061/b\":\"\\ud83d\\ude00\""), "{sealed}");
    assert_eq!(sealed.matches(field::PREFIX).count(), 5, "{sealed}");
    // By reference, and inline where the route says so.
    let document: Value = serde_json::from_str(&sealed).unwrap();
    assert_eq!(kind(&document["card"]), KeyBlockKind::Catalog);
    assert_eq!(kind(&document["items"][0]["pan"]), KeyBlockKind::Inline);
    let back = get(fleet.data(), "/cards/a").await.expect(200);
    assert_eq!(String::from_utf8(back.body).unwrap(), text);
    // Over HTTP/2, too; and each writing is another ciphertext.
    let mut client = Client::http2(fleet.data()).await.unwrap();
    let problem = ("content-type", "application/problem+json; charset=UTF-8");
    let again = client.send(request(Method::PUT, "/cards/b", &[problem], whole(text))).await.unwrap();
    let _ = again.stored();
    assert_ne!(stored(&fleet, "/cards/b").await, sealed);
    let back = client.send(request(Method::GET, "/cards/b", &[], whole(""))).await.unwrap().expect(200);
    assert_eq!(back.header("content-type"), problem.1);
    assert_eq!(String::from_utf8(back.body).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_without_such_fields_and_whole_documents() {
    let fleet = fleet().await;
    for (path, text) in [
        ("/cards/none", "{\"a\":[1,2,{\"b\":null}]}"),
        ("/cards/scalar", " 12.0 "),
        ("/whole/object", "{\"a\": 1}"),
        ("/whole/word", "  true\n"),
        ("/kinds/a", "{\"all\":[{\"kind\":\"card\",\"number\":1},{\"kind\":\"iban\",\"number\":2}]}"),
    ] {
        let _ = put(fleet.data(), path, text).await.stored();
        let sealed = stored(&fleet, path).await;
        assert_eq!(sealed.contains(field::PREFIX), !path.starts_with("/cards"), "{sealed}");
        let back = get(fleet.data(), path).await.expect(200).body;
        assert_eq!(String::from_utf8(back).unwrap(), text);
    }
    assert!(stored(&fleet, "/kinds/a").await.contains("{\"kind\":\"iban\",\"number\":2}"));
    // A long one, looked at on another thread.
    let long = format!("{{\"pad\":\"{}\",\"secret\":\"s\"}}", "x".repeat(60_000));
    let _ = put(fleet.data(), "/cards/long", long.clone()).await.stored();
    assert_eq!(get(fleet.data(), "/cards/long").await.expect(200).body, long.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sealed_for_certain_is_refused_and_not_stored() {
    let fleet = fleet().await;
    let sealed = format!("{{\"card\":\"{}\"}}", field::encode(&[0x11; 120]));
    let long = format!("{{\"pad\":\"{}\"}}", "x".repeat(70_000));
    let twice = "{\"card\":1,\"c\\u0061rd\":2}";
    let selfish = "{\"all\":[{\"number\":\"4111\"}]}";
    let gzip = ("content-encoding", "gzip");
    let md5 = ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
    for (path, headers, body, status, code) in [
        ("/cards/x", &[JSON][..], "{\"card\":", 400, "json-invalid"),
        ("/cards/x", &[JSON], "{} {}", 400, "json-invalid"),
        ("/cards/x", &[JSON], twice, 400, "json-invalid"),
        ("/selfish/x", &[JSON], selfish, 400, "json-invalid"),
        ("/cards/x", &[JSON], &sealed, 400, "already-sealed"),
        ("/cards/x", &[JSON], &long, 413, "too-large"),
        ("/cards/x", &[JSON, md5], "{}", 400, "digest-mismatch"),
        ("/cards/x", &[JSON, gzip], "{}", 415, "media-type"),
        ("/cards/x", &[], "{}", 415, "media-type"),
        ("/cards/x", &[("content-type", "text/plain")], "{\"card\":1}", 415, "media-type"),
        ("/cards/x", &[("content-type", "application/json-patch+json")], "[]", 415, "media-type"),
        ("/cards/x", &[JSON, ("content-range", "bytes 0-1/2")], "{}", 400, "partial-upload"),
        ("/cards/x", &[LINES], "{\"card\":1}\n{\"card\"\n", 400, "json-invalid"),
    ] {
        let body = whole(body.to_owned());
        let refused = once(fleet.data(), Method::PUT, path, headers, body).await.expect(status);
        assert_eq!(refused.code(), code, "{headers:?}");
        assert!(!String::from_utf8_lossy(&refused.body).contains("4111"));
        assert_eq!(get(fleet.store(), path).await.status, 404, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sealed_or_was_moved_does_not_come_out() {
    let fleet = fleet().await;
    let read = async |path: &str, text: &str| {
        let _ = put(fleet.store(), path, text.to_owned()).await.stored();
        let answer = get(fleet.data(), path).await;
        (answer.status.as_u16(), answer.code(), String::from_utf8_lossy(&answer.body).into_owned())
    };
    let (status, code, _) = read("/cards/p", "{\"card\":{\"number\":1}}").await;
    assert_eq!((status, code.as_str()), (502, "plaintext-refused"));
    // A migrating route passes it.
    let plain = "{\"secret\":\"from before\"}";
    assert_eq!(read("/old/p", plain).await, (200, String::new(), plain.to_owned()));

    let _ =
        put(fleet.data(), "/cards/m", "{\"items\":[{\"pan\":1},{\"pan\":2}],\"secret\":3}").await.stored();
    let document: Value = serde_json::from_str(&stored(&fleet, "/cards/m").await).unwrap();
    let (one, two) = (&document["items"][0]["pan"], &document["items"][1]["pan"]);
    let secret = &document["secret"];
    // Members of an array may change places, or be in another document.
    let moved = format!("{{\"items\":[{{\"pan\":{two}}},{{\"pan\":{one}}}]}}");
    assert_eq!(read("/cards/n", &moved).await.2, "{\"items\":[{\"pan\":2},{\"pan\":1}]}");
    // Another field's value is not this field's, whatever it says.
    let text = secret.as_str().unwrap();
    for broken in [
        format!("{{\"items\":[{{\"pan\":{secret}}}]}}"),
        format!("{{\"card\":{one}}}"),
        format!(
            "{{\"secret\":\"{}{}\"}}",
            &text[..text.len() - 1],
            if text.ends_with('A') { 'Q' } else { 'A' }
        ),
        format!("{{\"secret\":\"{}\"}}", &text[..text.len() - 8]),
        "{\"secret\":\"keyway:1:AAAA\"}".to_owned(),
    ] {
        let (status, code, _) = read("/cards/o", &broken).await;
        assert_eq!((status, code.as_str()), (502, "open-failed"), "{broken}");
    }
    let not_json =
        once(fleet.store(), Method::PUT, "/cards/t", &[("content-type", "text/plain")], whole("x"));
    let _ = not_json.await.stored();
    assert_eq!(get(fleet.data(), "/cards/t").await.expect(502).code(), "plaintext-refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_at_the_two_ends_only_when_two_sidecars_stand_in_a_row() {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("server", "orders", &store, "server", ROUTES).await;
    let server = format!("http://{}", fleet.data_of("server"));
    fleet.start_proxy_as("client", "orders", &server, "client", ROUTES).await;
    for name in ["server", "client"] {
        fleet.wait_ready(name).await;
    }
    let text = "{\"card\": {\"number\":\"4111\"}, \"id\":1}";
    let _ = put(fleet.data_of("client"), "/cards/a", text).await.stored();
    assert_eq!(stored(&fleet, "/cards/a").await, text);
    assert_eq!(get(fleet.data_of("client"), "/cards/a").await.expect(200).body, text.as_bytes());
    // Between the two it is sealed.
    let between = get(fleet.data_of("server"), "/cards/a").await.expect(200).body;
    let between = String::from_utf8(between).unwrap();
    assert!(between.starts_with("{\"card\": \"keyway:1:") && !between.contains("4111"), "{between}");
    // Plaintext is not taken by the server's sidecar, and a second client's sidecar is noticed.
    let refused = put(fleet.data_of("server"), "/cards/b", text).await.expect(400);
    assert_eq!(refused.code(), "plaintext-refused");
    let client = format!("http://{}", fleet.data_of("client"));
    fleet.start_proxy_as("another", "orders", &client, "client", ROUTES).await;
    fleet.wait_ready("another").await;
    let refused = put(fleet.data_of("another"), "/cards/c", text).await.expect(400);
    assert_eq!(refused.code(), "already-sealed");
}

/// A service that hands each frame of an upload to the test, and answers a GET with the frames that the test gives.
async fn service(answers: mpsc::Receiver<Bytes>) -> (SocketAddr, mpsc::Receiver<Bytes>) {
    let (came, uploads) = mpsc::channel::<Bytes>(16);
    let answers = Arc::new(Mutex::new(Some(answers)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (came, answers) = (came.clone(), Arc::clone(&answers));
            let serve = service_fn(move |request: Request<Incoming>| {
                let (came, answers) = (came.clone(), Arc::clone(&answers));
                async move {
                    let mut body = request.into_body();
                    while let Some(Ok(frame)) = body.frame().await {
                        came.send(frame.into_data().unwrap_or_default()).await.unwrap();
                    }
                    let answers = answers.lock().unwrap().take();
                    let frames = unfold(answers, |answers| async move {
                        let mut answers = answers?;
                        let line = answers.recv().await?;
                        Some((Ok::<_, Infallible>(Frame::data(line)), Some(answers)))
                    });
                    let response = Response::builder().header("content-type", LINES.1);
                    Ok::<_, Infallible>(response.body(StreamBody::new(frames)).unwrap())
                }
            });
            let io = TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, serve));
        }
    });
    (address, uploads)
}

/// Bytes up to the end of a line.
async fn line(pieces: &mut mpsc::Receiver<Bytes>) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.extend_from_slice(&pieces.recv().await.expect("a line comes"));
    }
    String::from_utf8(line).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_go_on_as_they_come_and_a_rotation_changes_the_key_between_them() {
    let (answers, given) = mpsc::channel(1);
    let (upstream, mut uploads) = service(given).await;
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    fleet.start_proxy_as("proxy", "orders", &format!("http://{upstream}"), "client", ROUTES).await;
    fleet.wait_ready("proxy").await;

    let mut client = Client::http1(fleet.data()).await.unwrap();
    let (pieces, body) = stepwise();
    let asking = tokio::spawn(async move {
        client.start(request(Method::POST, "/cards/feed", &[LINES], body)).await.unwrap()
    });
    let mut sealed = Vec::new();
    for (n, (piece, rest)) in
        [("{\"secret\":1,\"n\"", ":0}\n"), ("\n", "{\"secret\":\"two\"}\r\n")].iter().enumerate()
    {
        pieces.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        pieces.send(Bytes::from_static(rest.as_bytes())).await.unwrap();
        // It is there before the next one is sent.
        let mut came = line(&mut uploads).await;
        if n == 1 && came == "\n" {
            came = line(&mut uploads).await;
        }
        let value: Value = serde_json::from_str(came.trim()).unwrap();
        assert_eq!(kek_version(&value["secret"]), 1);
        sealed.push(came.trim().to_owned());
    }
    fleet.rotate().await;
    // The last line has no end.
    pieces.send(Bytes::from_static(b"{\"secret\":[3]}")).await.unwrap();
    drop(pieces);
    let last = uploads.recv().await.unwrap();
    let value: Value = serde_json::from_slice(&last).unwrap();
    assert_eq!(kek_version(&value["secret"]), 2, "the line after the rotation is under the new version");
    sealed.push(String::from_utf8(last.to_vec()).unwrap());

    // And back, each line before the next one is there.
    let expected = ["{\"secret\":1,\"n\":0}", "{\"secret\":\"two\"}", "{\"secret\":[3]}"];
    answers.send(Bytes::from(format!("{}\n", sealed[0]))).await.unwrap();
    let mut body = asking.await.unwrap().into_body();
    for (n, expected) in expected.iter().enumerate() {
        if n > 0 {
            answers.send(Bytes::from(format!("{}\n", sealed[n]))).await.unwrap();
        }
        let came = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(came, format!("{expected}\n").as_bytes());
    }
    // What is not sealed ends the stream, and not cleanly.
    answers.send(Bytes::from_static(b"{\"secret\":\"plain\"}\n")).await.unwrap();
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_were_sealed_before_a_rotation_open_after_it() {
    let fleet = fleet().await;
    let text = "{\"secret\":\"s\"}";
    let _ = put(fleet.data(), "/cards/before", text).await.stored();
    fleet.rotate().await;
    let _ = put(fleet.data(), "/cards/after", text).await.stored();
    for (path, version) in [("/cards/before", 1), ("/cards/after", 2)] {
        let value: Value = serde_json::from_str(&stored(&fleet, path).await).unwrap();
        assert_eq!(kek_version(&value["secret"]), version);
        assert_eq!(get(fleet.data(), path).await.expect(200).body, text.as_bytes());
    }
}
