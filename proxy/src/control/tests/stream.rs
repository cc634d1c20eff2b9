//! Applying, refusing, renewing, reconnecting.

use super::*;
use keyway_envelope::KekVersion;
use keyway_protocol::v1::member_message;

#[tokio::test]
async fn a_set_is_tested_applied_and_acknowledged_with_its_digests() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::start(Member::config(&pki, &[bridge.endpoint()]));

    let hello = bridge.hello().await;
    assert_eq!((hello.zone.as_str(), hello.instance.as_str()), (ZONE, "orders-0"));
    assert_eq!((hello.generation, hello.digest.len(), hello.epoch), (0, 0, 0));
    assert_eq!(hello.keyrings, [KEYRING]);
    assert!(
        matches!(member.seal_lookup(""), Err(KeyError::NoKeyring)),
        "nothing is served before the first set"
    );

    let (set, kat_digest) = catalog.set(4, 2, &[1, 2]);
    let signed = catalog.signing.sign_keyring_set(&set);
    let digest = apply::sha256(&signed.keyring_set);
    bridge.push_signed(signed);
    let applied = bridge.applied().await;
    assert_eq!(applied.generation, 4);
    assert_eq!(applied.kat_digest, kat_digest, "the member opened what the bridge sealed");
    assert_eq!(applied.digest, digest);

    // Published, and with the DEK at hand, before it was acknowledged.
    assert!(member.cache.snapshot().is_complete());
    let dek = member.seal_at_once("");
    assert_eq!(dek.kek_version(), KekVersion(2));
    assert_eq!(catalog.issued.load(Ordering::Relaxed), 1);
    let status = member.until(|status| status.generation == 4).await;
    assert_eq!((status.epoch, status.from_disk, status.last_nack), (1, false, None));
    assert_eq!(status.endpoint, Some(bridge.endpoint()));
}

#[tokio::test]
async fn deks_come_on_demand_and_refusals_keep_their_kind() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;

    let (block, key) = catalog.somebody_elses(1, "acme");
    assert_eq!(member.open(&block, "acme").await.unwrap().dek().expose(), &key);
    let dek = member.seal("acme").await.unwrap();
    assert_eq!((dek.tenant(), dek.kek_version()), ("acme", KekVersion(1)));

    let (forbidden, _) = catalog.somebody_elses(1, "forbidden");
    assert_eq!(member.open(&forbidden, "forbidden").await.unwrap_err(), KeyError::NotAllowed);
    // A block that this bridge never made.
    let (unknown, _) = Catalog::new().somebody_elses(1, "");
    assert_eq!(member.open(&unknown, "").await.unwrap_err(), KeyError::Refused);
    catalog.refuse_issue.lock().unwrap().insert("later".into(), tonic::Code::FailedPrecondition);
    assert_eq!(member.seal("later").await.unwrap_err(), KeyError::Unavailable);
}

#[tokio::test]
async fn every_bad_set_is_refused_and_the_last_good_one_stays() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    catalog.epoch.store(5, Ordering::Relaxed);
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::start(Member::config(&pki, &[bridge.endpoint()]));
    bridge.hello().await;
    bridge.push(&catalog.set(10, 1, &[1]).0);
    bridge.applied().await;

    let mut signed = catalog.signing.sign_keyring_set(&catalog.set(11, 1, &[1]).0);
    signed.signature[0] ^= 1;
    bridge.push_signed(signed);
    assert_eq!(bridge.nack(11, false).await.0, "SIGNATURE");

    let stranger = Catalog::new();
    bridge.push_signed(stranger.signing.sign_keyring_set(&catalog.set(11, 1, &[1]).0));
    assert_eq!(bridge.nack(11, false).await.0, "SIGNATURE", "signed, but not by the pinned key");

    bridge.push(&KeyringSet { epoch: 4, ..catalog.set(11, 1, &[1]).0 });
    assert_eq!(bridge.nack(11, true).await.0, "EPOCH");
    bridge.push(&catalog.set(9, 1, &[1]).0);
    assert_eq!(bridge.nack(9, true).await.0, "GENERATION");
    bridge.push(&KeyringSet { zone: "payroll".into(), ..catalog.set(11, 1, &[1]).0 });
    assert_eq!(bridge.nack(11, true).await.0, "PARSE");

    let status =
        member.until(|status| status.last_nack.as_ref().is_some_and(|nack| nack.code == "PARSE")).await;
    assert_eq!((status.generation, member.generation()), (10, Some(10)));
    member.seal_at_once("");

    // And it goes on: a good set on the same stream is applied.
    bridge.push(&catalog.set(11, 1, &[1]).0);
    assert_eq!(bridge.applied().await.generation, 11);
    assert_eq!(member.until(|status| status.generation == 11).await.last_nack, None);
}

