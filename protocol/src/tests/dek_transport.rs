use super::*;
use keyway_envelope::{DekId, KekRef, KekVersion, KeyringId, WrapMechanism, ZoneId};

const SECRET: [u8; DEK_LEN] = [0x5E; DEK_LEN];

fn block(wrapped: u8) -> KeyBlock {
    let kek = KekRef { zone: ZoneId(3), keyring: KeyringId(7), version: KekVersion(2) };
    KeyBlock::inline(kek, DekId([9; 16]), WrapMechanism::AesGcm, &[wrapped; 60]).unwrap()
}

fn answer_to(recipient: &MemberKey) -> DekResponse {
    let dek = Dek::new(DekId([9; 16]), Zeroizing::new(SECRET));
    let (encapsulated_key, sealed_dek) =
        seal_dek(&recipient.public(), &dek, &block(1), "payments", "default", "acme").unwrap();
    DekResponse {
        key_block: block(1).to_bytes().to_vec(),
        keyring: "default".into(),
        tenant: "acme".into(),
        kek_version: 2,
        encapsulated_key,
        sealed_dek,
    }
}

#[test]
fn a_dek_arrives_at_its_member_and_nowhere_else() {
    let member = MemberKey::generate();
    let answer = answer_to(&member);
    let dek = member.open(&answer, "payments").unwrap();
    assert_eq!(dek.expose(), &SECRET);
    assert_eq!(dek.id(), DekId([9; 16]));
    assert!(matches!(MemberKey::generate().open(&answer, "payments"), Err(Error::DekRefused)));
}

#[test]
fn what_is_authenticated_beside_the_dek_cannot_be_changed() {
    let member = MemberKey::generate();
    let good = answer_to(&member);
    assert!(matches!(member.open(&good, "payment"), Err(Error::DekRefused)), "another zone");
    type Change = fn(&mut DekResponse);
    let changes: [(&str, Change); 6] = [
        ("another key block", |answer| answer.key_block = block(2).to_bytes().to_vec()),
        ("another keyring", |answer| answer.keyring = "defaults".into()),
        ("another tenant", |answer| answer.tenant = "acm".into()),
        ("a byte moved from keyring to tenant", |answer| {
            answer.keyring = "defaul".into();
            answer.tenant = "tacme".into();
        }),
        ("another encapsulated key", |answer| answer.encapsulated_key[31] ^= 1),
        ("a cut DEK", |answer| answer.sealed_dek.truncate(47)),
    ];
    for (what, change) in changes {
        let mut answer = good.clone();
        change(&mut answer);
        assert!(matches!(member.open(&answer, "payments"), Err(Error::DekRefused)), "{what}");
    }
    for at in 0..SEALED_DEK_LEN {
        let mut answer = good.clone();
        answer.sealed_dek[at] ^= 0x80;
        assert!(matches!(member.open(&answer, "payments"), Err(Error::DekRefused)), "byte {at}");
    }
}

#[test]
fn malformed_key_blocks_and_recipients_are_named() {
    let member = MemberKey::generate();
    let mut answer = answer_to(&member);
    answer.key_block.pop();
    assert!(matches!(member.open(&answer, "payments"), Err(Error::KeyBlock(_))));

    let dek = Dek::new(DekId([9; 16]), Zeroizing::new(SECRET));
    // Too short, and the point of order 1, which gives everybody the same shared secret.
    for bad in [vec![1; 31], vec![0; 32]] {
        assert!(matches!(seal_dek(&bad, &dek, &block(1), "z", "k", ""), Err(Error::RecipientKey)));
    }
}

#[test]
fn every_transport_is_a_new_encapsulation() {
    let member = MemberKey::generate();
    let (one, two) = (answer_to(&member), answer_to(&member));
    assert_ne!(one.encapsulated_key, two.encapsulated_key);
    assert_ne!(one.sealed_dek, two.sealed_dek);
}

#[test]
fn debug_shows_no_key() {
    let member = MemberKey::generate();
    assert_eq!(format!("{member:?}"), "MemberKey { .. }");
}
