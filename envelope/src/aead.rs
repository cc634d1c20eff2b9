//! AES-256-GCM three times, behind one small trait.
//!
//! Which implementation is fastest depends on the CPU and the build; which one is *right* is checked with known
//! answers before it serves. That is capability discovery for software: [`select`].

use crate::error::OpenError;
use crate::length::{SEGMENT, TAG};
use aes_gcm::aead::{AeadInOut, KeyInit, inout::InOutBuf};
use core::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// ``AES-256-GCM[key](nonce, associated data)`` over one segment or record, out of place.
///
/// A nonce is used once per key: callers hand in base nonce ⊕ index and never repeat an index.
pub trait SegmentKey: Send + Sync {
    /// Writes ciphertext ‖ tag; `out` is exactly 16 bytes longer than `plain`.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plain: &[u8], out: &mut [u8]);

    /// Writes the plaintext; `out` is exactly 16 bytes shorter than `sealed`.
    ///
    /// # Errors
    /// [`OpenError::Tag`], with `out` wiped.
    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), OpenError>;
}

/// An AES-256-GCM implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Implementation {
    /// AWS-LC through `aws-lc-rs`: VAES and AVX-512 where the CPU has them.
    AwsLc,
    /// `ring`.
    Ring,
    /// RustCrypto's `aes-gcm`.
    RustCrypto,
}

impl Implementation {
    /// All of them, the usually fastest first.
    pub const ALL: [Self; 3] = [Self::AwsLc, Self::Ring, Self::RustCrypto];

    /// Its name, as in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc-rs",
            Self::Ring => "ring",
            Self::RustCrypto => "aes-gcm",
        }
    }

    /// The key schedule of one message.
    #[must_use]
    pub fn key(self, key: &[u8; 32]) -> Box<dyn SegmentKey> {
        match self {
            Self::AwsLc => Box::new(AwsLcKey::new(key)),
            Self::Ring => Box::new(RingKey::new(key)),
            Self::RustCrypto => Box::new(RustCryptoKey(Box::new(aes_gcm::Aes256Gcm::new(key.into())))),
        }
    }

    /// Seals and opens published vectors, and must refuse a changed tag and a changed ciphertext.
    #[must_use]
    pub fn passes_known_answers(self) -> bool {
        KNOWN_ANSWERS.iter().all(|answer| {
            let key = self.key(&answer.key);
            let mut sealed = vec![0; answer.plain.len() + TAG];
            key.seal(answer.nonce, &[], answer.plain, &mut sealed);
            let mut opened = vec![0; answer.plain.len()];
            let opens = key.open(answer.nonce, &[], &sealed, &mut opened).is_ok() && opened == answer.plain;
            let refuses = [0, sealed.len() - 1].iter().all(|&at| {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                key.open(answer.nonce, &[], &changed, &mut opened).is_err() && opened.iter().all(|&b| b == 0)
            });
            sealed[..answer.plain.len()] == *answer.cipher
                && sealed[answer.plain.len()..] == answer.tag
                && opens
                && refuses
        })
    }

    /// The one that [`select`] chose; [`Implementation::AwsLc`] before that.
    #[must_use]
    pub fn selected() -> Self {
        match SELECTED.load(Ordering::Relaxed) {
            1 => Self::Ring,
            2 => Self::RustCrypto,
            _ => Self::AwsLc,
        }
    }
}

static SELECTED: AtomicU8 = AtomicU8::new(Implementation::AwsLc as u8);

/// What [`select`] found out about one implementation.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Which.
    pub implementation: Implementation,
    /// Whether its known answers are right; one that fails never serves.
    pub passes: bool,
    /// Best time to seal and open one full segment, in the unit of the clock that was handed in.
    pub ticks_per_segment: u64,
}

/// No implementation gives right answers: nothing may be sealed or opened on this machine.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no AES-256-GCM implementation passes its known-answer tests on this machine")]
pub struct NoneUsable;

/// Rounds in which [`select`] measures, every implementation once in each.
const ROUNDS: u8 = 48;