#[tokio::test]
async fn a_version_that_cannot_be_used_is_never_applied() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;

    // A changed answer: the DEK is right, the envelope is not.
    let (mut set, _) = catalog.set(2, 1, &[1, 2]);
    *set.keyrings[0].versions[1].known_answer.last_mut().unwrap() ^= 1;
    bridge.push(&set);
    let (code, reason) = bridge.nack(2, true).await;
    assert_eq!(code, "KNOWN_ANSWER");
    assert!(reason.contains("default v2"), "{reason}");

    // A known answer whose DEK the bridge does not have.
    let (mut set, _) = catalog.set(2, 1, &[1, 2]);
    set.keyrings[0].versions[1] = Catalog::new().set(2, 2, &[2]).0.keyrings[0].versions[0].clone();
    bridge.push(&set);
    assert_eq!(bridge.nack(2, true).await.0, "KNOWN_ANSWER");

    // Opened, but by the wrap of another version: that proves nothing of this one.
    let (set, _) = catalog.set(2, 1, &[1, 2]);
    catalog.rewrap_known_answers(1);
    bridge.push(&set);
    let (code, reason) = bridge.nack(2, true).await;
    assert_eq!(code, "KNOWN_ANSWER");
    assert!(reason.contains("default v2: opened by another key"), "{reason}");

    // No DEK under the new primary.
    catalog.refuse_issue.lock().unwrap().insert(String::new(), tonic::Code::FailedPrecondition);
    bridge.push(&catalog.set(2, 2, &[1, 2]).0);
    assert_eq!(bridge.nack(2, true).await.0, "DEK");

    assert_eq!(member.generation(), Some(1));
    assert_eq!(member.seal_at_once("").kek_version(), KekVersion(1));
    catalog.refuse_issue.lock().unwrap().clear();
    bridge.push(&catalog.set(2, 2, &[1, 2]).0);
    bridge.applied().await;
    assert_eq!(member.seal_at_once("").kek_version(), KekVersion(2));
}

#[tokio::test]
async fn a_rotation_finds_every_dek_at_hand() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let old = member.seal_at_once("");
    let old_acme = member.seal("acme").await.unwrap();
    member.seal("closed").await.unwrap();
    let (block, key) = catalog.somebody_elses(1, "acme");
    member.open(&block, "acme").await.unwrap();

    bridge.push(&catalog.set(2, 1, &[1, 2]).0);
    bridge.applied().await;
    assert!(Arc::ptr_eq(&old, &member.seal_at_once("")), "accepting a version changes nothing for writers");

    // One tenant has been closed since: the others are promoted all the same.
    catalog.refuse_issue.lock().unwrap().insert("closed".into(), tonic::Code::PermissionDenied);
    bridge.push(&catalog.set(3, 2, &[1, 2]).0);
    bridge.applied().await;
    for tenant in ["", "acme"] {
        assert_eq!(member.seal_at_once(tenant).kek_version(), KekVersion(2), "tenant {tenant:?}");
    }
    assert_eq!(member.seal("closed").await.unwrap_err(), KeyError::NotAllowed);

    catalog.rewrap(2);
    bridge.push(&catalog.set(4, 2, &[2]).0);
    bridge.applied().await;
    // What was sealed under version 1 is still read without asking: its DEKs came again, by version 2.
    let opened = catalog.opened.load(Ordering::Relaxed);
    for (block, key) in [
        (old.key_block(), old.dek().expose()),
        (old_acme.key_block(), old_acme.dek().expose()),
        (&block, &key),
    ] {
        let tenant = if block == old.key_block() { "" } else { "acme" };
        match member.open_lookup(block, tenant) {
            Ok(SealLookup::Ready(dek)) => {
                assert_eq!((dek.dek().expose(), dek.kek_version()), (key, KekVersion(2)));
            }
            other => panic!("not at hand: {other:?}"),
        }
    }
    assert_eq!(catalog.opened.load(Ordering::Relaxed), opened);
}

