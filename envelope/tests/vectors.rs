//! `docs/envelope-vectors.json`: made here, compared with the committed file, and read back.
//!
//! `KEYWAY_WRITE_VECTORS=1 cargo test -p keyway-envelope --test vectors the_committed` writes the file anew. A change
//! in it is a change of the format: nobody's stored data opens any more, unless the version went up.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/malformed.rs"]
mod malformed;
#[path = "support/vectors.rs"]
mod model;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA512, KeyType, Prk};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use keyway_envelope::compact::{self, Compact};
use keyway_envelope::length::{HEADER, plain_len, range_plan, sealed_len};
use keyway_envelope::open::open_whole;
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{
    Context, Dek, DekId, Direction, FormatError, Header, Implementation, KekRef, KeyBlock, OpenError,
    Profile, WrapMechanism, kwp_context, wrap_aad,
};
use malformed::{COMPACT, COMPACT_INLINE, EMPTY, EMPTY_LAST, KWP, REFERENCE, SHORT, THREE};
use model::{Block, File, Lengths, Malformed, Override, Parts, Range, Vector};
use std::path::PathBuf;
use zeroize::Zeroizing;

const BY: Implementation = Implementation::AwsLc;
/// Longer plaintexts and envelopes stand in the file as pattern and hash.
const INLINE_MAX: usize = 512;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/envelope-vectors.json")
}

fn committed() -> File {
    serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap()
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

impl Parts {
    fn context(&self) -> Context<'_> {
        Context {
            zone: &self.zone,
            tenant: self.tenant.as_deref(),
            domain: &self.domain,
            direction: [Direction::AtRest, Direction::Request, Direction::Response]
                [usize::from(self.direction)],
            profile: Profile::from_byte(self.profile).unwrap(),
            field: self.field.as_deref(),
            object_id: self.object_id.as_deref(),
            content_type: self.content_type.as_deref(),
            peer_salt: None,
            chain: None,
        }
    }
}

/// A vector's inputs; [`Inputs::vector`] computes the rest.
struct Inputs {
    name: &'static str,
    mechanism: WrapMechanism,
    parts: Parts,
    plain: Vec<u8>,
    /// Tells keys, ids and salts of the vectors apart.
    number: u8,
}

impl Inputs {
    fn key_block(
        &self,
        kek: &[u8; 32],
        dek: &[u8; 32],
        dek_id: DekId,
        kek_ref: KekRef,
    ) -> (KeyBlock, Option<[u8; 12]>) {
        let tenant = self.parts.tenant.as_deref().unwrap_or("");
        let aad = wrap_aad(kek_ref, dek_id, self.mechanism, &self.parts.zone, tenant);
        let (wrapped, iv) = match self.mechanism {
            WrapMechanism::None => return (KeyBlock::catalog(kek_ref, dek_id), None),
            WrapMechanism::AesGcm => {
                let iv = [0xC0 ^ self.number; 12];
                (gcm_wrap(kek, dek, iv, &aad), Some(iv))
            }
            WrapMechanism::AesKwp => {
                let both = [dek.as_slice(), &kwp_context(&aad)].concat();
                let mut out = [0; 56];
                let kek = AesKek::new(&AES_256, kek).unwrap();
                (kek.wrap_with_padding(&both, &mut out).unwrap().to_vec(), None)
            }
        };
        (KeyBlock::inline(kek_ref, dek_id, self.mechanism, &wrapped).unwrap(), iv)
    }

