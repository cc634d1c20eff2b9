//! The PKCS#11 backend on SoftHSM: the contract, what the token shows to others, and discovery.
#![allow(
    clippy::unwrap_used,
    reason = "what a test prepares has to be there, or the test fails at that place"
)]

#[path = "backend_fixture/contract.rs"]
mod contract;
#[path = "backend_fixture/softhsm.rs"]
mod softhsm;

use contract::{dek, kek};
use cryptoki::session::UserType;
use keyway_bridge::backend::{self, BackendConfig, BackendError, BackendKind, Outcome};
use softhsm::{SoftHsm, set_mode};
use std::time::Duration;

/// One token per test; all are made before the module is loaded.
fn hsm() -> &'static SoftHsm {
    let tokens = [
        "round-trip",
        "flipped",
        "life",
        "many",
        "attributes",
        "reopen",
        "duplicates",
        "imported",
        "probe",
        "wrong-pin",
        "pressure",
        "two-a",
        "two-b",
    ];
    softhsm::softhsm(&tokens, import_a_key)
}

/// Puts a key into `imported` whose bytes were known outside, under the name of a KEK.
fn import_a_key(hsm: &SoftHsm) {
    let key = hsm.folder.path().join("outside.key");
    std::fs::write(&key, [7; 32]).unwrap();
    hsm.tool(
        "imported",
        &[
            "--write-object",
            key.to_str().unwrap(),
            "--type",
            "secrkey",
            "--key-type",
            "AES:32",
            "--id",
            "00070000002a0001",
            "--label",
            "outside",
            "--private",
            "--sensitive",
        ],
    );
}

#[tokio::test]
async fn wraps_open_and_nothing_else_does() {
    let _alone = softhsm::alone().await;
    contract::round_trip_and_refusals(&*hsm().open("round-trip").await).await;
}

#[tokio::test]
async fn every_flipped_byte_is_refused() {
    let _alone = softhsm::alone().await;
    contract::every_flipped_byte_is_refused(&*hsm().open("flipped").await).await;
}

#[tokio::test]
async fn keks_are_made_once_listed_and_destroyed() {
    let _alone = softhsm::alone().await;
    contract::life_of_a_kek(&*hsm().open("life").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_on_many_sessions_make_one_key() {
    let _alone = softhsm::alone().await;
    let mut config = hsm().pkcs11("many");
    config.sessions = 4;
    config.timeout = Duration::from_secs(60);
    let config = BackendConfig { name: "many".to_owned(), kind: BackendKind::Pkcs11(config) };
    contract::many_tasks(&backend::open(&config).await.unwrap()).await;
}

#[tokio::test]
async fn the_token_shows_a_kek_that_never_leaves_it() {
    let _alone = softhsm::alone().await;
    use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass};
    let backend = hsm().open("attributes").await;
    let made = backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    assert!(!made.extractable);

    // As another program sees it.
    let output = hsm().tool("attributes", &["--list-objects", "--type", "secrkey"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.matches("Secret Key Object").count(), 1, "{shown}");
    for expected in [
        "AES length 32",
        "label:      keyway:payments/default:v1",
        "ID:         00070000002a0001",
        "sensitive",
        "always sensitive",
        "never extractable",
        "Usage:      encrypt, decrypt\n",
    ] {
        assert!(shown.contains(expected), "{expected:?} is missing in {shown}");
    }

    // And asked for its bytes, logged in, in this very process.
    let session = hsm().beside().open_ro_session(hsm().slot("attributes")).unwrap();
    let keys = session
        .find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(kek(1).to_bytes().to_vec())])
        .unwrap();
    assert_eq!(keys.len(), 1);
    let value = session.get_attribute_info(keys[0], &[AttributeType::Value]).unwrap();
    assert!(matches!(value[..], [AttributeInfo::Sensitive]), "{value:?}");
    let value = session.get_attributes(keys[0], &[AttributeType::Value]).unwrap();
    assert!(value.is_empty(), "the token gave a KEK's bytes away");
    assert!(session.update_attributes(keys[0], &[Attribute::Extractable(true)]).is_err());
    assert!(session.update_attributes(keys[0], &[Attribute::Sensitive(false)]).is_err());
}

#[tokio::test]
async fn reopening_finds_the_keys() {
    let _alone = softhsm::alone().await;
    let backend = hsm().open("reopen").await;
    let made = backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    drop(backend);
    let backend = hsm().open("reopen").await;
    assert_eq!(backend.generate_kek(kek(1), "another label").await.unwrap(), made);
    assert_eq!(backend.list_keks().await.unwrap(), [made]);
    assert_eq!(backend.unwrap(&block, "payments", "").await.unwrap().expose(), dek(1).expose());
}

#[tokio::test]
async fn two_keys_of_one_name_are_refused() {
    let _alone = softhsm::alone().await;
    let backend = hsm().open("duplicates").await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
    let good = backend.wrap(kek(2), &dek(2), "payments", "").await.unwrap();
    hsm().tool(
        "duplicates",
        &["--keygen", "--key-type", "AES:32", "--id", "00070000002a0001", "--label", "intruder"],
    );
    // The module sees the other program's key; so does whoever opens anew.
    let backend = hsm().open("duplicates").await;
    let duplicate = BackendError::Duplicate { kek: kek(1) };
    assert_eq!(backend.find_kek(kek(1)).await, Err(duplicate.clone()));
    assert_eq!(backend.generate_kek(kek(1), "keyway:payments/default:v1").await, Err(duplicate.clone()));
    assert_eq!(backend.wrap(kek(1), &dek(1), "payments", "").await, Err(duplicate.clone()));
    assert_eq!(backend.destroy_kek(kek(1)).await, Err(duplicate.clone()));
    assert_eq!(backend.list_keks().await, Err(duplicate));
    // Other KEKs are not touched by that.
    backend.unwrap(&good, "payments", "").await.unwrap();
}

