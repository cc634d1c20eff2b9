use super::*;
use crate::v1::Keyring;

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap()
}

fn set() -> KeyringSet {
    KeyringSet {
        zone: "payments".into(),
        zone_id: 3,
        generation: 17,
        epoch: 2,
        keyrings: vec![Keyring { name: "default".into(), primary: 1, ..Keyring::default() }],
        ..KeyringSet::default()
    }
}

#[test]
fn what_was_signed_is_what_is_verified() {
    let key = key();
    let signed = key.sign_keyring_set(&set());
    assert_eq!(key.verify_key().verify(&signed).unwrap(), set());
}

#[test]
fn every_changed_byte_is_refused() {
    let key = key();
    let good = key.sign_keyring_set(&set());
    for at in 0..good.keyring_set.len() {
        let mut signed = good.clone();
        signed.keyring_set[at] ^= 1;
        assert!(matches!(key.verify_key().verify(&signed), Err(Error::Signature)), "byte {at} of the set");
    }
    for at in 0..good.signature.len() {
        let mut signed = good.clone();
        signed.signature[at] ^= 1;
        assert!(
            matches!(key.verify_key().verify(&signed), Err(Error::Signature)),
            "byte {at} of the signature"
        );
    }
    let mut longer = good;
    longer.keyring_set.push(0);
    assert!(matches!(key.verify_key().verify(&longer), Err(Error::Signature)));
}

#[test]
fn another_key_or_another_label_is_refused() {
    let signer = key();
    let mut signed = signer.sign_keyring_set(&set());
    assert!(matches!(key().verify_key().verify(&signed), Err(Error::Signature)));
    // A signature over the bytes without the label, as another protocol might make with the same key.
    signed.signature = signer.0.sign(&signed.keyring_set).as_ref().to_vec();
    assert!(matches!(signer.verify_key().verify(&signed), Err(Error::Signature)));
}

#[test]
fn a_signed_message_of_another_kind_is_not_read() {
    let signer = key();
    let keyring_set = vec![0xFF; 5];
    let signature = signer.0.sign(&signed_bytes(&keyring_set)).as_ref().to_vec();
    let signed = SignedKeyringSet { keyring_set, signature };
    assert!(matches!(signer.verify_key().verify(&signed), Err(Error::KeyringSet(_))));
}

#[test]
fn keys_are_stored_and_read_and_never_shown() {
    let pkcs8 = SigningKey::generate_pkcs8().unwrap();
    let (one, two) = (SigningKey::from_pkcs8(&pkcs8).unwrap(), SigningKey::from_pkcs8(&pkcs8).unwrap());
    assert_eq!(one.verify_key(), two.verify_key());
    assert!(matches!(SigningKey::from_pkcs8(&pkcs8[1..]), Err(Error::SigningKey(_))));
    let public = one.verify_key();
    assert_eq!(VerifyKey::from_bytes(&public.to_bytes()).unwrap(), public);
    assert!(matches!(VerifyKey::from_bytes(&[1; 31]), Err(Error::VerifyKey)));
    assert_eq!(format!("{one:?}"), format!("SigningKey(VerifyKey({public}))"));
}
