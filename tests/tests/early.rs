//! Upstreams that answer before they have read the request: what they were promised still arrives, whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_envelope::length::sealed_len;
use keyway_tests::fleet::ROUTES;
use keyway_tests::{Fleet, Hsm, random};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// More than the sockets between client and upstream hold.
const UPLOAD: usize = 24 * 1024 * 1024;

/// Answers each connection's only request with `answer` as soon as its head is there, and reads on meanwhile. The task
/// gives the length of the content that came.
async fn answers_early(answer: usize) -> (SocketAddr, JoinHandle<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let length: u64 = length.trim().parse().unwrap();
        let (read, mut write) = stream.split();
        let mut content = read.take(length);
        let mut nowhere = tokio::io::sink();
        let (written, read) = tokio::join!(
            async {
                write
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {answer}\r\n\r\n").as_bytes())
                    .await?;
                write.write_all(&vec![b'a'; answer]).await
            },
            tokio::io::copy(&mut content, &mut nowhere),
        );
        written.unwrap();
        read.unwrap()
    });
    (address, serving)
}

/// A client that reads nothing until it has sent everything.
async fn upload_then_read(data: SocketAddr) -> (TcpStream, Vec<u8>) {
    let mut client = TcpStream::connect(data).await.unwrap();
    let head = format!("PUT /objects/early HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&random(UPLOAD)).await.unwrap();
    let mut answer = Vec::new();
    let mut piece = vec![0; 65536];
    let end = loop {
        let read = client.read(&mut piece).await.unwrap();
        assert!(read > 0, "the connection was closed after {} bytes", answer.len());
        answer.extend_from_slice(&piece[..read]);
        let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&answer[..head]).unwrap().to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let end = head + 4 + length.trim().parse::<usize>().unwrap();
        if answer.len() >= end {
            break head + 4;
        }
    };
    (client, answer.split_off(end))
}

async fn assert_whole(answer: usize) {
    let (upstream, serving) = answers_early(answer).await;
    let mut fleet = Fleet::start(Hsm::Software).await;
    fleet.start_proxy_as("early", "orders", &format!("http://{upstream}"), "client", ROUTES).await;
    fleet.wait_ready("early").await;
    let (_client, got) = upload_then_read(fleet.data_of("early")).await;
    assert!(got == vec![b'a'; answer], "{} bytes of the answer came", got.len());
    assert_eq!(serving.await.unwrap(), sealed_len(UPLOAD as u64).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_does_not_stop_the_upload_behind_it() {
    assert_whole(UPLOAD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_answer_does_not_cut_the_upload_off() {
    assert_whole(2).await;
}