#[tokio::test]
async fn a_keyring_that_the_policy_withdraws_is_good_for_nothing() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let dek = member.seal_at_once("");
    bridge.push(&KeyringSet { keyrings: Vec::new(), ..catalog.set(2, 1, &[1]).0 });
    bridge.applied().await;
    assert_eq!(member.seal_lookup("").unwrap_err(), KeyError::NotAllowed);
    assert_eq!(member.open_lookup(dek.key_block(), "").unwrap_err(), KeyError::NotAllowed);
    assert_eq!(member.cache.entries(), 0, "its DEKs are gone");
}

#[tokio::test]
async fn heartbeats_for_what_is_served_renew_the_leases_and_others_do_not() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let lease = || member.cache.snapshot().keyring(SLOT).unwrap().lease.clone();
    let ends = || (lease().seal_until().0, lease().open_until().0);
    assert_eq!(ends(), (1_000_000 + 3_600_000, 1_000_000 + 36_000_000));

    // A heartbeat of another generation, then a set that is refused: when its NACK is there, the heartbeat was handled.
    member.clock.store(2_000_000, Ordering::Relaxed);
    bridge.heartbeat(7);
    bridge.push(&catalog.set(0, 1, &[1]).0);
    bridge.nack(0, true).await;
    assert_eq!(ends().0, 4_600_000);

    bridge.heartbeat(1);
    bridge.push(&catalog.set(0, 1, &[1]).0);
    bridge.nack(0, true).await;
    assert_eq!(ends(), (2_000_000 + 3_600_000, 2_000_000 + 36_000_000));

    // Past its end it fails closed, and a heartbeat brings it back.
    member.clock.store(5_600_000, Ordering::Relaxed);
    assert_eq!(member.seal_lookup("").unwrap_err(), KeyError::SealLeaseExpired);
    bridge.heartbeat(1);
    bridge.push(&catalog.set(0, 1, &[1]).0);
    bridge.nack(0, true).await;
    member.seal_at_once("");
}

#[tokio::test]
async fn what_waited_while_a_set_was_applied_renews_from_before_that() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let gate = catalog.open_gate.acquire().await.unwrap();
    bridge.push(&catalog.set(2, 1, &[1]).0);
    assert!(matches!(bridge.next().await, member_message::Body::Received(_)));
    // Said now, read much later: the bridge counts its lease from now.
    bridge.heartbeat(2);
    bridge.push(&catalog.set(0, 1, &[1]).0);
    member.clock.store(9_000_000, Ordering::Relaxed);
    drop(gate);
    assert!(matches!(bridge.next().await, member_message::Body::Applied(_)));
    bridge.nack(0, true).await;
    let lease = member.cache.snapshot().keyring(SLOT).unwrap().lease.clone();
    assert_eq!(lease.seal_until(), Millis(1_000_000 + 3_600_000));
}

#[tokio::test]
async fn a_bridge_that_goes_away_is_found_again_and_meanwhile_traffic_goes_on() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::applied(&pki, &mut bridge).await;
    let dek = member.seal_at_once("");

    let addr = bridge.kill().await;
    member.until(|status| status.endpoint.is_none()).await;
    assert!(Arc::ptr_eq(&dek, &member.seal_at_once("")));

    let mut bridge = Bridge::start_at(&pki, &catalog, addr).await;
    let hello = bridge.hello().await;
    assert_eq!((hello.generation, hello.epoch, hello.digest.len()), (1, 1, 32));
    // A bridge that has nothing new says so, and DEKs come again.
    bridge.heartbeat(1);
    member.seal("acme").await.unwrap();
    // The same set again is acknowledged without doing it all again.
    bridge.push(&catalog.set(2, 1, &[1]).0);
    bridge.applied().await;
    assert!(Arc::ptr_eq(&dek, &member.seal_at_once("")), "the DEK to seal with stays");
}

