//! Two backends, each DEK wrapped in both: what one alone can do, and what happens when one is new or empty.

use super::bed::{Bed, LONG, ORDERS};
use super::member::{Behaviour, Member};
use crate::backend::{self, BackendConfig, BackendKind, SoftwareConfig};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::server::Running;
use keyway_envelope::{Dek, KeyBlock};
use keyway_protocol::v1::DekResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

fn keystore(bed: &Bed, name: &str) -> BackendConfig {
    let software = SoftwareConfig::new(bed.dir.path().join(format!("{name}.keys")));
    BackendConfig { name: name.to_owned(), kind: BackendKind::Software(software) }
}

fn two_backends() -> Bed {
    let mut bed = Bed::new();
    bed.config.zones[0].backends = vec![keystore(&bed, "hsm-a"), keystore(&bed, "hsm-b")];
    bed.config.zones[0].wraps_required = 2;
    bed
}

async fn join(bed: &Bed, bridge: &Running) -> Member {
    let mut member = Member::join(bed, bridge.grpc_addr(), ORDERS, "a", Behaviour::Apply).await;
    member.until(|held| held.generation > 0).await;
    member
}

fn block_of(issued: &DekResponse) -> KeyBlock {
    KeyBlock::parse(issued.key_block.as_slice().try_into().unwrap()).unwrap()
}

/// With the bridge gone: the catalog lists a live wrap in each backend, and each backend alone opens its own.
async fn each_opens_alone(bed: &Bed, deks: &[(Dek, DekResponse)]) {
    let catalog = Catalog::open(&bed.config.store_path().unwrap(), Clock::start()).await.unwrap();
    for (dek, issued) in deks {
        let row = catalog.dek(block_of(issued).dek_id()).await.unwrap().unwrap();
        let places: Vec<_> = row.wraps.iter().map(|wrap| wrap.backend.as_str()).collect();
        assert_eq!(places, ["hsm-a", "hsm-b"]);
        assert_ne!(row.wraps[0].block, row.wraps[1].block);
        for wrap in &row.wraps {
            assert_eq!(wrap.block.kek().version, row.live_version);
            for name in ["hsm-a", "hsm-b"] {
                let alone = backend::open(&keystore(bed, name)).await.unwrap();
                let opened = alone.unwrap(&wrap.block, "payments", &issued.tenant).await;
                if name == wrap.backend {
                    assert_eq!(opened.unwrap().expose(), dek.expose(), "{name}");
                } else {
                    assert!(opened.is_err(), "{name} opens what another backend has wrapped");
                }
            }
        }
    }
    catalog.close().await;
}

#[tokio::test]
async fn each_dek_is_wrapped_in_both_backends_when_issued_and_when_rewrapped() {
    let bed = two_backends();
    let bridge = bed.start().await;
    let member = join(&bed, &bridge).await;
    let before = member.calls.issue("acme", 1).await.unwrap();
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    ops.until_done(&rotation.id).await;
    let after = member.calls.issue("acme", 2).await.unwrap();
    bridge.shutdown().await;
    each_opens_alone(&bed, &[before, after]).await;
}

#[tokio::test]
async fn after_a_backend_was_added_nothing_is_issued_with_fewer_wraps_until_a_rotation() {
    let mut bed = Bed::new();
    bed.config.zones[0].backends = vec![keystore(&bed, "hsm-a")];
    let bridge = bed.start().await;
    let member = join(&bed, &bridge).await;
    let old = member.calls.issue("", 1).await.unwrap();
    drop(member);
    bridge.shutdown().await;

    let added = keystore(&bed, "hsm-b");
    bed.config.zones[0].backends.push(added);
    bed.config.zones[0].wraps_required = 2;
    let bridge = bed.start().await;
    let member = join(&bed, &bridge).await;
    let refused = member.calls.issue("", 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(member.calls.open(&old.1.key_block).await.unwrap().0.expose(), old.0.expose());
    let mut ops = bed.operator(bridge.grpc_addr()).await;
    let rotation = ops.rotate().await;
    ops.until_done(&rotation.id).await;
    let new = member.calls.issue("", 2).await.unwrap();
    bridge.shutdown().await;
    each_opens_alone(&bed, &[old, new]).await;
}

#[tokio::test]
async fn one_backend_that_lost_its_keys_stops_issuing_and_not_opening() {
    let bed = two_backends();
    let bridge = bed.start().await;
    let member = join(&bed, &bridge).await;
    let old = member.calls.issue("", 1).await.unwrap();
    drop(member);
    bridge.shutdown().await;
    for lost in ["hsm-a", "hsm-b"] {
        let path = bed.dir.path().join(format!("{lost}.keys"));
        let kept = path.with_extension("kept");
        std::fs::rename(&path, &kept).unwrap();
        // The bridge finds an empty keystore in its place.
        let bridge = bed.start().await;
        let member = join(&bed, &bridge).await;
        assert_eq!(member.calls.open(&old.1.key_block).await.unwrap().0.expose(), old.0.expose(), "{lost}");
        assert!(member.calls.issue("", 1).await.is_err(), "{lost}: issued with one wrap");
        drop(member);
        bridge.shutdown().await;
        std::fs::rename(&kept, &path).unwrap();
    }
    each_opens_alone(&bed, &[old]).await;
}

#[tokio::test]
async fn operations_are_measured_by_backend() {
    let bed = two_backends();
    let bridge = bed.start().await;
    let member = join(&bed, &bridge).await;
    member.calls.issue("", 1).await.unwrap();
    let text = scrape(&bridge).await;
    for backend in ["hsm-a", "hsm-b"] {
        let up = format!(r#"keyway_hsm_up{{zone="payments",backend="{backend}"}} 1"#);
        assert!(text.lines().any(|line| line == up), "{up} is missing in\n{text}");
        for op in ["open", "generate", "wrap", "unwrap"] {
            let count = format!(r#"keyway_hsm_operation_seconds_count{{backend="{backend}",op="{op}"}} "#);
            let measured = text.lines().find_map(|line| line.strip_prefix(count.as_str()));
            let measured: u64 =
                measured.unwrap_or_else(|| panic!("{count} is missing in\n{text}")).parse().unwrap();
            assert!(measured > 0, "{count}");
        }
    }
    assert!(text.contains(r#"keyway_hsm_operation_seconds_bucket{backend="hsm-a",op="wrap",le="#), "{text}");
}

/// What Prometheus reads.
async fn scrape(bridge: &Running) -> String {
    let read = async {
        let mut stream = TcpStream::connect(bridge.admin_addr()).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: bridge\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::time::timeout(LONG, read).await.expect("the admin port does not answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}
