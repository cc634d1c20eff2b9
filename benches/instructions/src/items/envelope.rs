//! Keys, segments, headers, ranges.

use super::Item;
use keyway_envelope::header::{Header, SALT};
use keyway_envelope::length::{SEALED_SEGMENT, range_plan};
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{
    Context, ContextDigest, Dek, DekId, Implementation, KekRef, KeyBlock, Opener, Profile, Sealer,
};
use std::hint::black_box;
use zeroize::Zeroizing;

/// With the calls to count: a megabyte is long under valgrind.
const LENGTHS: [(usize, &str, u64); 4] =
    [(64, "64 B", 500), (1 << 10, "1 KiB", 500), (16 << 10, "16 KiB", 100), (1 << 20, "1 MiB", 4)];
/// What is sealed at once.
const FRAME: usize = 16 * SEALED_SEGMENT + OPEN_ROOM;
const CALLS: u64 = 1000;
/// The one that the proxy selects wherever it was measured.
const AES: Implementation = Implementation::AwsLc;

pub(super) fn items() -> Vec<Item> {
    let mut items = vec![
        Item::new("envelope/context digest", CALLS, || {
            Box::new(|| {
                black_box(Context::object(black_box("payments"), Some("acme"), "orders").digest());
            })
        }),
        Item::new("envelope/derive keys", CALLS, || {
            let (dek, context, mut salt) = (dek(), context(), [3u8; SALT]);
            Box::new(move || {
                salt[0] = salt[0].wrapping_add(1);
                black_box(dek.derive(black_box(&salt), &context));
            })
        }),
        Item::new("envelope/header write", CALLS, || {
            let header = header();
            Box::new(move || {
                black_box(black_box(&header).to_bytes());
            })
        }),
        Item::new("envelope/header parse", CALLS, || {
            let bytes = header().to_bytes();
            Box::new(move || {
                black_box(Header::parse(black_box(&bytes))).expect("written above");
            })
        }),
        Item::new("envelope/range plan", CALLS, || {
            Box::new(|| {
                black_box(range_plan(black_box(1 << 30), black_box(100_000), black_box(999_999)));
            })
        }),
    ];
    for (length, name, calls) in LENGTHS {
        items.push(Item::new(format!("envelope/seal {name}"), calls, move || {
            let (dek, context) = (dek(), context());
            let (plain, mut frame) = (vec![0x5A; length], vec![0; FRAME]);
            Box::new(move || {
                black_box(seal(&dek, &context, black_box(&plain), &mut frame));
            })
        }));
        items.push(Item::new(format!("envelope/open {name}"), calls, move || {
            let (dek, context, mut frame) = (dek(), context(), vec![0; FRAME]);
            let keys = dek.derive(&[3; SALT], &context);
            let sealed = seal_whole(keys, AES, &vec![0x5A; length]).expect("a short message");
            Box::new(move || {
                black_box(open(&dek, &context, black_box(&sealed), &mut frame));
            })
        }));
    }
    items
}

fn dek() -> Dek {
    Dek::new(DekId([1; 16]), Zeroizing::new([2; 32]))
}

fn context() -> ContextDigest {
    Context::object("payments", None, "orders").digest()
}

fn header() -> Header {
    let commitment = *dek().derive(&[3; SALT], &context()).commitment();
    let key_block = KeyBlock::catalog(KekRef::from_bytes([1; 8]), DekId([1; 16]));
    Header { profile: Profile::Object, key_block, salt: [3; SALT], commitment }
}

/// A message as the proxy seals it: keys, then whole segments into one recycled frame.
fn seal(dek: &Dek, context: &ContextDigest, plain: &[u8], frame: &mut [u8]) -> usize {
    let mut sealer = Sealer::new(dek.derive(&[3; SALT], context), AES);
    let (mut rest, mut written) = (plain, 0);
    loop {
        let done = sealer.update(rest, frame).expect("a short message");
        written += done.produced;
        rest = &rest[done.consumed..];
        if rest.is_empty() {
            return written + sealer.finish(&[], frame).expect("every full segment is taken");
        }
    }
}

fn open(dek: &Dek, context: &ContextDigest, sealed: &[u8], frame: &mut [u8]) -> usize {
    let keys = dek.derive(&[3; SALT], context);
    let commitment = *keys.commitment();
    keys.verify(&commitment).expect("it is the same");
    let mut opener = Opener::new(keys, AES);
    let (mut rest, mut written) = (sealed, 0);
    loop {
        let done = opener.update(rest, frame).expect("nothing was changed");
        written += done.produced;
        rest = &rest[done.consumed..];
        if rest.is_empty() {
            return written + opener.finish(frame).expect("nothing was changed");
        }
    }
}