/// Checks every implementation, measures those that pass, and makes the fastest the one that serves.
///
/// `now` is the caller's clock (say, nanoseconds). Takes a few milliseconds. Call it once at start.
///
/// The implementations take turns, and the best turn of each counts: on a shared machine some turns are disturbed, and a
/// disturbance must not decide what serves until the next start.
///
/// # Errors
/// [`NoneUsable`] if none passes; the caller must not serve.
pub fn select(mut now: impl FnMut() -> u64) -> Result<[Measured; 3], NoneUsable> {
    let mut plain = vec![0x5A; SEGMENT];
    let mut sealed = vec![0; SEGMENT + TAG];
    let keys = Implementation::ALL.map(|implementation| implementation.key(&[7; 32]));
    let mut found = Implementation::ALL.map(|implementation| Measured {
        implementation,
        passes: implementation.passes_known_answers(),
        ticks_per_segment: u64::MAX,
    });
    for round in 0..ROUNDS {
        for (measured, key) in found.iter_mut().zip(&keys).filter(|(measured, _)| measured.passes) {
            let before = now();
            // A throw-away key and buffer: the nonce rule holds even so.
            key.seal([round; 12], &[], &plain, &mut sealed);
            let opens = key.open([round; 12], &[], &sealed, &mut plain).is_ok();
            let took = now().saturating_sub(before);
            measured.passes &= opens;
            measured.ticks_per_segment = measured.ticks_per_segment.min(took);
        }
    }
    let best = found.iter().filter(|m| m.passes).min_by_key(|m| m.ticks_per_segment).ok_or(NoneUsable)?;
    SELECTED.store(best.implementation as u8, Ordering::Relaxed);
    Ok(found)
}

struct AwsLcKey(aws_lc_rs::aead::LessSafeKey);

impl AwsLcKey {
    fn new(key: &[u8; 32]) -> Self {
        let key = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, key)
            .expect("32 bytes are an AES-256 key");
        Self(aws_lc_rs::aead::LessSafeKey::new(key))
    }
}

impl SegmentKey for AwsLcKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plain: &[u8], out: &mut [u8]) {
        use aws_lc_rs::aead::{Aad, Nonce};
        // Out of place: the plaintext goes in as "extra input", nothing is sealed in place.
        self.0
            .seal_in_place_scatter(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut [], plain, out)
            .expect("lengths are those that the trait asks for");
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), OpenError> {
        use aws_lc_rs::aead::{Aad, Nonce};
        let (cipher, tag) = sealed.split_at(sealed.len() - TAG);
        self.0
            .open_separate_gather(Nonce::assume_unique_for_key(nonce), Aad::from(aad), cipher, tag, out)
            .map_err(|_| refuse(out))
    }
}

struct RingKey(ring::aead::LessSafeKey);

impl RingKey {
    fn new(key: &[u8; 32]) -> Self {
        let key =
            ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key).expect("32 bytes are an AES-256 key");
        Self(ring::aead::LessSafeKey::new(key))
    }
}

impl SegmentKey for RingKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plain: &[u8], out: &mut [u8]) {
        use ring::aead::{Aad, Nonce};
        let (cipher, tag) = out.split_at_mut(plain.len());
        cipher.copy_from_slice(plain);
        let made = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), cipher)
            .expect("a segment is far below GCM's limit");
        tag.copy_from_slice(made.as_ref());
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), OpenError> {
        use ring::aead::{Aad, Nonce, Tag};
        let (cipher, tag) = sealed.split_at(sealed.len() - TAG);
        out.copy_from_slice(cipher);
        let tag = Tag::try_from(tag).map_err(|_| OpenError::Tag)?;
        self.0
            .open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), tag, out, 0..)
            .map(|_| ())
            .map_err(|_| refuse(out))
    }
}

struct RustCryptoKey(Box<aes_gcm::Aes256Gcm>);

