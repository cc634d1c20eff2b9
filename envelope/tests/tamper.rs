//! The wrong thing is refused: changed, cut, swapped, repeated and dropped bytes; another key, id, zone, tenant or domain.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{
    DEK, DEK_ID, DOMAIN, EDGES, Refused, SALT, TENANT, ZONE, cases, context, dek, keys, object,
    open_in_pieces, open_object, pattern,
};
use keyway_envelope::length::{HEADER, SEALED_SEGMENT, SEGMENT, TAG, sealed_len};
use keyway_envelope::open::{HOLD_BACK, OPEN_ROOM, open_whole};
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{
    Context, Dek, DekId, Direction, FormatError, Header, Implementation, KeyBlock, OpenError, Opener, Profile,
};
use proptest::prelude::*;
use zeroize::Zeroizing;

const BY: Implementation = Implementation::AwsLc;

fn sealed(plain: &[u8]) -> Vec<u8> {
    seal_whole(keys(), BY, plain).unwrap()
}

/// Opens altered segments with every implementation. Nothing may come out but a prefix of `plain` that stops short of
/// its end.
fn refused(plain: &[u8], altered: &[u8]) -> OpenError {
    let ends = Implementation::ALL.map(|by| {
        let opened = open_in_pieces(Opener::new(keys(), by), altered, &[], &[OPEN_ROOM]);
        assert!(plain.starts_with(&opened.released), "bytes came out that were never sealed");
        assert!(
            plain.is_empty() || opened.released.len() < plain.len(),
            "everything came out before the end was proved"
        );
        opened.end.expect_err("altered bytes were opened")
    });
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "implementations differ: {ends:?}");
    ends[0]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_flipped_bit_is_refused(len in prop_oneof![prop::sample::select(EDGES.as_slice()), 0..70_000usize], at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let plain = pattern(len);
        let mut altered = sealed(&plain);
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        prop_assert_eq!(refused(&plain, &altered), OpenError::Tag);
    }

    #[test]
    fn a_cut_is_refused(len in prop_oneof![prop::sample::select(EDGES.as_slice()), 0..70_000usize], at in any::<prop::sample::Index>()) {
        let plain = pattern(len);
        let whole = sealed(&plain);
        let cut = &whole[..at.index(whole.len())];
        let error = refused(&plain, cut);
        prop_assert!(matches!(error, OpenError::Tag | OpenError::Truncated));
    }

    #[test]
    fn added_bytes_are_refused(len in prop_oneof![prop::sample::select(EDGES.as_slice()), 0..70_000usize], more in 1..40_000usize) {
        let plain = pattern(len);
        let mut altered = sealed(&plain);
        altered.extend_from_slice(&pattern(more));
        let error = refused(&plain, &altered);
        prop_assert!(matches!(error, OpenError::Tag | OpenError::Truncated));
    }

    #[test]
    fn bytes_that_nobody_sealed_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..40_000)) {
        refused(&[], &bytes);
    }
}

/// The sealed segments of a message, one by one.
fn segments(sealed: &[u8]) -> Vec<&[u8]> {
    let mut all: Vec<&[u8]> = sealed.chunks(SEALED_SEGMENT).collect();
    assert!(all.last().is_some_and(|last| last.len() < SEALED_SEGMENT));
    all.retain(|segment| !segment.is_empty());
    all
}

#[test]
fn segments_that_are_swapped_repeated_or_dropped_are_refused() {
    for len in [2 * SEGMENT + 5, 3 * SEGMENT, 3 * SEGMENT + 1] {
        let plain = pattern(len);
        let whole = sealed(&plain);
        let all = segments(&whole);
        for i in 0..all.len() {
            for j in 0..all.len() {
                let mut repeated = all.clone();
                repeated.insert(j, all[i]);
                refused(&plain, &repeated.concat());
                if i != j {
                    let mut swapped = all.clone();
                    swapped.swap(i, j);
                    refused(&plain, &swapped.concat());
                    let mut replaced = all.clone();
                    replaced[j] = all[i];
                    refused(&plain, &replaced.concat());
                }
            }
            let mut dropped = all.clone();
            dropped.remove(i);
            refused(&plain, &dropped.concat());
        }
    }
}

