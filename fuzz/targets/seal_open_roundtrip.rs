//! Any pieces seal to the same bytes with each implementation; whole and by range, they open to what went in.
#![no_main]

use arbitrary::Arbitrary;
use keyway_envelope::length::{HEADER, SEALED_SEGMENT, plain_len_of_segments, range_plan};
use keyway_envelope::open::{OPEN_ROOM, open_whole};
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{Implementation, Opener, Sealer};
use keyway_fuzz::{Pieces, implementation, keys, pattern};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    len: u32,
    sealed_by: u8,
    opened_by: u8,
    pieces: Pieces,
    range: (u32, u32),
}

fn seal(input: &Input, plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(keys(), implementation(input.sealed_by));
    let mut rooms = input.pieces.rooms(SEALED_SEGMENT);
    let mut out = vec![0; usize::from(u16::MAX)];
    let mut sealed = Vec::new();
    let mut pieces = input.pieces.cut(plain);
    // A last empty piece: what had no room yet is asked for again.
    pieces.push(&[]);
    for piece in pieces {
        let mut rest = piece;
        let mut idle = 0;
        while !rest.is_empty() || idle < 2 {
            let room = rooms.next().unwrap_or(SEALED_SEGMENT);
            let done = sealer.update(rest, &mut out[..room]).expect("a short message");
            sealed.extend_from_slice(&out[..done.produced]);
            rest = &rest[done.consumed..];
            idle = if done.consumed + done.produced == 0 { idle + 1 } else { 0 };
            assert!(idle <= 2, "no progress though there was room");
        }
    }
    let end = sealer.finish(&[], &mut out).expect("update has taken every full segment");
    sealed.extend_from_slice(&out[..end]);
    sealed
}

fn open_range(input: &Input, plain: &[u8], sealed: &[u8]) {
    let len = plain.len();
    let (a, b) = (input.range.0 as usize % len, input.range.1 as usize % len);
    let (first, last) = (a.min(b), a.max(b));
    let plan = range_plan(len as u64, first as u64, last as u64);
    let (from, to) = (*plan.sealed.start() as usize - HEADER, *plan.sealed.end() as usize - HEADER);
    let mut opener = Opener::range(keys(), implementation(input.opened_by), &plan);
    let mut out = vec![0; to - from + 2 * OPEN_ROOM];
    let done = opener.update(&sealed[from..=to], &mut out).expect("nothing was changed");
    let end = opener.finish(&mut out[done.produced..]).expect("nothing was changed");
    let skip = plan.skip as usize;
    assert!(out[..done.produced + end][skip..][..plan.take as usize] == plain[first..=last]);
}

fuzz_target!(|input: Input| {
    let plain = pattern(input.len as usize);
    let sealed = seal(&input, &plain);
    assert!(sealed == seal_whole(keys(), Implementation::AwsLc, &plain).expect("a short message"));
    assert_eq!(plain_len_of_segments(sealed.len() as u64), Ok(plain.len() as u64));
    assert!(
        open_whole(keys(), implementation(input.opened_by), &sealed).expect("nothing was changed") == plain
    );
    if !plain.is_empty() {
        open_range(&input, &plain, &sealed);
    }
});