    fn vector(&self, form: &str) -> Vector {
        let n = self.number;
        let (dek, kek): ([u8; 32], [u8; 32]) = (sequence(n), sequence(n ^ 0x80));
        let dek_id =
            DekId(std::array::from_fn(|i| n.wrapping_add(0xD0).wrapping_add(u8::try_from(i).unwrap())));
        let kek_ref = KekRef::from_bytes([0, 1, 0, 0, 0, 7, 0, n]);
        let salt = [0x50 ^ n; 24];
        let (key_block, iv) = self.key_block(&kek, &dek, dek_id, kek_ref);
        let digest = self.parts.context().digest();
        let context_bytes = digest.for_dek(dek_id);
        let derived = expand(&dek, &salt, &context_bytes);
        let key = Dek::new(dek_id, Zeroizing::new(dek));
        let keys = key.derive(&salt, &digest);
        assert_eq!(keys.commitment(), &derived[44..], "two HKDF implementations agree");
        let envelope = if form == "object" {
            let profile = Profile::from_byte(self.parts.profile).unwrap();
            let header = Header { profile, key_block, salt, commitment: *keys.commitment() };
            [header.to_bytes().as_slice(), &seal_whole(keys, BY, &self.plain).unwrap()].concat()
        } else {
            compact::seal(&key, &key_block, salt, &digest, BY, &self.plain).unwrap()
        };
        let tenant = self.parts.tenant.as_deref().unwrap_or("");
        let inline = self.mechanism != WrapMechanism::None;
        let aad = wrap_aad(kek_ref, dek_id, self.mechanism, &self.parts.zone, tenant);
        Vector {
            name: self.name.into(),
            dek: hex::encode(dek),
            dek_id: dek_id.to_string(),
            kek: inline.then(|| hex::encode(kek)),
            key_block: Block {
                mechanism: self.mechanism.to_byte(),
                kek_ref: hex::encode(kek_ref.to_bytes()),
                iv: iv.map(hex::encode),
            },
            context: self.parts.clone(),
            salt: hex::encode(salt),
            plain: (self.plain.len() <= INLINE_MAX).then(|| hex::encode(&self.plain)),
            plain_len: self.plain.len() as u64,
            plain_sha256: sha256(&self.plain),
            wrap_aad: inline.then(|| hex::encode(aad)),
            key_block_bytes: hex::encode(key_block.to_bytes()),
            context_bytes: hex::encode(context_bytes),
            message_key: hex::encode(&derived[..32]),
            base_nonce: hex::encode(&derived[32..44]),
            commitment: hex::encode(&derived[44..]),
            envelope: (envelope.len() <= INLINE_MAX).then(|| hex::encode(&envelope)),
            envelope_len: envelope.len() as u64,
            envelope_sha256: sha256(&envelope),
        }
    }
}

fn sequence(start: u8) -> [u8; 32] {
    std::array::from_fn(|i| start.wrapping_mul(31).wrapping_add(u8::try_from(i).unwrap()))
}

fn gcm_wrap(kek: &[u8; 32], dek: &[u8; 32], iv: [u8; 12], aad: &[u8]) -> Vec<u8> {
    let kek = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, kek).unwrap());
    let mut out = dek.to_vec();
    kek.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut out).unwrap();
    [iv.as_slice(), &out].concat()
}

struct SeventySix;

impl KeyType for SeventySix {
    fn len(&self) -> usize {
        76
    }
}

