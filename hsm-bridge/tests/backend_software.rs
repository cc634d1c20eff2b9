//! The software keystore: the contract, its file, and what happens when that is damaged.
#![allow(
    clippy::unwrap_used,
    reason = "what a test prepares has to be there, or the test fails at that place"
)]

#[path = "backend_fixture/contract.rs"]
mod contract;

use contract::{dek, kek};
use keyway_bridge::backend::software::{Keystore, Secret};
use keyway_bridge::backend::{self, BackendConfig, BackendError, BackendKind, KeyBackend, SoftwareConfig};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Place {
    folder: tempfile::TempDir,
    config: SoftwareConfig,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = SoftwareConfig::new(folder.path().join("keys/store"));
        Self { folder, config }
    }

    fn with_passphrase(passphrase: &str) -> Self {
        let mut place = Self::new();
        place.config.passphrase_file = Some(place.secret_file("passphrase", passphrase));
        place
    }

    fn secret_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        set_mode(&path, 0o600);
        path
    }

    async fn try_open(&self) -> Result<Arc<dyn KeyBackend>, BackendError> {
        let kind = BackendKind::Software(self.config.clone());
        backend::open(&BackendConfig { name: "soft".to_owned(), kind }).await
    }

    async fn open(&self) -> Arc<dyn KeyBackend> {
        self.try_open().await.unwrap()
    }

    /// The message of the refusal to open.
    async fn complaint(&self) -> String {
        match self.try_open().await {
            Err(BackendError::Config(message)) => message,
            other => panic!("{other:?}"),
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn wraps_open_and_nothing_else_does() {
    let place = Place::new();
    contract::round_trip_and_refusals(&*place.open().await).await;
}

#[tokio::test]
async fn every_flipped_byte_is_refused() {
    let place = Place::new();
    contract::every_flipped_byte_is_refused(&*place.open().await).await;
}

#[tokio::test]
async fn keks_are_made_once_listed_and_destroyed() {
    let place = Place::new();
    contract::life_of_a_kek(&*place.open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_make_one_key() {
    let place = Place::new();
    contract::many_tasks(&place.open().await).await;
}

#[tokio::test]
async fn keys_outlive_the_process_with_either_secret() {
    for place in [Place::new(), Place::with_passphrase("correct horse")] {
        let backend = place.open().await;
        let made = backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
        let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
        drop(backend);
        let backend = place.open().await;
        assert_eq!(backend.generate_kek(kek(1), "another label").await.unwrap(), made);
        assert_eq!(backend.unwrap(&block, "payments", "").await.unwrap().expose(), dek(1).expose());
        assert_eq!(mode(&place.config.path), 0o600);
    }
}

#[tokio::test]
async fn recovery_reads_beside_a_running_bridge() {
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "acme").await.unwrap();
    let secret = Secret::for_reading(&place.config).unwrap();
    let keystore = Keystore::open(&place.config.path, &secret).unwrap();
    assert_eq!(keystore.unwrap(&block, "payments", "acme").unwrap().expose(), dek(1).expose());
    let shown = format!("{keystore:?} {secret:?} {backend:?}");
    assert!(shown.contains("keyway:payments/default:v1"));
    assert!(!shown.contains("key:") && !shown.contains("secret:"), "{shown}");
}

#[tokio::test]
async fn a_second_writer_is_turned_away() {
    let place = Place::new();
    let first = place.open().await;
    let message = place.complaint().await;
    assert!(message.contains("in use by another bridge"), "{message}");
    drop(first);
    place.open().await;
}

#[tokio::test]
async fn a_key_file_is_made_once_and_privately() {
    let mut place = Place::new();
    let key_file = place.folder.path().join("secrets/key");
    place.config.key_file = Some(key_file.clone());
    drop(place.open().await);
    assert_eq!(mode(&key_file), 0o600);
    let first = std::fs::read(&key_file).unwrap();
    assert_eq!(first.len(), 32);
    drop(place.open().await);
    assert_eq!(std::fs::read(&key_file).unwrap(), first);
    // Without its key file, a keystore is not opened with a new one.
    std::fs::remove_file(&key_file).unwrap();
    let message = place.complaint().await;
    assert!(message.contains("can't read the key file"), "{message}");
    assert!(!key_file.exists());
}

#[tokio::test]
async fn a_wrong_secret_is_told_as_such() {
    let place = Place::with_passphrase("correct horse");
    drop(place.open().await);
    place.secret_file("passphrase", "battery staple");
    let message = place.complaint().await;
    assert!(message.contains("the passphrase is wrong"), "{message}");
    assert!(!message.contains("battery"), "{message}");
    place.secret_file("passphrase", "");
    assert!(place.complaint().await.contains("empty first line"));

    let place = Place::new();
    drop(place.open().await);
    let key_file = place.folder.path().join("keys/store.key");
    std::fs::write(&key_file, [1; 32]).unwrap();
    assert!(place.complaint().await.contains("the key file belongs to another keystore"));
    std::fs::write(&key_file, [1; 31]).unwrap();
    assert!(place.complaint().await.contains("31 bytes instead of 32"));
    let mut place = place;
    place.config.passphrase_file = Some(place.secret_file("passphrase", "correct horse"));
    assert!(place.complaint().await.contains("sealed under a key file: set key_file"));
    place.config.key_file = Some(key_file);
    assert!(place.complaint().await.contains("it takes one"));
}

#[tokio::test]
async fn files_open_to_others_are_refused_with_the_remedy() {
    let place = Place::new();
    drop(place.open().await);
    let key_file = place.folder.path().join("keys/store.key");
    for (path, mode) in [(&place.config.path, 0o640), (&place.config.path, 0o604), (&key_file, 0o660)] {
        set_mode(path, mode);
        let message = place.complaint().await;
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
        set_mode(path, 0o600);
    }
    let place = Place::with_passphrase("correct horse");
    let passphrase = place.config.passphrase_file.clone().unwrap();
    set_mode(&passphrase, 0o644);
    assert!(place.complaint().await.contains("chmod 600"));
    // Its group may read a passphrase: that is how orchestrators hand it over.
    set_mode(&passphrase, 0o440);
    place.open().await;
}

#[tokio::test]
async fn every_cut_and_every_flipped_byte_of_the_file_is_refused() {
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    drop(backend);
    let path = &place.config.path;
    let good = std::fs::read(path).unwrap();
    let secret = Secret::for_reading(&place.config).unwrap();
    let broken = |bytes: &[u8]| {
        std::fs::write(path, bytes).unwrap();
        match Keystore::open(path, &secret) {
            Err(BackendError::Config(message)) => {
                assert!(message.contains("backup") || message.contains("sealed under"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    };
    for length in 0..good.len() {
        broken(&good[..length]);
    }
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        broken(&changed);
    }
    broken(&[good.as_slice(), &[0]].concat());
    std::fs::write(path, &good).unwrap();
    assert_eq!(Keystore::open(path, &secret).unwrap().list().len(), 1);
}

#[tokio::test]
async fn a_damaged_header_does_not_take_the_machine_down() {
    let place = Place::with_passphrase("correct horse");
    drop(place.open().await);
    let mut bytes = std::fs::read(&place.config.path).unwrap();
    // Argon2id with 4 TiB of memory.
    bytes[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    std::fs::write(&place.config.path, &bytes).unwrap();
    assert!(place.complaint().await.contains("its header is damaged"));
}

#[tokio::test]
async fn a_kill_between_write_and_rename_leaves_the_old_file_good() {
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    drop(backend);
    // What a kill leaves behind: a temporary file, whole or half, with any mode.
    let good = std::fs::read(&place.config.path).unwrap();
    let temporary = place.folder.path().join("keys/store.new");
    for left in [&good[..], &good[..good.len() / 2], b""] {
        std::fs::write(&temporary, left).unwrap();
        set_mode(&temporary, 0o644);
        let backend = place.open().await;
        assert_eq!(backend.list_keks().await.unwrap().len(), 1);
        let version = 2 + u16::try_from(left.len()).unwrap();
        backend.generate_kek(kek(version), "keyway:payments/default:vN").await.unwrap();
        backend.destroy_kek(kek(version)).await.unwrap();
        assert!(!temporary.exists());
        assert_eq!(mode(&place.config.path), 0o600);
    }
}

#[tokio::test]
async fn a_change_that_can_not_be_written_does_not_happen() {
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    // A folder where the temporary file goes: that write fails, also for root.
    let temporary = place.folder.path().join("keys/store.new");
    std::fs::create_dir(&temporary).unwrap();
    let failed = backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap_err();
    assert!(matches!(&failed, BackendError::Unavailable(_)) && failed.is_transient(), "{failed}");
    assert_eq!(backend.find_kek(kek(2)).await.unwrap(), None);
    assert!(backend.destroy_kek(kek(1)).await.is_err());
    assert!(backend.find_kek(kek(1)).await.unwrap().is_some());
    std::fs::remove_dir(&temporary).unwrap();
    backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
}

#[tokio::test]
async fn health_fails_when_the_file_is_gone_or_another() {
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let before = std::fs::read(&place.config.path).unwrap();
    backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
    backend.health().await.unwrap();
    let good = std::fs::read(&place.config.path).unwrap();
    // An old copy lacks a KEK that DEKs are being wrapped under.
    std::fs::write(&place.config.path, before).unwrap();
    assert!(matches!(backend.health().await, Err(BackendError::Unavailable(_))));
    std::fs::remove_file(&place.config.path).unwrap();
    assert!(matches!(backend.health().await, Err(BackendError::Unavailable(_))));
    std::fs::write(&place.config.path, good).unwrap();
    backend.health().await.unwrap();
}

#[test]
fn the_configuration_takes_exactly_one_kind() {
    let parse = |text: &str| serde_json::from_str::<BackendConfig>(text).map_err(|error| error.to_string());
    let config = parse(r#"{"name": "soft", "software": {"path": "/var/lib/keyway/keys"}}"#).unwrap();
    assert_eq!(config.kind, BackendKind::Software(SoftwareConfig::new("/var/lib/keyway/keys")));
    let config = parse(
        r#"{"name": "a", "pkcs11": {"module": "/m.so", "token": "t", "pin_file": "/p", "timeout": "800ms"}}"#,
    )
    .unwrap();
    let BackendKind::Pkcs11(pkcs11) = &config.kind else { panic!("{config:?}") };
    assert_eq!((pkcs11.sessions, pkcs11.timeout.as_millis()), (2, 800));
    assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    for (text, complaint) in [
        (r#"{"name": "a"}"#, "exactly one"),
        (
            r#"{"name": "a", "software": {"path": "/p"}, "pkcs11": {"module": "/m", "token": "t", "pin_file": "/p"}}"#,
            "exactly one",
        ),
        (r#"{"name": "a", "sofware": {"path": "/p"}}"#, "unknown field"),
        (r#"{"name": "a", "software": {"path": "/p", "passphrase": "x"}}"#, "unknown field"),
        (
            r#"{"name": "a", "pkcs11": {"module": "/m", "token": "t", "pin_file": "/p", "timeout": "0s"}}"#,
            "timeout of zero",
        ),
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(complaint), "{message}");
    }
}

#[tokio::test]
async fn a_probe_makes_nothing() {
    let place = Place::new();
    let config = BackendConfig { name: "soft".to_owned(), kind: BackendKind::Software(place.config.clone()) };
    let report = backend::probe(&config).unwrap();
    assert_eq!(report.choice, Some("aes-gcm"));
    assert!(!place.config.path.exists());
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let report = backend::probe(&config).unwrap();
    assert!(report.facts.contains(&("keks".to_owned(), "1".to_owned())), "{report}");
}

#[cfg(feature = "test-reveal")]
#[tokio::test]
async fn a_revealed_kek_is_the_one_that_wraps() {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let place = Place::new();
    let backend = place.open().await;
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    let keystore = Keystore::open(&place.config.path, &Secret::for_reading(&place.config).unwrap()).unwrap();
    let key = keystore.reveal_kek_for_tests(kek(1)).unwrap();
    let aad = keyway_envelope::wrap_aad(kek(1), dek(1).id(), block.mechanism(), "payments", "");
    let (iv, sealed) = block.wrapped().split_at(12);
    let mut sealed = sealed.to_vec();
    let opened = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).unwrap())
        .open_in_place(Nonce::try_assume_unique_for_key(iv).unwrap(), Aad::from(aad), &mut sealed)
        .unwrap();
    assert_eq!(opened, dek(1).expose());
}
