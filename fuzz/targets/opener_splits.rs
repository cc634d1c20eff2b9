//! Sealed bytes, whole or changed, in any pieces into any outputs: whole ones give the plaintext, changed ones an error,
//! and before that nothing but a prefix that stops short of the end.
#![no_main]

use arbitrary::Arbitrary;
use keyway_envelope::open::OPEN_ROOM;
use keyway_envelope::seal::seal_whole;
use keyway_envelope::{Implementation, OpenError, Opener};
use keyway_fuzz::{Change, Pieces, implementation, keys, pattern};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    len: u32,
    by: u8,
    pieces: Pieces,
    changes: Vec<Change>,
}

fn run(input: &Input, bytes: &[u8], released: &mut Vec<u8>) -> Result<Vec<u8>, OpenError> {
    let mut opener = Opener::new(keys(), implementation(input.by));
    let mut rooms = input.pieces.rooms(OPEN_ROOM);
    let mut out = vec![0; usize::from(u16::MAX)];
    let mut pieces = input.pieces.cut(bytes);
    // A last empty piece: what had no room yet is asked for again.
    pieces.push(&[]);
    for piece in pieces {
        let mut rest = piece;
        let mut idle = 0;
        while !rest.is_empty() || idle < 2 {
            let room = rooms.next().unwrap_or(OPEN_ROOM);
            let done = opener.update(rest, &mut out[..room])?;
            released.extend_from_slice(&out[..done.produced]);
            rest = &rest[done.consumed..];
            idle = if done.consumed + done.produced == 0 { idle + 1 } else { 0 };
            assert!(idle <= 2, "no progress though there was room");
        }
    }
    let end = opener.finish(&mut out)?;
    Ok(out[..end].to_vec())
}

fuzz_target!(|input: Input| {
    let plain = pattern(input.len as usize);
    let sealed = seal_whole(keys(), Implementation::AwsLc, &plain).expect("a short message");
    let mut bytes = sealed.clone();
    input.changes.iter().take(8).for_each(|change| change.apply(&mut bytes));
    let mut released = Vec::new();
    let end = run(&input, &bytes, &mut released);
    if bytes == sealed {
        released.extend(end.expect("nothing was changed"));
        assert!(released == plain);
    } else {
        assert!(end.is_err(), "changed bytes were opened");
        assert!(plain.starts_with(&released));
        assert!(plain.is_empty() || released.len() < plain.len(), "all came out before the end was proved");
    }
});