/// The derivation of the specification, by an implementation that the crate does not use.
fn expand(dek: &[u8; 32], salt: &[u8; 24], context: &[u8]) -> [u8; 76] {
    let prk = Prk::new_less_safe(HKDF_SHA512, dek);
    let info: [&[u8]; 3] = [b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0", salt, context];
    let mut out = [0; 76];
    prk.expand(&info, SeventySix).unwrap().fill(&mut out).unwrap();
    out
}

fn at_rest(tenant: Option<&str>) -> Parts {
    Parts {
        zone: "payments".into(),
        tenant: tenant.map(Into::into),
        domain: "orders".into(),
        direction: 0,
        profile: 1,
        field: None,
        object_id: None,
        content_type: None,
    }
}

fn objects() -> Vec<Vector> {
    use WrapMechanism::{AesGcm, AesKwp, None as Reference};
    let acme = || at_rest(Some("acme"));
    let mut number = 0;
    let mut vector = |name, mechanism, parts, len| {
        number += 1;
        Inputs { name, mechanism, parts, plain: pattern(len), number }.vector("object")
    };
    vec![
        vector(EMPTY, AesGcm, at_rest(None), 0),
        vector(SHORT, AesGcm, acme(), 100),
        vector(REFERENCE, Reference, acme(), 16),
        vector(KWP, AesKwp, acme(), 16),
        vector("tenant present but empty", AesGcm, at_rest(Some("")), 1),
        vector(
            "names in UTF-8",
            AesGcm,
            Parts { domain: "aufträge/订单".into(), ..at_rest(Some("größe")) },
            33,
        ),
        vector(
            "every part of a context, response",
            AesGcm,
            Parts {
                direction: 2,
                object_id: Some("7".into()),
                content_type: Some("image/png".into()),
                ..acme()
            },
            64,
        ),
        vector(
            "known answer",
            AesGcm,
            Parts { profile: 0x7F, domain: "keyway:known-answer".into(), ..at_rest(None) },
            32,
        ),
        vector("inline AES-GCM, one byte short of a full segment", AesGcm, acme(), 16383),
        vector("inline AES-GCM, one full segment and an empty one", AesGcm, acme(), 16384),
        vector("inline AES-GCM, one full segment and a byte", AesGcm, acme(), 16385),
        vector(EMPTY_LAST, AesGcm, acme(), 32768),
        vector(THREE, AesGcm, acme(), 32773),
        // The segment number leaves its lowest byte.
        vector("reference, 257 full segments and 3 bytes", Reference, acme(), 257 * 16384 + 3),
    ]
}

fn compacts() -> Vec<Vector> {
    use WrapMechanism::{AesGcm, AesKwp, None as Reference};
    let field = || Parts { profile: 2, field: Some("/cards/*/number".into()), ..at_rest(Some("acme")) };
    let mut number = 0x40;
    let mut vector = |name, mechanism, plain: &[u8]| {
        number += 1;
        Inputs { name, mechanism, parts: field(), plain: plain.to_vec(), number }.vector("compact")
    };
    vec![
        vector(COMPACT, Reference, b"\"4111-11\""),
        vector(COMPACT_INLINE, AesGcm, b"\"4111-11\""),
        vector("compact reference, empty", Reference, b""),
        vector("compact inline AES-KWP, a number", AesKwp, b"12.50"),
        vector("compact reference, one full segment and an empty one", Reference, &pattern(16384)),
    ]
}

fn make() -> File {
    let object = objects();
    let lengths = [0, 1, 16383, 16384, 16385, 32767, 32768, 1 << 20, 5_000_000_000, (1 << 52) - 1];
    let ranges = [
        (1, 0, 0),
        (16384, 0, 0),
        (16384, 16383, 16383),
        (16385, 16384, 16384),
        (32768, 16383, 16384),
        (32768, 0, 32767),
        (100_000, 40_000, 40_001),
        (5_000_000_000, 4_999_999_000, 4_999_999_999),
    ];
    File {
        format: "keyway envelope v1".into(),
        specification: "docs/envelope.md".into(),
        pattern: "byte i of a patterned plaintext is i mod 251".into(),
        malformed: malformed::all(&object),
        object,
        compact: compacts(),
        lengths: lengths.iter().map(|&plain| Lengths { plain, object: sealed_len(plain).unwrap() }).collect(),
        impossible_lengths: vec![0, 159, 160, 175, 16_560, 16_575, 32_960, 32_975, u64::MAX / 2],
        ranges: ranges.iter().map(|&(plain_len, first, last)| range(plain_len, first, last)).collect(),
    }
}

fn range(plain_len: u64, first: u64, last: u64) -> Range {
    let plan = range_plan(plain_len, first, last);
    let (from, to) = plan.sealed.into_inner();
    Range { plain_len, first, last, from, to, skip: plan.skip, take: plan.take }
}

/// Bytes of a valid vector; long ones are sealed again, since the file has only their hash.
fn envelope(vector: &Vector, fresh: &[Vector], form: &str) -> Vec<u8> {
    if let Some(hex) = &vector.envelope {
        return hex::decode(hex).unwrap();
    }
    assert!(fresh.iter().any(|other| other.name == vector.name));
    let plain = pattern(usize::try_from(vector.plain_len).unwrap());
    let mut key_block = [0; KeyBlock::LEN];
    key_block.copy_from_slice(&hex::decode(&vector.key_block_bytes).unwrap());
    let key_block = KeyBlock::parse(&key_block).unwrap();
    let dek = Dek::new(key_block.dek_id(), Zeroizing::new(bytes(&vector.dek)));
    let (salt, digest) = (bytes(&vector.salt), vector.context.context().digest());
    let out = if form == "object" {
        let keys = dek.derive(&salt, &digest);
        let profile = Profile::from_byte(vector.context.profile).unwrap();
        let header = Header { profile, key_block, salt, commitment: *keys.commitment() };
        [header.to_bytes().as_slice(), &seal_whole(keys, BY, &plain).unwrap()].concat()
    } else {
        compact::seal(&dek, &key_block, salt, &digest, BY, &plain).unwrap()
    };
    assert_eq!(sha256(&out), vector.envelope_sha256, "{}", vector.name);
    out
}

fn format_name(error: FormatError) -> &'static str {
    match error {
        FormatError::Magic => "magic",
        FormatError::Short => "short",
        FormatError::Version(_) => "version",
        FormatError::Suite(_) => "suite",
        FormatError::Flags(_) => "flags",
        FormatError::Profile(_) => "profile",
        FormatError::KeyBlock(_) => "key-block",
        FormatError::Length(_) => "length",
        _ => "unnamed",
    }
}

