//! Attaching, DEKs, and what is told at the admin port.

use super::bed::{Bed, INTAKE, ORDERS, REPORTS};
use super::member::{Behaviour, Held, Member};
use keyway_protocol::v1::ListRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

#[tokio::test]
async fn a_member_gets_its_keyring_and_deks() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    let held = member.until(|held| held.generation > 0 && held.heartbeats > 1).await;
    assert_eq!((held.set.zone.as_str(), held.primary(), held.accepted()), ("payments", 1, vec![1]));
    assert!(held.set.keyrings[0].may_seal && held.set.keyrings[0].may_open);

    let (dek, issued) = member.calls.issue("acme", 1).await.unwrap();
    let (again, opened) = member.calls.open(&issued.key_block).await.unwrap();
    assert_eq!(dek.expose(), again.expose());
    assert_eq!((opened.tenant.as_str(), opened.keyring.as_str(), opened.kek_version), ("acme", "default", 1));
    let (other, _) = member.calls.issue("acme", 1).await.unwrap();
    assert_ne!(dek.id(), other.id(), "each start has DEKs of its own");

    for (version, code) in [(2, Code::FailedPrecondition), (0, Code::FailedPrecondition)] {
        assert_eq!(member.calls.issue("", version).await.unwrap_err().code(), code);
    }
    bridge.shutdown().await;
}

#[tokio::test]
async fn a_member_that_comes_back_current_hears_a_heartbeat_only() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut member = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    // The second heartbeat after the answer: the answer has been recorded by then.
    let held = member.until(|held| held.generation > 0).await;
    let beats = held.heartbeats;
    let held = member.until(|held| held.heartbeats >= beats + 2).await;
    drop(member);
    let attach = |held: Held| Member::attach(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply, held);
    let mut back = attach(held.clone()).await.unwrap();
    assert_eq!(back.until(|held| held.heartbeats > 0).await.sets, 0);
    drop(back);
    // With another digest it is not what we know, so it gets the set.
    let mut back = attach(Held { digest: vec![1; 32], ..held.clone() }).await.unwrap();
    assert_eq!(back.until(|held| held.sets > 0).await.sets, 1);
    drop(back);
    // One that has seen more than this bridge is right, and this bridge stands on an old catalog.
    let Err(refused) = attach(Held { generation: held.generation + 1, ..held.clone() }).await else {
        panic!("a newer generation was taken in")
    };
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut newer = held;
    newer.set.epoch += 1;
    let Err(refused) = attach(newer).await else { panic!("a newer epoch was taken in") };
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_newer_stream_of_the_same_instance_ends_the_older_one() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut first = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    first.until(|held| held.generation > 0).await;
    let mut second = Member::join(&bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    second.until(|held| held.generation > 0).await;
    assert_eq!(first.until(|held| held.ended.is_some()).await.ended, Some(Code::Aborted));
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let members = ops.client.list_members(ListRequest { zone: "payments".into() }).await.unwrap();
    let members = members.into_inner().members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].state, "connected");
    assert_eq!(members[0].key_exchange, "X25519MLKEM768");
}

#[tokio::test]
async fn the_admin_port_tells_what_there_is() {
    let bed = Bed::new();
    let bridge = bed.start().await;
    let mut members = Vec::new();
    for service in [ORDERS, REPORTS, INTAKE] {
        let mut member = Member::join(&bed, bridge.grpc_addr(), service, "a", Behaviour::Apply).await;
        member.until(|held| held.generation > 0 && held.heartbeats > 1).await;
        members.push(member);
    }
    members[0].calls.issue("", 1).await.unwrap();
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(bridge.admin_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: bridge\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        answer
    };
    get("/livez").await;
    get("/readyz").await;
    let metrics = get("/metrics").await;
    for line in [
        "keyway_members{zone=\"payments\",state=\"connected\"} 3",
        "keyway_catalog_deks{zone=\"payments\",keyring=\"default\",kek_version=\"1\"} 1",
        "keyway_hsm_up{zone=\"payments\",backend=\"soft\"} 1",
        "keyway_rotation_phase{zone=\"payments\",keyring=\"default\"} 0",
        "keyway_hsm_operation_seconds_count{backend=\"soft\",op=\"wrap\"}",
        "keyway_push_ack_seconds_count 3",
        "keyway_audit_records_total",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert!(get("/api/v1/keys").await.contains("\"state\":\"primary\""));
    assert!(get("/api/v1/members").await.contains(REPORTS));
    assert!(get("/api/v1/zones").await.contains("archive"));
    assert!(get("/api/v1/rotations").await.contains("\"rotations\":[]"));
}
