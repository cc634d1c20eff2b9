//! The object store over real connections.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use keyway_cli::store::{self, Running, StoreConfig, StoreError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MD5: HeaderName = HeaderName::from_static("content-md5");
const USER: HeaderName = HeaderName::from_static("x-amz-meta-colour");

struct Store {
    running: Running,
    client: Client<HttpConnector, Full<Bytes>>,
    _dir: tempfile::TempDir,
}

fn free() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

impl Store {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running =
            store::start(StoreConfig { listen: free(), dir: dir.path().join("store") }).await.unwrap();
        Self { running, client: Client::builder(TokioExecutor::new()).build_http(), _dir: dir }
    }

    async fn start_h2() -> Self {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { client, ..Self::start().await }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: impl Into<Bytes>,
    ) -> (Response<()>, Bytes) {
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{path}", self.running.addr()));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let response = self.client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        (Response::from_parts(head, ()), body.collect().await.unwrap().to_bytes())
    }

    async fn get(&self, path: &str, headers: &[(HeaderName, &str)]) -> (Response<()>, Bytes) {
        self.ask(Method::GET, path, headers, "").await
    }

    async fn put(&self, path: &str, body: impl Into<Bytes>) -> Response<()> {
        self.ask(Method::PUT, path, &[], body).await.0
    }
}

fn header(response: &Response<()>, name: &HeaderName) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// Bytes that are nowhere the same, so that a shifted answer is noticed.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|n| u8::try_from((n * 31 + n / 251 + n / 65_521) % 256).unwrap()).collect()
}

#[tokio::test]
async fn what_is_put_comes_back_with_its_headers() {
    let store = Store::start().await;
    let headers = [
        (CONTENT_TYPE, "text/csv"),
        (CONTENT_ENCODING, "gzip"),
        (USER, "blue"),
        (HeaderName::from_static("x-other"), "no"),
    ];
    let (put, _) = store.ask(Method::PUT, "/a/b%20c", &headers, "hello").await;
    assert_eq!(put.status(), StatusCode::CREATED);
    let (got, body) = store.get("/a/b%20c", &[]).await;
    assert_eq!((got.status(), &body[..]), (StatusCode::OK, &b"hello"[..]));
    assert_eq!(header(&got, &CONTENT_LENGTH), "5");
    assert_eq!(header(&got, &CONTENT_TYPE), "text/csv");
    assert_eq!(header(&got, &CONTENT_ENCODING), "gzip");
    assert_eq!(header(&got, &USER), "blue");
    assert_eq!(header(&got, &ACCEPT_RANGES), "bytes");
    assert!(!got.headers().contains_key("x-other"));
    assert_eq!(header(&got, &ETAG), header(&put, &ETAG));
    assert!(httpdate::parse_http_date(&header(&got, &LAST_MODIFIED)).is_ok());

    let (head, body) = store.ask(Method::HEAD, "/a/b%20c", &[], "").await;
    assert_eq!((head.status(), body.len()), (StatusCode::OK, 0));
    for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, ETAG, LAST_MODIFIED, USER, ACCEPT_RANGES] {
        assert_eq!(header(&head, &name), header(&got, &name), "{name}");
    }
}

#[tokio::test]
async fn bodies_of_every_size_over_both_versions() {
    for store in [Store::start().await, Store::start_h2().await] {
        for len in [0, 1, 255 * 1024, 256 * 1024, 256 * 1024 + 1, 1024 * 1024, 5 * 1024 * 1024 + 7] {
            let bytes = pattern(len);
            store.put("/sizes", bytes.clone()).await;
            let (got, body) = store.get("/sizes", &[]).await;
            assert_eq!(header(&got, &CONTENT_LENGTH), len.to_string());
            assert!(body == bytes, "{len} bytes over {:?}", got.version());
        }
    }
}

#[tokio::test]
async fn a_chunked_body_is_stored_with_its_length() {
    let store = Store::start().await;
    let client: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
    let frames = pattern(700_000)
        .chunks(9_973)
        .map(|chunk| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::copy_from_slice(chunk))))
        .collect::<Vec<_>>();
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::put(format!("http://{}/chunked", store.running.addr())).body(body).unwrap();
    assert_eq!(client.request(request).await.unwrap().status(), StatusCode::CREATED);
    let (got, body) = store.get("/chunked", &[]).await;
    assert_eq!(header(&got, &CONTENT_LENGTH), "700000");
    assert!(body == pattern(700_000));
}

