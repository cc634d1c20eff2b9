//! What survives a restart, and what must not.

use super::*;
use crate::control::disk::StateDir;
use keyway_envelope::KekVersion;
use std::path::PathBuf;

fn state_path(member: &Member) -> PathBuf {
    StateDir::open(&member.config.state_dir).unwrap().state(ZONE)
}

#[tokio::test]
async fn a_proxy_starts_from_disk_with_its_bridge_away() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let sealing = member.seal_at_once("");
    sealing.begin_seal().unwrap();
    sealing.count_sealed(500).unwrap();
    let acme = member.seal("acme").await.unwrap();
    let (block, key) = catalog.somebody_elses(1, "acme");
    member.open(&block, "acme").await.unwrap();
    let addr = bridge.kill().await;
    let config = member.config.clone();
    member.control.shutdown().await;

    let member = Member::start(config);
    let status = member.until(|_| true).await;
    assert_eq!((status.generation, status.epoch, status.from_disk), (1, 1, true));
    let again = member.seal_at_once("");
    assert_eq!(again.dek().expose(), sealing.dek().expose());
    assert_eq!((again.key_block(), again.kek_version()), (sealing.key_block(), KekVersion(1)));
    assert_eq!(again.used(), (1, 500), "limits of use go on where they were");
    assert_eq!(member.seal_at_once("acme").dek().expose(), acme.dek().expose());
    match member.open_lookup(&block, "acme") {
        Ok(SealLookup::Ready(dek)) => assert_eq!(dek.dek().expose(), &key),
        other => panic!("not at hand: {other:?}"),
    }
    assert!(matches!(member.open_lookup(&block, "other"), Err(KeyError::Refused)), "bound to its tenant");

    // The bridge is back: the member says what it has, and a heartbeat is enough.
    let mut bridge = Bridge::start_at(&pki, &catalog, addr).await;
    let hello = bridge.hello().await;
    assert_eq!((hello.generation, hello.epoch, hello.digest.len()), (1, 1, 32));
    member.until(|status| status.endpoint.is_some()).await;
    bridge.heartbeat(1);
    member.until(|status| !status.from_disk).await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    bridge.push(&catalog.set(2, 2, &[1, 2]).0);
    bridge.applied().await;
    let key = *member.seal_at_once("").dek().expose();
    bridge.kill().await;
    let member = member.crash_and_restart().await;
    assert_eq!(member.generation(), Some(2));
    assert_eq!(member.seal_at_once("").dek().expose(), &key);
    assert_eq!(member.seal_at_once("").kek_version(), KekVersion(2));
}

#[tokio::test]
async fn a_dek_that_came_later_is_stored_too() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let (block, key) = catalog.somebody_elses(1, "");
    member.open(&block, "").await.unwrap();
    // Written soon after, by nobody's order: wait until it is on disk.
    let stored = async {
        let identity = member.config.identity.private_key_der().unwrap();
        loop {
            let file = std::fs::read(state_path(&member)).unwrap();
            let state = state::open(file, &identity, ZONE).unwrap();
            if state.open_deks.iter().any(|dek| dek.key == key) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, stored).await.expect("never stored");
    bridge.kill().await;
    let member = member.crash_and_restart().await;
    assert!(matches!(member.open_lookup(&block, ""), Ok(SealLookup::Ready(_))));
}

#[tokio::test]
async fn a_version_that_is_retired_leaves_the_disk_with_its_deks() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let old = *member.seal_at_once("").key_block();
    // Not rewrapped, so it does not come by version 2.
    bridge.push(&catalog.set(2, 2, &[2]).0);
    bridge.applied().await;
    let identity = member.config.identity.private_key_der().unwrap();
    let state = state::open(std::fs::read(state_path(&member)).unwrap(), &identity, ZONE).unwrap();
    let all = || state.open_deks.iter().chain(&state.seal_deks);
    assert!(all().count() > 0 && all().all(|dek| dek.kek_version == 2));
    assert!(all().all(|dek| !dek.key_blocks.contains(&old.to_bytes().to_vec())));
}

