//! The fields of a header, each with its place, its bytes and its meaning.

use keyway_envelope::header::{COMMITMENT, SALT, SUITE_COBBLESTONE_256, VERSION};
use keyway_envelope::{DekId, KekRef, Profile, WrapMechanism};
use serde::Serialize;

/// One field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// From the start of the envelope, in bytes.
    pub offset: usize,
    /// In bytes.
    pub length: usize,
    /// As in the format's specification.
    pub name: &'static str,
    /// The bytes.
    pub hex: String,
    /// For people.
    pub meaning: String,
}

/// Cuts a header into fields, as far as its bytes go.
struct Cutter<'a> {
    bytes: &'a [u8],
    offset: usize,
    fields: Vec<Field>,
}

impl Cutter<'_> {
    fn take(&mut self, name: &'static str, length: usize, meaning: impl FnOnce(&[u8]) -> String) {
        let Some(bytes) = self.bytes.get(self.offset..self.offset + length) else { return };
        self.fields.push(Field {
            offset: self.offset,
            length,
            name,
            hex: hex::encode(bytes),
            meaning: meaning(bytes),
        });
        self.offset += length;
    }

    /// 96 bytes, offsets 8 to 104 of an object.
    fn key_block(&mut self) {
        self.take("key block kind", 1, |b| match b[0] {
            1 => "inline: the wrapped DEK is here; the HSM and these bytes recover the data".into(),
            2 => "reference: the bridge's catalog has the DEK".into(),
            _ => UNKNOWN.into(),
        });
        self.take("wrap mechanism", 1, |b| mechanism(b[0]));
        self.take("key block length", 2, |b| format!("{} bytes", be(b)));
        self.kek();
        self.take("DEK id", DekId::LEN, |_| "random name of the data-encryption key".into());
        self.take("wrapped length", 2, |b| format!("{} bytes", be(b)));
        self.take("reserved", 2, |b| if b == [0, 0] { "zero".into() } else { "not zero: refused".into() });
        let wrapped = self.fields.iter().find(|field| field.name == "wrapped length");
        let wrapped =
            wrapped.and_then(|field| usize::from_str_radix(&field.hex, 16).ok()).unwrap_or(0).min(64);
        if wrapped > 0 {
            self.take("wrapped DEK", wrapped, |_| "opens in the HSM only".into());
        }
        if wrapped < 64 {
            self.take("padding", 64 - wrapped, |b| {
                if b.iter().all(|&byte| byte == 0) { "zero".into() } else { "not zero: refused".into() }
            });
        }
    }

    fn kek(&mut self) {
        self.take("zone", 2, |b| format!("zone number {}", be(b)));
        self.take("keyring", 4, |b| format!("keyring number {}", be(b)));
        self.take("KEK version", 2, |b| format!("version {}", be(b)));
        debug_assert_eq!(KekRef::LEN, 8, "the three fields above");
    }

    fn suite(&mut self) {
        self.take("suite", 1, |b| {
            if b[0] == SUITE_COBBLESTONE_256 {
                "Cobblestone-256: AES-256-GCM in segments of 16 KiB, HKDF-SHA-512".into()
            } else {
                UNKNOWN.into()
            }
        });
    }

    fn salt_and_commitment(&mut self) {
        self.take("salt", SALT, |_| "random, once per message".into());
        self.take("commitment", COMMITMENT, |_| "proves DEK and context before anything is opened".into());
    }
}

const UNKNOWN: &str = "unknown: refused";

/// The fields of an object's header.
pub(super) fn object(bytes: &[u8]) -> Vec<Field> {
    let mut cutter = Cutter { bytes, offset: 0, fields: Vec::new() };
    cutter.take("magic", 4, |_| "FB, then \"KWY\"".into());
    cutter.take("version", 1, |b| if b[0] == VERSION { "1".into() } else { UNKNOWN.into() });
    cutter.suite();
    cutter.take("flags", 1, |b| if b[0] == 0 { "none".into() } else { UNKNOWN.into() });
    cutter.take("context profile", 1, |b| match Profile::from_byte(b[0]) {
        Some(Profile::Object) => "a body at rest: bound to zone, tenant and domain".into(),
        Some(Profile::Stream) => "a connection's: no object has it, refused".into(),
        Some(Profile::Field) => "a field of a document: bound to its path as well".into(),
        Some(Profile::KnownAnswer) => "a bridge's known answer; never stored".into(),
        None => UNKNOWN.into(),
    });
    cutter.key_block();
    cutter.salt_and_commitment();
    cutter.fields
}

/// The fields of a compact envelope.
pub(super) fn compact(bytes: &[u8]) -> Vec<Field> {
    let mut cutter = Cutter { bytes, offset: 0, fields: Vec::new() };
    let is_inline = bytes.first() == Some(&0x12);
    cutter.take("version and form", 1, |_| {
        if is_inline { "version 1, key block inline".into() } else { "version 1, DEK by reference".into() }
    });
    cutter.suite();
    if is_inline {
        cutter.key_block();
    } else {
        cutter.kek();
        cutter.take("DEK id", DekId::LEN, |_| "random name of the data-encryption key".into());
    }
    cutter.salt_and_commitment();
    cutter.fields
}

fn mechanism(byte: u8) -> String {
    match WrapMechanism::from_byte(byte) {
        Some(WrapMechanism::None) => "none: nothing is wrapped here".into(),
        Some(WrapMechanism::AesGcm) => "AES-256-GCM, bound to zone and tenant".into(),
        Some(WrapMechanism::AesKwp) => {
            "AES key wrap with padding (NIST SP 800-38F), with a context hash inside".into()
        }
        None => UNKNOWN.into(),
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