#[tokio::test]
async fn ranges() {
    let store = Store::start().await;
    let bytes = pattern(1_000_000);
    let etag = header(&store.put("/r", bytes.clone()).await, &ETAG);
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=999999-", 999_999, 999_999),
        ("bytes=-300000", 700_000, 999_999),
        ("bytes=5-900000", 5, 900_000),
    ] {
        let (got, body) = store.get("/r", &[(RANGE, range), (IF_RANGE, &etag)]).await;
        assert_eq!(got.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(header(&got, &CONTENT_RANGE), format!("bytes {first}-{last}/1000000"));
        assert_eq!(header(&got, &CONTENT_LENGTH), (last - first + 1).to_string());
        assert!(body == bytes.slice(first..=last), "{range}");
    }
    let (got, body) = store.get("/r", &[(RANGE, "bytes=1000000-")]).await;
    assert_eq!((got.status(), body.len()), (StatusCode::RANGE_NOT_SATISFIABLE, 0));
    assert_eq!(header(&got, &CONTENT_RANGE), "bytes */1000000");
    let (got, body) = store.get("/r", &[(RANGE, "bytes=0-0"), (IF_RANGE, "\"old\"")]).await;
    assert_eq!((got.status(), body.len()), (StatusCode::OK, 1_000_000));
    let (head, _) = store.ask(Method::HEAD, "/r", &[(RANGE, "bytes=0-0")], "").await;
    assert_eq!((head.status(), header(&head, &CONTENT_LENGTH).as_str()), (StatusCode::OK, "1000000"));
}

