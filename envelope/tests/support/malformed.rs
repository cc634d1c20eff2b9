//! Which envelopes a reader must refuse, and how: the malformed part of the vector file.

// A module of a test binary.
#![allow(unreachable_pub)]

use crate::model::{Edit, Malformed, Override, Parts, Vector};

/// Names of the vectors that edits start from.
pub const SHORT: &str = "inline AES-GCM, 100 bytes";
pub const REFERENCE: &str = "reference, 16 bytes";
pub const KWP: &str = "inline AES-KWP, 16 bytes";
pub const THREE: &str = "inline AES-GCM, two full segments and 5 bytes";
pub const EMPTY_LAST: &str = "inline AES-GCM, two full segments and an empty one";
pub const EMPTY: &str = "inline AES-GCM, empty";
pub const COMPACT: &str = "compact reference, a JSON token";
pub const COMPACT_INLINE: &str = "compact inline, a JSON token";

struct List(Vec<Malformed>);

impl List {
    fn add(&mut self, base: &str, refusal: &str, name: &str, edits: &[Edit]) {
        self.push(base, refusal, name, edits.to_vec(), None);
    }

    fn with(&mut self, base: &str, refusal: &str, name: &str, instead: Override) {
        self.push(base, refusal, name, Vec::new(), Some(instead));
    }

    fn push(&mut self, base: &str, refusal: &str, name: &str, edits: Vec<Edit>, instead: Option<Override>) {
        let form = if base.starts_with("compact") { "compact" } else { "object" };
        self.0.push(Malformed {
            name: name.into(),
            form: form.into(),
            base: base.into(),
            edits,
            instead,
            refusal: refusal.into(),
        });
    }
}

pub fn all(valid: &[Vector]) -> Vec<Malformed> {
    let mut list = List(Vec::new());
    prefix(&mut list);
    key_block(&mut list);
    wrap_and_commitment(&mut list);
    contexts(&mut list, &valid.iter().find(|vector| vector.name == SHORT).unwrap().context);
    segments(&mut list);
    compact(&mut list);
    list.0
}

fn prefix(list: &mut List) {
    use Edit::{Set, Truncate, Xor};
    list.add(SHORT, "magic", "no bytes", &[Truncate(0)]);
    list.add(SHORT, "magic", "JSON text", &[Set(0, hex::encode(b"{\"a\":1}"))]);
    for at in 0..4 {
        list.add(SHORT, "magic", &format!("magic byte {at}"), &[Xor(at, 0x20)]);
    }
    for len in [1, 3, 4, 8, 104, 159] {
        list.add(SHORT, "short", &format!("ends after {len} bytes"), &[Truncate(len)]);
    }
    for (at, refusal, values) in [
        (4, "version", ["00", "02", "ff"].as_slice()),
        (5, "suite", &["00", "02", "10"]),
        (6, "flags", &["01", "80"]),
        (7, "profile", &["00", "03", "ff"]),
        (7, "wrong-profile", &["02", "7f"]),
    ] {
        for value in values {
            list.add(SHORT, refusal, &format!("byte {at} is {value}"), &[Set(at, (*value).into())]);
        }
    }
}

fn key_block(list: &mut List) {
    use Edit::{Set, Xor};
    for (name, at, value) in [
        ("kind reference with a wrap", 8, "02"),
        ("kind long", 8, "03"),
        ("mechanism none with a wrap", 9, "00"),
        ("reserved mechanism", 9, "02"),
        ("mechanism AES-KWP with the length of AES-GCM", 9, "03"),
        ("unknown mechanism", 9, "ff"),
        ("kind and mechanism of a reference, with a wrap", 8, "0200"),
        ("block length 95", 10, "005f"),
        ("block length 97", 10, "0061"),
        ("wrapped length 59", 36, "003b"),
        ("wrapped length 65535", 36, "ffff"),
        ("reserved bytes", 38, "0001"),
        ("padding", 103, "01"),
    ] {
        list.add(SHORT, "key-block", name, &[Set(at, value.into())]);
    }
    list.add(REFERENCE, "key-block", "reference with kind inline", &[Set(8, "01".into())]);
    list.add(REFERENCE, "key-block", "reference with a wrapped byte", &[Xor(40, 1)]);
    list.add(REFERENCE, "key-block", "reference with a wrapped length", &[Set(36, "003c".into())]);
    list.add(KWP, "key-block", "AES-KWP with a byte of padding set", &[Xor(96, 1)]);
}

fn wrap_and_commitment(list: &mut List) {
    use Edit::Xor;
    for (name, at) in [
        ("zone number", 13),
        ("keyring number", 17),
        ("KEK version", 19),
        ("DEK id", 20),
        ("IV", 40),
        ("wrapped key", 52),
        ("last byte of the wrap's tag", 99),
    ] {
        list.add(SHORT, "unwrap", &format!("{name} changed"), &[Xor(at, 1)]);
    }
    for (name, at) in
        [("KEK version", 19), ("DEK id", 35), ("wrapped key", 40), ("last byte of the wrap", 95)]
    {
        list.add(KWP, "unwrap", &format!("AES-KWP: {name} changed"), &[Xor(at, 1)]);
    }
    for base in [SHORT, KWP] {
        let kek = Some("00".repeat(32));
        list.with(base, "unwrap", "another KEK", Override { kek, ..Override::default() });
    }
    for at in [104, 127, 128, 159] {
        list.add(SHORT, "commitment", &format!("byte {at} changed"), &[Xor(at, 0x80)]);
    }
    list.add(REFERENCE, "commitment", "reference: DEK id changed", &[Xor(20, 1)]);
    for base in [REFERENCE, COMPACT] {
        let dek = Some("11".repeat(32));
        list.with(
            base,
            "commitment",
            "another DEK under the right id",
            Override { dek, ..Override::default() },
        );
        let dek_id = Some("22".repeat(16));
        list.with(
            base,
            "commitment",
            "the right DEK under another id",
            Override { dek_id, ..Override::default() },
        );
    }
}

