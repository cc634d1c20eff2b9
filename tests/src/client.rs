//! An HTTP client that tells exactly how an exchange ended.

use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A request body.
pub type Body = BoxBody<Bytes, Infallible>;

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Everything that came.
    pub body: Vec<u8>,
    /// Why it did not end cleanly, if it did not.
    pub broken: Option<String>,
}

impl Answer {
    /// One header as text; empty if it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The error code of a problem+json answer.
    #[must_use]
    pub fn code(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let code = problem["type"].as_str().unwrap_or_default();
        code.strip_prefix("urn:keyway:error:").unwrap_or_default().to_owned()
    }

    /// # Panics
    /// Unless it says that an object was stored, new or in place of another.
    #[must_use]
    pub fn stored(self) -> Self {
        assert!(self.status.is_success(), "{} {:?}", self.status, self.headers);
        self
    }

    /// # Panics
    /// Unless it is this status, whole.
    #[must_use]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.broken, None, "broken off; {} {:?}", self.status, self.headers);
        assert_eq!(
            self.status.as_u16(),
            status,
            "{:?} {}",
            self.headers,
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

/// A whole body.
#[must_use]
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A body whose pieces the test sends one by one; it ends when the sender is dropped. No length is declared.
#[must_use]
pub fn stepwise() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let pieces = unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(Frame::data(piece)), receiver))
    });
    (sender, StreamBody::new(pieces).boxed())
}

/// One connection.
pub struct Client {
    sender: Sender,
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    /// Connects with HTTP/1.1.
    ///
    /// # Errors
    /// If it can't.
    pub async fn http1(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender: Sender::Http1(sender) })
    }

    /// Connects with HTTP/2, by prior knowledge.
    ///
    /// # Errors
    /// If it can't.
    pub async fn http2(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender: Sender::Http2(sender) })
    }

    /// Sends a request; gives the response's head with its body still to be read.
    ///
    /// # Errors
    /// If there is no response.
    pub async fn start(&mut self, request: Request<Body>) -> hyper::Result<http::Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                let (mut parts, body) = request.into_parts();
                let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
                parts.uri = format!("http://keyway.test{path}").parse().expect("built from a path");
                parts.headers.remove(http::header::HOST);
                sender.send_request(Request::from_parts(parts, body)).await
            }
        }
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// If there is no response at all.
    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Answer> {
        let response = self.start(request).await?;
        Ok(read(response).await)
    }
}

/// Reads a response to its end, clean or not.
pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let mut answer = Answer { status: head.status, headers: head.headers, body: Vec::new(), broken: None };
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    answer.body.extend_from_slice(&data);
                }
            }
            Err(error) => {
                answer.broken = Some(error.to_string());
                break;
            }
        }
    }
    answer
}

/// A request with these headers.
#[must_use]
pub fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "keyway.test");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body).expect("the test's own parts are well formed")
}

/// One request over a connection of its own.
///
/// # Panics
/// If there is no response.
pub async fn once(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Answer {
    let mut client = Client::http1(address).await.expect("the listener accepts");
    client.send(request(method, path, headers, body)).await.expect("every request is answered")
}

/// GET over a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    once(address, Method::GET, path, &[], whole("")).await
}

/// PUT over a connection of its own.
pub async fn put(address: SocketAddr, path: &str, body: impl Into<Bytes>) -> Answer {
    once(address, Method::PUT, path, &[], whole(body)).await
}