#[test]
fn a_cut_at_each_segment_boundary_is_refused() {
    let plain = pattern(4 * SEGMENT);
    let whole = sealed(&plain);
    for segments in 0..=4 {
        assert_eq!(refused(&plain, &whole[..segments * SEALED_SEGMENT]), OpenError::Truncated);
        for short in 1..TAG {
            let error = refused(&plain, &whole[..segments * SEALED_SEGMENT + short]);
            assert_eq!(error, OpenError::Truncated, "{short} bytes of a last segment");
        }
    }
}

#[test]
fn segments_of_another_message_are_refused() {
    let plain = pattern(3 * SEGMENT + 9);
    let whole = sealed(&plain);
    // Same DEK, same context, another salt: the commitment and every segment differ.
    let other = seal_whole(dek().derive(&[0xA5; 24], &context()), BY, &plain).unwrap();
    for i in 0..4 {
        let mut spliced = segments(&whole);
        spliced[i] = segments(&other)[i];
        assert_eq!(refused(&plain, &spliced.concat()), OpenError::Tag, "segment {i}");
    }
}

/// The client has its Content-Length before the end is proved, if bytes are not held back.
#[test]
fn the_last_bytes_are_held_back_until_an_empty_last_segment_is_proved() {
    for full in 1..=4 {
        let plain = pattern(full * SEGMENT);
        let whole = sealed(&plain);
        let boundary = full * SEALED_SEGMENT;
        let mut broken: Vec<Vec<u8>> =
            vec![whole[..boundary].to_vec(), [&whole[..boundary], &[0; TAG][..]].concat()];
        broken.extend((1..TAG).map(|n| whole[..boundary + n].to_vec()));
        broken.extend((0..8 * TAG).map(|bit| {
            let mut altered = whole.clone();
            altered[boundary + bit / 8] ^= 1 << (bit % 8);
            altered
        }));
        for bytes in broken {
            for by in Implementation::ALL {
                let opened = open_in_pieces(
                    Opener::new(keys(), by),
                    &bytes,
                    &[boundary, 7],
                    &[2 * OPEN_ROOM, OPEN_ROOM],
                );
                assert_eq!(opened.released.len(), plain.len() - HOLD_BACK);
                assert!(plain.starts_with(&opened.released));
                assert!(opened.end.is_err());
            }
        }
        let opened = open_in_pieces(Opener::new(keys(), BY), &whole, &[], &[OPEN_ROOM]);
        assert_eq!(opened.released.len(), plain.len() - HOLD_BACK);
        assert_eq!(opened.end.unwrap(), plain[plain.len() - HOLD_BACK..], "finish gives what was held back");
    }
}

#[test]
fn nothing_comes_out_after_a_failure() {
    let plain = pattern(3 * SEGMENT);
    let whole = sealed(&plain);
    let mut altered = whole.clone();
    altered[SEALED_SEGMENT] ^= 1;
    let mut opener = Opener::new(keys(), BY);
    let mut out = vec![0xEE; 4 * OPEN_ROOM];
    assert_eq!(opener.update(&altered, &mut out), Err(OpenError::Tag));
    assert_eq!(opener.update(&whole, &mut out), Err(OpenError::Poisoned));
    assert_eq!(opener.finish(&mut out), Err(OpenError::Poisoned));
}