/// Starts again after `damage` was done to the state, with no bridge; then lets the bridge come back.
async fn restarted_after(damage: impl FnOnce(&Member, &Pki)) -> Option<u64> {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let addr = bridge.kill().await;
    member.crash().await;
    damage(&member, &pki);
    let member = Member::start(member.config.clone());
    let generation = member.generation();
    if generation.is_none() {
        assert_eq!(member.seal_lookup("").unwrap_err(), KeyError::NoKeyring, "fails closed");
        let mut bridge = Bridge::start_at(&pki, &catalog, addr).await;
        assert_eq!(bridge.hello().await.generation, 0);
        bridge.push(&catalog.set(1, 1, &[1]).0);
        bridge.applied().await;
        member.seal_at_once("");
    }
    generation
}

#[tokio::test]
async fn a_state_that_cannot_be_trusted_is_ignored_and_never_a_crash() {
    assert_eq!(restarted_after(|_, _| {}).await, Some(1), "undamaged it is used");
    let flipped = restarted_after(|member, _| {
        let mut file = std::fs::read(state_path(member)).unwrap();
        let middle = file.len() / 2;
        file[middle] ^= 1;
        std::fs::write(state_path(member), file).unwrap();
    });
    assert_eq!(flipped.await, None);
    let cut = restarted_after(|member, _| {
        let file = std::fs::read(state_path(member)).unwrap();
        std::fs::write(state_path(member), &file[..file.len() - 1]).unwrap();
    });
    assert_eq!(cut.await, None);
    let empty = restarted_after(|member, _| std::fs::write(state_path(member), b"").unwrap());
    assert_eq!(empty.await, None);
    // The identity has a new key (a certificate was renewed): the old state is foreign to it.
    let foreign = restarted_after(|_, pki| drop(pki.issue("orders")));
    assert_eq!(foreign.await, None);
    // An operator took the pin away: nobody knows whose word the state is.
    let unpinned = restarted_after(|member, _| {
        std::fs::remove_file(StateDir::open(&member.config.state_dir).unwrap().pin(ZONE)).unwrap();
    });
    assert_eq!(unpinned.await, None);
}

#[tokio::test]
async fn another_bridge_key_is_refused_until_an_operator_removes_the_pin() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let addr = bridge.kill().await;

    let impostor = Catalog::new();
    let mut bridge = Bridge::start_at(&pki, &impostor, addr).await;
    bridge.hello().await;
    let status = member
        .until(|status| status.last_error.as_ref().is_some_and(|why| why.contains("is pinned in")))
        .await;
    assert_eq!((status.endpoint, status.generation), (None, 1));
    member.seal_at_once("");

    let pin = StateDir::open(&member.config.state_dir).unwrap().pin(ZONE);
    std::fs::remove_file(&pin).unwrap();
    // The new bridge begins its own count of generations and epochs.
    member.until(|status| status.endpoint.is_some()).await;
    bridge.push(&impostor.set(1, 1, &[1]).0);
    while !matches!(bridge.next().await, keyway_protocol::v1::member_message::Body::Applied(_)) {}
    let pinned = std::fs::read_to_string(&pin).unwrap();
    assert_eq!(pinned.trim(), impostor.signing.verify_key().to_string());
}

#[tokio::test]
async fn a_state_that_cannot_be_written_is_a_nack_and_nothing_is_published() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    // Without the identity's key nothing can be sealed (permissions would not stop root).
    let key = &member.config.identity.key;
    let aside = key.with_added_extension("aside");
    std::fs::rename(key, &aside).unwrap();
    bridge.push(&catalog.set(2, 1, &[1]).0);
    assert_eq!(bridge.nack(2, true).await.0, "PERSIST");
    assert_eq!(member.generation(), Some(1));
    std::fs::rename(&aside, key).unwrap();
    bridge.push(&catalog.set(2, 1, &[1]).0);
    bridge.applied().await;
    assert_eq!(member.generation(), Some(2));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let pki = Pki::new();
    let cache = KeyCache::new(Vec::new(), CacheLimits::default(), || Millis(0));
    let start = |config| start(config, Arc::clone(&cache), Arc::new(Traffic::default), &Handle::current());
    assert!(matches!(start(Member::config(&pki, &[])), Err(ControlError::NoEndpoints)));
    let endpoint = ["https://127.0.0.1:1".to_owned()];
    let mut config = Member::config(&pki, &endpoint);
    config.state_dir = config.identity.cert.clone();
    assert!(matches!(start(config), Err(ControlError::StateDir { .. })));
    let mut config = Member::config(&pki, &endpoint);
    config.identity.key = pki.dir.path().join("none");
    assert!(matches!(start(config), Err(ControlError::Identity(_))));
}