/// The reader: what a vector's holder of keys makes of `sealed`.
fn read(form: &str, sealed: &[u8], vector: &Vector, instead: &Override) -> Result<Vec<u8>, &'static str> {
    let parts = instead.context.as_ref().unwrap_or(&vector.context);
    let digest = parts.context().digest();
    let key = |block: &KeyBlock| -> Result<Dek, &'static str> {
        if block.mechanism() == WrapMechanism::None {
            let dek = bytes(instead.dek.as_ref().unwrap_or(&vector.dek));
            let id = DekId(bytes(instead.dek_id.as_ref().unwrap_or(&vector.dek_id)));
            return if id == block.dek_id() {
                Ok(Dek::new(id, Zeroizing::new(dek)))
            } else {
                Err("commitment")
            };
        }
        let kek: [u8; 32] = bytes(instead.kek.as_ref().or(vector.kek.as_ref()).unwrap());
        unwrap(&kek, block, &parts.zone, parts.tenant.as_deref().unwrap_or("")).ok_or("unwrap")
    };
    let opened = if form == "object" {
        let header = Header::parse(sealed).map_err(format_name)?;
        if header.profile.to_byte() != parts.profile {
            return Err("wrong-profile");
        }
        let keys = key(&header.key_block)?.derive(&header.salt, &digest);
        keys.verify(&header.commitment).and_then(|()| open_whole(keys, BY, &sealed[HEADER..]))
    } else {
        let envelope = Compact::parse(sealed).map_err(format_name)?;
        envelope.open(&key(&envelope.key_block)?, &digest, BY)
    };
    opened.map_err(OpenError::reason)
}

fn unwrap(kek: &[u8; 32], block: &KeyBlock, zone: &str, tenant: &str) -> Option<Dek> {
    let aad = wrap_aad(block.kek(), block.dek_id(), block.mechanism(), zone, tenant);
    let wrapped = block.wrapped();
    let dek: [u8; 32] = if block.mechanism() == WrapMechanism::AesGcm {
        let kek = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, kek).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&wrapped[..12]).unwrap();
        let mut opened = wrapped[12..].to_vec();
        kek.open_in_place(nonce, Aad::from(&aad), &mut opened).ok()?[..].try_into().ok()?
    } else {
        let mut out = [0; 64];
        let opened = AesKek::new(&AES_256, kek).unwrap().unwrap_with_padding(wrapped, &mut out).ok()?;
        let (dek, context) = opened.split_first_chunk::<32>()?;
        (context == kwp_context(&aad)).then_some(*dek)?
    };
    Some(Dek::new(block.dek_id(), Zeroizing::new(dek)))
}

#[test]
fn the_committed_file_is_what_the_code_makes() {
    let made = serde_json::to_string_pretty(&make()).unwrap() + "\n";
    if std::env::var_os("KEYWAY_WRITE_VECTORS").is_some() {
        std::fs::write(path(), &made).unwrap();
    }
    let committed = std::fs::read_to_string(path()).unwrap();
    assert!(
        made == committed,
        "docs/envelope-vectors.json differs from what the code makes: the format has changed"
    );
}

#[test]
fn valid_vectors_open_to_their_plaintext() {
    let file = committed();
    assert_eq!((file.object.len(), file.compact.len()), (14, 5));
    for (form, vectors) in [("object", &file.object), ("compact", &file.compact)] {
        for vector in vectors {
            let sealed = envelope(vector, vectors, form);
            assert_eq!(sealed.len() as u64, vector.envelope_len, "{}", vector.name);
            assert_eq!(sha256(&sealed), vector.envelope_sha256, "{}", vector.name);
            let plain = read(form, &sealed, vector, &Override::default()).expect(&vector.name);
            assert_eq!(sha256(&plain), vector.plain_sha256, "{}", vector.name);
        }
    }
}

#[test]
fn malformed_vectors_are_refused_as_expected() {
    let file = committed();
    assert!(file.malformed.len() >= 100, "{} malformed vectors", file.malformed.len());
    for Malformed { name, form, base, edits, instead, refusal } in &file.malformed {
        let vectors = if form == "object" { &file.object } else { &file.compact };
        let vector = vectors.iter().find(|vector| vector.name == *base).expect(base);
        let mut sealed = envelope(vector, vectors, form);
        let header = if form == "object" { HEADER } else { 82 };
        edits.iter().for_each(|edit| edit.apply(&mut sealed, header));
        let got = read(form, &sealed, vector, instead.as_ref().unwrap_or(&Override::default()));
        assert_eq!(got.map(|plain| plain.len()), Err(refusal.as_str()), "{name} ({base})");
    }
}

#[test]
fn lengths_and_ranges_are_those_of_the_file() {
    let file = committed();
    for Lengths { plain, object } in file.lengths {
        assert_eq!((sealed_len(plain), plain_len(object)), (Some(object), Ok(plain)));
    }
    for object in file.impossible_lengths {
        assert_eq!(plain_len(object), Err(FormatError::Length(object)));
    }
    for given in file.ranges {
        let made = range(given.plain_len, given.first, given.last);
        assert_eq!(
            (made.from, made.to, made.skip, made.take),
            (given.from, given.to, given.skip, given.take)
        );
    }
}
