//! What the tests of this crate share: fixed keys, a small object writer and reader, and drivers that cut the
//! streams wherever they are told to.

// A module of several test binaries; each takes what it needs.
#![allow(dead_code, unreachable_pub)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use keyway_envelope::length::{HEADER, SEALED_SEGMENT};
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{
    Context, ContextDigest, Dek, DekId, FormatError, Header, Implementation, KekRef, KekVersion, KeyBlock,
    KeyringId, MessageKeys, OpenError, Opener, Profile, SealError, Sealer, WrapMechanism, ZoneId, wrap_aad,
};
use proptest::test_runner::{Config, RngSeed};
use zeroize::Zeroizing;

pub const DEK: [u8; 32] = *b"data-encryption key, thirty-two.";
pub const KEK: [u8; 32] = *b"key-encryption key: thirty-two b";
pub const DEK_ID: DekId = DekId([0xD1; 16]);
pub const SALT: [u8; 24] = [0x5A; 24];
pub const ZONE: &str = "payments";
pub const TENANT: &str = "acme";
pub const DOMAIN: &str = "orders";

/// Lengths at which something changes: around empty, one segment, two, and a few more.
pub const EDGES: [usize; 15] =
    [0, 1, 15, 16, 17, 16383, 16384, 16385, 16400, 32767, 32768, 32769, 49151, 49152, 65536];

/// The same cases in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` ask for others.
pub fn cases(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(0x6B77_6179);
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config
}

pub fn dek() -> Dek {
    Dek::new(DEK_ID, Zeroizing::new(DEK))
}

pub fn context() -> ContextDigest {
    Context::object(ZONE, Some(TENANT), DOMAIN).digest()
}

pub fn keys() -> MessageKeys {
    dek().derive(&SALT, &context())
}

pub fn kek_ref() -> KekRef {
    KekRef { zone: ZoneId(1), keyring: KeyringId(7), version: KekVersion(3) }
}

/// `len` bytes whose period (251) never falls together with a segment.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// A DEK wrapped as a software keystore does: AES-256-GCM under `kek`.
pub fn wrap_gcm(
    kek: &[u8; 32],
    dek: &[u8; 32],
    dek_id: DekId,
    iv: [u8; 12],
    zone: &str,
    tenant: &str,
) -> KeyBlock {
    let aad = wrap_aad(kek_ref(), dek_id, WrapMechanism::AesGcm, zone, tenant);
    let mut wrapped = dek.to_vec();
    gcm(kek)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(&aad), &mut wrapped)
        .expect("a DEK is short");
    KeyBlock::inline(kek_ref(), dek_id, WrapMechanism::AesGcm, &[iv.as_slice(), &wrapped].concat()).unwrap()
}

/// The way back, from nothing but the block: `None` if it does not authenticate.
pub fn unwrap_gcm(kek: &[u8; 32], block: &KeyBlock, zone: &str, tenant: &str) -> Option<Dek> {
    let aad = wrap_aad(block.kek(), block.dek_id(), block.mechanism(), zone, tenant);
    let (iv, wrapped) = block.wrapped().split_first_chunk::<12>()?;
    let mut opened = wrapped.to_vec();
    let plain =
        gcm(kek).open_in_place(Nonce::assume_unique_for_key(*iv), Aad::from(&aad), &mut opened).ok()?;
    Some(Dek::new(block.dek_id(), Zeroizing::new((&*plain).try_into().ok()?)))
}

fn gcm(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap())
}

/// A whole object as the proxy stores it: header with an inline wrap, then segments.
pub fn object(plain: &[u8]) -> Vec<u8> {
    let key_block = wrap_gcm(&KEK, &DEK, DEK_ID, [0x1F; 12], ZONE, TENANT);
    let keys = keys();
    let header = Header { profile: Profile::Object, key_block, salt: SALT, commitment: *keys.commitment() };
    [header.to_bytes().as_slice(), &seal_whole(keys, Implementation::selected(), plain).unwrap()].concat()
}

/// Why an object was not opened, as far as its reader knows.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Format(FormatError),
    Profile,
    Unwrap,
    Open(OpenError),
}

