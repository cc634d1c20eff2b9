//! What one worker thread has for itself.
//!
//! A worker is one thread with one current-thread runtime, so what is its own lives in thread-locals: tasks stay `Send`
//! (a `LocalSet` would run up to 61 of them between two looks at the network and undo `event_interval`), and nothing
//! here is ever contended.

use keyway_envelope::length::SEALED_SEGMENT;
use keyway_keycache::{Reader, Snapshot};
use std::cell::RefCell;
use std::sync::Arc;

/// Sealed segments in one buffer: writes of 128 KiB.
const BUFFER_SEGMENTS: usize = 8;
/// Length of a buffer, in bytes.
pub(crate) const BUFFER: usize = BUFFER_SEGMENTS * SEALED_SEGMENT;
/// Buffers kept per worker (8 MiB).
const BUFFERS_KEPT: usize = 64;

thread_local! {
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
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

/// Lets go of an old snapshot that an idle worker would otherwise hold on to, and with it of old keys.
pub(crate) fn refresh() {
    READER.with(|slot| slot.borrow_mut().as_mut().map(|reader| reader.load().keyrings.len()));
}

/// A recycled buffer: out of this thread's pool, and back into one when dropped. Its old contents are not wiped;
/// they are overwritten before they are read.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Buffer {
    pub(crate) fn take() -> Self {
        let bytes = BUFFERS.with(|pool| pool.borrow_mut().pop());
        Self { bytes: bytes.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()), filled: 0 }
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
    pub(crate) fn freeze(self) -> bytes::Bytes {
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
        // A thread that is going away has no pool any more; then the buffer is simply freed.
        let _ = BUFFERS.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < BUFFERS_KEPT {
                pool.push(bytes);
            }
        });
    }
}
