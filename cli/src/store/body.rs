//! The body of a response: bytes at hand, or a part of a file read piece by piece.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rustix::buffer::spare_capacity;
use std::fs::File;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::JoinHandle;

/// Bytes read from a file at once. Large enough that a write to the socket is, too.
pub(super) const CHUNK: usize = 256 * 1024;

/// What the store answers with.
#[derive(Debug)]
pub(super) enum ObjectBody {
    /// At hand, or nothing.
    Bytes(Bytes),
    /// To be read.
    File(FileBody),
}

impl ObjectBody {
    pub(super) fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }
}

/// A part of a file; reads one chunk ahead of what the connection has taken, so that memory is constant.
#[derive(Debug)]
pub(super) struct FileBody {
    file: Arc<File>,
    /// First chunk, read together with the opening of the file.
    first: Option<Bytes>,
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
    /// Position of the next read.
    offset: u64,
    /// Bytes that no read was begun for.
    unread: u64,
    /// Bytes that were not given yet.
    remaining: u64,
}

impl FileBody {
    /// `len` bytes from `offset` on, of which `first` are already read.
    pub(super) fn new(file: File, offset: u64, len: u64, first: Bytes) -> Self {
        let read = first.len() as u64;
        Self {
            file: Arc::new(file),
            first: Some(first),
            ahead: None,
            offset: offset + read,
            unread: len - read,
            remaining: len,
        }
    }

    fn read_ahead(&mut self) {
        if self.unread == 0 || self.ahead.is_some() {
            return;
        }
        let len = chunk_len(self.unread);
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        self.ahead = Some(tokio::task::spawn_blocking(move || read_exact_at(&file, offset, len)));
        self.offset += len as u64;
        self.unread -= len as u64;
    }
}

/// The length of the next read.
pub(super) fn chunk_len(remaining: u64) -> usize {
    usize::try_from(remaining).unwrap_or(CHUNK).min(CHUNK)
}

/// Reads exactly `len` bytes; the file has them, unless somebody cut it.
pub(super) fn read_exact_at(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let position = offset + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut buffer), position) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(len);
    Ok(Bytes::from(buffer))
}

impl Body for ObjectBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let body = match &mut *self {
            Self::Bytes(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Bytes(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::File(body) => body,
        };
        if body.remaining == 0 {
            return Poll::Ready(None);
        }
        let chunk = match body.first.take() {
            Some(first) => first,
            None => {
                body.read_ahead();
                let Some(ahead) = &mut body.ahead else { return Poll::Ready(None) };
                let result = ready!(Pin::new(ahead).poll(cx));
                body.ahead = None;
                match result {
                    Ok(Ok(chunk)) => chunk,
                    Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                }
            }
        };
        body.read_ahead();
        body.remaining -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::File(body) => body.remaining == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(body) => body.remaining,
        })
    }
}