#[tokio::test]
async fn a_key_from_outside_is_no_kek() {
    let _alone = softhsm::alone().await;
    let backend = hsm().open("imported").await;
    for outcome in [
        backend.generate_kek(kek(1), "keyway:payments/default:v1").await.map(drop),
        backend.wrap(kek(1), &dek(1), "payments", "").await.map(drop),
    ] {
        let Err(BackendError::Unfit { kek: unfit, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(unfit, kek(1));
    }
}

#[tokio::test]
async fn a_probe_reports_what_was_found_tried_and_chosen() {
    let _alone = softhsm::alone().await;
    let report =
        tokio::task::spawn_blocking(|| backend::probe(&hsm().config("probe"))).await.unwrap().unwrap();
    assert_eq!(report.choice, Some("aes-gcm"), "{report}");
    assert!(report.trials.iter().all(|trial| trial.outcome == Outcome::Passed), "{report}");
    for name in [
        "AES-GCM round trip",
        "a changed tag is refused",
        "other associated data are refused",
        "AES-GCM known answer",
    ] {
        assert!(report.trials.iter().any(|trial| trial.name == name), "{name} is missing in {report}");
    }
    let named = |number| report.advertised.iter().find(|mechanism| mechanism.number == number);
    assert_eq!(named(0x1087).unwrap().name.as_deref(), Some("CKM_AES_GCM"));
    // 0x210A is among what cryptoki has no list entry for in some versions: it must be here all the same.
    assert!(report.advertised.len() > 50 && report.advertised.is_sorted_by_key(|mechanism| mechanism.number));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["choice"], "aes-gcm");
    assert_eq!(json["trials"][0]["outcome"], "passed");
    assert!(report.to_string().contains("wraps with: aes-gcm"));
    // Nothing was left in the token.
    let backend = hsm().open("probe").await;
    assert_eq!(backend.list_keks().await.unwrap(), []);
    backend.health().await.unwrap();
    let output = hsm().tool("probe", &["--list-objects"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().matches("Object").count(), 0);
}

#[tokio::test]
async fn a_refused_pin_is_not_tried_again() {
    let _alone = softhsm::alone().await;
    let mut config = hsm().pkcs11("wrong-pin");
    config.pin_file = hsm().pin_file("wrong.pin", "999999");
    config.sessions = 4;
    let wrong = BackendConfig { name: "wrong-pin".to_owned(), kind: BackendKind::Pkcs11(config) };
    assert_eq!(backend::open(&wrong).await.unwrap_err(), BackendError::Pin);
    // SoftHSM notes a wrong PIN until a right one comes.
    let (pkcs11, slot) = (hsm().beside(), hsm().slot("wrong-pin"));
    let noted = || pkcs11.get_token_info(slot).unwrap().user_pin_count_low();
    assert!(noted());
    let session = pkcs11.open_ro_session(slot).unwrap();
    session.login(UserType::User, Some(&softhsm::PIN.into())).unwrap();
    session.logout().unwrap();
    assert!(!noted());
    // The same PIN again: refused as before, and the token was not asked.
    assert_eq!(backend::open(&wrong).await.unwrap_err(), BackendError::Pin);
    assert!(!noted());
    // A corrected file is tried, without a restart.
    backend::open(&hsm().config("wrong-pin")).await.unwrap();
}

#[tokio::test]
async fn wrong_configuration_says_what_to_do() {
    let _alone = softhsm::alone().await;
    let good = hsm().pkcs11("round-trip");
    let outcome = async |config| {
        let config = BackendConfig { name: "hsm".to_owned(), kind: BackendKind::Pkcs11(config) };
        backend::open(&config).await.unwrap_err().to_string()
    };
    let mut config = good.clone();
    config.token = "no-such-token".to_owned();
    let message = outcome(config).await;
    assert!(
        message.contains(r#"no token labelled "no-such-token""#) && message.contains("round-trip"),
        "{message}"
    );
    let mut config = good.clone();
    config.module = "/nowhere/libhsm.so".into();
    assert!(outcome(config).await.contains("can't load the PKCS#11 module /nowhere/libhsm.so"));
    let mut config = good.clone();
    config.module = hsm().folder.path().join("softhsm2.conf");
    assert!(outcome(config).await.contains("can't load the PKCS#11 module"));
    let mut config = good.clone();
    config.sessions = 0;
    assert!(outcome(config).await.contains("has to be 1 to 64"));
    let mut config = good;
    config.token = "probe".to_owned();
    config.pin_file = hsm().pin_file("open.pin", softhsm::PIN);
    set_mode(&config.pin_file, 0o644);
    // Only asked for where nobody of this process is logged in: another token of the same module may be.
    config.token = "pressure".to_owned();
    let message = outcome(config).await;
    assert!(message.contains("chmod 600"), "{message}");
}

#[tokio::test]
async fn two_tokens_of_one_module_are_apart() {
    let _alone = softhsm::alone().await;
    let (a, b) = (hsm().open("two-a").await, hsm().open("two-b").await);
    a.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    b.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = a.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    assert!(contract::refused(b.unwrap(&block, "payments", "").await));
    // One's end does not log the other out.
    drop(b);
    a.unwrap(&block, "payments", "").await.unwrap();
}
