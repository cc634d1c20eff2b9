//! Rotations from end to end.

use super::bed::{Bed, INTAKE, ORDERS, REPORTS};
use super::member::{Behaviour, Member};
use crate::rotation::decide::Phase;
use keyway_envelope::{DekId, KekRef, KekVersion, KeyBlock, KeyringId, WrapMechanism, ZoneId};
use keyway_protocol::v1::ListRequest;
use std::time::Duration;
use tonic::Code;

#[tokio::test]
async fn a_rotation_ends_with_the_old_version_retired_and_nothing_lost() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let addr = bridge.grpc_addr();
    let mut orders = Member::join(&bed, addr, ORDERS, "a", Behaviour::Apply).await;
    let mut reports = Member::join(&bed, addr, REPORTS, "a", Behaviour::Apply).await;
    let mut intake = Member::join(&bed, addr, INTAKE, "a", Behaviour::Apply).await;
    for member in [&mut orders, &mut reports, &mut intake] {
        member.until(|held| held.generation > 0).await;
    }
    let mut before = Vec::new();
    for tenant in ["", "acme", "globex"] {
        before.push(orders.calls.issue(tenant, 1).await.unwrap());
    }

    // One is slow: the rotation waits for it, and another joins meanwhile.
    intake.behave(Behaviour::Hold);
    let mut ops = bed.operator(addr).await;
    let rotation = ops.rotate().await;
    assert_eq!((rotation.from_version, rotation.to_version), (1, 2));
    let waiting = ops.follow(&rotation.id, |now| now.phase == "accept" && now.members_applied == 2).await;
    assert!(waiting.last().unwrap().detail.contains("intake[a]"), "{waiting:?}");
    let mut joiner = Member::join(&bed, addr, ORDERS, "b", Behaviour::Apply).await;
    let held = joiner.until(|held| held.generation > 0).await;
    assert_eq!((held.primary(), held.accepted()), (1, vec![1, 2]), "a joiner holds the full accept set");
    // Nothing is sealed under the new version before everybody accepts it.
    assert_eq!(orders.calls.issue("", 2).await.unwrap_err().code(), Code::FailedPrecondition);
    let second = ops.client.start_rotation(keyway_protocol::v1::StartRotationRequest {
        zone: "payments".into(),
        keyring: "default".into(),
        reason: String::new(),
    });
    assert_eq!(second.await.unwrap_err().code(), Code::FailedPrecondition, "one open rotation per keyring");
    intake.behave(Behaviour::Apply);

    let seen = ops.until_done(&rotation.id).await;
    let last = seen.last().unwrap();
    assert_eq!((last.deks_total, last.deks_rewrapped), (3, 3));
    assert!(last.ended_ms >= last.started_ms && last.started_ms > 0);
    for member in [&mut orders, &mut reports, &mut intake, &mut joiner] {
        let held = member.until(|held| held.generation == last.generation).await;
        assert_eq!((held.primary(), held.accepted()), (2, vec![2]));
    }
    assert_eq!(ops.versions().await, [(1, "retired".into(), 0), (2, "primary".into(), 3)]);

    // What was sealed before opens, by the block that is in the envelope, through the new version.
    for (dek, issued) in &before {
        let (again, opened) = reports.calls.open(&issued.key_block).await.unwrap();
        assert_eq!(again.expose(), dek.expose());
        assert_eq!((opened.kek_version, &opened.tenant), (2, &issued.tenant));
        assert_eq!(opened.key_block, issued.key_block);
    }
    // A block of the retired version that was never made is refused, although the KEK is still in the keystore.
    let forged = &before[0].1.key_block;
    let mut forged: [u8; 96] = forged.as_slice().try_into().unwrap();
    forged[40] ^= 1;
    assert_eq!(reports.calls.open(&forged).await.unwrap_err().code(), Code::NotFound);
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };
    let unknown = KeyBlock::inline(kek, DekId([9; 16]), WrapMechanism::AesGcm, &[9; 60]).unwrap();
    assert_eq!(reports.calls.open(&unknown.to_bytes()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(orders.calls.issue("", 1).await.unwrap_err().code(), Code::FailedPrecondition);
    orders.calls.issue("", 2).await.unwrap();
    audit_is_whole(&bed);
}

fn audit_is_whole(bed: &Bed) {
    let records = bed.audit();
    let actions: Vec<_> = records
        .iter()
        .map(|record| record.action.as_str())
        .filter(|action| action.starts_with("rotation."))
        .collect();
    let expected = [
        "rotation.start",
        "rotation.generate",
        "rotation.accept",
        "rotation.promote",
        "rotation.rewrap",
        "rotation.drain",
        "rotation.barrier",
        "rotation.retire",
        "rotation.done",
    ];
    assert_eq!(actions, expected);
    let retire = records.iter().find(|record| record.action == "rotation.retire").unwrap();
    assert_eq!(retire.details["live_wraps"], 0);
    assert_eq!(retire.details["barrier"], true);
    assert_eq!(
        records.iter().find(|record| record.action == "rotation.start").unwrap().actor,
        super::bed::OPS
    );
}

#[tokio::test]
async fn a_second_rotation_keeps_the_first_ones_data() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    member.until(|held| held.generation > 0).await;
    let (dek, issued) = member.calls.issue("", 1).await.unwrap();
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    for version in [2, 3] {
        let rotation = ops.rotate().await;
        assert_eq!(rotation.to_version, version, "version numbers are never reused");
        ops.until_done(&rotation.id).await;
        // Through the HSM, not from memory.
        let (again, opened) = member.calls.open(&issued.key_block).await.unwrap();
        assert_eq!((again.expose(), opened.kek_version), (dek.expose(), version));
    }
    assert_eq!(
        ops.versions().await,
        [(1, "retired".into(), 0), (2, "retired".into(), 0), (3, "primary".into(), 1)]
    );
}