impl SegmentKey for RustCryptoKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], plain: &[u8], out: &mut [u8]) {
        let (cipher, tag) = out.split_at_mut(plain.len());
        let buffer = InOutBuf::new(plain, cipher).expect("lengths are those that the trait asks for");
        let made = self
            .0
            .encrypt_inout_detached((&nonce).into(), aad, buffer)
            .expect("a segment is far below GCM's limit");
        tag.copy_from_slice(&made);
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), OpenError> {
        let (cipher, tag) = sealed.split_at(sealed.len() - TAG);
        let Some(tag) = tag.first_chunk::<TAG>() else { return Err(OpenError::Tag) };
        let opened = match InOutBuf::new(cipher, out) {
            Ok(buffer) => self.0.decrypt_inout_detached((&nonce).into(), aad, buffer, tag.into()).is_ok(),
            Err(_) => false,
        };
        if opened { Ok(()) } else { Err(refuse(out)) }
    }
}

/// Unverified plaintext is never left in a buffer.
fn refuse(out: &mut [u8]) -> OpenError {
    out.fill(0);
    OpenError::Tag
}

struct KnownAnswer {
    key: [u8; 32],
    nonce: [u8; 12],
    plain: &'static [u8],
    cipher: &'static [u8],
    tag: [u8; TAG],
}

/// Test cases 13, 14 and 15 of "The Galois/Counter Mode of Operation" (McGrew and Viega), AES-256.
const KNOWN_ANSWERS: [KnownAnswer; 3] = [
    KnownAnswer {
        key: [0; 32],
        nonce: [0; 12],
        plain: &[],
        cipher: &[],
        tag: [0x53, 0x0f, 0x8a, 0xfb, 0xc7, 0x45, 0x36, 0xb9, 0xa9, 0x63, 0xb4, 0xf1, 0xc4, 0xcb, 0x73, 0x8b],
    },
    KnownAnswer {
        key: [0; 32],
        nonce: [0; 12],
        plain: &[0; 16],
        cipher: &[
            0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e, 0x07, 0x4e, 0xc5, 0xd3, 0xba, 0xf3, 0x9d, 0x18,
        ],
        tag: [0xd0, 0xd1, 0xc8, 0xa7, 0x99, 0x99, 0x6b, 0xf0, 0x26, 0x5b, 0x98, 0xb5, 0xd4, 0x8a, 0xb9, 0x19],
    },
    KnownAnswer {
        key: [
            0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
            0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
        ],
        nonce: [0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce, 0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88],
        plain: &[
            0xd9, 0x31, 0x32, 0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59, 0x09, 0xc5, 0xaf, 0xf5, 0x26, 0x9a,
            0x86, 0xa7, 0xa9, 0x53, 0x15, 0x34, 0xf7, 0xda, 0x2e, 0x4c, 0x30, 0x3d, 0x8a, 0x31, 0x8a, 0x72,
            0x1c, 0x3c, 0x0c, 0x95, 0x95, 0x68, 0x09, 0x53, 0x2f, 0xcf, 0x0e, 0x24, 0x49, 0xa6, 0xb5, 0x25,
            0xb1, 0x6a, 0xed, 0xf5, 0xaa, 0x0d, 0xe6, 0x57, 0xba, 0x63, 0x7b, 0x39, 0x1a, 0xaf, 0xd2, 0x55,
        ],
        cipher: &[
            0x52, 0x2d, 0xc1, 0xf0, 0x99, 0x56, 0x7d, 0x07, 0xf4, 0x7f, 0x37, 0xa3, 0x2a, 0x84, 0x42, 0x7d,
            0x64, 0x3a, 0x8c, 0xdc, 0xbf, 0xe5, 0xc0, 0xc9, 0x75, 0x98, 0xa2, 0xbd, 0x25, 0x55, 0xd1, 0xaa,
            0x8c, 0xb0, 0x8e, 0x48, 0x59, 0x0d, 0xbb, 0x3d, 0xa7, 0xb0, 0x8b, 0x10, 0x56, 0x82, 0x88, 0x38,
            0xc5, 0xf6, 0x1e, 0x63, 0x93, 0xba, 0x7a, 0x0a, 0xbc, 0xc9, 0xf6, 0x62, 0x89, 0x80, 0x15, 0xad,
        ],
        tag: [0xb0, 0x94, 0xda, 0xc5, 0xd9, 0x34, 0x71, 0xbd, 0xec, 0x1a, 0x50, 0x22, 0x70, 0xe3, 0xcc, 0x6c],
    },
];

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
