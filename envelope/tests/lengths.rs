//! Sealed length from plain length, the way back, and ranges against a whole opening.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{EDGES, cases, keys, object, open_in_pieces, pattern};
use keyway_envelope::length::{
    HEADER, MAX_PLAIN, MAX_SEGMENTS, RangePlan, SEALED_SEGMENT, SEGMENT, TAG, plain_len,
    plain_len_of_segments, range_plan, sealed_len, segments_len,
};
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::{FormatError, Implementation, OpenError, Opener};
use proptest::prelude::*;

/// Opens what `plan` fetches from `object` and cuts it as the plan says.
fn open_range(object: &[u8], plan: &RangePlan, cuts: &[usize]) -> Result<Vec<u8>, OpenError> {
    let (from, to) =
        (usize::try_from(*plan.sealed.start()).unwrap(), usize::try_from(*plan.sealed.end()).unwrap());
    let opener = Opener::range(keys(), Implementation::selected(), plan);
    let opened = open_in_pieces(opener, &object[from..=to], cuts, &[OPEN_ROOM, 3 * OPEN_ROOM]).whole()?;
    let skip = usize::try_from(plan.skip).unwrap();
    Ok(opened[skip..skip + usize::try_from(plan.take).unwrap()].to_vec())
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![prop::sample::select(&EDGES[1..]), 1..5 * SEGMENT]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_length_and_its_inverse(plain in prop_oneof![0..=MAX_PLAIN, 0..200_000u64]) {
        let sealed = sealed_len(plain).unwrap();
        prop_assert_eq!(sealed, 160 + plain + 16 * (plain / 16384 + 1));
        prop_assert_eq!(plain_len(sealed), Ok(plain));
        prop_assert_eq!(plain_len_of_segments(segments_len(plain).unwrap()), Ok(plain));
    }

    #[test]
    fn a_length_is_either_impossible_or_made_by_one_plaintext(sealed in prop_oneof![any::<u64>(), 0..200_000u64]) {
        match plain_len(sealed) {
            Ok(plain) => prop_assert_eq!(sealed_len(plain), Some(sealed)),
            Err(error) => prop_assert_eq!(error, FormatError::Length(sealed)),
        }
    }

    #[test]
    fn a_range_is_what_a_whole_opening_has_there(
        len in lengths(),
        ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        cuts in prop::collection::vec(0..5 * SEALED_SEGMENT, 0..4),
    ) {
        let plain = pattern(len);
        let (a, b) = (ends.0.index(len), ends.1.index(len));
        let (first, last) = (a.min(b), a.max(b));
        let plan = range_plan(len as u64, first as u64, last as u64);
        prop_assert!(open_range(&object(&plain), &plan, &cuts).unwrap() == plain[first..=last]);
        prop_assert_eq!(plan.take, (last - first + 1) as u64);
        prop_assert!(plan.skip < SEGMENT as u64);
    }
}

#[test]
fn each_range_around_the_segment_boundaries() {
    for len in [1, 2, 16383, 16384, 16385, 32767, 32768, 32769, 49152] {
        let plain = pattern(len);
        let whole = object(&plain);
        let mut points: Vec<usize> =
            (0..=3).flat_map(|n| [n * SEGMENT, n * SEGMENT + 1, (n * SEGMENT).wrapping_sub(1)]).collect();
        points.extend([len - 1, len / 2]);
        points.retain(|&at| at < len);
        for &first in &points {
            for &last in points.iter().filter(|&&last| last >= first) {
                let plan = range_plan(len as u64, first as u64, last as u64);
                let opened = open_range(&whole, &plan, &[]).unwrap();
                assert!(opened == plain[first..=last], "{first}-{last} of {len}");
                // No segment is fetched in vain, but for the empty last one that proves the length.
                let needed = last / SEGMENT - first / SEGMENT + 1;
                let proof = usize::from(last == len - 1 && len % SEGMENT == 0);
                assert_eq!(plan.segments(), (needed + proof) as u64, "{first}-{last} of {len}");
            }
        }
    }
}

#[test]
fn a_range_with_missing_or_extra_segments_is_refused() {
    let plain = pattern(5 * SEGMENT);
    let whole = object(&plain);
    let at = |segment: usize| HEADER + segment * SEALED_SEGMENT;
    let inner = range_plan(plain.len() as u64, SEGMENT as u64, 3 * SEGMENT as u64 - 1);
    let tail = range_plan(plain.len() as u64, 3 * SEGMENT as u64, 5 * SEGMENT as u64 - 1);
    assert!(!inner.includes_last && tail.includes_last);
    let feed = |plan: &RangePlan, bytes: &[u8]| {
        let opened =
            open_in_pieces(Opener::range(keys(), Implementation::AwsLc, plan), bytes, &[], &[OPEN_ROOM]);
        let all = plan.skip + plan.take;
        assert!((opened.released.len() as u64) < all || opened.end.is_ok() || !plan.includes_last);
        opened.end.map(drop)
    };
    assert_eq!(feed(&inner, &whole[at(1)..at(3)]), Ok(()));
    assert_eq!(feed(&inner, &whole[at(1)..at(2)]), Err(OpenError::Truncated));
    assert_eq!(feed(&inner, &whole[at(1)..at(3) - 1]), Err(OpenError::Truncated));
    assert_eq!(feed(&inner, &whole[at(1)..at(4)]), Err(OpenError::TooLong));
    assert_eq!(feed(&inner, &whole[at(2)..at(4)]), Err(OpenError::Tag));
    assert_eq!(feed(&tail, &whole[at(3)..]), Ok(()));
    assert_eq!(feed(&tail, &whole[at(3)..at(5)]), Err(OpenError::Truncated));
    assert_eq!(feed(&tail, &whole[at(4)..]), Err(OpenError::Tag));
    // The last segment under a wrong index, as if the object were longer or shorter than it is.
    let longer = range_plan(6 * SEGMENT as u64, 5 * SEGMENT as u64, 6 * SEGMENT as u64 - 1);
    assert_eq!(feed(&longer, &whole[at(5)..]), Err(OpenError::Truncated));
}

#[test]
fn lengths_at_the_limits() {
    assert_eq!(MAX_PLAIN, (1 << 52) - 1);
    assert_eq!(sealed_len(MAX_PLAIN), Some(160 + MAX_PLAIN + 16 * MAX_SEGMENTS));
    assert_eq!(sealed_len(MAX_PLAIN + 1), None);
    assert_eq!(segments_len(u64::MAX), None);
    let longest = sealed_len(MAX_PLAIN).unwrap();
    assert_eq!(plain_len(longest), Ok(MAX_PLAIN));
    for sealed in [longest + 1, longest + 17, u64::MAX] {
        assert_eq!(plain_len(sealed), Err(FormatError::Length(sealed)));
    }
}

#[test]
fn impossible_lengths_are_refused() {
    for sealed in 0..(HEADER + TAG) as u64 {
        assert_eq!(plain_len(sealed), Err(FormatError::Length(sealed)));
    }
    for full in 1..4u64 {
        for short in 0..TAG as u64 {
            let sealed = HEADER as u64 + full * SEALED_SEGMENT as u64 + short;
            assert_eq!(
                plain_len(sealed),
                Err(FormatError::Length(sealed)),
                "cut {short} bytes behind {full} segments"
            );
        }
    }
}

#[test]
#[should_panic(expected = "range was not resolved")]
fn a_range_past_the_end_is_the_callers_mistake() {
    let _ = range_plan(10, 0, 10);
}
