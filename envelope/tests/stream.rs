//! Streams: what one side says in one order is what the other side reads, or nothing.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{DEK_ID, DOMAIN, SALT, TENANT, ZONE, cases, dek, kek_ref, pattern};
use keyway_envelope::stream::{
    Keying, RECORD_HEADER, RECORD_MAX, RECORD_MORE, REKEY_RECORD, Record, SETUP, StreamContext, StreamOpener,
    StreamSealer, Way, challenge, parse_challenge,
};
use keyway_envelope::{Dek, DekId, FormatError, Header, Implementation, KeyBlock, OpenError, SealError};
use proptest::prelude::*;
use zeroize::Zeroizing;

const BY: Implementation = Implementation::AwsLc;
/// Of the challenge.
const NONCE: [u8; 24] = [0xC4; 24];
const NEXT_ID: DekId = DekId([0xD2; 16]);

fn block(id: DekId) -> KeyBlock {
    KeyBlock::catalog(kek_ref(), id)
}

fn next_dek() -> Dek {
    Dek::new(NEXT_ID, Zeroizing::new([9; 32]))
}

fn context(way: Way) -> StreamContext {
    StreamContext { zone: ZONE.into(), tenant: Some(TENANT.into()), domain: DOMAIN.into(), way }
}

fn sealer() -> (StreamSealer, [u8; SETUP]) {
    StreamSealer::begin(&dek(), &block(DEK_ID), SALT, context(Way::There(NONCE)), BY)
}

fn opener(setup: &[u8; SETUP]) -> StreamOpener {
    StreamOpener::begin(&Keying::parse(setup).unwrap(), &dek(), context(Way::There(NONCE)), BY).unwrap()
}

fn data(sealer: &mut StreamSealer, plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len() + RECORD_MORE];
    assert_eq!(sealer.data(plain, &mut out).unwrap(), out.len());
    out
}

/// Opens one whole record; a REKEY is followed with the DEK that it names.
fn read(opener: &mut StreamOpener, record: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
    let (header, sealed) = record.split_first_chunk::<RECORD_HEADER>().unwrap();
    let mut out = vec![0; RECORD_MAX];
    match opener.open(*header, sealed, &mut out)? {
        Record::Data(len) => Ok(Some(out[..len].to_vec())),
        Record::Fin => Ok(None),
        Record::Rekey(keying) => {
            let dek = if keying.key_block.dek_id() == NEXT_ID { next_dek() } else { dek() };
            opener.rekey(&keying, &dek)?;
            Ok(None)
        }
    }
}

#[test]
fn what_is_said_is_read_across_new_keys_by_every_implementation() {
    for by in Implementation::ALL {
        let (mut sealer, setup) =
            StreamSealer::begin(&dek(), &block(DEK_ID), SALT, context(Way::There(NONCE)), by);
        let keying = Keying::parse(&setup).unwrap();
        assert_eq!(keying.key_block, block(DEK_ID));
        for other in Implementation::ALL {
            let mut opener = StreamOpener::begin(&keying, &dek(), context(Way::There(NONCE)), other).unwrap();
            let mut again =
                StreamSealer::begin(&dek(), &block(DEK_ID), SALT, context(Way::There(NONCE)), by).0;
            for len in [0, 1, 100, RECORD_MAX - 1, RECORD_MAX] {
                let plain = pattern(len);
                assert_eq!(read(&mut opener, &data(&mut again, &plain)).unwrap(), Some(plain));
            }
            let rekey = again.rekey(&next_dek(), &block(NEXT_ID), [7; 24]).unwrap();
            assert_eq!(read(&mut opener, &rekey).unwrap(), None);
            assert_eq!(
                read(&mut opener, &data(&mut again, b"under the new keys")).unwrap().unwrap(),
                b"under the new keys"
            );
            // And on, under the same DEK.
            let rekey = again.rekey(&next_dek(), &block(NEXT_ID), [8; 24]).unwrap();
            assert_eq!(rekey.len(), REKEY_RECORD);
            read(&mut opener, &rekey).unwrap();
            assert!(!opener.has_ended());
            assert_eq!(read(&mut opener, &again.finish().unwrap()).unwrap(), None);
            assert!(opener.has_ended());
        }
        sealer.finish().unwrap();
    }
}