#[test]
fn unverified_plaintext_is_not_left_in_the_buffer() {
    let plain = pattern(SEGMENT + 40);
    let whole = sealed(&plain);
    for at in [0, SEALED_SEGMENT - 1, SEALED_SEGMENT, whole.len() - 1] {
        let mut altered = whole.clone();
        altered[at] ^= 0x80;
        for by in Implementation::ALL {
            let mut out = vec![0; 2 * OPEN_ROOM];
            let mut opener = Opener::new(keys(), by);
            let in_the_first = at < SEALED_SEGMENT;
            let from = match opener.update(&altered, &mut out) {
                Ok(done) => done.produced,
                Err(_) => 0,
            };
            if !in_the_first {
                assert_eq!(opener.finish(&mut out[from..]), Err(OpenError::Tag));
            }
            assert!(
                out[from..].iter().all(|&b| b == 0),
                "{by} leaves bytes of a segment that does not verify"
            );
        }
    }
}

#[test]
fn another_key_id_salt_or_context_fails_the_commitment() {
    let commitment = *keys().commitment();
    let base = Context::object(ZONE, Some(TENANT), DOMAIN);
    assert_eq!(keys().verify(&commitment), Ok(()));
    let others = [
        Context { zone: "payment", ..base },
        Context { tenant: None, ..base },
        Context { tenant: Some(""), ..base },
        Context { tenant: Some("acme2"), ..base },
        Context { domain: "refunds", ..base },
        Context { direction: Direction::Request, ..base },
        Context { direction: Direction::Response, ..base },
        Context { profile: Profile::Field, ..base },
        Context { profile: Profile::KnownAnswer, ..base },
        Context { field: Some(""), ..base },
        Context { field: Some("/card/number"), ..base },
        Context { object_id: Some("1"), ..base },
        Context { content_type: Some("1"), ..base },
        // Bytes that move from one part to the next are another context.
        Context { zone: "paymentsacme", tenant: Some(""), ..base },
        Context { tenant: Some("acmeorders"), domain: "", ..base },
        // … and so is a name that spells the next part's tag.
        Context { zone: "payments\u{2}acme", tenant: None, ..base },
    ];
    let mut digests = vec![base.digest()];
    for other in others {
        let digest = other.digest();
        assert!(!digests.contains(&digest), "{other:?} has the digest of another context");
        digests.push(digest);
        assert_eq!(dek().derive(&SALT, &digest).verify(&commitment), Err(OpenError::Commitment), "{other:?}");
    }
    for bit in 0..256 {
        let mut key = DEK;
        key[bit / 8] ^= 1 << (bit % 8);
        let wrong = Dek::new(DEK_ID, Zeroizing::new(key));
        assert_eq!(wrong.derive(&SALT, &context()).verify(&commitment), Err(OpenError::Commitment));
    }
    for bit in 0..128 {
        let mut id = DEK_ID;
        id.0[bit / 8] ^= 1 << (bit % 8);
        let wrong = Dek::new(id, Zeroizing::new(DEK));
        assert_eq!(wrong.derive(&SALT, &context()).verify(&commitment), Err(OpenError::Commitment));
    }
}

/// What a flipped bit in a header byte has to lead to.
fn expected(at: usize, got: &Refused, bytes: &[u8], original: &Header) -> bool {
    match at {
        0..4 => *got == Refused::Format(FormatError::Magic),
        4 => matches!(got, Refused::Format(FormatError::Version(_))),
        5 => matches!(got, Refused::Format(FormatError::Suite(_))),
        6 => matches!(got, Refused::Format(FormatError::Flags(_))),
        7 => matches!(got, Refused::Format(FormatError::Profile(_)) | Refused::Profile),
        // Kind, mechanism, lengths and padding: no block at all. KEK reference, DEK id and wrap: another block.
        8..12 | 36..40 | 100..104 => matches!(got, Refused::Format(FormatError::KeyBlock(_))),
        12..36 | 40..100 => {
            assert_ne!(
                Header::parse(bytes).unwrap().key_block,
                original.key_block,
                "byte {at} is not part of the block"
            );
            *got == Refused::Unwrap
        }
        104..160 => *got == Refused::Open(OpenError::Commitment),
        _ => false,
    }
}