fn contexts(list: &mut List, base: &Parts) {
    let mut add = |refusal: &str, name: &str, context: Parts| {
        list.with(SHORT, refusal, name, Override { context: Some(context), ..Override::default() });
    };
    let base = || base.clone();
    add("unwrap", "another zone", Parts { zone: "payroll".into(), ..base() });
    add("unwrap", "another tenant", Parts { tenant: Some("globex".into()), ..base() });
    add("unwrap", "no tenant", Parts { tenant: None, ..base() });
    add("commitment", "another domain", Parts { domain: "refunds".into(), ..base() });
    add("commitment", "another direction", Parts { direction: 1, ..base() });
    add("commitment", "an object id", Parts { object_id: Some("7".into()), ..base() });
    add(
        "commitment",
        "an empty content type is not an absent one",
        Parts { content_type: Some(String::new()), ..base() },
    );
    add("wrong-profile", "another profile expected", Parts { profile: 2, ..base() });
    let none = Parts { tenant: None, zone: "payments".into(), ..base() };
    let with = |context| Override { context: Some(context), ..Override::default() };
    list.with(
        EMPTY,
        "commitment",
        "an empty tenant is not an absent one",
        with(Parts { tenant: Some(String::new()), ..none }),
    );
}

fn segments(list: &mut List) {
    use Edit::{Append, Drop, Repeat, Swap, Truncate, Xor};
    const SEALED: usize = 16_400;
    list.add(SHORT, "tag", "first ciphertext byte changed", &[Xor(160, 1)]);
    list.add(SHORT, "tag", "last tag byte changed", &[Xor(275, 0x80)]);
    list.add(SHORT, "tag", "a byte added", &[Append("00".into())]);
    list.add(SHORT, "tag", "a byte cut", &[Truncate(275)]);
    list.add(SHORT, "truncated", "no segment", &[Truncate(160)]);
    list.add(SHORT, "truncated", "15 bytes of a segment", &[Truncate(175)]);
    list.add(EMPTY, "truncated", "empty: a byte of the tag cut", &[Truncate(175)]);
    list.add(EMPTY, "tag", "empty: tag changed", &[Xor(160, 1)]);
    list.add(THREE, "tag", "second segment changed", &[Xor(160 + SEALED, 1)]);
    list.add(THREE, "tag", "full segments swapped", &[Swap(0, 1)]);
    list.add(THREE, "tag", "first segment repeated", &[Repeat(0)]);
    list.add(THREE, "tag", "first segment dropped", &[Drop(0)]);
    list.add(THREE, "tag", "second segment dropped", &[Drop(1)]);
    list.add(THREE, "truncated", "last segment dropped", &[Drop(2)]);
    list.add(THREE, "tag", "last segment repeated", &[Repeat(2)]);
    list.add(THREE, "tag", "cut inside the second segment", &[Truncate(160 + SEALED + 9000)]);
    for full in 0..=2 {
        let boundary = 160 + full * SEALED;
        list.add(EMPTY_LAST, "truncated", &format!("cut behind {full} segments"), &[Truncate(boundary)]);
        list.add(
            EMPTY_LAST,
            "truncated",
            &format!("cut 15 bytes behind {full} segments"),
            &[Truncate(boundary + 15)],
        );
    }
    list.add(EMPTY_LAST, "tag", "empty last segment changed", &[Xor(160 + 2 * SEALED + 15, 1)]);
    list.add(EMPTY_LAST, "tag", "a byte behind the empty last segment", &[Append("00".into())]);
}

fn compact(list: &mut List) {
    use Edit::{Set, Truncate, Xor};
    list.add(COMPACT, "short", "compact: no bytes", &[Truncate(0)]);
    for value in ["10", "13", "21", "fb"] {
        list.add(COMPACT, "version", &format!("compact: first byte {value}"), &[Set(0, value.into())]);
    }
    list.add(COMPACT, "suite", "compact: suite 2", &[Set(1, "02".into())]);
    list.add(COMPACT, "short", "compact: ends in the commitment", &[Truncate(81)]);
    list.add(COMPACT, "length", "compact: no segment", &[Truncate(82)]);
    list.add(COMPACT, "length", "compact: 15 bytes of a tag", &[Truncate(97)]);
    list.add(COMPACT, "commitment", "compact: DEK id changed", &[Xor(10, 1)]);
    list.add(COMPACT, "commitment", "compact: salt changed", &[Xor(26, 1)]);
    list.add(COMPACT, "tag", "compact: ciphertext changed", &[Xor(82, 1)]);
    list.add(COMPACT, "tag", "compact: a byte cut", &[Truncate(99)]);
    list.add(COMPACT_INLINE, "key-block", "compact: a reference in the long form", &[Set(2, "0200".into())]);
    list.add(COMPACT_INLINE, "unwrap", "compact: wrap changed", &[Xor(40, 1)]);
    list.add(COMPACT_INLINE, "short", "compact: ends in the key block", &[Truncate(90)]);
}
