//! HTTP/2: several requests under way on one connection.

use super::block;
use super::tally::Meter;
use super::target::{Request, Target};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use tokio::sync::{Mutex, watch};

// So much may come without being asked for: no download waits for this side. Frames stay at 16 KiB, as browsers, curl
// and gRPC leave them.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A connection with HTTP/2, made again when it is lost.
pub(super) struct Connection {
    target: Rc<Target>,
    request: http::Request<()>,
    upload: u64,
    expected: Option<u64>,
    current: RefCell<Option<Link>>,
    dialing: Mutex<()>,
    links: Cell<u64>,
}

/// One of the connections that have been.
#[derive(Clone)]
struct Link {
    number: u64,
    sender: SendRequest<Bytes>,
    /// Its sender is gone when the connection has ended.
    alive: watch::Receiver<()>,
}

/// The place of one request at a time.
pub(super) struct Stream {
    connection: Rc<Connection>,
    link: Option<Link>,
}

/// A request that did not come to its end.
enum Broken {
    /// Only this request; the connection serves on.
    Request(anyhow::Error),
    /// The connection.
    Link(anyhow::Error),
    /// The server takes no more requests on this connection, and has not looked at this one (RFC 9113, section 6.8).
    Unseen,
}

impl Connection {
    pub(super) fn new(target: Rc<Target>, number: usize) -> anyhow::Result<Rc<Self>> {
        let Request { method, host, path, upload, expected, is_tls } = target.request(number);
        let scheme = if is_tls { "https" } else { "http" };
        let mut request = http::Request::builder().method(method).uri(format!("{scheme}://{host}{path}"));
        if upload > 0 {
            request = request.header(http::header::CONTENT_LENGTH, upload);
        }
        let request = request.body(()).context("the path can't be asked for")?;
        Ok(Rc::new(Self {
            target,
            request,
            upload,
            expected,
            current: RefCell::new(None),
            dialing: Mutex::new(()),
            links: Cell::new(0),
        }))
    }

    /// The connection's present link; a new one if that is `lost`.
    async fn link(&self, lost: Option<u64>) -> anyhow::Result<Link> {
        // One stream dials, the others wait for it.
        let _dialing = self.dialing.lock().await;
        if let Some(link) = self.current.borrow().as_ref()
            && Some(link.number) != lost
        {
            return Ok(link.clone());
        }
        let wire = self.target.dial().await?;
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false);
        let (sender, driver) = builder.handshake::<_, Bytes>(wire).await.context("HTTP/2 handshake")?;
        let (ended, alive) = watch::channel(());
        tokio::task::spawn_local(async move {
            // Whoever waits for an answer is told the error.
            let _ = driver.await;
            drop(ended);
        });
        self.links.set(self.links.get() + 1);
        let link = Link { number: self.links.get(), sender, alive };
        *self.current.borrow_mut() = Some(link.clone());
        Ok(link)
    }
}

impl Stream {
    pub(super) fn new(connection: Rc<Connection>) -> Self {
        Self { connection, link: None }
    }

    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let mut lost = None;
        loop {
            let mut link = match self.link.take() {
                Some(link) => link,
                None => self.connection.link(lost).await?,
            };
            match poll_fn(|cx| link.sender.poll_ready(cx)).await {
                Ok(()) => {
                    self.link = Some(link);
                    return Ok(());
                }
                Err(error) => {
                    // Another stream may have opened the next one already. If not, `link` does.
                    lost = Some(link.number);
                    self.forget(link.number);
                    match broken(error) {
                        Broken::Unseen => {}
                        Broken::Request(error) | Broken::Link(error) => return Err(error),
                    }
                }
            }
        }
    }

    pub(super) async fn exchange(&mut self, meter: &mut Meter) -> anyhow::Result<()> {
        loop {
            let mut link = self.link.take().context("the connection was not opened")?;
            let number = link.number;
            let ended = self.connection.exchange(&mut link.sender, meter).await;
            match ended {
                Ok(()) => {
                    self.link = Some(link);
                    return Ok(());
                }
                Err(Broken::Request(error)) => {
                    self.link = Some(link);
                    return Err(error);
                }
                Err(Broken::Link(error)) => {
                    self.forget(number);
                    return Err(error);
                }
                Err(Broken::Unseen) => {
                    self.forget(number);
                    meter.taken_back();
                    self.ready().await?;
                }
            }
        }
    }

    pub(super) async fn closed(&mut self) {
        if let Some(link) = &mut self.link {
            // Nothing is ever sent: this ends when the sender is gone.
            let _ = link.alive.changed().await;
        }
    }

    fn forget(&self, number: u64) {
        let mut current = self.connection.current.borrow_mut();
        if current.as_ref().is_some_and(|link| link.number == number) {
            *current = None;
        }
    }
}

