//! HSM and ciphertext alone recover the data; and a reader that shares no code with us reads what the sidecar wrote.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_envelope::Header;
use keyway_tests::client::{get, once, put, whole};
use keyway_tests::process::program;
use keyway_tests::{Fleet, Hsm, random};
use std::path::Path;
use std::process::Command;

fn open(fleet: &Fleet, arguments: &[&str]) -> std::process::Output {
    Command::new(program("keyway"))
        .arg("open")
        .args(arguments)
        .arg("--config")
        .arg(fleet.bridge_config_path())
        .env("SOFTHSM2_CONF", fleet.dir().join("softhsm2.conf"))
        .output()
        .unwrap()
}

async fn recovered_without_the_database(hsm: Hsm) {
    let mut fleet = Fleet::start(hsm).await;
    let body = random(1_000_000);
    let _ = put(fleet.data(), "/objects/a", body.clone()).await.expect(201);
    let tenant = [("x-tenant", "acme")];
    let _ = once(fleet.data(), http::Method::PUT, "/tenants/a", &tenant, whole("acme's")).await.expect(201);
    let sealed = fleet.dir().join("sealed");
    std::fs::write(&sealed, get(fleet.store(), "/objects/a").await.expect(200).body).unwrap();
    let of_tenant = fleet.dir().join("of-tenant");
    std::fs::write(&of_tenant, get(fleet.store(), "/tenants/a").await.expect(200).body).unwrap();
    fleet.kill_bridge();
    for file in std::fs::read_dir(fleet.dir()).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("bridge.db") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let out = fleet.dir().join("out");
    let (sealed, out) = (sealed.to_str().unwrap(), out.to_str().unwrap());
    let opened = open(&fleet, &[sealed, "--zone", "payments", "--domain", "orders", "-o", out]);
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    assert!(std::fs::read(out).unwrap() == body);
    std::fs::remove_file(out).unwrap();
    let of_tenant = of_tenant.to_str().unwrap();
    let opened =
        open(&fleet, &[of_tenant, "--zone", "payments", "--tenant", "acme", "--domain", "orders", "-o", out]);
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    assert_eq!(std::fs::read(out).unwrap(), b"acme's");
    std::fs::remove_file(out).unwrap();

    let mut broken = std::fs::read(sealed).unwrap();
    *broken.last_mut().unwrap() ^= 1;
    let broken_file = fleet.dir().join("broken");
    std::fs::write(&broken_file, broken).unwrap();
    let broken = broken_file.to_str().unwrap();
    for (file, zone, domain, what) in [
        (sealed, "payments", "invoices", "another domain"),
        (sealed, "other", "orders", "another zone"),
        (broken, "payments", "orders", "a changed last byte"),
    ] {
        let refused = open(&fleet, &[file, "--zone", zone, "--domain", domain, "-o", out]);
        assert_eq!(refused.status.code(), Some(1), "{what}: {}", String::from_utf8_lossy(&refused.stderr));
        assert!(!Path::new(out).exists(), "{what}: something was written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_on_the_software_keystore() {
    recovered_without_the_database(Hsm::Software).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_on_softhsm() {
    recovered_without_the_database(Hsm::SoftHsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_reader_opens_what_the_sidecar_stored() {
    use keyway_bridge::backend::software::{Keystore, Secret};
    let fleet = Fleet::start(Hsm::Software).await;
    let keystore = Keystore::open(
        &fleet.dir().join("keystore-hsm-a"),
        &Secret::key_file(&fleet.dir().join("keystore-hsm-a.key")).unwrap(),
    )
    .unwrap();
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("reader/keyway_reader.py");
    for len in [0, 5, 16_384, 100_000, 2_000_000] {
        let body = random(len);
        let _ = put(fleet.data(), "/objects/python", body.clone()).await.stored();
        let sealed = get(fleet.store(), "/objects/python").await.expect(200).body;
        let block = Header::parse(&sealed).unwrap().key_block;
        let dek = keystore.unwrap(&block, "payments", "").unwrap();
        let dek_hex: String = dek.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        let file = fleet.dir().join("sealed");
        std::fs::write(&file, &sealed).unwrap();
        let read = |domain: &str| {
            Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
                .arg(&reader)
                .args(["open", "--dek-hex", &dek_hex, "--zone", "payments", "--domain", domain])
                .arg(&file)
                .output()
                .unwrap()
        };
        let opened = read("orders");
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        assert!(opened.stdout == body, "{len} bytes came back changed");
        assert!(!read("invoices").status.success());
    }
}
