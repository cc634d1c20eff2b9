//! The shape of `docs/envelope-vectors.json`. Structs, so that the order of the fields is the same in every build.

// A module of a test binary.
#![allow(unreachable_pub)]

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub struct File {
    pub format: String,
    pub specification: String,
    pub pattern: String,
    pub object: Vec<Vector>,
    pub compact: Vec<Vector>,
    pub malformed: Vec<Malformed>,
    pub lengths: Vec<Lengths>,
    pub impossible_lengths: Vec<u64>,
    pub ranges: Vec<Range>,
}

/// A valid envelope, with everything that it is made of and what lies between.
#[derive(Clone, Serialize, Deserialize)]
pub struct Vector {
    pub name: String,
    pub dek: String,
    pub dek_id: String,
    pub kek: Option<String>,
    pub key_block: Block,
    pub context: Parts,
    pub salt: String,
    pub plain: Option<String>,
    pub plain_len: u64,
    pub plain_sha256: String,
    pub wrap_aad: Option<String>,
    pub key_block_bytes: String,
    pub context_bytes: String,
    pub message_key: String,
    pub base_nonce: String,
    pub commitment: String,
    pub envelope: Option<String>,
    pub envelope_len: u64,
    pub envelope_sha256: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Block {
    pub mechanism: u8,
    pub kek_ref: String,
    pub iv: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Parts {
    pub zone: String,
    pub tenant: Option<String>,
    pub domain: String,
    pub direction: u8,
    pub profile: u8,
    pub field: Option<String>,
    pub object_id: Option<String>,
    pub content_type: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Malformed {
    pub name: String,
    pub form: String,
    pub base: String,
    pub edits: Vec<Edit>,
    #[serde(rename = "override")]
    pub instead: Option<Override>,
    pub refusal: String,
}

/// What the reader has in place of the base's.
#[derive(Default, Serialize, Deserialize)]
pub struct Override {
    pub kek: Option<String>,
    pub dek: Option<String>,
    pub dek_id: Option<String>,
    pub context: Option<Parts>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edit {
    Xor(usize, u8),
    Set(usize, String),
    Truncate(usize),
    Append(String),
    Swap(usize, usize),
    Repeat(usize),
    Drop(usize),
}

#[derive(Serialize, Deserialize)]
pub struct Lengths {
    pub plain: u64,
    pub object: u64,
}

#[derive(Serialize, Deserialize)]
pub struct Range {
    pub plain_len: u64,
    pub first: u64,
    pub last: u64,
    pub from: u64,
    pub to: u64,
    pub skip: u64,
    pub take: u64,
}

impl Edit {
    /// Applies the edit; segments begin behind `header` bytes.
    pub fn apply(&self, bytes: &mut Vec<u8>, header: usize) {
        match self {
            Self::Xor(at, mask) => bytes[*at] ^= mask,
            Self::Set(at, hex) => {
                let new = hex::decode(hex).unwrap();
                bytes[*at..at + new.len()].copy_from_slice(&new);
            }
            Self::Truncate(len) => {
                assert!(*len < bytes.len());
                bytes.truncate(*len);
            }
            Self::Append(hex) => bytes.extend_from_slice(&hex::decode(hex).unwrap()),
            Self::Swap(..) | Self::Repeat(_) | Self::Drop(_) => {
                let mut segments: Vec<Vec<u8>> = bytes[header..].chunks(16_400).map(<[u8]>::to_vec).collect();
                match *self {
                    Self::Swap(i, j) => segments.swap(i, j),
                    Self::Repeat(i) => segments.insert(i, segments[i].clone()),
                    Self::Drop(i) => drop(segments.remove(i)),
                    _ => unreachable!("the outer match leaves these three"),
                }
                bytes.truncate(header);
                bytes.extend(segments.into_iter().flatten());
            }
        }
    }
}
