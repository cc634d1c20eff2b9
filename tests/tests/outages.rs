//! The bridge away, the sidecar restarted: traffic goes on within the leases, and stops where it must.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_tests::client::{get, put};
use keyway_tests::{Fleet, Hsm, Load, eventually, random};
use serde_json::Value;

async fn zone_status(fleet: &Fleet, proxy: &str) -> Value {
    let status: Value =
        serde_json::from_slice(&get(fleet.admin_of(proxy), "/keyring").await.expect(200).body).unwrap();
    let zones = status["zones"].as_array().unwrap();
    zones.iter().find(|zone| zone["zone"] == "payments").cloned().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_without_the_bridge_and_over_restarts_of_the_sidecar() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let body = random(100_000);
    let _ = put(fleet.data(), "/objects/a", body.clone()).await.expect(201);
    let load = Load::start(fleet.data(), 3);
    load.more(10).await;
    fleet.kill_bridge();
    eventually("the sidecar to notice", async || {
        zone_status(&fleet, "proxy").await["bridge"].is_null().then_some(())
    })
    .await;
    load.more(30).await;
    fleet.start_bridge().await;
    eventually("the sidecar to be back", async || {
        (!zone_status(&fleet, "proxy").await["bridge"].is_null()).then_some(())
    })
    .await;
    load.more(10).await;
    assert!(load.finish().await > 0);

    // Both gone; the sidecar alone comes back, from what it has on disk.
    fleet.kill_bridge();
    fleet.kill_proxy("proxy");
    fleet.start_proxy("proxy").await;
    assert_eq!(zone_status(&fleet, "proxy").await["from_disk"], true);
    assert!(get(fleet.data(), "/objects/a").await.expect(200).body == body);
    let _ = put(fleet.data(), "/objects/b", body.clone()).await.expect(201);
    assert!(get(fleet.data(), "/objects/b").await.expect(200).body == body);

    // The state is sealed: the DEKs that it holds are nowhere in it, and a changed byte makes it worthless.
    let state = fleet.dir().join("state-proxy/payments.state");
    let mut bytes = std::fs::read(&state).unwrap();
    fleet.kill_proxy("proxy");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("proxy", "orders", &store, "client", keyway_tests::fleet::ROUTES).await;
    let ready = get(fleet.admin_of("proxy"), "/readyz").await;
    assert_eq!(ready.status, 503, "no bridge and no usable state: it must not serve");
    let refused = get(fleet.data(), "/objects/a").await.expect(503);
    assert_eq!(refused.code(), "key-unavailable");
    assert_eq!(refused.header("retry-after"), "1");
    fleet.start_bridge().await;
    fleet.wait_ready("proxy").await;
    assert!(
        get(fleet.data(), "/objects/b").await.expect(200).body == body,
        "sealed while the bridge was away"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_seal_lease_sealing_stops_and_opening_goes_on() {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4s", "1h")).await;
    fleet.start_proxy("proxy").await;
    let _ = put(fleet.data(), "/objects/a", "sealed in time").await.expect(201);
    fleet.kill_bridge();
    let refused = eventually("the end of the lease", async || {
        let answer = put(fleet.data(), "/objects/b", "late").await;
        (!answer.status.is_success()).then_some(answer)
    })
    .await;
    let refused = refused.expect(503);
    assert_eq!(refused.code(), "seal-lease-expired");
    assert_eq!(get(fleet.data(), "/objects/a").await.expect(200).body, b"sealed in time");
    fleet.start_bridge().await;
    eventually("a new lease", async || {
        put(fleet.data(), "/objects/b", "again").await.status.is_success().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_rights_gets_nothing() {
    let mut fleet = Fleet::start(Hsm::Software).await;
    let _ = put(fleet.data(), "/objects/a", "secret").await.expect(201);
    let store = format!("http://{}", fleet.store());
    fleet.start_proxy_as("stranger", "stranger", &store, "client", keyway_tests::fleet::ROUTES).await;
    eventually("the bridge's refusal", async || {
        (!zone_status(&fleet, "stranger").await["last_error"].is_null()).then_some(())
    })
    .await;
    assert_eq!(get(fleet.admin_of("stranger"), "/readyz").await.status, 503);
    let refused = get(fleet.data_of("stranger"), "/objects/a").await.expect(503);
    assert_eq!(refused.code(), "key-unavailable");
    let refused = put(fleet.data_of("stranger"), "/objects/b", "plaintext").await.expect(503);
    assert_eq!(refused.code(), "key-unavailable");
    assert_eq!(get(fleet.store(), "/objects/b").await.status, 404, "plaintext reached the store");
    // An operator's command with a member's certificate is refused too.
    let pki = fleet.dir().join("pki");
    let command = fleet.keyway_command(&[]);
    let mut plain = std::process::Command::new(keyway_tests::process::program("keyway"));
    let bridge = command.get_args().skip_while(|arg| *arg != "--bridge").nth(1).unwrap().to_owned();
    let output = plain
        .args(["rotate", "start", "--keyring", "payments/default", "--bridge"])
        .arg(bridge)
        .args(["--cert"])
        .arg(pki.join("orders.crt"))
        .arg("--key")
        .arg(pki.join("orders.key"))
        .arg("--ca")
        .arg(pki.join("ca.crt"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fleet.versions().len(), 1, "a member rotated the key");
}
