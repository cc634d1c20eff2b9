//! The PKCS#11 backend when the ground moves: sessions lost, keys gone, the module finalised, the storage taken away.
//!
//! What one test does to the module, every session of the process feels: so they run one after the other.
#![allow(
    clippy::unwrap_used,
    reason = "what a test prepares has to be there, or the test fails at that place"
)]

#[path = "backend_fixture/contract.rs"]
mod contract;
#[path = "backend_fixture/softhsm.rs"]
mod softhsm;

use contract::{dek, kek, refused};
use keyway_bridge::backend::{self, BackendConfig, BackendError, BackendKind, KeyBackend};
use softhsm::SoftHsm;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

async fn hsm() -> (&'static SoftHsm, MutexGuard<'static, ()>) {
    let alone = softhsm::alone().await;
    let tokens = ["logout", "finalised", "bystander", "deleted", "storage", "empty", "slow"];
    (softhsm::softhsm(&tokens, |_| {}), alone)
}

/// One session, so that each call meets the damage.
async fn open(hsm: &SoftHsm, token: &str) -> Arc<dyn KeyBackend> {
    let mut config = hsm.pkcs11(token);
    config.sessions = 1;
    let config = BackendConfig { name: token.to_owned(), kind: BackendKind::Pkcs11(config) };
    backend::open(&config).await.unwrap()
}

#[tokio::test]
async fn a_logged_out_session_is_replaced_and_nothing_seems_missing() {
    let (hsm, _alone) = hsm().await;
    let backend = open(hsm, "logout").await;
    let made = backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    let log_out = || {
        let session = hsm.beside().open_ro_session(hsm.slot("logout")).unwrap();
        session.logout().unwrap();
    };
    // Private objects can't be seen then: a KEK that seems missing would be made a second time.
    log_out();
    assert_eq!(backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap(), made);
    log_out();
    assert_eq!(backend.find_kek(kek(1)).await.unwrap(), Some(made.clone()));
    log_out();
    assert_eq!(backend.list_keks().await.unwrap(), [made]);
    log_out();
    assert_eq!(backend.unwrap(&block, "payments", "").await.unwrap().expose(), dek(1).expose());
    log_out();
    let outcome = backend.unwrap(&block, "payments", "other").await;
    assert!(matches!(outcome, Err(BackendError::Refused)), "{outcome:?}");
    log_out();
    backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    log_out();
    backend.health().await.unwrap();
    log_out();
    backend.destroy_kek(kek(1)).await.unwrap();
    assert_eq!(backend.find_kek(kek(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_finalised_module_is_initialised_again_for_every_backend() {
    let (hsm, _alone) = hsm().await;
    let (backend, bystander) = (open(hsm, "finalised").await, open(hsm, "bystander").await);
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    bystander.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    let other = bystander.wrap(kek(1), &dek(2), "payments", "").await.unwrap();
    for _ in 0..3 {
        hsm.beside().finalize().unwrap();
        assert_eq!(backend.unwrap(&block, "payments", "").await.unwrap().expose(), dek(1).expose());
        // Its session's number now belongs to somebody else's session, on another token.
        assert_eq!(bystander.unwrap(&other, "payments", "").await.unwrap().expose(), dek(2).expose());
        backend.health().await.unwrap();
        bystander.health().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_is_destroyed_elsewhere_is_not_found() {
    let (hsm, _alone) = hsm().await;
    let backend = open(hsm, "deleted").await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    hsm.tool("deleted", &["--delete-object", "--type", "secrkey", "--id", "00070000002a0001"]);
    let gone = BackendError::NotFound { kek: kek(1) };
    assert_eq!(backend.unwrap(&block, "payments", "").await.unwrap_err(), gone);
    assert_eq!(backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap_err(), gone);
    assert_eq!(backend.destroy_kek(kek(1)).await.unwrap_err(), gone);
    // Made anew, it is another key: the cached handle of the old one is not used.
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    assert!(refused(backend.unwrap(&block, "payments", "").await));
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    backend.unwrap(&block, "payments", "").await.unwrap();
}

/// The token's folder among SoftHSM's: the one whose contents name the label.
fn folder_of(hsm: &SoftHsm, token: &str) -> std::path::PathBuf {
    let tokens = std::fs::read_dir(hsm.folder.path().join("tokens")).unwrap();
    tokens
        .map(|entry| entry.unwrap().path())
        .find(|folder| {
            let object = std::fs::read(folder.join("token.object")).unwrap();
            object.windows(token.len()).any(|window| window == token.as_bytes())
        })
        .unwrap()
}

#[tokio::test]
async fn health_fails_while_the_storage_is_gone_and_comes_back_with_it() {
    let (hsm, _alone) = hsm().await;
    for (token, keks) in [("storage", 2), ("empty", 0)] {
        let backend = open(hsm, token).await;
        for version in 1..=keks {
            backend.generate_kek(kek(version), "keyway:payments/default:vN").await.unwrap();
        }
        backend.health().await.unwrap();
        let folder = folder_of(hsm, token);
        let away = hsm.folder.path().join(format!("{token}-away"));
        std::fs::rename(&folder, &away).unwrap();
        for _ in 0..2 {
            let outcome = backend.health().await;
            assert!(matches!(outcome, Err(BackendError::Unavailable(_))), "{token}: {outcome:?}");
        }
        let outcome = backend.generate_kek(kek(9), "keyway:payments/default:v9").await;
        assert!(outcome.as_ref().is_err_and(BackendError::is_transient), "{token}: {outcome:?}");
        std::fs::rename(&away, &folder).unwrap();
        // It comes back by itself, once the pause after the attempts in vain is over.
        let recovered = async {
            while backend.health().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), recovered).await.unwrap();
        assert_eq!(backend.list_keks().await.unwrap().len(), usize::from(keks));
    }
}

/// Jobs that wait for one session before callers are turned away.
const QUEUE: usize = 64;

#[tokio::test]
async fn a_thread_that_hangs_costs_its_callers_their_timeout_and_no_more() {
    let (hsm, _alone) = hsm().await;
    let mut config = hsm.pkcs11("slow");
    config.sessions = 1;
    config.timeout = Duration::from_millis(40);
    let pin_file = config.pin_file.clone();
    let config = BackendConfig { name: "slow".to_owned(), kind: BackendKind::Pkcs11(config) };
    let backend = backend::open(&config).await.unwrap();

    // Its next call logs in again, and so reads the PIN: from a pipe that nobody writes to.
    std::fs::remove_file(&pin_file).unwrap();
    softhsm::run("mkfifo", &["-m", "600", pin_file.to_str().unwrap()]);
    hsm.beside().open_ro_session(hsm.slot("slow")).unwrap().logout().unwrap();
    for n in 0..QUEUE {
        assert_eq!(backend.find_kek(kek(1)).await, Err(BackendError::Timeout), "call {n}");
    }
    // The thread holds one job, the queue the rest. The next that finds no room is told so at once.
    backend.find_kek(kek(1)).await.unwrap_err();
    let full = backend.find_kek(kek(1)).await.unwrap_err();
    assert_eq!(full, BackendError::Busy);
    assert!(full.is_transient() && BackendError::Timeout.is_transient());

    // Once the call ends, what nobody waits for any more is skipped, and the backend serves.
    std::fs::write(&pin_file, softhsm::PIN).unwrap();
    let recovered = async {
        while let Err(error) = backend.find_kek(kek(1)).await {
            eprintln!("not yet: {error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), recovered).await.unwrap();
}