#[tokio::test]
async fn the_same_bytes_again_are_acknowledged_without_another_test() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::start(Member::config(&pki, &[bridge.endpoint()]));
    bridge.hello().await;
    let signed = catalog.signing.sign_keyring_set(&catalog.set(1, 1, &[1]).0);
    bridge.push_signed(signed.clone());
    let first = bridge.applied().await;
    let opened = catalog.opened.load(Ordering::Relaxed);
    member.clock.fetch_add(500, Ordering::Relaxed);
    bridge.push_signed(signed);
    assert_eq!(bridge.applied().await, first);
    assert_eq!(catalog.opened.load(Ordering::Relaxed), opened);
    let lease = member.cache.snapshot().keyring(SLOT).unwrap().lease.seal_until();
    assert_eq!(lease, Millis(1_000_500 + 3_600_000), "and it renews the leases");
}

#[tokio::test]
async fn endpoints_are_tried_in_turn() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let gone = Bridge::start(&pki, &catalog).await;
    let dead = gone.endpoint();
    gone.kill().await;
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let member = Member::start(Member::config(&pki, &[dead, bridge.endpoint()]));
    bridge.hello().await;
    let status = member.until(|status| status.endpoint.is_some()).await;
    assert_eq!(status.endpoint, Some(bridge.endpoint()));
}

#[tokio::test]
async fn a_deposed_leader_is_left_for_another() {
    let (pki, new) = (Pki::new(), Catalog::new());
    // Two bridges of one fleet have one signing key; only the epoch tells them apart.
    let old = Catalog::with_key(new.pkcs8.clone());
    new.epoch.store(2, Ordering::Relaxed);
    let mut leader = Bridge::start(&pki, &new).await;
    let mut deposed = Bridge::start(&pki, &old).await;
    let member = Member::start(Member::config(&pki, &[leader.endpoint(), deposed.endpoint()]));
    leader.hello().await;
    leader.push(&new.set(1, 1, &[1]).0);
    leader.applied().await;
    member.until(|status| status.generation == 1).await;

    let addr = leader.kill().await;
    deposed.hello().await;
    member
        .until(|status| status.last_error.as_ref().is_some_and(|why| why.contains("no longer the leader")))
        .await;
    let mut leader = Bridge::start_at(&pki, &new, addr).await;
    assert_eq!(leader.hello().await.epoch, 2);
    member.until(|status| status.endpoint == Some(leader.endpoint())).await;
}

#[tokio::test]
async fn use_is_reported_as_it_grows() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let mut config = Member::config(&pki, &[bridge.endpoint()]);
    config.timing.report_every = Duration::from_millis(5);
    let traffic = Arc::new(AtomicU64::new(0));
    let requests = Arc::clone(&traffic);
    let source = move || Traffic { requests: requests.load(Ordering::Relaxed), errors: 0 };
    let member = Member::start_with(config, Arc::new(source));
    bridge.hello().await;
    bridge.push(&catalog.set(1, 1, &[1]).0);
    while !matches!(bridge.next().await, member_message::Body::Applied(_)) {}

    let dek = member.seal_at_once("");
    for _ in 0..3 {
        dek.begin_seal().unwrap();
        dek.count_sealed(100).unwrap();
        traffic.fetch_add(1, Ordering::Relaxed);
    }
    // In however many reports it comes: nothing is lost and nothing is counted twice.
    let (mut messages, mut bytes, mut requests) = (0, 0, 0);
    while (messages, bytes, requests) != (3, 300, 3) {
        if let member_message::Body::Report(report) = bridge.next().await {
            requests += report.requests;
            for used in report.uses {
                assert_eq!((used.keyring.as_str(), used.kek_version), (KEYRING, 1));
                messages += used.sealed_messages;
                bytes += used.sealed_bytes;
            }
            assert!(messages <= 3 && bytes <= 300 && requests <= 3);
        }
    }
}

#[tokio::test]
async fn without_a_bridge_a_missing_dek_is_unavailable() {
    let (pki, catalog) = (Pki::new(), Catalog::new());
    let mut bridge = Bridge::start(&pki, &catalog).await;
    let mut config = Member::config(&pki, &[bridge.endpoint()]);
    config.timing.call_deadline = Duration::from_millis(300);
    let member = Member::start(config);
    bridge.hello().await;
    bridge.push(&catalog.set(1, 1, &[1]).0);
    bridge.applied().await;
    bridge.kill().await;
    member.until(|status| status.endpoint.is_none()).await;
    assert_eq!(member.seal("acme").await.unwrap_err(), KeyError::Unavailable);
}