impl Connection {
    async fn exchange(&self, sender: &mut SendRequest<Bytes>, meter: &mut Meter) -> Result<(), Broken> {
        let (response, body) = sender.send_request(self.request.clone(), self.upload == 0).map_err(broken)?;
        let response =
            if self.upload == 0 { response.await } else { self.upload(response, body, meter).await? };
        let response = response.map_err(broken)?;
        let status = response.status();
        let counts = self.upload == 0 && status.is_success();
        let received = receive(response.into_body(), |bytes| {
            if counts {
                meter.moved(bytes);
            }
        });
        let received = received.await.map_err(broken)?;
        self.verdict(status, received).map_err(Broken::Request)
    }

    /// Sends the body, but no more of it than the server wants to see: it may answer at any time.
    async fn upload(
        &self,
        mut response: ResponseFuture,
        mut body: SendStream<Bytes>,
        meter: &mut Meter,
    ) -> Result<Result<http::Response<RecvStream>, h2::Error>, Broken> {
        let sent = {
            let sending = pin!(send(&mut body, self.upload, meter));
            match select(&mut response, sending).await {
                Either::Left((response, _)) => Err(response),
                Either::Right((sent, _)) => Ok(sent),
            }
        };
        match sent {
            // What became of a body that could not be sent is in the response, if there is one.
            Ok(Ok(())) => Ok(response.await),
            Ok(Err(error)) => match response.await {
                Ok(response) if !response.status().is_success() => Ok(Ok(response)),
                Ok(_) => Err(broken(error)),
                Err(error) => Err(broken(error)),
            },
            Err(Ok(response)) if response.status().is_success() => {
                body.send_reset(Reason::CANCEL);
                Err(Broken::Request(anyhow::anyhow!("answered before the body was whole")))
            }
            Err(response) => {
                body.send_reset(Reason::CANCEL);
                let response = response.map_err(broken)?;
                Err(Broken::Request(anyhow::anyhow!("status {}", response.status().as_u16())))
            }
        }
    }

    fn verdict(&self, status: http::StatusCode, body: u64) -> anyhow::Result<()> {
        ensure!(status.is_success(), "status {}", status.as_u16());
        match self.expected {
            Some(expected) if expected != body => anyhow::bail!("a body of {body} bytes, not {expected}"),
            _ => Ok(()),
        }
    }
}

async fn send(body: &mut SendStream<Bytes>, length: u64, meter: &mut Meter) -> Result<(), h2::Error> {
    let mut sent = 0;
    while sent < length {
        let mut piece = block::piece(sent, length);
        body.reserve_capacity(piece.len());
        let capacity = match poll_fn(|cx| body.poll_capacity(cx)).await {
            Some(capacity) => capacity?,
            None => return Err(Reason::STREAM_CLOSED.into()),
        };
        piece.truncate(capacity);
        let bytes = piece.len() as u64;
        sent += bytes;
        body.send_data(piece, sent == length)?;
        meter.moved(bytes);
    }
    Ok(())
}

async fn receive(mut body: RecvStream, mut moved: impl FnMut(u64)) -> Result<u64, h2::Error> {
    let mut received = 0;
    while let Some(data) = body.data().await {
        let bytes = data?.len();
        body.flow_control().release_capacity(bytes)?;
        moved(bytes as u64);
        received += bytes as u64;
    }
    Ok(received)
}

fn broken(error: h2::Error) -> Broken {
    let is_graceful = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    let is_link = error.is_go_away() || error.is_io();
    match anyhow::Error::new(error) {
        _ if is_graceful => Broken::Unseen,
        error if is_link => Broken::Link(error.context("the connection was lost")),
        error => Broken::Request(error.context("the request was cut off")),
    }
}
