//! Every interleaving of publish against load, and of a sweep against a DEK that lands. `cfg(loom)` only:
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p keyway-keycache --test loom --release
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(loom)]

use keyway_envelope::{KekVersion, KeyringId, ZoneId};
use keyway_keycache::{DekLimits, Keyring, KeyringName, KeyringSlot, Lease, Millis, Publisher, Snapshot};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::sync::Arc;

const SLOT: KeyringSlot = KeyringSlot(0);
const V1: KekVersion = KekVersion(1);
const V2: KekVersion = KekVersion(2);

fn keyring(primary: KekVersion, accepted: &[KekVersion]) -> Arc<Keyring> {
    Arc::new(Keyring {
        name: KeyringName::parse("zone/ring").unwrap(),
        zone_id: ZoneId(1),
        keyring_id: KeyringId(1),
        generation: u64::from(primary.0),
        primary,
        accepted: accepted.to_vec(),
        may_seal: true,
        may_open: true,
        lease: Arc::new(Lease::until(Millis(1), Millis(1))),
        limits: DekLimits::default(),
        seal_dek: None,
    })
}

fn put(publisher: &Publisher, keyring: Arc<Keyring>) -> Arc<Snapshot> {
    publisher.publish(|current| current.with([(SLOT, keyring)]))
}

#[test]
fn a_reader_sees_whole_snapshots_in_order() {
    loom::model(|| {
        let publisher = Arc::new(Publisher::new(1));
        put(&publisher, keyring(V1, &[V1]));
        let mut reader = publisher.reader();
        let reading = thread::spawn(move || {
            let mut last = 0;
            for _ in 0..2 {
                let keyring = Arc::clone(reader.load().keyring(SLOT).unwrap());
                assert!(keyring.accepts(keyring.primary), "a primary that is not accepted");
                assert!(keyring.generation >= last, "generations go up");
                last = keyring.generation;
            }
        });
        put(&publisher, keyring(V2, &[V1, V2]));
        reading.join().unwrap();
        assert_eq!(publisher.load().keyring(SLOT).unwrap().primary, V2);
    });
}

/// The order that `KeyCache::publish` (swap, then sweep) and its flights (insert, then look again) keep: no DEK of a
/// dropped version stays, whoever comes first.
#[test]
fn no_dek_of_a_dropped_version_stays() {
    loom::model(|| {
        let publisher = Arc::new(Publisher::new(1));
        put(&publisher, keyring(V1, &[V1, V2]));
        let table = Arc::new(Mutex::new(Vec::<KekVersion>::new()));

        let landing = {
            let (publisher, table) = (Arc::clone(&publisher), Arc::clone(&table));
            thread::spawn(move || {
                table.lock().unwrap().push(V1);
                let snapshot = publisher.load();
                table.lock().unwrap().retain(|v| keyway_keycache::keyring::stays(&snapshot, SLOT, *v));
            })
        };
        let snapshot = put(&publisher, keyring(V2, &[V2]));
        table.lock().unwrap().retain(|v| keyway_keycache::keyring::stays(&snapshot, SLOT, *v));
        landing.join().unwrap();
        assert!(table.lock().unwrap().is_empty(), "a DEK of v1 outlived v1");
    });
}

#[test]
fn an_old_snapshot_goes_when_its_last_reader_moves_on() {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    loom::model(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let publisher = Arc::new(Publisher::new(1));
        let old = keyring(V1, &[V1]);
        let marker = Arc::new(Counted(Arc::clone(&dropped)));
        put(&publisher, Arc::clone(&old));
        drop(old);
        let mut reader = publisher.reader();
        let body = {
            let marker = Arc::clone(&marker);
            thread::spawn(move || {
                let pinned = Arc::clone(reader.load().keyring(SLOT).unwrap());
                let _body = (pinned, marker);
            })
        };
        drop(marker);
        let new = put(&publisher, keyring(V2, &[V2]));
        body.join().unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        // Publisher, `new`: nobody else holds a snapshot, and the reader's thread is gone.
        assert_eq!(Arc::strong_count(&new), 2);
    });
}
