//! Functional discovery: what a token can do is what it has just done right.
//!
//! Advertised is not enough (SoftHSM advertises OAEP with SHA-256 and refuses it), and working is not enough
//! either: a mechanism that opens tampered data, or that ignores the associated data, must never wrap a key.

use super::failure::{Failure, describe};
use super::keys::{canary_template, open, seal};
use super::raw;
use super::token::Link;
use crate::backend::probe::{Advertised, Outcome, Trial};
use crate::backend::{BackendError, mechanism_name};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use keyway_envelope::WrapMechanism;

const PLAIN: [u8; 32] = *b"thirty-two bytes, never a secret";
const AAD: &[u8] = b"keyway trial";

/// What was found out about a token.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) advertised: Vec<Advertised>,
    pub(super) trials: Vec<Trial>,
    pub(super) choice: Option<WrapMechanism>,
    pub(super) why: String,
}

/// Tries AES-GCM on PKCS#11 session keys; nothing is stored in the token.
pub(super) fn discover(link: &Link) -> Result<Discovery, Failure> {
    let numbers = raw::mechanisms(link.module.path(), link.slot).map_err(BackendError::Unavailable)?;
    let mut trials = vec![
        advertised(&numbers, "AES key generation is advertised", MechanismType::AES_KEY_GEN),
        advertised(&numbers, "AES-GCM is advertised", MechanismType::AES_GCM),
    ];
    if passed(&trials) {
        match link.session.generate_key(&Mechanism::AesKeyGen, &canary_template(false)) {
            Ok(key) => {
                trials.push(trial(
                    "a non-extractable AES-256 key can be made",
                    Ok("in the session".to_owned()),
                ));
                gcm(&link.session, key, &mut trials);
                trials.push(known_answer(&link.session));
                link.session.destroy_object(key)?;
            }
            Err(error) => {
                trials.push(trial("a non-extractable AES-256 key can be made", Err(describe(&error))));
            }
        }
    }
    let choice = passed(&trials).then_some(WrapMechanism::AesGcm);
    let why = match trials.iter().find(|trial| trial.outcome == Outcome::Failed) {
        None => format!(
            "{} is advertised and passed every trial, and binds zone and tenant as associated data",
            mechanism_name(WrapMechanism::AesGcm)
        ),
        Some(failed) => format!(
            "AES-GCM with associated data through C_Encrypt was tried, the only mechanism that is supported so far; \
             it can't be used, since this failed: {}: {}",
            failed.name, failed.detail
        ),
    };
    let advertised = numbers.into_iter().map(named).collect();
    Ok(Discovery { advertised, trials, choice, why })
}

fn gcm(session: &Session, key: ObjectHandle, trials: &mut Vec<Trial>) {
    let sealed = match seal(session, key, &PLAIN, AAD) {
        Ok(sealed) => sealed,
        Err(failure) => {
            trials.push(trial("AES-GCM encrypts with associated data", Err(explain(&failure))));
            return;
        }
    };
    trials.push(trial("AES-GCM encrypts with associated data", Ok("through C_Encrypt".to_owned())));
    let opened = match open(session, key, &sealed, AAD) {
        Ok(opened) if opened.as_slice() == PLAIN => Ok("the plaintext came back".to_owned()),
        Ok(_) => Err("another plaintext came back".to_owned()),
        Err(error) => Err(describe(&error)),
    };
    trials.push(trial("AES-GCM round trip", opened));
    let refused = |sealed: &[u8], aad: &[u8]| match open(session, key, sealed, aad) {
        Ok(_) => Err("it was accepted".to_owned()),
        Err(error) => Ok(describe(&error)),
    };
    for (name, at) in [
        ("a changed IV is refused", 0),
        ("a changed ciphertext is refused", 12),
        ("a changed tag is refused", sealed.len() - 1),
    ] {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        trials.push(trial(name, refused(&changed, AAD)));
    }
    trials.push(trial("other associated data are refused", refused(&sealed, b"keyway triaL")));
    trials.push(trial("a shortened tag is refused", refused(&sealed[..sealed.len() - 1], AAD)));
    let fresh = match seal(session, key, &PLAIN, AAD) {
        Ok(second) if second[..12] == sealed[..12] => Err("two IVs are the same".to_owned()),
        Ok(_) => Ok("two IVs differ, as read back after encrypting".to_owned()),
        Err(failure) => Err(explain(&failure)),
    };
    trials.push(trial("IVs are fresh", fresh));
}

/// The same key here and there gives the same bytes. Many tokens take no key from outside: then it is skipped.
fn known_answer(session: &Session) -> Trial {
    const NAME: &str = "AES-GCM known answer";
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Value(vec![0x42; 32]),
    ];
    let key = match session.create_object(&template) {
        Ok(key) => key,
        Err(error) => {
            let detail = format!("the token takes no key from outside ({})", describe(&error));
            return Trial { name: NAME, outcome: Outcome::Skipped, detail };
        }
    };
    let outcome = seal(session, key, &PLAIN, AAD).map_err(|failure| explain(&failure)).and_then(|sealed| {
        let mut expected = PLAIN.to_vec();
        let mut iv = [0; 12];
        iv.copy_from_slice(&sealed[..12]);
        let local = UnboundKey::new(&AES_256_GCM, &[0x42; 32]).expect("the key has 32 bytes");
        LessSafeKey::new(local)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(AAD), &mut expected)
            .map_err(|_| "the local AES-GCM failed".to_owned())?;
        if sealed[12..] == expected {
            Ok("the token agrees with aws-lc-rs".to_owned())
        } else {
            Err("the token and aws-lc-rs disagree".to_owned())
        }
    });
    if let Err(error) = session.destroy_object(key) {
        tracing::debug!(error = describe(&error), "a session object could not be destroyed");
    }
    trial(NAME, outcome)
}

fn advertised(numbers: &[u64], name: &'static str, mechanism: MechanismType) -> Trial {
    let outcome = if numbers.contains(&mechanism) { Ok("yes".to_owned()) } else { Err("no".to_owned()) };
    trial(name, outcome)
}

fn trial(name: &'static str, outcome: Result<String, String>) -> Trial {
    match outcome {
        Ok(detail) => Trial { name, outcome: Outcome::Passed, detail },
        Err(detail) => Trial { name, outcome: Outcome::Failed, detail },
    }
}

fn passed(trials: &[Trial]) -> bool {
    trials.iter().all(|trial| trial.outcome != Outcome::Failed)
}

fn named(number: u64) -> Advertised {
    let name = MechanismType::try_from(number).ok().map(|mechanism| mechanism.to_string());
    Advertised { number, name }
}

fn explain(failure: &Failure) -> String {
    match failure {
        Failure::Backend(error) => error.to_string(),
        Failure::Absent { text, .. } => text.clone(),
        Failure::Call(error) | Failure::Suspect { error, .. } => describe(error),
    }
}