#[tokio::test]
async fn preconditions_guard_reads_and_writes() {
    let store = Store::start().await;
    let (got, _) = store.ask(Method::PUT, "/p", &[(IF_MATCH, "*")], "x").await;
    assert_eq!(got.status(), StatusCode::PRECONDITION_FAILED);
    let (got, _) = store.ask(Method::PUT, "/p", &[(IF_NONE_MATCH, "*")], "one").await;
    assert_eq!(got.status(), StatusCode::CREATED);
    let first = header(&got, &ETAG);
    let (got, _) = store.ask(Method::PUT, "/p", &[(IF_NONE_MATCH, "*")], "two").await;
    assert_eq!(got.status(), StatusCode::PRECONDITION_FAILED);
    let (got, body) = store.get("/p", &[(IF_NONE_MATCH, &first)]).await;
    assert_eq!((got.status(), body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(header(&got, &ETAG), first);

    let (got, _) = store.ask(Method::PUT, "/p", &[(IF_MATCH, &first)], "one").await;
    assert_eq!(got.status(), StatusCode::OK);
    let second = header(&got, &ETAG);
    assert_ne!(first, second, "the same bytes, but another write");
    let (got, _) = store.ask(Method::DELETE, "/p", &[(IF_MATCH, &first)], "").await;
    assert_eq!(got.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(store.get("/p", &[]).await.1, "one");
}

#[tokio::test]
async fn objects_are_replaced_listed_and_deleted() {
    let store = Store::start().await;
    for path in ["/d", "/d/e", "/d/", "/d/f%2Fg", "/other"] {
        assert_eq!(store.put(path, format!("body of {path}")).await.status(), StatusCode::CREATED);
    }
    assert_eq!(store.put("/d", "new").await.status(), StatusCode::OK);
    assert_eq!(store.get("/d", &[]).await.1, "new");
    assert_eq!(store.get("/d/e", &[]).await.1, "body of /d/e");
    let (_, json) = store.get("/d/?list", &[]).await;
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    let paths: Vec<_> = listed.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/d/", "/d/e", "/d/f%2Fg"]);
    assert_eq!(listed[1]["length"], 12);

    assert_eq!(store.ask(Method::DELETE, "/d", &[], "").await.0.status(), StatusCode::NO_CONTENT);
    assert_eq!(store.ask(Method::DELETE, "/d", &[], "").await.0.status(), StatusCode::NOT_FOUND);
    assert_eq!(store.get("/d", &[]).await.0.status(), StatusCode::NOT_FOUND);
    assert_eq!(store.get("/d/e", &[]).await.0.status(), StatusCode::OK);
    let (got, _) = store.ask(Method::PATCH, "/d/e", &[], "").await;
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_wrong_digest_keeps_nothing() {
    let store = Store::start().await;
    let (got, _) = store.ask(Method::PUT, "/m", &[(MD5, "XUFAKrxLKna5cZ2REBfFkg==")], "hello").await;
    assert_eq!(got.status(), StatusCode::CREATED);
    for wrong in ["XUFAKrxLKna5cZ2REBfFkg==", "nonsense"] {
        let (got, _) = store.ask(Method::PUT, "/m", &[(MD5, wrong)], "hallo").await;
        assert_eq!(got.status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(store.get("/m", &[]).await.1, "hello");
    assert_eq!(files_in_progress(&store), 0);
}

/// Sends raw bytes and reads until the server closes or has sent `until`.
async fn raw(store: &Store, bytes: &[u8], until: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(store.running.addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&answer).contains(until) {
        let n = stream.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..n]);
    }
    (stream, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_body_that_ends_early_is_no_object() {
    let store = Store::start().await;
    store.put("/cut", "whole").await;
    let mut stream = TcpStream::connect(store.running.addr()).await.unwrap();
    stream.write_all(b"PUT /cut HTTP/1.1\r\nhost: s\r\ncontent-length: 400000\r\n\r\n").await.unwrap();
    stream.write_all(&pattern(300_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    // The server closes when it has given the upload up.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(store.get("/cut", &[]).await.1, "whole");
    assert_eq!(files_in_progress(&store), 0);
}

#[tokio::test]
async fn continue_is_sent_only_for_a_body_that_is_wanted() {
    let store = Store::start().await;
    let head = "PUT /c HTTP/1.1\r\nhost: s\r\ncontent-length: 2\r\nexpect: 100-continue\r\n";
    let (mut stream, answer) = raw(&store, format!("{head}\r\n").as_bytes(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
    stream.write_all(b"ok").await.unwrap();
    let mut buffer = [0; 12];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 201");

    let (_, answer) = raw(&store, format!("{head}if-none-match: *\r\n\r\n").as_bytes(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
}

#[tokio::test]
async fn nothing_outside_the_directory_is_reached() {
    let store = Store::start().await;
    let secret = store._dir.path().join("secret@data");
    std::fs::write(&secret, "secret").unwrap();
    for path in ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "/.tmp/../../secret", "//../secret"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n");
        let (_, answer) = raw(&store, request.as_bytes(), "never").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let (_, answer) =
        raw(&store, b"GET /%zz HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n", "never").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_second_store_is_refused_and_a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let config = || StoreConfig { listen: free(), dir: dir.path().into() };
    let running = store::start(config()).await.unwrap();
    assert!(matches!(store::start(config()).await, Err(StoreError::Directory { .. })));
    let taken = StoreConfig { listen: running.addr(), dir: dir.path().join("other") };
    assert!(matches!(store::start(taken).await, Err(StoreError::Listen { .. })));

    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let put = Request::put(format!("http://{}/k", running.addr()))
        .header(CONTENT_TYPE, "a/b")
        .body(Full::from("kept"));
    let etag = client.request(put.unwrap()).await.unwrap().headers()[ETAG].clone();
    drop(client);
    running.shutdown().await;
    // What a crash leaves of an upload is gone after the next start.
    std::fs::write(dir.path().join(".tmp/left"), "over").unwrap();

    let store = store::start(config()).await.unwrap();
    assert!(!dir.path().join(".tmp/left").exists());
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let get = Request::get(format!("http://{}/k", store.addr())).body(Full::default()).unwrap();
    let response = client.request(get).await.unwrap();
    assert_eq!(response.headers()[ETAG], etag);
    assert_eq!(response.headers()[CONTENT_TYPE], "a/b");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "kept");
}

#[tokio::test]
async fn a_lost_side_file_costs_headers_and_not_bytes() {
    let store = Store::start().await;
    let put = store.put("/s", "bytes").await;
    std::fs::remove_file(store._dir.path().join("store/s@meta")).unwrap();
    let (got, body) = store.get("/s", &[]).await;
    assert_eq!(body, "bytes");
    assert_ne!(header(&got, &ETAG), header(&put, &ETAG));
    assert!(!header(&got, &ETAG).is_empty());
}

#[tokio::test]
async fn readers_see_one_object_or_the_other_while_it_is_replaced() {
    let store = Store::start().await;
    let bodies = [pattern(300_000), Bytes::from(vec![7; 500_000])];
    store.put("/swap", bodies[0].clone()).await;
    let writer = async {
        for n in 0..20 {
            store.put("/swap", bodies[n % 2].clone()).await;
        }
    };
    let reader = async {
        for _ in 0..40 {
            let (got, body) = store.get("/swap", &[]).await;
            assert_eq!(header(&got, &CONTENT_LENGTH), body.len().to_string());
            assert!(bodies.contains(&body), "{} bytes of neither", body.len());
        }
    };
    tokio::join!(writer, reader);
}

fn files_in_progress(store: &Store) -> usize {
    let temporary: &Path = &store._dir.path().join("store/.tmp");
    std::fs::read_dir(temporary).unwrap().count()
}
