use super::*;
use keyway_envelope::{DekId, KekRef, OpenError, WrapMechanism, ZoneId};
use zeroize::Zeroizing;

fn dek(byte: u8) -> Dek {
    Dek::new(DekId([4; 16]), Zeroizing::new([byte; 32]))
}

fn block() -> KeyBlock {
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };
    KeyBlock::inline(kek, DekId([4; 16]), WrapMechanism::AesGcm, &[3; 60]).unwrap()
}

fn sealed() -> Vec<u8> {
    seal_known_answer(&dek(1), &block(), [2; SALT], "payments", &[0xA7; 32])
}

#[test]
fn a_known_answer_opens_under_its_dek_in_its_zone_only() {
    let envelope = sealed();
    assert_eq!(open_known_answer(&envelope, &dek(1), "payments").unwrap(), [0xA7; 32]);
    assert_eq!(known_answer_key_block(&envelope).unwrap(), block());
    let wrong_key = open_known_answer(&envelope, &dek(2), "payments");
    assert!(matches!(wrong_key, Err(Error::KnownAnswer(OpenError::Commitment))));
    let wrong_zone = open_known_answer(&envelope, &dek(1), "payroll");
    assert!(matches!(wrong_zone, Err(Error::KnownAnswer(OpenError::Commitment))));
}

#[test]
fn every_changed_byte_outside_the_wrap_is_refused() {
    let good = sealed();
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        let opened = open_known_answer(&changed, &dek(1), "payments");
        // KEK reference, DEK id and wrapped bytes are the bridge's to check: here the DEK is given.
        let judged_by_the_bridge = (12..36).contains(&at) || (40..100).contains(&at);
        assert_eq!(opened.is_ok(), judged_by_the_bridge, "byte {at}: {opened:?}");
    }
    for len in 0..good.len() {
        assert!(open_known_answer(&good[..len], &dek(1), "payments").is_err(), "cut to {len}");
    }
}

#[test]
fn an_object_of_a_route_is_no_known_answer() {
    let mut object = sealed();
    object[7] = Profile::Object.to_byte();
    assert!(matches!(open_known_answer(&object, &dek(1), "payments"), Err(Error::KnownAnswerForm(_))));
    assert!(matches!(known_answer_key_block(b"GET / HTTP/1.1"), Err(Error::KnownAnswerForm(_))));
}

#[test]
fn the_digest_depends_on_what_was_opened_and_not_on_the_order() {
    let one = (KeyringId(1), KekVersion(1), [1; 32]);
    let two = (KeyringId(1), KekVersion(2), [2; 32]);
    let base = digest(5, &[one, two]);
    assert_eq!(base, digest(5, &[two, one]));
    let others = [
        digest(6, &[one, two]),
        digest(5, &[one]),
        digest(5, &[one, two, two]),
        digest(5, &[one, (KeyringId(2), KekVersion(2), [2; 32])]),
        digest(5, &[one, (KeyringId(1), KekVersion(3), [2; 32])]),
        digest(5, &[one, (KeyringId(1), KekVersion(2), [3; 32])]),
        digest(5, &[]),
    ];
    assert!(others.iter().all(|other| *other != base));
}

#[test]
fn the_digest_is_what_it_says() {
    // label ‖ generation ‖ count ‖ (keyring ‖ version ‖ answer), written out by hand.
    let mut bytes = b"keyway kat v1\0".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend_from_slice(&[0, 0, 0, 7, 0, 3]);
    bytes.extend_from_slice(&[0xEE; 32]);
    let expected = aws_lc_rs::digest::digest(&SHA256, &bytes);
    assert_eq!(digest(9, &[(KeyringId(7), KekVersion(3), [0xEE; 32])]), expected.as_ref());
}
