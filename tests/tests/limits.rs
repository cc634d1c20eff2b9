//! Peers that stall, hoard or abort: bounded, and never mistaken for a clean end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use keyway_tests::client::{get, put};
use keyway_tests::fleet::ROUTES;
use keyway_tests::{Fleet, Hsm, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A fleet whose sidecar has these settings of its own.
async fn fleet_with(settings: &str) -> Fleet {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("proxy", "orders", &store, "client", &format!("{ROUTES}\n{settings}")).await;
    fleet.wait_ready("proxy").await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_begins_and_ends_at_the_connection_limit_too() {
    let mut fleet = fleet_with("drain_timeout: 1s\nlimits: { connections: 3 }").await;
    let data = fleet.data();
    let mut hoarded = Vec::new();
    for _ in 0..10 {
        hoarded.push(TcpStream::connect(data).await.unwrap());
    }
    // An upload that never ends holds one of the places for certain.
    hoarded[0]
        .write_all(b"PUT /objects/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        .await
        .unwrap();
    let process = fleet.take_proxy("proxy");
    let ended = tokio::task::spawn_blocking(move || process.terminate()).await.unwrap();
    assert!(ended.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_and_stalled_bodies_are_let_go() {
    let fleet = fleet_with("limits: { idle_timeout: 1s, header_timeout: 1s }").await;
    let mut silent = TcpStream::connect(fleet.data()).await.unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "a connection that said nothing was answered");

    let mut slow_head = TcpStream::connect(fleet.data()).await.unwrap();
    slow_head.write_all(b"GET /objects/x HTTP/1.1\r\nHost:").await.unwrap();
    // Closed, with or without a reset: either way it is over.
    let _ = slow_head.read_to_end(&mut rest).await;

    // A head that is too large already, and never ends.
    let mut endless = TcpStream::connect(fleet.data()).await.unwrap();
    endless
        .write_all(format!("GET /objects/x HTTP/1.1\r\nX: {}", "y".repeat(70_000)).as_bytes())
        .await
        .unwrap();
    let _ = endless.read_to_end(&mut rest).await;

    let mut stalled = TcpStream::connect(fleet.data()).await.unwrap();
    stalled
        .write_all(b"PUT /objects/stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stalled.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("HTTP/1.1 408 ") && answer.contains("client-idle"), "{answer}");
    assert_eq!(get(fleet.store(), "/objects/stalled").await.status, 404, "half an upload was stored");
    let _ = put(fleet.data(), "/objects/x", "still serving").await.stored();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_upload_that_is_reset_is_never_stored_as_a_whole_object() {
    let fleet = Fleet::start(Hsm::Software).await;
    for (round, reason) in [h2::Reason::NO_ERROR, h2::Reason::CANCEL].into_iter().cycle().take(40).enumerate()
    {
        let stream = TcpStream::connect(fleet.data()).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let path = format!("http://keyway.test/objects/reset-{round}");
        let request = http::Request::builder().method("PUT").uri(path).body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from(vec![7; 1000 * (round + 1)]), false).unwrap();
        body.send_reset(reason);
        assert!(response.await.is_err());
        drop((client, body));
        let _ = connection.await;
    }
    // The last word of every exchange has been heard when a later upload is through.
    let _ = put(fleet.data(), "/objects/after", "x").await.stored();
    eventually("the sidecar to let go of its uploads", async || {
        let metrics = String::from_utf8(get(fleet.admin_of("proxy"), "/metrics").await.body).unwrap();
        metrics.contains("keyway_connections_active{listener=\"main\"} 0").then_some(())
    })
    .await;
    for round in 0..40 {
        let stored = get(fleet.store(), &format!("/objects/reset-{round}")).await;
        assert_eq!(stored.status, 404, "upload {round} was aborted, and stored as if it were whole");
    }
}