#[tokio::test]
async fn an_unreachable_member_is_waited_for_until_its_lease_ends() {
    let mut bed = Bed::new();
    bed.config.zones[0].keyrings[0].leases.seal = Duration::from_millis(800);
    let bridge = bed.start().await;
    let mut here = Member::join(&bed, bridge.grpc_addr(), ORDERS, "here", Behaviour::Apply).await;
    let mut lost = Member::join(&bed, bridge.grpc_addr(), ORDERS, "lost", Behaviour::Apply).await;
    for member in [&mut here, &mut lost] {
        member.until(|held| held.generation > 0).await;
    }
    // It was there when the rotation began, so its last lease is not over.
    lost.behave(Behaviour::Hold);
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    ops.follow(&rotation.id, |now| now.phase == "accept" && now.members_applied == 1).await;
    drop(lost);
    let seen = ops.until_done(&rotation.id).await;
    assert!(seen.iter().any(|now| now.detail.contains("lost]")), "{seen:?}");
    let members = ops.client.list_members(ListRequest { zone: "payments".into() }).await.unwrap();
    let members = members.into_inner().members;
    let lost = members.iter().find(|member| member.instance == "lost").unwrap();
    assert_eq!(lost.state, "expired");
    let promoted = bed.audit().into_iter().find(|record| record.action == "rotation.promote").unwrap();
    assert!(promoted.time_ms > lost.lease_ends_ms, "promoted before the lease ended");
}

#[tokio::test]
async fn a_refusal_pauses_and_goes_on_by_itself() {
    for behaviour in [Behaviour::Refuse, Behaviour::Lie] {
        let bed = Bed::new();
        let bridge = bed.start().await;
        let mut good = Member::join(&bed, bridge.grpc_addr(), ORDERS, "good", Behaviour::Apply).await;
        let mut bad = Member::join(&bed, bridge.grpc_addr(), REPORTS, "bad", Behaviour::Apply).await;
        for member in [&mut good, &mut bad] {
            member.until(|held| held.generation > 0).await;
        }
        bad.behave(behaviour);
        let mut ops = bed.operator(bridge.grpc_addr()).await;
        let rotation = ops.rotate().await;
        let paused = ops.follow(&rotation.id, |now| now.phase == "paused").await;
        let detail = &paused.last().unwrap().detail;
        let why = if behaviour == Behaviour::Lie { "KNOWN_ANSWER" } else { "disk full" };
        assert!(detail.contains("reports[bad]") && detail.contains(why), "{detail}");
        // Traffic is not harmed: the old version goes on being the one to seal under.
        good.calls.issue("", 1).await.unwrap();
        bad.behave(Behaviour::Apply);
        ops.until_done(&rotation.id).await;
        assert_eq!(bad.until(|held| held.accepted() == [2]).await.primary(), 2);
    }
}

#[tokio::test]
async fn phases_come_in_their_order() {
    let mut bed = Bed::new();
    bed.config.zones[0].rotation.soak = Duration::from_millis(50);
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    member.until(|held| held.generation > 0).await;
    for _ in 0..100 {
        member.calls.issue("", 1).await.unwrap();
    }
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    let seen = ops.until_done(&rotation.id).await;
    let place = |name: &str| Phase::ALL.iter().position(|phase| phase.name() == name).expect(name);
    let places: Vec<_> = seen.iter().map(|now| place(&now.phase)).collect();
    assert!(places.is_sorted(), "{seen:?}");
    // More than one batch.
    assert_eq!(seen.last().unwrap().deks_rewrapped, 100);
    assert!(seen.iter().any(|now| now.phase == "rewrap" && (1..100).contains(&now.deks_rewrapped)));
}

#[tokio::test]
async fn a_generation_that_was_committed_and_not_published_is_published() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let before = member.until(|held| held.generation > 0).await.generation;
    // As if reading it had failed after the commit.
    let database = sqlx::SqlitePool::connect(&bed.config.store).await.unwrap();
    sqlx::query("UPDATE zones SET generation = generation + 1").execute(&database).await.unwrap();
    member.until(|held| held.generation == before + 1).await;
    bridge.shutdown().await;
}

#[tokio::test]
async fn a_member_hears_each_generation_once() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let before = member.until(|held| held.generation > 0).await;
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    let last = ops.until_done(&rotation.id).await.pop().unwrap();
    let heartbeats = member.held().heartbeats;
    let after = member.until(|held| held.heartbeats > heartbeats).await;
    // Accepted, promoted, retired. Steps that change nothing for members are not told to them: each telling costs every
    // member its known answers.
    assert_eq!(after.generation, last.generation);
    assert_eq!(u64::from(after.sets - before.sets), after.generation - before.generation);
    assert_eq!(after.sets - before.sets, 3);
}