/// A whole reader: header, profile, unwrap, commitment, segments.
pub fn open_object(bytes: &[u8], zone: &str, tenant: &str, domain: &str) -> Result<Vec<u8>, Refused> {
    let header = Header::parse(bytes).map_err(Refused::Format)?;
    if header.profile != Profile::Object {
        return Err(Refused::Profile);
    }
    let dek = unwrap_gcm(&KEK, &header.key_block, zone, tenant).ok_or(Refused::Unwrap)?;
    let keys = dek.derive(&header.salt, &Context::object(zone, Some(tenant), domain).digest());
    keys.verify(&header.commitment).map_err(Refused::Open)?;
    keyway_envelope::open::open_whole(keys, Implementation::selected(), &bytes[HEADER..])
        .map_err(Refused::Open)
}

/// Seals `plain` in pieces that end at `cuts`, into outputs of the sizes in `rooms` (over and over).
pub fn seal_in_pieces(
    keys: MessageKeys,
    implementation: Implementation,
    plain: &[u8],
    cuts: &[usize],
    rooms: &[usize],
) -> Result<Vec<u8>, SealError> {
    let mut sealer = Sealer::new(keys, implementation);
    let mut sealed = Vec::new();
    let mut rooms = rooms.iter().cycle();
    for piece in pieces(plain, cuts) {
        let mut rest = piece;
        loop {
            let mut out = vec![0xEE; *rooms.next().expect("a cycle has no end")];
            let done = sealer.update(rest, &mut out)?;
            assert!(out[done.produced..].iter().all(|&b| b == 0xEE), "written past what was reported");
            sealed.extend_from_slice(&out[..done.produced]);
            rest = &rest[done.consumed..];
            // An output that takes nothing is only offered once in a row: the next one has room.
            if done.produced == 0 {
                let mut out = vec![0; SEALED_SEGMENT];
                let done = sealer.update(rest, &mut out)?;
                sealed.extend_from_slice(&out[..done.produced]);
                rest = &rest[done.consumed..];
            }
            if rest.is_empty() {
                break;
            }
        }
    }
    let mut last = vec![0; SEALED_SEGMENT];
    // The last piece may have filled a segment that had no room yet.
    let done = sealer.update(&[], &mut last)?;
    sealed.extend_from_slice(&last[..done.produced]);
    let n = sealer.finish(&[], &mut last)?;
    sealed.extend_from_slice(&last[..n]);
    Ok(sealed)
}

/// What came out of an opener before it ended or failed.
#[derive(Debug)]
pub struct Opened {
    /// Everything that [`Opener::update`] gave.
    pub released: Vec<u8>,
    /// What [`Opener::finish`] gave, or the first error.
    pub end: Result<Vec<u8>, OpenError>,
}

impl Opened {
    pub fn whole(self) -> Result<Vec<u8>, OpenError> {
        let end = self.end?;
        Ok([self.released, end].concat())
    }
}

/// Feeds `segments` in pieces that end at `cuts`, into outputs of the sizes in `rooms` (over and over).
pub fn open_in_pieces(mut opener: Opener, segments: &[u8], cuts: &[usize], rooms: &[usize]) -> Opened {
    let mut released = Vec::new();
    let mut rooms = rooms.iter().cycle();
    for piece in pieces(segments, cuts) {
        let mut rest = piece;
        let mut room = *rooms.next().expect("a cycle has no end");
        loop {
            let mut out = vec![0xEE; room];
            let done = match opener.update(rest, &mut out) {
                Ok(done) => done,
                Err(error) => {
                    assert_eq!(opener.update(&[], &mut out), Err(OpenError::Poisoned), "a failure is final");
                    return Opened { released, end: Err(error) };
                }
            };
            let behind = &out[done.produced..];
            assert!(behind.iter().all(|&b| b == 0xEE || b == 0), "plaintext behind what was reported");
            released.extend_from_slice(&out[..done.produced]);
            rest = &rest[done.consumed..];
            if rest.is_empty() {
                break;
            }
            room = if done.produced == 0 { OPEN_ROOM } else { *rooms.next().expect("a cycle has no end") };
        }
    }
    let mut last = vec![0; OPEN_ROOM];
    // The last piece may have filled a segment that had no room yet.
    match opener.update(&[], &mut last) {
        Ok(done) => released.extend_from_slice(&last[..done.produced]),
        Err(error) => return Opened { released, end: Err(error) },
    }
    let end = opener.finish(&mut last).map(|n| last[..n].to_vec());
    Opened { released, end }
}

/// `bytes` cut at `cuts` (any order, taken modulo the length).
fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
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