#[test]
fn a_record_that_is_changed_moved_repeated_or_left_out_ends_the_stream() {
    let records = || {
        let (mut sealer, setup) = sealer();
        let records: Vec<Vec<u8>> = vec![
            data(&mut sealer, b"one"),
            data(&mut sealer, b"two"),
            sealer.rekey(&next_dek(), &block(NEXT_ID), [7; 24]).unwrap().to_vec(),
            data(&mut sealer, b"three"),
            sealer.finish().unwrap().to_vec(),
        ];
        (setup, records)
    };
    let (setup, all) = records();
    let order = |indices: &[usize]| {
        let mut opener = opener(&setup);
        let mut last = Ok(None);
        for &index in indices {
            last = read(&mut opener, &all[index]);
            if last.is_err() {
                assert_eq!(read(&mut opener, &all[0]), Err(OpenError::Poisoned));
                break;
            }
        }
        (last, opener.has_ended())
    };
    assert_eq!(order(&[0, 1, 2, 3, 4]), (Ok(None), true));
    assert_eq!(order(&[1]).0, Err(OpenError::Tag));
    assert_eq!(order(&[0, 0]).0, Err(OpenError::Tag));
    assert_eq!(order(&[0, 2]).0, Err(OpenError::Tag));
    assert_eq!(order(&[0, 1, 3]).0, Err(OpenError::Tag));
    assert_eq!(order(&[0, 1, 2, 4]).0, Err(OpenError::Tag));
    assert_eq!(order(&[0, 1, 2, 3, 4, 0]).0, Err(OpenError::Order));
    // It only says that it was cut off if one asks.
    assert_eq!(order(&[0, 1, 2, 3]), (Ok(Some(b"three".to_vec())), false));

    for at in 0..all[0].len() {
        let mut changed = all[0].clone();
        changed[at] ^= 1;
        let mut opener = opener(&setup);
        let (header, sealed) = changed.split_first_chunk::<RECORD_HEADER>().unwrap();
        let mut out = [0xEE; RECORD_MAX];
        assert!(opener.open(*header, sealed, &mut out).is_err(), "byte {at}");
        assert_ne!(out[..3], *b"one");
    }
}

#[test]
fn data_where_keys_are_due_and_keys_where_none_are() {
    let (mut sealer, setup) = sealer();
    let rekey = sealer.rekey(&next_dek(), &block(NEXT_ID), [7; 24]).unwrap();
    let (header, sealed) = rekey.split_first_chunk::<RECORD_HEADER>().unwrap();
    let mut out = vec![0; RECORD_MAX];
    let mut opener = opener(&setup);
    let Record::Rekey(keying) = opener.open(*header, sealed, &mut out).unwrap() else { panic!("a REKEY") };
    let after = data(&mut sealer, b"x");
    assert_eq!(read(&mut opener, &after), Err(OpenError::Order));
    let mut early = self::opener(&setup);
    assert_eq!(early.rekey(&keying, &next_dek()), Err(OpenError::Order));
    // The right time, and another key.
    let mut wrong = self::opener(&setup);
    let Record::Rekey(keying) = wrong.open(*header, sealed, &mut out).unwrap() else { panic!("a REKEY") };
    let other = Dek::new(NEXT_ID, Zeroizing::new([1; 32]));
    assert_eq!(wrong.rekey(&keying, &other), Err(OpenError::Commitment));
    assert_eq!(wrong.rekey(&keying, &next_dek()), Err(OpenError::Order));
}

#[test]
fn new_keys_belong_to_what_came_before() {
    // Two streams that say the same but for one record, and go on under the same DEK and salt.
    let run = |first: &[&[u8]]| {
        let (mut sealer, setup) = sealer();
        let before: Vec<_> = first.iter().map(|plain| data(&mut sealer, plain)).collect();
        let rekey = sealer.rekey(&next_dek(), &block(NEXT_ID), [7; 24]).unwrap();
        (setup, before, rekey, data(&mut sealer, b"after"))
    };
    let (setup, before, rekey, _) = run(&[b"a"]);
    let (_, _, _, foreign) = run(&[b"a", b"b"]);
    let mut opener = opener(&setup);
    read(&mut opener, &before[0]).unwrap();
    read(&mut opener, &rekey).unwrap();
    assert_eq!(read(&mut opener, &foreign), Err(OpenError::Tag));
}

