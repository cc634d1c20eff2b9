//! What every backend has to do, whatever it is.
// Included by path; none exports anything.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of it; a fixture that fails has to fail the test, with the place"
)]

use keyway_bridge::backend::{BackendError, KeyBackend};
use keyway_envelope::{
    Dek, DekId, KekRef, KekVersion, KeyBlock, KeyBlockKind, KeyringId, WrapMechanism, ZoneId,
};
use std::sync::Arc;
use zeroize::Zeroizing;

pub fn kek(version: u16) -> KekRef {
    KekRef { zone: ZoneId(7), keyring: KeyringId(42), version: KekVersion(version) }
}

pub fn dek(n: u8) -> Dek {
    Dek::new(DekId([n; 16]), Zeroizing::new([n ^ 0xA5; 32]))
}

pub fn refused(outcome: Result<Dek, BackendError>) -> bool {
    matches!(outcome, Err(BackendError::Refused))
}

/// Makes version 1 and 2, wraps, opens, and tries everything that must not open.
pub async fn round_trip_and_refusals(backend: &dyn KeyBackend) {
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
    let dek = dek(3);
    let block = backend.wrap(kek(1), &dek, "payments", "acme").await.unwrap();
    assert_eq!(block.kek(), kek(1));
    assert_eq!(block.dek_id(), dek.id());
    assert_eq!(block.kind(), KeyBlockKind::Inline);
    assert_eq!(block.mechanism(), backend.mechanism());
    assert!(!block.to_bytes().windows(32).any(|window| window == dek.expose()));
    let opened = backend.unwrap(&block, "payments", "acme").await.unwrap();
    assert_eq!(opened.expose(), dek.expose());
    assert_eq!(opened.id(), dek.id());
    // Another IV each time.
    let again = backend.wrap(kek(1), &dek, "payments", "acme").await.unwrap();
    assert_ne!(again.wrapped()[..12], block.wrapped()[..12]);

    assert!(refused(backend.unwrap(&block, "payment", "acme").await), "zone");
    assert!(refused(backend.unwrap(&block, "payments", "").await), "tenant");
    assert!(refused(backend.unwrap(&block, "paymentsa", "cme").await), "a shifted border");
    let wrapped = block.wrapped();
    let moved = KeyBlock::inline(kek(2), dek.id(), block.mechanism(), wrapped).unwrap();
    assert!(refused(backend.unwrap(&moved, "payments", "acme").await), "another KEK");
    let renamed = KeyBlock::inline(kek(1), DekId([9; 16]), block.mechanism(), wrapped).unwrap();
    assert!(refused(backend.unwrap(&renamed, "payments", "acme").await), "another DEK's name");
    let relabelled = KeyBlock::inline(kek(1), dek.id(), WrapMechanism::AesKwp, &wrapped[..56]).unwrap();
    assert!(refused(backend.unwrap(&relabelled, "payments", "acme").await), "another mechanism");
    let reference = KeyBlock::catalog(kek(1), dek.id());
    assert!(refused(backend.unwrap(&reference, "payments", "acme").await), "no wrap in the block");
    // The backend serves after all that.
    backend.unwrap(&block, "payments", "acme").await.unwrap();
    backend.health().await.unwrap();
}

/// Every byte of the block, each flipped: what still parses must not open.
pub async fn every_flipped_byte_is_refused(backend: &dyn KeyBackend) {
    backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    let block = backend.wrap(kek(1), &dek(4), "payments", "").await.unwrap();
    let mut parsed = 0;
    for at in 0..KeyBlock::LEN {
        for bit in [0x01, 0x80] {
            let mut bytes = block.to_bytes();
            bytes[at] ^= bit;
            let Ok(changed) = KeyBlock::parse(&bytes) else { continue };
            parsed += 1;
            let outcome = backend.unwrap(&changed, "payments", "").await;
            // A changed reference names a KEK that is not there; all else must fail to authenticate.
            let missing = changed.kek() != kek(1);
            match outcome {
                Err(BackendError::NotFound { kek }) => assert!(missing && kek == changed.kek(), "byte {at}"),
                outcome => assert!(refused(outcome) && !missing, "byte {at}"),
            }
        }
    }
    // Reference 8, id 16 and wrapped bytes 60 parse with any value.
    assert!(parsed >= 2 * (8 + 16 + 60), "{parsed}");
}

pub async fn life_of_a_kek(backend: &dyn KeyBackend) {
    assert_eq!(backend.find_kek(kek(1)).await.unwrap(), None);
    assert_eq!(backend.list_keks().await.unwrap(), []);
    let missing = backend.wrap(kek(1), &dek(1), "payments", "").await;
    assert_eq!(missing.unwrap_err(), BackendError::NotFound { kek: kek(1) });
    backend.health().await.unwrap();
    let made = backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
    assert_eq!((made.kek, made.label.as_str()), (kek(1), "keyway:payments/default:v1"));
    let block = backend.wrap(kek(1), &dek(1), "payments", "").await.unwrap();
    // Asked again, as after a crash: the same key, not another.
    assert_eq!(backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap(), made);
    backend.unwrap(&block, "payments", "").await.unwrap();
    let second = backend.generate_kek(kek(2), "keyway:payments/default:v2").await.unwrap();
    assert_eq!(backend.find_kek(kek(2)).await.unwrap(), Some(second.clone()));
    assert_eq!(backend.list_keks().await.unwrap(), [made, second.clone()]);
    backend.destroy_kek(kek(1)).await.unwrap();
    let lost = backend.unwrap(&block, "payments", "").await;
    assert_eq!(lost.unwrap_err(), BackendError::NotFound { kek: kek(1) });
    assert_eq!(backend.destroy_kek(kek(1)).await, Err(BackendError::NotFound { kek: kek(1) }));
    assert_eq!(backend.list_keks().await.unwrap(), [second]);
}

/// Many tasks make the same KEK and use it at once: one key comes of it, and every wrap opens.
pub async fn many_tasks(backend: &Arc<dyn KeyBackend>) {
    let tasks: Vec<_> = (0..48u8)
        .map(|n| {
            let backend = Arc::clone(backend);
            tokio::spawn(async move {
                backend.generate_kek(kek(1), "keyway:payments/default:v1").await.unwrap();
                let dek = dek(n);
                let block = backend.wrap(kek(1), &dek, "payments", "").await.unwrap();
                let opened = backend.unwrap(&block, "payments", "").await.unwrap();
                assert_eq!(opened.expose(), dek.expose());
                block
            })
        })
        .collect();
    let mut blocks = Vec::new();
    for task in tasks {
        blocks.push(task.await.unwrap());
    }
    for (n, block) in (0..48u8).zip(&blocks) {
        assert_eq!(backend.unwrap(block, "payments", "").await.unwrap().expose(), dek(n).expose());
    }
    assert_eq!(backend.list_keks().await.unwrap().len(), 1);
}
