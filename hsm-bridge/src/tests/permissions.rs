//! Who may not do what.

use super::bed::{Bed, INTAKE, OPS, ORDERS, OTHER, REPORTS};
use super::member::{Behaviour, Calls, Held, Member};
use keyway_protocol::v1::{ListRequest, RotationRef, StartRotationRequest};
use tonic::Code;

#[tokio::test]
async fn rights_are_those_of_the_certificate() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let addr = bridge.grpc_addr();
    let orders = Calls::new(&bed, addr, ORDERS, "payments").await;
    let reports = Calls::new(&bed, addr, REPORTS, "payments").await;
    let intake = Calls::new(&bed, addr, INTAKE, "payments").await;
    let stranger = Calls::new(&bed, addr, OTHER, "payments").await;
    let (dek, issued) = orders.issue("", 1).await.unwrap();

    // A reader opens what another service of the keyring sealed, and gets nothing to seal with.
    assert_eq!(reports.open(&issued.key_block).await.unwrap().0.expose(), dek.expose());
    assert_eq!(reports.issue("", 1).await.unwrap_err().code(), Code::PermissionDenied);
    // A writer gets DEKs, and opens nothing.
    let (_, written) = intake.issue("", 1).await.unwrap();
    for block in [&issued.key_block, &written.key_block] {
        assert_eq!(intake.open(block).await.unwrap_err().code(), Code::PermissionDenied);
    }
    // A member of another zone gets nothing here …
    assert_eq!(stranger.issue("", 1).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(stranger.open(&issued.key_block).await.unwrap_err().code(), Code::PermissionDenied);
    let attach = Member::attach(&bed, addr, OTHER, "a", Behaviour::Apply, Held::default()).await;
    assert_eq!(attach.err().unwrap().code(), Code::PermissionDenied);
    // … and nothing of here in its own zone.
    let at_home = Calls::new(&bed, addr, OTHER, "archive").await;
    at_home.issue("", 1).await.unwrap();
    assert_eq!(at_home.open(&issued.key_block).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_writer_proves_its_keyring_without_the_right_to_open() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut writer = Member::join(&bed, bridge.grpc_addr(), INTAKE, "a", Behaviour::Apply).await;
    let held = writer.until(|held| held.generation > 0).await;
    assert!(held.set.keyrings[0].may_seal && !held.set.keyrings[0].may_open);
}

#[tokio::test]
async fn a_block_that_was_tampered_with_is_refused() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let orders = Calls::new(&bed, bridge.grpc_addr(), ORDERS, "payments").await;
    let (_, issued) = orders.issue("acme", 1).await.unwrap();
    for at in 0..issued.key_block.len() {
        let mut block = issued.key_block.clone();
        block[at] ^= 1;
        let code = orders.open(&block).await.expect_err("a changed block opens").code();
        let fits = matches!(code, Code::InvalidArgument | Code::NotFound | Code::PermissionDenied);
        assert!(fits, "byte {at}: {code:?}");
    }
    assert_eq!(orders.open(&issued.key_block[1..]).await.unwrap_err().code(), Code::InvalidArgument);
    // The good one is not harmed by all of this.
    orders.open(&issued.key_block).await.unwrap();
}

#[tokio::test]
async fn only_administrators_of_the_zone_operate() {
    let mut bed = Bed::new();
    bed.config.zones[1].admins = vec!["spiffe://example.org/ops/archive".into()];
    let bridge = bed.start().await;
    for who in [ORDERS, "spiffe://example.org/ops/archive"] {
        let mut client = bed.operator_as(bridge.grpc_addr(), who).await;
        let start = StartRotationRequest {
            zone: "payments".into(),
            keyring: "default".into(),
            reason: String::new(),
        };
        assert_eq!(client.start_rotation(start).await.unwrap_err().code(), Code::PermissionDenied);
        let list = ListRequest { zone: "payments".into() };
        assert_eq!(client.list_members(list.clone()).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(client.list_keys(list).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let mut ops = bed.operator_as(bridge.grpc_addr(), OPS).await;
    let everything = ops.list_keys(ListRequest::default()).await.unwrap().into_inner().keys;
    assert!(!everything.is_empty() && everything.iter().all(|key| key.zone == "payments"));
    let unknown =
        StartRotationRequest { zone: "payments".into(), keyring: "nope".into(), reason: String::new() };
    assert_eq!(ops.start_rotation(unknown).await.unwrap_err().code(), Code::NotFound);
    let watched = ops.watch_rotation(RotationRef { id: "nope".into() }).await;
    assert_eq!(watched.unwrap_err().code(), Code::NotFound);
}
