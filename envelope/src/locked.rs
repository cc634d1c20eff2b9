//! Memory for keys: locked, left out of core dumps, wiped when it is given back.
//!
//! One of the two places in the workspace with `unsafe`: slots are cut out of anonymous mappings, which safe Rust can't do.
#![allow(unsafe_code)]

use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use std::sync::Mutex;
use zeroize::Zeroize;

/// Room of one slot, in bytes: a DEK with its HMAC state fits.
const SLOT: usize = 512;
/// Mapped at a time, in bytes (128 slots).
const CHUNK: usize = 64 * 1024;

/// Free slots. Chunks are never unmapped: the number of live keys is bounded by the cache that holds them.
static FREE: Mutex<Vec<Slot>> = Mutex::new(Vec::new());
static ALL_LOCKED: AtomicBool = AtomicBool::new(true);

#[derive(Clone, Copy)]
struct Slot(NonNull<u8>);

// SAFETY: a slot is a plain address of process-wide memory; whoever took it from `FREE` owns it alone.
unsafe impl Send for Slot {}

/// Whether every key slot so far could be locked into memory (`RLIMIT_MEMLOCK` permitting).
///
/// Keys still work if not; programs log it once.
#[must_use]
pub fn memory_is_locked() -> bool {
    ALL_LOCKED.load(Ordering::Relaxed)
}

fn take_slot() -> Slot {
    let mut free = FREE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(slot) = free.pop() {
        return slot;
    }
    // SAFETY: a fresh anonymous private mapping; nothing else points into it.
    let chunk = unsafe {
        mmap_anonymous(core::ptr::null_mut(), CHUNK, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }
    .expect("out of memory for keys");
    // SAFETY: the range is the mapping made above.
    if unsafe { mlock(chunk, CHUNK) }.is_err() {
        ALL_LOCKED.store(false, Ordering::Relaxed);
    }
    // A kernel without these keeps the keys usable; programs also switch core dumps off as a whole.
    for advice in [Advice::LinuxDontDump, Advice::LinuxWipeOnFork] {
        // SAFETY: as above; neither advice changes the contents seen by this process.
        let _ = unsafe { madvise(chunk, CHUNK, advice) };
    }
    for offset in (0..CHUNK).step_by(SLOT) {
        // SAFETY: offset < CHUNK, so the address stays inside the mapping.
        let at = unsafe { chunk.cast::<u8>().add(offset) };
        free.push(Slot(NonNull::new(at).expect("mmap does not return null")));
    }
    free.pop().expect("a chunk has 128 slots")
}

/// A value in a slot of locked memory. Dropped in place, then its bytes are wiped.
pub struct LockedBox<T> {
    slot: Slot,
    marker: core::marker::PhantomData<T>,
}

impl<T> LockedBox<T> {
    /// Moves `value` into a slot.
    #[must_use]
    pub fn new(value: T) -> Self {
        const {
            assert!(size_of::<T>() <= SLOT, "value does not fit a slot");
            assert!(align_of::<T>() <= 64, "slots are aligned to 64 bytes or more");
        }
        let slot = take_slot();
        // SAFETY: the slot is ours alone, large enough and aligned (asserted above; SLOT is a multiple of 64
        // and mappings begin at pages).
        unsafe { slot.0.cast::<T>().write(value) };
        Self { slot, marker: core::marker::PhantomData }
    }
}

impl<T> Deref for LockedBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has written a T here, and it lives until `drop`.
        unsafe { self.slot.0.cast::<T>().as_ref() }
    }
}

impl<T> Drop for LockedBox<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped once, here; after that the slot is plain bytes of ours, wiped whole.
        let bytes = unsafe {
            self.slot.0.cast::<T>().drop_in_place();
            core::slice::from_raw_parts_mut(self.slot.0.as_ptr(), SLOT)
        };
        bytes.zeroize();
        FREE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(self.slot);
    }
}

// SAFETY: the box owns its T, reached only through &self; so it is as sendable and shareable as T.
unsafe impl<T: Send> Send for LockedBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for LockedBox<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_slot_is_wiped() {
        let boxed = LockedBox::new([0xA5u8; 32]);
        let at = boxed.slot.0;
        assert_eq!(*boxed, [0xA5; 32]);
        // Hold the free list so that no other test takes the slot between the drop and the look.
        drop(boxed);
        let free = FREE.lock().unwrap();
        if free.iter().any(|slot| slot.0 == at) {
            // SAFETY: the slot is in the free list, which is locked: nobody owns it, and it stays mapped.
            let bytes = unsafe { core::slice::from_raw_parts(at.as_ptr(), SLOT) };
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn slots_are_distinct() {
        let boxes: Vec<_> = (0..300u16).map(|n| LockedBox::new([n; 16])).collect();
        assert!(boxes.iter().enumerate().all(|(n, b)| b.iter().all(|&v| usize::from(v) == n)));
    }
}
