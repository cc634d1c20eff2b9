//! The compact form, and that no key shows in `Debug` or in an error.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{DEK, DEK_ID, KEK, SALT, TENANT, ZONE, cases, context, dek, kek_ref, pattern, wrap_gcm};
use keyway_envelope::compact::{self, Compact};
use keyway_envelope::length::SEGMENT;
use keyway_envelope::{
    Context, Dek, DekId, FormatError, Implementation, KeyBlock, OpenError, Opener, Profile, Sealer,
    WrapMechanism,
};
use proptest::prelude::*;
use zeroize::Zeroizing;

const BY: Implementation = Implementation::AwsLc;

fn catalog() -> KeyBlock {
    KeyBlock::catalog(kek_ref(), DEK_ID)
}

fn inline() -> KeyBlock {
    wrap_gcm(&KEK, &DEK, DEK_ID, [3; 12], ZONE, TENANT)
}

fn seal(block: &KeyBlock, plain: &[u8]) -> Vec<u8> {
    compact::seal(&dek(), block, SALT, &context(), BY, plain).unwrap()
}

#[test]
fn both_forms_round_trip_with_the_overhead_that_is_documented() {
    for len in [0, 1, 64, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT] {
        let plain = pattern(len);
        for (block, overhead) in [(catalog(), 98), (inline(), 170)] {
            let sealed = seal(&block, &plain);
            assert_eq!(sealed.len(), len + overhead + 16 * (len / SEGMENT));
            let parsed = Compact::parse(&sealed).unwrap();
            assert_eq!(parsed.key_block, block);
            for by in Implementation::ALL {
                assert_eq!(parsed.open(&dek(), &context(), by).unwrap(), plain);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_bytes_parse_to_what_writes_them_or_not_at_all(
        form in prop::sample::select(&[0x11u8, 0x12, 0x10][..]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let bytes = [&[form, 1][..], &rest].concat();
        if let Ok(parsed) = Compact::parse(&bytes) {
            let block = parsed.key_block.to_bytes();
            let head = if form == 0x11 { block[4..28].to_vec() } else { block.to_vec() };
            let again = [&bytes[..2], &head, &parsed.salt, &parsed.commitment, parsed.segments].concat();
            prop_assert_eq!(again, bytes);
        }
    }
}

#[test]
fn every_bit_of_a_compact_envelope_counts() {
    let other_kek = 2..10;
    for block in [catalog(), inline()] {
        let sealed = seal(&block, b"4111111111111111");
        for bit in 0..8 * sealed.len() {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let Ok(parsed) = Compact::parse(&altered) else { continue };
            // The DEK at hand is the right one, under its right id.
            let opened = parsed.open(&dek(), &context(), BY);
            if parsed.key_block != block && parsed.key_block.dek_id() == DEK_ID {
                // Another KEK or another wrap: the same DEK if the catalog resolves it by id, else the unwrap fails.
                let inline_fails = fixture::unwrap_gcm(&KEK, &parsed.key_block, ZONE, TENANT).is_none();
                assert!(
                    inline_fails || block == catalog() && other_kek.contains(&(bit / 8)),
                    "byte {}",
                    bit / 8
                );
            } else {
                assert!(opened.is_err(), "byte {} bit {}", bit / 8, bit % 8);
            }
        }
    }
}

#[test]
fn cuts_are_refused_before_any_key_is_asked_for() {
    for block in [catalog(), inline()] {
        let sealed = seal(&block, b"");
        for len in 0..sealed.len() {
            let refused = Compact::parse(&sealed[..len]).expect_err("a cut envelope was read");
            assert!(matches!(refused, FormatError::Short | FormatError::Length(_)), "{len} bytes: {refused}");
        }
        assert!(Compact::parse(&sealed).is_ok());
    }
}

#[test]
fn unknown_forms_suites_and_a_reference_in_the_long_form_are_refused() {
    let mut sealed = seal(&catalog(), b"x");
    sealed[0] = 0x21;
    assert_eq!(Compact::parse(&sealed), Err(FormatError::Version(0x21)));
    (sealed[0], sealed[1]) = (0x11, 2);
    assert_eq!(Compact::parse(&sealed), Err(FormatError::Suite(2)));
    let long = [&[0x12, 1][..], &catalog().to_bytes(), &[0; 72]].concat();
    assert!(matches!(Compact::parse(&long), Err(FormatError::KeyBlock(_))));
}

#[test]
fn wrong_dek_id_key_or_context_is_refused() {
    let sealed = seal(&catalog(), b"x");
    let parsed = Compact::parse(&sealed).unwrap();
    let other_id = Dek::new(DekId([0; 16]), Zeroizing::new(DEK));
    let other_key = Dek::new(DEK_ID, Zeroizing::new([1; 32]));
    assert_eq!(parsed.open(&other_id, &context(), BY), Err(OpenError::Commitment));
    assert_eq!(parsed.open(&other_key, &context(), BY), Err(OpenError::Commitment));
    let other = Context { profile: Profile::Field, ..Context::object(ZONE, Some(TENANT), fixture::DOMAIN) };
    assert_eq!(parsed.open(&dek(), &other.digest(), BY), Err(OpenError::Commitment));
    // An id changed on the way, with the right key at hand.
    let mut altered = sealed.clone();
    altered[10] ^= 1;
    assert_eq!(Compact::parse(&altered).unwrap().open(&dek(), &context(), BY), Err(OpenError::Commitment));
}

#[test]
fn a_block_needs_the_length_that_its_mechanism_makes() {
    for (mechanism, right) in [(WrapMechanism::AesGcm, 60), (WrapMechanism::AesKwp, 56)] {
        for len in 0..=64 {
            let made = KeyBlock::inline(kek_ref(), DEK_ID, mechanism, &vec![7; len]);
            assert_eq!(made.is_ok(), len == right, "{mechanism:?} with {len} bytes");
        }
        let block = KeyBlock::inline(kek_ref(), DEK_ID, mechanism, &vec![7; right]).unwrap();
        assert_eq!(block.wrapped(), vec![7; right]);
        assert_eq!(KeyBlock::parse(&block.to_bytes()), Ok(block));
    }
    assert!(KeyBlock::inline(kek_ref(), DEK_ID, WrapMechanism::None, &[]).is_err());
}

#[test]
fn debug_and_errors_show_no_key_bytes() {
    // A key whose hex, decimal and ASCII forms would all be recognised.
    let bytes = *b"SECRETSECRETSECRETSECRETSECRETSE";
    let dek = Dek::new(DEK_ID, Zeroizing::new(bytes));
    let keys = dek.derive(&SALT, &context());
    let commitment = *keys.commitment();
    let mut texts = vec![format!("{dek:?}"), format!("{dek:#?}"), format!("{keys:?}"), format!("{keys:#?}")];
    let mut out = vec![0; 20_000];
    let mut sealer = Sealer::new(keys, BY);
    sealer.update(b"SECRET", &mut out).unwrap();
    texts.push(format!("{sealer:?}"));
    let mut opener = Opener::new(dek.derive(&SALT, &context()), BY);
    opener.update(b"SECRET", &mut out).unwrap();
    texts.push(format!("{opener:?}"));
    for text in &texts {
        for needle in ["SECRET", "534543", "83, 69", "0x53", &hex::encode(commitment)[..8]] {
            assert!(!text.contains(needle), "{text} shows {needle}");
        }
    }
    assert!(texts[0].contains(&DEK_ID.to_string()), "the name of the key is no secret");
    // One text for every failure to open: a peer learns nothing from it.
    let failures = [
        OpenError::Commitment,
        OpenError::Tag,
        OpenError::Truncated,
        OpenError::Poisoned,
        OpenError::TooLong,
    ];
    assert!(failures.iter().all(|error| error.to_string() == "could not be opened"));
}
