//! What the fuzz targets share: one fixed key, plaintexts, and ways to cut and change bytes.

use arbitrary::Arbitrary;
use keyway_envelope::{Context, ContextDigest, Dek, DekId, Implementation, KekRef, KeyBlock, MessageKeys};
use zeroize::Zeroizing;

/// The id of the one DEK.
pub const DEK_ID: DekId = DekId([0xD1; 16]);
/// Salts are once per message; here every message is the first.
pub const SALT: [u8; 24] = [0x5A; 24];
/// Longest plaintext: four segments and a bit.
pub const PLAIN_MAX: usize = 70_000;

/// The one DEK.
pub fn dek() -> Dek {
    Dek::new(DEK_ID, Zeroizing::new([7; 32]))
}

/// The one context.
pub fn context() -> ContextDigest {
    Context::object("zone", None, "domain").digest()
}

/// Keys of the one message.
pub fn keys() -> MessageKeys {
    dek().derive(&SALT, &context())
}

/// A block that names the DEK.
pub fn reference() -> KeyBlock {
    KeyBlock::catalog(KekRef::from_bytes([0, 1, 0, 0, 0, 7, 0, 3]), DEK_ID)
}

/// `len` bytes (modulo the longest) with a period that no segment has.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len % PLAIN_MAX).map(|i| (i % 251) as u8).collect()
}

/// Which AES-256-GCM.
pub fn implementation(choice: u8) -> Implementation {
    Implementation::ALL[usize::from(choice) % 3]
}

/// Where a stream is cut, and how large the outputs are that it is given.
#[derive(Arbitrary, Debug)]
pub struct Pieces {
    cuts: Vec<u32>,
    rooms: Vec<u16>,
}

impl Pieces {
    /// `bytes`, cut. The last piece ends with them.
    pub fn cut<'a>(&self, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> =
            self.cuts.iter().take(64).map(|&cut| cut as usize % (bytes.len() + 1)).collect();
        at.push(bytes.len());
        at.sort_unstable();
        let mut from = 0;
        at.into_iter()
            .map(|to| {
                let piece = &bytes[from..to];
                from = to;
                piece
            })
            .collect()
    }

    /// Output sizes without end: those asked for in turn, and after each of them one that surely suffices.
    pub fn rooms(&self, enough: usize) -> impl Iterator<Item = usize> + '_ {
        let asked = self.rooms.iter().map(|&room| usize::from(room)).chain([enough]);
        asked.flat_map(move |room| [room, enough]).collect::<Vec<_>>().into_iter().cycle()
    }
}

/// A change to sealed bytes.
#[derive(Arbitrary, Debug)]
pub enum Change {
    /// Bits flipped in one byte.
    Flip(u32, u8),
    /// The end cut off.
    Truncate(u32),
    /// Bytes added.
    Append(Vec<u8>),
    /// Two runs of a full sealed segment's length exchanged.
    Swap(u8, u8),
    /// A run of a full sealed segment's length taken out.
    Remove(u8),
    /// … or there twice.
    Repeat(u8),
}

/// Sealed bytes of a full segment.
const SEALED: usize = 16_400;

impl Change {
    /// Applies it; a change that makes no sense here does nothing.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip(at, mask) if !bytes.is_empty() => {
                let at = *at as usize % bytes.len();
                bytes[at] ^= mask;
            }
            Self::Flip(..) => {}
            Self::Truncate(len) => bytes.truncate(*len as usize % (bytes.len() + 1)),
            Self::Append(more) => bytes.extend_from_slice(more),
            Self::Swap(..) | Self::Remove(_) | Self::Repeat(_) => {
                let mut runs: Vec<Vec<u8>> = bytes.chunks(SEALED).map(<[u8]>::to_vec).collect();
                let count = runs.len();
                if count == 0 {
                    return;
                }
                match *self {
                    Self::Swap(i, j) => runs.swap(usize::from(i) % count, usize::from(j) % count),
                    Self::Remove(i) => drop(runs.remove(usize::from(i) % count)),
                    Self::Repeat(i) => {
                        runs.insert(usize::from(i) % count, runs[usize::from(i) % count].clone())
                    }
                    _ => {}
                }
                *bytes = runs.concat();
            }
        }
    }
}