#[test]
fn the_two_directions_and_two_connections_are_kept_apart() {
    let (_, setup) = sealer();
    let keying = Keying::parse(&setup).unwrap();
    let begin = |context: StreamContext, dek: &Dek| StreamOpener::begin(&keying, dek, context, BY).map(drop);
    assert_eq!(begin(context(Way::There(NONCE)), &dek()), Ok(()));
    for other in [
        context(Way::Back(SALT)),
        context(Way::Back(NONCE)),
        // The same once more, to who has asked anew.
        context(Way::There([0xC5; 24])),
        StreamContext { zone: "other".into(), ..context(Way::There(NONCE)) },
        StreamContext { tenant: None, ..context(Way::There(NONCE)) },
        StreamContext { domain: "other".into(), ..context(Way::There(NONCE)) },
    ] {
        assert_eq!(begin(other, &dek()), Err(OpenError::Commitment));
    }
    assert_eq!(begin(context(Way::There(NONCE)), &next_dek()), Err(OpenError::Commitment));

    let back = StreamSealer::begin(&dek(), &block(DEK_ID), [3; 24], context(Way::Back(SALT)), BY).1;
    let keying = Keying::parse(&back).unwrap();
    assert!(StreamOpener::begin(&keying, &dek(), context(Way::Back(SALT)), BY).is_ok());
    let elsewhere = StreamOpener::begin(&keying, &dek(), context(Way::Back([4; 24])), BY);
    assert_eq!(elsewhere.map(drop), Err(OpenError::Commitment));
}

#[test]
fn a_stream_is_no_object_and_an_object_no_stream() {
    let (_, setup) = sealer();
    assert_eq!(Header::parse(&setup), Err(FormatError::Suite(2)));
    let mut object = setup;
    object[5] = 1;
    assert_eq!(Header::parse(&object), Err(FormatError::Profile(3)));
    for (at, value, error) in [
        (0, 0, FormatError::Magic),
        (4, 2, FormatError::Version(2)),
        (5, 1, FormatError::Suite(1)),
        (6, 1, FormatError::Flags(1)),
        (7, 1, FormatError::Profile(1)),
    ] {
        let mut changed = setup;
        changed[at] = value;
        assert_eq!(Keying::parse(&changed), Err(error));
    }
}

#[test]
fn challenges() {
    let said = challenge(&NONCE);
    assert_eq!(parse_challenge(&said), Ok(NONCE));
    let mut plain = said;
    plain[0] = b'2';
    assert_eq!(parse_challenge(&plain), Err(FormatError::Magic));
}

#[test]
fn lengths_that_no_record_has() {
    for (header, expected) in [
        ([1, 0, 15], Err(OpenError::Truncated)),
        ([1, 0, 16], Ok(16)),
        ([1, 0x40, 0x10], Ok(RECORD_MAX + 16)),
        ([1, 0x40, 0x11], Err(OpenError::TooLong)),
        ([1, 0xFF, 0xFF], Err(OpenError::TooLong)),
    ] {
        assert_eq!(StreamOpener::sealed_len(header), expected);
    }
    let (mut sealer, _) = sealer();
    let mut out = vec![0; RECORD_MAX + RECORD_MORE + 1];
    assert_eq!(sealer.data(&pattern(RECORD_MAX + 1), &mut out), Err(SealError::TooLong));
    assert_eq!(sealer.data(b"abc", &mut out[..RECORD_MORE + 2]), Err(SealError::OutputTooSmall));
    sealer.finish().unwrap();
    assert_eq!(sealer.data(b"abc", &mut out), Err(SealError::Ended));
    assert_eq!(sealer.finish(), Err(SealError::Ended));
    assert_eq!(sealer.rekey(&dek(), &block(DEK_ID), [1; 24]), Err(SealError::Ended));
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_conversation_is_read_as_it_was_said(
        steps in prop::collection::vec(prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..600).prop_map(Some),
            1 => Just(None),
        ], 0..40),
    ) {
        let (mut sealer, setup) = sealer();
        let mut opener = opener(&setup);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Some(plain) => {
                    let record = data(&mut sealer, &plain);
                    prop_assert_eq!(read(&mut opener, &record).unwrap(), Some(plain));
                }
                None => {
                    let salt = [u8::try_from(n).unwrap(); 24];
                    let record = if n % 2 == 0 {
                        sealer.rekey(&next_dek(), &block(NEXT_ID), salt)
                    } else {
                        sealer.rekey(&dek(), &block(DEK_ID), salt)
                    };
                    prop_assert_eq!(read(&mut opener, &record.unwrap()).unwrap(), None);
                }
            }
        }
        read(&mut opener, &sealer.finish().unwrap()).unwrap();
        prop_assert!(opener.has_ended());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(header: [u8; 3], sealed in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, setup) = sealer();
        let mut out = vec![0; RECORD_MAX];
        prop_assert!(opener(&setup).open(header, &sealed, &mut out).is_err());
    }
}
