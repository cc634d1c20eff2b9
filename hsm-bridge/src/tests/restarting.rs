//! The bridge dies at every point at which it can die, and the next one goes on.

use super::bed::{Bed, LONG, ORDERS, REPORTS};
use super::member::{Behaviour, Held, Member};
use crate::audit::AuditError;
use crate::backend::{BackendKind, SoftwareConfig};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::Error;
use crate::hooks::Hooks;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::Code;

async fn two_members(bed: &Bed, addr: SocketAddr, held: [Held; 2]) -> [Member; 2] {
    let [first, second] = held;
    let attach = |service, held| Member::attach(bed, addr, service, "a", Behaviour::Apply, held);
    [attach(ORDERS, first).await.unwrap(), attach(REPORTS, second).await.unwrap()]
}

/// Runs a rotation whose bridge dies before the effect of `action`, and ends it with another bridge.
async fn dies_before(action: &'static str) {
    let bed = Bed::new();
    let died = Arc::new(AtomicBool::new(false));
    let dying = died.clone();
    let hooks = Hooks::crash_before(move |now| now == action && !dying.swap(true, Ordering::SeqCst));
    let bridge = bed.start_with(hooks).await;
    let mut members = two_members(&bed, bridge.grpc_addr(), Default::default()).await;
    for member in &mut members {
        member.until(|held| held.generation > 0).await;
    }
    let (dek, issued) = members[0].calls.issue("acme", 1).await.unwrap();
    let rotation = bed.operator(bridge.grpc_addr()).await.rotate().await;
    let stopped = tokio::time::timeout(LONG, bridge.stopped()).await.expect("the bridge does not die");
    assert!(stopped.is_err(), "{action}");
    let held = [members[0].held(), members[1].held()];
    drop(members);
    // What has died is dead; this gives the keystore's lock back.
    bridge.shutdown().await;

    let bridge = bed.start().await;
    let mut members = two_members(&bed, bridge.grpc_addr(), held).await;
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    ops.until_done(&rotation.id).await;
    for member in &mut members {
        let held = member.until(|held| held.generation > 0 && held.accepted() == [2]).await;
        assert_eq!(held.primary(), 2, "{action}");
        assert_eq!(member.calls.open(&issued.key_block).await.unwrap().0.expose(), dek.expose(), "{action}");
    }
    assert_eq!(ops.versions().await, [(1, "retired".into(), 0), (2, "primary".into(), 1)], "{action}");
    let attempts = bed.audit().iter().filter(|record| record.action == action).count();
    assert_eq!(attempts, 2, "{action}: announced once before the crash, once after it");
    bridge.shutdown().await;
}

#[tokio::test]
async fn a_crash_between_record_and_effect_is_resumed_in_generate_and_accept() {
    for action in ["rotation.generate", "rotation.accept"] {
        dies_before(action).await;
    }
}

#[tokio::test]
async fn a_crash_between_record_and_effect_is_resumed_in_promote_and_rewrap() {
    for action in ["rotation.promote", "rotation.rewrap"] {
        dies_before(action).await;
    }
}

#[tokio::test]
async fn a_crash_between_record_and_effect_is_resumed_in_drain() {
    for action in ["rotation.drain", "rotation.barrier"] {
        dies_before(action).await;
    }
}

#[tokio::test]
async fn a_crash_between_record_and_effect_is_resumed_in_retire() {
    for action in ["rotation.retire", "rotation.done"] {
        dies_before(action).await;
    }
}

#[tokio::test]
async fn a_restart_in_the_middle_of_waiting_is_resumed() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut members = two_members(&bed, bridge.grpc_addr(), Default::default()).await;
    for member in &mut members {
        member.until(|held| held.generation > 0).await;
    }
    members[1].behave(Behaviour::Hold);
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    ops.follow(&rotation.id, |now| now.phase == "accept" && now.members_applied == 1).await;
    let held = [members[0].held(), members[1].held()];
    bridge.shutdown().await;
    for member in &mut members {
        member.until(|held| held.ended.is_some()).await;
    }

    let bridge = bed.start().await;
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    // Nobody is there yet, and nobody's lease has ended: everybody is waited for.
    let waiting = ops.follow(&rotation.id, |now| now.phase == "accept").await;
    assert_eq!(waiting[0].members_total, 2);
    let _members = two_members(&bed, bridge.grpc_addr(), held).await;
    ops.until_done(&rotation.id).await;
}

#[tokio::test]
async fn a_second_start_that_fails_leaves_the_running_bridge_alone() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    member.until(|held| held.generation > 0).await;
    let mut second = bed.config.clone();
    let failed = crate::start(second.clone()).await.unwrap_err();
    assert!(matches!(failed, Error::Audit(AuditError::InUse { .. })), "{failed}");
    // With an audit file of its own it comes as far as the port, and to the key backend.
    second.audit.file = bed.dir.path().join("second.jsonl");
    second.listen = bridge.grpc_addr();
    let failed = crate::start(second.clone()).await.unwrap_err();
    assert!(matches!(failed, Error::Bind { .. }), "{failed}");
    second.zones[0].backends[0].kind =
        BackendKind::Software(SoftwareConfig::new(bed.dir.path().join("no/such/directory.keys")));
    second.listen = bed.config.listen;
    let failed = crate::start(second).await.unwrap_err();
    assert!(matches!(failed, Error::Hsm { .. }), "{failed}");
    member.calls.issue("", 1).await.unwrap();
    bridge.shutdown().await;
    let bridge = bed.start().await;
    assert_eq!(bed.audit().last().unwrap().details["epoch"], 2, "no failed start has taken the lead");
    bridge.shutdown().await;
}

