//! Cutting the input, or being given small outputs, never changes a byte; the implementations open one another.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{EDGES, cases, dek, keys, open_in_pieces, pattern, seal_in_pieces};
use keyway_envelope::length::{SEALED_SEGMENT, SEGMENT, TAG, segments_len};
use keyway_envelope::open::{HOLD_BACK, OPEN_ROOM, open_whole};
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{Implementation, OpenError, Opener, Progress, SealError, Sealer};
use proptest::prelude::*;

fn implementation() -> impl Strategy<Value = Implementation> {
    prop::sample::select(Implementation::ALL.as_slice())
}

/// Lengths up to five segments, and those around the boundaries more often.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![prop::sample::select(EDGES.as_slice()), 0..5 * SEGMENT]
}

/// Output sizes from none at all to several segments.
fn rooms() -> impl Strategy<Value = Vec<usize>> {
    let room = prop_oneof![
        Just(0),
        0..OPEN_ROOM * 3,
        prop::sample::select(
            &[SEALED_SEGMENT - 1, SEALED_SEGMENT, OPEN_ROOM, OPEN_ROOM + 1, 2 * OPEN_ROOM][..]
        ),
    ];
    prop::collection::vec(room, 1..6)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..6 * SEALED_SEGMENT, 0..12)
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn any_split_seals_to_the_same_bytes(len in length(), cuts in cuts(), rooms in rooms(), by in implementation()) {
        let plain = pattern(len);
        let whole = seal_whole(keys(), by, &plain).unwrap();
        prop_assert_eq!(whole.len() as u64, segments_len(len as u64).unwrap());
        let pieces = seal_in_pieces(keys(), by, &plain, &cuts, &rooms).unwrap();
        prop_assert!(pieces == whole);
    }

    #[test]
    fn any_split_opens_to_the_same_bytes(len in length(), cuts in cuts(), rooms in rooms(), by in implementation()) {
        let plain = pattern(len);
        let sealed = seal_whole(keys(), Implementation::AwsLc, &plain).unwrap();
        let opened = open_in_pieces(Opener::new(keys(), by), &sealed, &cuts, &rooms);
        prop_assert!(opened.whole().unwrap() == plain);
    }
}

#[test]
fn single_bytes_in_and_the_smallest_outputs() {
    let plain = pattern(SEGMENT + 3);
    let every: Vec<usize> = (0..2 * SEALED_SEGMENT).collect();
    let sealed = seal_in_pieces(keys(), Implementation::AwsLc, &plain, &every, &[0]).unwrap();
    assert_eq!(sealed, seal_whole(keys(), Implementation::Ring, &plain).unwrap());
    let opened = open_in_pieces(Opener::new(keys(), Implementation::AwsLc), &sealed, &every, &[0]);
    assert_eq!(opened.whole().unwrap(), plain);
}

#[test]
fn the_implementations_seal_alike_and_open_one_another() {
    for len in EDGES {
        let plain = pattern(len);
        let sealed = Implementation::ALL.map(|by| seal_whole(keys(), by, &plain).unwrap());
        assert!(sealed.windows(2).all(|pair| pair[0] == pair[1]), "{len} bytes seal differently");
        for by in Implementation::ALL {
            assert_eq!(open_whole(keys(), by, &sealed[0]).unwrap(), plain, "{by} at {len} bytes");
        }
    }
}

#[test]
fn every_implementation_passes_its_known_answers_and_the_fastest_is_chosen() {
    assert!(Implementation::ALL.iter().all(|by| by.passes_known_answers()));
    // A clock that makes the second one the fastest: each reading costs what the implementation before it took.
    let mut reading = 0u64;
    let mut at = 0u64;
    let measured = keyway_envelope::aead::select(|| {
        let turn = reading / 2;
        if reading % 2 == 1 {
            at += if turn % 3 == 1 { 5 } else { 9 };
        }
        reading += 1;
        at
    })
    .unwrap();
    assert_eq!(measured.map(|m| (m.passes, m.ticks_per_segment)), [(true, 9), (true, 5), (true, 9)]);
    assert_eq!(Implementation::selected(), Implementation::Ring);
}

#[test]
fn a_salt_or_context_of_its_own_gives_keys_of_its_own() {
    let plain = pattern(100);
    let context = fixture::context();
    let mut seen = std::collections::HashSet::new();
    for n in 0..64u8 {
        let keys = dek().derive(&[n; 24], &context);
        assert!(seen.insert(*keys.commitment()));
        assert!(
            seen.insert(seal_whole(keys, Implementation::AwsLc, &plain).unwrap()[..32].try_into().unwrap())
        );
    }
}

#[test]
fn output_is_never_partly_used() {
    let mut sealer = Sealer::new(keys(), Implementation::AwsLc);
    let plain = pattern(2 * SEGMENT);
    let mut small = vec![0; SEALED_SEGMENT - 1];
    // Nothing is held yet: a whole segment stays with the caller until it can be written straight through.
    assert_eq!(sealer.update(&plain, &mut small), Ok(Progress::default()));
    let mut out = vec![0; SEALED_SEGMENT];
    let one = Progress { consumed: SEGMENT, produced: SEALED_SEGMENT };
    assert_eq!(sealer.update(&plain, &mut out), Ok(one));
    assert_eq!(sealer.update(&plain[SEGMENT..], &mut out), Ok(one));
    assert_eq!(sealer.finish(&[], &mut out), Ok(TAG));
}

#[test]
fn finish_refuses_what_update_has_to_take() {
    let mut out = vec![0; 2 * SEALED_SEGMENT];
    let plain = pattern(SEGMENT);
    let fresh = || Sealer::new(keys(), Implementation::AwsLc);
    assert_eq!(fresh().finish(&plain, &mut out), Err(SealError::OutputTooSmall));
    assert_eq!(fresh().finish(&plain[..5], &mut out[..20]), Err(SealError::OutputTooSmall));
    assert_eq!(fresh().finish(&plain[..5], &mut out[..21]), Ok(21));
    let sealed = seal_whole(keys(), Implementation::AwsLc, &plain).unwrap();
    let mut opener = Opener::new(keys(), Implementation::AwsLc);
    assert_eq!(
        opener.update(&sealed, &mut out),
        Ok(Progress { consumed: sealed.len(), produced: SEGMENT - HOLD_BACK })
    );
    assert_eq!(opener.finish(&mut out[..HOLD_BACK - 1]), Err(OpenError::OutputTooSmall));
}

#[test]
fn a_short_message_opens_where_it_stands_into_just_its_own_length() {
    for len in [0, 1, 1024, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 100] {
        let plain = pattern(len);
        let sealed = seal_whole(keys(), Implementation::AwsLc, &plain).unwrap();
        let full = sealed.len() / SEALED_SEGMENT * SEALED_SEGMENT;
        let open = |sealed: &[u8]| {
            let mut out = vec![0; len];
            let mut opener = Opener::new(keys(), Implementation::AwsLc);
            let done = opener.update(&sealed[..full], &mut out)?;
            assert_eq!(done.consumed, full);
            let last = opener.finish_with(&sealed[full..], &mut out[done.produced..])?;
            out.truncate(done.produced + last);
            Ok(out)
        };
        assert_eq!(open(&sealed), Ok(plain), "{len} bytes");
        let cut = sealed.len() - 1;
        assert!(open(&sealed[..cut]).is_err(), "{len} bytes, cut");
        let mut changed = sealed.clone();
        changed[cut] ^= 1;
        assert_eq!(open(&changed), Err(OpenError::Tag), "{len} bytes, changed");
    }
}
