//! A rotation while traffic flows: nothing fails, nothing is dropped, streams go on, and the old version is retired.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::Method;
use http_body_util::BodyExt;
use keyway_envelope::Header;
use keyway_tests::client::{Client, get, put, request, stepwise, whole};
use keyway_tests::fleet::SOFTHSM;
use keyway_tests::{Fleet, Hsm, Load, eventually, random};
use std::process::Command;

const KEYRING: &str = "payments/default";

/// The KEK version in the header of a stored object.
async fn stored_version(fleet: &Fleet, path: &str) -> u16 {
    let sealed = get(fleet.store(), path).await.expect(200).body;
    Header::parse(&sealed).unwrap().key_block.kek().version.0
}

/// Whether no rotation is open.
fn all_ended(fleet: &Fleet) -> bool {
    let rotations = fleet.keyway_json(&["rotate", "status"]);
    rotations.as_array().expect("a list").iter().all(|rotation| rotation["phase"] == "done")
}

async fn rotation_under_load(hsm: Hsm) {
    let mut fleet = Fleet::start(hsm).await;
    fleet.start_proxy("second").await;
    let before = random(200_000);
    let _ = put(fleet.data(), "/objects/before", before.clone()).await.expect(201);
    let large = random(64 << 20);
    let _ = put(fleet.data(), "/objects/large", large.clone()).await.expect(201);

    // An upload and a download that begin before the rotation and end after it.
    let mut uploader = Client::http1(fleet.data()).await.unwrap();
    let (pieces, body) = stepwise();
    let upload = tokio::spawn(async move {
        uploader.send(request(Method::PUT, "/objects/long-upload", &[], body)).await.unwrap()
    });
    let first = random(300_000);
    pieces.send(first.clone().into()).await.unwrap();
    let mut downloader = Client::http1(fleet.data()).await.unwrap();
    let get_large = request(Method::GET, "/objects/large", &[], whole(""));
    let (head, mut download) = downloader.start(get_large).await.unwrap().into_parts();
    assert_eq!(head.status, 200);
    let mut downloaded = download.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    assert!(downloaded.len() < large.len());

    let loads = [Load::start(fleet.data(), 4), Load::start(fleet.data_of("second"), 2)];
    for load in &loads {
        load.more(20).await;
    }
    fleet.rotate().await;
    for load in &loads {
        load.more(20).await;
    }

    let second = random(300_000);
    pieces.send(second.clone().into()).await.unwrap();
    drop(pieces);
    let _ = upload.await.unwrap().expect(201);
    while let Some(frame) = download.frame().await {
        downloaded.extend_from_slice(&frame.expect("the download goes on").into_data().unwrap());
    }
    assert!(downloaded == large, "the download came out changed");
    for load in loads {
        assert!(load.finish().await > 0);
    }

    let versions = fleet.versions();
    assert_eq!(versions[&1], "retired");
    assert_eq!(versions[&2], "primary");
    for name in ["proxy", "second"] {
        let keyring: serde_json::Value =
            serde_json::from_slice(&get(fleet.admin_of(name), "/keyring").await.expect(200).body).unwrap();
        let ring =
            keyring["keyrings"].as_array().unwrap().iter().find(|ring| ring["keyring"] == KEYRING).unwrap();
        assert_eq!((&ring["primary"], &ring["accepted"]), (&2.into(), &serde_json::json!([2])));
    }
    // What was sealed before, and while it went on, opens; through another sidecar too, that never held those DEKs.
    fleet.start_proxy("third").await;
    let long: Vec<u8> = [first, second].concat();
    for name in ["proxy", "second", "third"] {
        assert!(get(fleet.data_of(name), "/objects/before").await.expect(200).body == before);
        assert!(get(fleet.data_of(name), "/objects/long-upload").await.expect(200).body == long);
    }
    assert_eq!(stored_version(&fleet, "/objects/before").await, 1);
    assert_eq!(
        stored_version(&fleet, "/objects/long-upload").await,
        1,
        "a body keeps the key that it began with"
    );
    let _ = put(fleet.data(), "/objects/after", "new").await.expect(201);
    assert_eq!(stored_version(&fleet, "/objects/after").await, 2);

    let actions = fleet.audit_actions();
    let order: Vec<&str> =
        actions.iter().map(String::as_str).filter(|action| action.starts_with("rotation.")).collect();
    let wanted = [
        "rotation.start",
        "rotation.accept",
        "rotation.promote",
        "rotation.drain",
        "rotation.retire",
        "rotation.done",
    ];
    let mut found = order.iter();
    for action in wanted {
        assert!(found.any(|seen| *seen == action), "{action} is missing or out of order: {order:?}");
    }
    if hsm == Hsm::SoftHsm {
        keks_are_in_the_token(&fleet);
    }
}