#[tokio::test]
async fn a_key_that_the_catalog_has_forgotten_never_becomes_a_new_version() {
    let bed = Bed::new();
    let store = bed.config.store_path().unwrap();
    let bridge = bed.start().await;
    bridge.shutdown().await;
    let copy = bed.dir.path().join("copy.db");
    std::fs::copy(&store, &copy).unwrap();
    let rotate = async || {
        let bridge = bed.start().await;
        let mut ops = bed.operator(bridge.grpc_addr()).await;
        let rotation = ops.rotate().await;
        ops.until_done(&rotation.id).await;
        let versions = ops.versions().await;
        bridge.shutdown().await;
        versions
    };
    assert_eq!(rotate().await.last().unwrap().0, 2);
    // An older copy: it knows version 1 only, and the backend has a version 2.
    std::fs::copy(&copy, &store).unwrap();
    assert_eq!(rotate().await, [(1, "retired".into(), 0), (3, "primary".into(), 0)]);
    // Lost: the first version of the new one is the fourth that the backend makes.
    std::fs::remove_file(&store).unwrap();
    std::fs::remove_file(crate::signing_key::path_beside(&store)).unwrap();
    let bridge = bed.start().await;
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    assert_eq!(ops.versions().await, [(4, "primary".into(), 0)]);
    bridge.shutdown().await;
}

#[tokio::test]
async fn an_older_bridge_must_not_go_on() {
    let bed = Bed::new();
    let old = bed.start().await;
    let mut member = Member::join(&bed, old.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    member.until(|held| held.generation > 0).await;
    // Another process takes the lead of the same catalog.
    let new = Catalog::open(&bed.config.store_path().unwrap(), Clock::start()).await.unwrap();
    assert_eq!(new.epoch(), 2);
    let refused = member.calls.issue("", 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let stopped = tokio::time::timeout(LONG, old.stopped()).await.expect("the old bridge goes on");
    assert!(stopped.unwrap_err().to_string().contains("taken over"));
    let held = member.until(|held| held.ended.is_some()).await;
    assert_eq!(held.set.epoch, 1);
    old.shutdown().await;
    let newer = bed.start().await;
    let mut member =
        Member::attach(&bed, newer.grpc_addr(), ORDERS, "a", Behaviour::Hold, held).await.unwrap();
    // What it holds is current still; the epoch that it hears of is the newest.
    assert_eq!(member.until(|held| held.heartbeats > 0).await.sets, 0);
    member.calls.issue("", 1).await.unwrap();
}

#[tokio::test]
async fn a_changed_configuration_is_a_new_generation() {
    let mut bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let first = member.until(|held| held.generation > 0).await;
    drop(member);
    bridge.shutdown().await;
    bed.config.zones[0].keyrings[0].limits.soft_messages = 7;
    let bridge = bed.start().await;
    let attached =
        Member::attach(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply, first.clone()).await;
    let now = attached.unwrap().until(|held| held.generation > first.generation).await;
    assert_eq!(now.set.keyrings[0].dek_soft_messages, 7);
    assert_eq!((now.primary(), now.set.zone_id), (first.primary(), first.set.zone_id));
}

#[tokio::test]
async fn a_longer_lease_that_was_given_counts_until_a_shorter_one_is_applied() {
    let mut bed = Bed::new();
    let left = async |bed: &Bed| {
        let catalog = Catalog::open(&bed.config.store_path().unwrap(), Clock::start()).await.unwrap();
        let now = Clock::start().now_ms();
        let row = catalog.members(keyway_envelope::ZoneId(1)).await.unwrap().remove(0);
        catalog.close().await;
        Duration::from_millis(row.lease_end_ms.saturating_sub(now))
    };
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let held = member.until(|held| held.generation > 0).await;
    bridge.shutdown().await;
    // An hour before; a minute from now on.
    bed.config.zones[0].keyrings[0].leases.seal = Duration::from_mins(1);
    let bridge = bed.start().await;
    let addr = bridge.grpc_addr();
    let mut member = Member::attach(&bed, addr, ORDERS, "a", Behaviour::Hold, held).await.unwrap();
    let held = member.until(|held| held.sets > 0 && held.heartbeats > 1).await;
    bridge.shutdown().await;
    assert!(left(&bed).await > Duration::from_mins(50), "it seals within the hour that it was given");
    let bridge = bed.start().await;
    let addr = bridge.grpc_addr();
    let mut member = Member::attach(&bed, addr, ORDERS, "a", Behaviour::Apply, held.clone()).await.unwrap();
    let applied = member.until(|now| now.generation > held.generation).await.heartbeats;
    member.until(|held| held.heartbeats > applied + 1).await;
    bridge.shutdown().await;
    assert!(left(&bed).await < Duration::from_mins(2), "it has applied the minute");
}

#[tokio::test]
async fn a_member_with_less_than_it_has_acknowledged_is_not_renewed() {
    let mut bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let first = member.until(|held| held.generation > 0).await;
    bridge.shutdown().await;
    bed.config.zones[0].keyrings[0].limits.soft_messages = 7;
    let bridge = bed.start().await;
    let attach = |behaviour| Member::attach(&bed, bridge.grpc_addr(), ORDERS, "a", behaviour, first.clone());
    let mut member = attach(Behaviour::Apply).await.unwrap();
    let applied = member.until(|held| held.generation > first.generation).await.heartbeats;
    let now = member.until(|held| held.heartbeats > applied + 1).await;
    assert_eq!(now.renewed, now.generation);
    drop(member);
    let mut member = attach(Behaviour::Hold).await.unwrap();
    assert_eq!(member.until(|held| held.heartbeats > 1).await.renewed, 0, "its disk is an old copy");
}
