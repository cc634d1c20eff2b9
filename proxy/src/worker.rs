//! What one worker thread has for itself.
//!
//! A worker is one thread with one current-thread runtime, so what is its own lives in thread-locals: tasks stay `Send`
//! (a `LocalSet` would run up to 61 of them between two looks at the network and undo `event_interval`), and nothing
//! here is ever contended.

use futures_util::task::AtomicWaker;
use keyway_envelope::length::{SEALED_SEGMENT, SEGMENT};
use keyway_keycache::{Reader, Snapshot};
use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;

/// Length of a buffer, in bytes: eight sealed segments, for writes of 128 KiB.
const BUFFER: usize = 8 * SEALED_SEGMENT;
/// The same where many streams share the memory.
const SMALL_BUFFER: usize = 2 * SEALED_SEGMENT;
/// Buffers kept per worker (8 MiB).
const BUFFERS_KEPT: usize = 64;

thread_local! {
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// The snapshot that was last seen, not held.
    static SEEN: RefCell<Weak<Snapshot>> = const { RefCell::new(Weak::new()) };
    static CHANGES: watch::Sender<u64> = watch::Sender::new(0);
}

/// Gives this thread its view of the keyring.
pub(crate) fn attach(reader: Reader) {
    READER.with(|slot| *slot.borrow_mut() = Some(reader));
}

/// Looks at the current snapshot. Not across an await.
///
/// # Panics
/// On a thread that is no worker.
pub(crate) fn with_snapshot<T>(look: impl FnOnce(&Arc<Snapshot>) -> T) -> T {
    READER.with(|slot| look(slot.borrow_mut().as_mut().expect("workers attach a reader first").load()))
}

/// Lets go of an old snapshot that an idle worker would otherwise hold on to, and with it of old keys; tells those who
/// watch for [`changes`].
pub(crate) fn refresh() {
    let current = READER.with(|slot| slot.borrow_mut().as_mut().map(|reader| Arc::downgrade(reader.load())));
    let Some(current) = current else { return };
    SEEN.with(|seen| {
        let before = seen.replace(current);
        if !Weak::ptr_eq(&before, &seen.borrow()) {
            CHANGES.with(|changes| changes.send_modify(|count| *count += 1));
        }
    });
}

/// Tells when this worker has seen another keyring, within a second: for what lives long and may be idle.
pub(crate) fn changes() -> watch::Receiver<u64> {
    CHANGES.with(watch::Sender::subscribe)
}

/// Bytes that a connection may read before others have their turn.
const TURN: usize = 128 * 1024;

/// Keeps connections that move bulk from holding up those beside them.
///
/// A task that has read [`TURN`] bytes is run again only when all others that could run have run, and the network was
/// looked at for what has come in the meantime.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    read: usize,
}

impl Turn {
    /// Ready if more may be read now.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.read < TURN {
            return Poll::Ready(());
        }
        self.read = 0;
        // The runtime keeps the wake-up of a task that yields until it has looked at the network.
        ready!(pin!(tokio::task::yield_now()).poll(cx));
        Poll::Ready(())
    }

    /// Counts what was read.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.read += bytes;
    }
}

/// What the bodies of one worker may have in memory together, about, in bytes. A few of them get all that makes them
/// fast, a thousand get what they need to go on.
const STREAMS_MEMORY: usize = 64 * 1024 * 1024;
/// Up to so many bodies, reads are as large as hyper makes them.
const FEW_STREAMS: usize = 64;
/// Up to so many, buffers are large.
const SOME_STREAMS: usize = 128;

thread_local! {
    static STREAMS: Cell<usize> = const { Cell::new(0) };
}

/// One body under way on this worker, of whatever kind and direction.
#[derive(Debug)]
pub(crate) struct Stream(());

impl Stream {
    pub(crate) fn begin() -> Self {
        STREAMS.with(|streams| streams.set(streams.get() + 1));
        Self(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = STREAMS.try_with(|streams| streams.set(streams.get().saturating_sub(1)));
    }
}

/// Reads into `buf` no more than one body's share of the memory: how much comes at once decides how large hyper makes its
/// next read buffer.
pub(crate) fn poll_read_share<IO: AsyncRead + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<std::io::Result<()>> {
    let streams = STREAMS.get();
    let max = (STREAMS_MEMORY / 4 / streams.max(1)).clamp(SEGMENT, BUFFER);
    if streams <= FEW_STREAMS || buf.remaining() <= max {
        return Pin::new(io).poll_read(cx, buf);
    }
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(max));
    ready!(Pin::new(io).poll_read(cx, &mut part))?;
    let read = part.filled().len();
    buf.advance(read);
    Poll::Ready(Ok(()))
}

/// The bytes of one body that were made and not yet written. A reader who does not read makes its writer wait, and not
/// buffers pile up.
#[derive(Debug, Default)]
pub(crate) struct Unwritten(Arc<Outstanding>);

#[derive(Debug, Default)]
struct Outstanding {
    bytes: AtomicUsize,
    waker: AtomicWaker,
}

impl Unwritten {
    /// Ready if the body may make more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let max = (STREAMS_MEMORY / STREAMS.get().max(1)).clamp(2 * SMALL_BUFFER, 4 * BUFFER);
        let has_room = || self.0.bytes.load(Ordering::Acquire) < max;
        if has_room() {
            return Poll::Ready(());
        }
        self.0.waker.register(cx.waker());
        // What was written in between has woken nobody.
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A recycled buffer: out of this thread's pool, and back into one when dropped. Its old contents are not wiped;
/// they are overwritten before they are read.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    /// Whose bytes these are, once they are given away to be written.
    counted: Option<Arc<Outstanding>>,
}

impl Buffer {
    pub(crate) fn take() -> Self {
        let bytes = if STREAMS.get() > SOME_STREAMS {
            vec![0; SMALL_BUFFER].into_boxed_slice()
        } else {
            let kept = BUFFERS.with(|pool| pool.borrow_mut().pop());
            kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
        };
        Self { bytes, filled: 0, counted: None }
    }

    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
        debug_assert!(self.filled <= self.bytes.len());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The filled part, to be sent; the buffer comes back to the pool when that was written.
    pub(crate) fn freeze(mut self, unwritten: &Unwritten) -> bytes::Bytes {
        unwritten.0.bytes.fetch_add(self.bytes.len(), Ordering::Relaxed);
        self.counted = Some(Arc::clone(&unwritten.0));
        bytes::Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(outstanding) = self.counted.take() {
            outstanding.bytes.fetch_sub(bytes.len(), Ordering::Release);
            outstanding.waker.wake();
        }
        if bytes.len() != BUFFER {
            return;
        }
        // A thread that is going away has no pool any more; then the buffer is simply freed.
        let _ = BUFFERS.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < BUFFERS_KEPT {
                pool.push(bytes);
            }
        });
    }
}
