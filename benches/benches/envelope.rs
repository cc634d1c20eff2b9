//! Sealing and opening: throughput by length and implementation, and what one message costs before its first byte.
//!
//! `cargo bench -p keyway-benches --bench envelope`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keyway_envelope::header::SALT;
use keyway_envelope::length::{SEALED_SEGMENT, segments_len};
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{Context, ContextDigest, Dek, DekId, Implementation, Opener, Sealer, compact};
use keyway_envelope::{KekRef, KeyBlock};
use std::hint::black_box;
use zeroize::Zeroizing;

const LENGTHS: [(usize, &str); 6] = [
    (64, "64 B"),
    (1 << 10, "1 KiB"),
    (16 << 10, "16 KiB"),
    (64 << 10, "64 KiB"),
    (1 << 20, "1 MiB"),
    (16 << 20, "16 MiB"),
];
/// What the proxy hands to the network at once.
const FRAME: usize = 16 * SEALED_SEGMENT;

fn dek() -> Dek {
    Dek::new(DekId([1; 16]), Zeroizing::new([2; 32]))
}

fn context() -> ContextDigest {
    Context::object("payments", None, "orders").digest()
}

/// Seals a message as the proxy does: whole segments from the input into one recycled frame.
fn seal(dek: &Dek, context: &ContextDigest, by: Implementation, plain: &[u8], frame: &mut [u8]) -> usize {
    let keys = dek.derive(&[3; SALT], context);
    let mut sealer = Sealer::new(keys, by);
    let mut written = 0;
    let mut rest = plain;
    loop {
        let done = sealer.update(rest, frame).expect("a short message");
        written += done.produced;
        rest = &rest[done.consumed..];
        if rest.is_empty() {
            return written + sealer.finish(&[], frame).expect("every full segment is taken");
        }
    }
}

fn open(dek: &Dek, context: &ContextDigest, by: Implementation, sealed: &[u8], frame: &mut [u8]) -> usize {
    let keys = dek.derive(&[3; SALT], context);
    let commitment = *keys.commitment();
    keys.verify(&commitment).expect("it is the same");
    let mut opener = Opener::new(keys, by);
    let mut written = 0;
    let mut rest = sealed;
    loop {
        let done = opener.update(rest, frame).expect("nothing was changed");
        written += done.produced;
        rest = &rest[done.consumed..];
        if rest.is_empty() {
            return written + opener.finish(frame).expect("nothing was changed");
        }
    }
}

fn throughput(c: &mut Criterion) {
    let (dek, context) = (dek(), context());
    let mut frame = vec![0; FRAME + OPEN_ROOM];
    for direction in ["seal", "open"] {
        let mut group = c.benchmark_group(direction);
        for (length, name) in LENGTHS {
            let plain = vec![0x5A; length];
            let sealed = seal_whole(dek.derive(&[3; SALT], &context), Implementation::AwsLc, &plain)
                .expect("a short message");
            assert_eq!(Some(sealed.len() as u64), segments_len(length as u64));
            group.throughput(Throughput::Bytes(length as u64));
            for by in Implementation::ALL {
                group.bench_function(BenchmarkId::new(by.name(), name), |b| {
                    if direction == "seal" {
                        b.iter(|| black_box(seal(&dek, &context, by, black_box(&plain), &mut frame)));
                    } else {
                        b.iter(|| black_box(open(&dek, &context, by, black_box(&sealed), &mut frame)));
                    }
                });
            }
        }
        group.finish();
    }
}

/// What stands before the first byte: context, derivation, key schedule.
fn per_message(c: &mut Criterion) {
    let (dek, digest) = (dek(), context());
    let mut group = c.benchmark_group("per message");
    group.bench_function("context digest", |b| {
        b.iter(|| Context::object(black_box("payments"), Some("acme"), "orders").digest());
    });
    let mut salt = [0u8; SALT];
    group.bench_function("derive", |b| {
        b.iter(|| {
            salt[0] = salt[0].wrapping_add(1);
            dek.derive(black_box(&salt), &digest)
        });
    });
    group.bench_function("new DEK", |b| b.iter(self::dek));
    for by in Implementation::ALL {
        group.bench_function(BenchmarkId::new("key schedule", by.name()), |b| {
            b.iter(|| by.key(black_box(&[4; 32])));
        });
    }
    let block = KeyBlock::catalog(KekRef::from_bytes([1; 8]), dek.id());
    let field = b"\"4111111111111111\"";
    let by = Implementation::AwsLc;
    group.bench_function("compact seal, 18 B", |b| {
        b.iter(|| compact::seal(&dek, &block, black_box(salt), &digest, by, field).expect("a short message"));
    });
    let sealed = compact::seal(&dek, &block, salt, &digest, by, field).expect("a short message");
    group.bench_function("compact open, 18 B", |b| {
        b.iter(|| {
            let parsed = compact::Compact::parse(black_box(&sealed)).expect("sealed above");
            parsed.open(&dek, &digest, by).expect("sealed above")
        });
    });
    group.finish();
}

/// HKDF-Expand-SHA-512 with a key state that is cached per DEK, by implementation: which of them the envelope should use.
fn derivation(c: &mut Criterion) {
    let digest = context().for_dek(DekId([1; 16]));
    // INFO 48 ‖ salt 24 ‖ context 58 ‖ counter; the second block has the first one's 64 bytes in front.
    let mut input = [0u8; 64 + 48 + 24 + 58 + 1];
    input[64 + 72..64 + 130].copy_from_slice(&digest);
    let mut group = c.benchmark_group("hkdf-sha-512");
    let ring_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA512, &[2; 32]);
    group.bench_function("ring", |b| {
        b.iter(|| {
            let first = ring::hmac::sign(&ring_key, black_box(&input[64..]));
            input[..64].copy_from_slice(first.as_ref());
            ring::hmac::sign(&ring_key, black_box(&input))
        });
    });
    let aws_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA512, &[2; 32]);
    group.bench_function("aws-lc-rs", |b| {
        b.iter(|| {
            let first = aws_lc_rs::hmac::sign(&aws_key, black_box(&input[64..]));
            input[..64].copy_from_slice(first.as_ref());
            aws_lc_rs::hmac::sign(&aws_key, black_box(&input))
        });
    });
    let dek = dek();
    let (salt, context) = ([3; SALT], context());
    group.bench_function("as built", |b| b.iter(|| dek.derive(black_box(&salt), &context)));
    group.finish();
}

criterion_group!(benches, per_message, derivation, throughput);
criterion_main!(benches);
