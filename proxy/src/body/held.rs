//! The memory of bodies that are held whole.

use super::BodyError;
use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all of them may take together, in bytes, in the whole process.
const HELD_MAX: usize = 256 * 1024 * 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// One body's share.
#[derive(Debug, Default)]
pub(crate) struct Held(usize);

impl Held {
    /// # Errors
    /// [`BodyError::Overloaded`] if there is no room. Waiting for it could last for ever: bodies that are under way hold what
    /// they have until they are whole.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), BodyError> {
        if HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > HELD_MAX {
            HELD.fetch_sub(bytes, Ordering::Relaxed);
            return Err(BodyError::Overloaded);
        }
        self.0 += bytes;
        Ok(())
    }

    /// As [`Held::grow`], to `bytes` in all; may be less than before.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), BodyError> {
        if let Some(less) = self.0.checked_sub(bytes) {
            HELD.fetch_sub(less, Ordering::Relaxed);
            self.0 = bytes;
            return Ok(());
        }
        self.grow(bytes - self.0)
    }

    /// `bytes`, which take this share until they are written.
    pub(crate) fn keep(self, bytes: Bytes) -> Bytes {
        struct Kept(Bytes, #[expect(dead_code, reason = "held for its Drop")] Held);
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Kept(bytes, self))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_ends_with_its_bytes_and_the_whole_has_a_limit() {
        let mut one = Held::default();
        one.grow(HELD_MAX / 2).unwrap();
        let mut other = Held::default();
        assert!(matches!(other.grow(HELD_MAX), Err(BodyError::Overloaded)));
        let bytes = one.keep(Bytes::from_static(b"x"));
        assert!(other.grow(HELD_MAX * 3 / 4).is_err());
        let second = bytes.clone();
        drop(bytes);
        assert!(other.grow(HELD_MAX * 3 / 4).is_err());
        assert_eq!(second, &b"x"[..]);
        drop(second);
        other.grow(HELD_MAX * 3 / 4).unwrap();
    }
}