fn keks_are_in_the_token(fleet: &Fleet) {
    let listed = Command::new("pkcs11-tool")
        .args(["--module", SOFTHSM, "--token-label", "hsm-a", "--login", "--pin", "1234", "--list-objects"])
        .env("SOFTHSM2_CONF", fleet.dir().join("softhsm2.conf"))
        .output()
        .expect("pkcs11-tool runs: ./test.sh installs opensc");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for version in ["v1", "v2"] {
        assert!(listed.contains(&format!("keyway:payments/default:{version}")), "{listed}");
    }
    assert!(listed.contains("never extractable") && listed.contains("sensitive"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_on_the_software_keystore() {
    rotation_under_load(Hsm::Software).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_on_softhsm() {
    rotation_under_load(Hsm::SoftHsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_killed_at_every_step_resumes_and_ends() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let before = random(50_000);
    let _ = put(fleet.data(), "/objects/before", before.clone()).await.expect(201);
    let load = Load::start(fleet.data(), 3);
    // The audit record of a step is durable before its effect: seeing it is the earliest moment to strike.
    let steps = [
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
    for (round, step) in steps.into_iter().enumerate() {
        let seen = |fleet: &Fleet| fleet.audit_actions().iter().filter(|action| *action == step).count();
        let already = seen(&fleet);
        let starting = fleet.keyway_command(&["rotate", "start", "--keyring", KEYRING]).spawn().unwrap();
        eventually(step, async || (seen(&fleet) > already).then_some(())).await;
        fleet.kill_bridge();
        let _ = starting.wait_with_output();
        load.more(10).await;
        fleet.start_bridge().await;
        let (old, new) = (round as u64 + 1, round as u64 + 2);
        // Killed between the record of the start and the start itself, there is no rotation: it is asked for again.
        if step == "rotation.start"
            && fleet.keyway_json(&["rotate", "status"]).as_array().is_none_or(Vec::is_empty)
        {
            fleet.rotate().await;
        }
        eventually("the end of the rotation", async || {
            load.assert_no_failure();
            let versions = fleet.versions();
            let retired =
                versions.get(&new).is_some_and(|state| state == "primary") && versions[&old] == "retired";
            (retired && all_ended(&fleet)).then_some(())
        })
        .await;
        assert!(get(fleet.data(), "/objects/before").await.expect(200).body == before, "after {step}");
    }
    load.more(10).await;
    assert!(load.finish().await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_killed_in_the_middle_comes_back_and_the_rotation_ends() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    fleet.start_proxy("second").await;
    let body = random(100_000);
    let _ = put(fleet.data(), "/objects/a", body.clone()).await.expect(201);
    // Stopped, it can't acknowledge: the rotation has to wait in accept.
    fleet.proxy_mut("second").signal(rustix::process::Signal::STOP);
    let started = fleet.keyway(&["rotate", "start", "--keyring", KEYRING]);
    assert!(started.status.success());
    eventually("accept", async || {
        fleet.audit_actions().contains(&"rotation.accept".to_owned()).then_some(())
    })
    .await;
    assert_eq!(fleet.versions()[&1], "primary", "nothing is promoted before every member has applied");
    fleet.kill_proxy("second");
    assert_eq!(fleet.versions()[&1], "primary", "a member that is gone counts until its lease ends");
    fleet.start_proxy("second").await;
    eventually("the end", async || {
        fleet.versions().get(&1).is_some_and(|state| state == "retired").then_some(())
    })
    .await;
    for name in ["proxy", "second"] {
        assert!(get(fleet.data_of(name), "/objects/a").await.expect(200).body == body);
    }
}
