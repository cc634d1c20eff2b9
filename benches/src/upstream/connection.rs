//! One connection of the store: a request, an answer, and again.

use super::answer::{Answer, Body, answer, sink};
use super::body::Incoming;
use super::request::Request;
use super::store::{Object, Store};
use crate::load::thread::YIELD_AFTER_BYTES;
use crate::load::wire::Wire;
use anyhow::{Context as _, ensure};
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};

/// Up to here a body is copied behind its head: cheaper than a second slice, and one TLS record less.
const COPIED_BYTES_MAX: u64 = 16 * 1024;

/// So many pieces go out in one write.
const SLICES: usize = 4;

/// What is read of a body that nobody wants, so that its sender sees the answer before the reset.
const UNWANTED_BYTES_MAX: usize = 1024 * 1024;

struct Connection {
    wire: Wire,
    /// What was read of the next request.
    pending: Vec<u8>,
    out: Vec<u8>,
}

/// Serves until either side has enough.
pub(super) async fn serve(wire: Wire, store: Rc<Store>) -> anyhow::Result<()> {
    let mut connection = Connection { wire, pending: Vec::new(), out: Vec::new() };
    loop {
        let request = match connection.head().await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(_) => return connection.refuse(Answer::status("400 Bad Request")).await,
        };
        let sink = match sink(&request) {
            Ok(sink) => sink,
            Err(answer) => return connection.refuse(answer).await,
        };
        let mut incoming = Incoming::new(request.framing, sink);
        let received = connection.body(&request, &mut incoming).await;
        match received {
            Ok(()) => {}
            Err(Unreadable::Lost(error)) => return Err(error.into()),
            Err(Unreadable::Refused) => return connection.refuse(Answer::status("400 Bad Request")).await,
        }
        let answer = answer(&request, incoming.into_sink(), &store);
        answer.write_head(Some(&request), &mut connection.out);
        connection.send(&answer.body).await?;
        if !request.keeps_alive {
            connection.wire.shutdown().await?;
            return Ok(());
        }
    }
}

/// Why the body of a request was not read.
enum Unreadable {
    Lost(std::io::Error),
    Refused,
}

impl Connection {
    /// The next request; none when the client is done.
    async fn head(&mut self) -> anyhow::Result<Option<Request>> {
        if !self.pending.is_empty()
            && let Some((length, request)) = Request::parse(&self.pending)?
        {
            self.pending.drain(..length);
            return Ok(Some(request));
        }
        loop {
            let Self { wire, pending, .. } = self;
            let read =
                poll_fn(|cx| wire.poll_read_with(cx, |read| (read.is_empty(), take_head(pending, read))));
            match read.await? {
                (_, Ok(Some(request))) => return Ok(Some(request)),
                (true, _) if self.pending.is_empty() => return Ok(None),
                (true, _) => anyhow::bail!("closed within a head"),
                (false, Ok(None)) => {}
                (false, Err(error)) => return Err(error),
            }
        }
    }

    async fn body(&mut self, request: &Request, incoming: &mut Incoming) -> Result<(), Unreadable> {
        if incoming.is_done() {
            return Ok(());
        }
        let left = incoming.feed(&self.pending).map_err(|_| Unreadable::Refused)?.len();
        self.pending.drain(..self.pending.len() - left);
        if request.expects_continue && !incoming.is_done() {
            self.wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(Unreadable::Lost)?;
            self.wire.flush().await.map_err(Unreadable::Lost)?;
        }
        let mut until_yield = YIELD_AFTER_BYTES;
        while !incoming.is_done() {
            let Self { wire, pending, .. } = self;
            let read = poll_fn(|cx| {
                wire.poll_read_with(cx, |read| {
                    incoming.feed(read).map(|rest| {
                        pending.extend_from_slice(rest);
                        read.len() as u64
                    })
                })
            });
            let read = read.await.map_err(Unreadable::Lost)?.map_err(|_| Unreadable::Refused)?;
            if read == 0 {
                return Err(Unreadable::Lost(std::io::ErrorKind::UnexpectedEof.into()));
            }
            until_yield = until_yield.saturating_sub(read);
            if until_yield == 0 {
                until_yield = YIELD_AFTER_BYTES;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Sends the head that was written, and `body`.
    async fn send(&mut self, body: &Body) -> anyhow::Result<()> {
        match body {
            Body::Text(text) => self.out.extend_from_slice(text),
            Body::Object(object, from, to) if to - from <= COPIED_BYTES_MAX => {
                let mut from = *from;
                while from < *to {
                    let piece = object.piece(from, *to);
                    ensure!(!piece.is_empty(), "an object that is shorter than it says");
                    self.out.extend_from_slice(piece);
                    from += piece.len() as u64;
                }
            }
            Body::Object(object, from, to) => self.send_object(object, *from, *to).await?,
            Body::Head(_) => {}
        }
        if !self.out.is_empty() {
            self.wire.write_all(&self.out).await?;
        }
        self.wire.flush().await.context("flushing")
    }

    /// Sends the head and the pieces, from where they lie. Leaves nothing of the head.
    async fn send_object(&mut self, object: &Object, mut from: u64, to: u64) -> anyhow::Result<()> {
        let (mut head, mut until_yield) = (0, YIELD_AFTER_BYTES);
        while head < self.out.len() || from < to {
            let Self { wire, out, .. } = self;
            let written = poll_fn(|cx| {
                let mut slices = [IoSlice::new(&[]); SLICES + 1];
                slices[0] = IoSlice::new(&out[head..]);
                let first = usize::from(head == out.len());
                let filled = object.slices(from, to, &mut slices[1..]);
                Pin::new(&mut *wire).poll_write_vectored(cx, &slices[first..=filled])
            });
            let written = written.await?;
            ensure!(written > 0, "the connection takes no more");
            let of_head = written.min(self.out.len() - head);
            head += of_head;
            from += (written - of_head) as u64;
            until_yield = until_yield.saturating_sub(written as u64);
            if until_yield == 0 {
                until_yield = YIELD_AFTER_BYTES;
                tokio::task::yield_now().await;
            }
        }
        self.out.clear();
        Ok(())
    }

    /// Answers, and ends the connection in a way that lets the client read it.
    async fn refuse(mut self, answer: Answer) -> anyhow::Result<()> {
        answer.write_head(None, &mut self.out);
        self.send(&answer.body).await?;
        self.wire.shutdown().await?;
        let mut unwanted = 0;
        while unwanted < UNWANTED_BYTES_MAX {
            match poll_fn(|cx| self.wire.poll_read_with(cx, <[u8]>::len)).await? {
                0 => break,
                read => unwanted += read,
            }
        }
        Ok(())
    }
}

/// Takes what one read brought; what is behind the head, or not a whole one, stays in `pending`.
fn take_head(pending: &mut Vec<u8>, read: &[u8]) -> anyhow::Result<Option<Request>> {
    if pending.is_empty() {
        return Ok(match Request::parse(read)? {
            Some((length, request)) => {
                pending.extend_from_slice(&read[length..]);
                Some(request)
            }
            None => {
                pending.extend_from_slice(read);
                None
            }
        });
    }
    pending.extend_from_slice(read);
    let parsed = Request::parse(pending)?;
    Ok(parsed.map(|(length, request)| {
        pending.drain(..length);
        request
    }))
}