#[test]
fn every_bit_of_the_header_counts() {
    let plain = pattern(100);
    let whole = object(&plain);
    let original = Header::parse(&whole).unwrap();
    assert_eq!(open_object(&whole, ZONE, TENANT, DOMAIN).unwrap(), plain);
    for bit in 0..8 * HEADER {
        let mut altered = whole.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let refused = open_object(&altered, ZONE, TENANT, DOMAIN).expect_err("a changed header was opened");
        assert!(
            expected(bit / 8, &refused, &altered, &original),
            "byte {} bit {}: {refused:?}",
            bit / 8,
            bit % 8
        );
    }
}

/// A reference block: a changed KEK reference leads to the same DEK (its id decides), everything else is refused or
/// names another DEK.
#[test]
fn every_bit_of_a_reference_block_counts() {
    let block = KeyBlock::catalog(fixture::kek_ref(), DEK_ID);
    let bytes = block.to_bytes();
    assert_eq!(KeyBlock::parse(&bytes), Ok(block));
    for bit in 0..8 * KeyBlock::LEN {
        let mut altered = bytes;
        altered[bit / 8] ^= 1 << (bit % 8);
        match (bit / 8, KeyBlock::parse(&altered)) {
            (4..12, Ok(other)) => assert!(other.kek() != block.kek() && other.dek_id() == DEK_ID),
            (12..28, Ok(other)) => {
                assert!(other.kek() == block.kek() && other.dek_id() != DEK_ID);
                // Whatever the catalog has under that id, even the same bytes: the commitment does not match.
                let wrong = Dek::new(other.dek_id(), Zeroizing::new(DEK));
                assert!(wrong.derive(&SALT, &context()).verify(keys().commitment()).is_err());
            }
            (_, Err(FormatError::KeyBlock(_))) => {}
            (at, other) => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn an_object_cut_anywhere_in_its_header_is_refused() {
    let whole = object(b"x");
    assert_eq!(open_object(&[], ZONE, TENANT, DOMAIN), Err(Refused::Format(FormatError::Magic)));
    for len in 1..HEADER {
        let refused = open_object(&whole[..len], ZONE, TENANT, DOMAIN);
        assert_eq!(refused, Err(Refused::Format(FormatError::Short)), "{len} bytes");
    }
    assert_eq!(open_object(&whole[..HEADER], ZONE, TENANT, DOMAIN), Err(Refused::Open(OpenError::Truncated)));
}

#[test]
fn another_zone_tenant_or_domain_does_not_open() {
    let whole = object(b"for orders only");
    assert_eq!(open_object(&whole, "payroll", TENANT, DOMAIN), Err(Refused::Unwrap));
    assert_eq!(open_object(&whole, ZONE, "globex", DOMAIN), Err(Refused::Unwrap));
    assert_eq!(open_object(&whole, ZONE, TENANT, "refunds"), Err(Refused::Open(OpenError::Commitment)));
}

/// A rewrap replaces the 96 bytes and nothing else.
#[test]
fn a_rewrapped_object_opens_as_before() {
    let plain = pattern(SEGMENT + 1);
    let mut whole = object(&plain);
    let again = fixture::wrap_gcm(&fixture::KEK, &DEK, DEK_ID, [0x2E; 12], ZONE, TENANT);
    assert_ne!(whole[8..104], again.to_bytes());
    whole[8..104].copy_from_slice(&again.to_bytes());
    assert_eq!(open_object(&whole, ZONE, TENANT, DOMAIN).unwrap(), plain);
    let another_id = fixture::wrap_gcm(&fixture::KEK, &DEK, DekId([9; 16]), [0x2E; 12], ZONE, TENANT);
    whole[8..104].copy_from_slice(&another_id.to_bytes());
    assert_eq!(open_object(&whole, ZONE, TENANT, DOMAIN), Err(Refused::Open(OpenError::Commitment)));
    assert_eq!(whole.len() as u64, sealed_len(plain.len() as u64).unwrap());
    assert!(open_whole(keys(), BY, &whole[HEADER..]).is_ok());
}
