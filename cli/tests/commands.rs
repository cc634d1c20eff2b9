//! The program as people run it: `inspect`, `open`, `pki`, `completions`, exit codes.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use keyway_bridge::backend::{self, BackendConfig, BackendKind, SoftwareConfig};
use keyway_envelope::length::{SEALED_SEGMENT, SEGMENT};
use keyway_envelope::{
    Context, Dek, DekId, Header, Implementation, KekRef, KekVersion, KeyBlock, KeyringId, Profile, ZoneId,
    compact,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use zeroize::Zeroizing;

const ZONE: &str = "payments";
const DOMAIN: &str = "orders";
const KEK: KekRef = KekRef { zone: ZoneId(3), keyring: KeyringId(7), version: KekVersion(2) };

fn keyway(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keyway")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// A keystore with a KEK, a bridge configuration that names it, and objects sealed under it.
struct Fixture {
    dir: tempfile::TempDir,
    dek: Dek,
    block: KeyBlock,
}

impl Fixture {
    async fn new(tenant: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keystore = dir.path().join("keystore");
        let config = BackendConfig {
            name: "soft".into(),
            kind: BackendKind::Software(SoftwareConfig::new(&keystore)),
        };
        let backend = backend::open(&config).await.unwrap();
        backend.generate_kek(KEK, "test").await.unwrap();
        let dek = Dek::new(DekId([5; 16]), Zeroizing::new([9; 32]));
        let block = backend.wrap(KEK, &dek, ZONE, tenant).await.unwrap();
        let yaml = format!(
            "tls: {{ cert: /gone, key: /gone, client_ca: /gone }}\nstore: sqlite:///gone/bridge.db\naudit: {{ file: /gone }}\n\
             zones:\n- name: {ZONE}\n  backends: [ {{ name: soft, software: {{ path: {} }} }} ]\n  keyrings: [ {{ name: default, services: [] }} ]\n",
            keystore.display()
        );
        fs::write(dir.path().join("bridge.yaml"), yaml).unwrap();
        Self { dir, dek, block }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn seal(&self, tenant: Option<&str>, plain: &[u8]) -> Vec<u8> {
        let context = Context::object(ZONE, tenant, DOMAIN).digest();
        let salt = [1; 24];
        let keys = self.dek.derive(&salt, &context);
        let header =
            Header { profile: Profile::Object, key_block: self.block, salt, commitment: *keys.commitment() };
        let mut sealed = header.to_bytes().to_vec();
        sealed.extend(keyway_envelope::seal::seal_whole(keys, Implementation::selected(), plain).unwrap());
        sealed
    }

    fn open(&self, file: &Path, more: &[&str]) -> Output {
        let config = self.path("bridge.yaml");
        let mut args = vec!["open", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
        args.extend(more);
        keyway(&args)
    }

    /// Files beside those that the test made itself.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with("keystore") && name != "bridge.yaml");
        names.sort();
        names
    }
}

#[tokio::test]
async fn an_object_is_recovered_from_keystore_and_ciphertext_alone() {
    let fixture = Fixture::new("").await;
    for len in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 40 * SEGMENT, 2_000_003] {
        let plain: Vec<u8> = (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let file = fixture.path("object");
        fs::write(&file, fixture.seal(None, &plain)).unwrap();
        let output = fixture.open(&file, &["--domain", DOMAIN]);
        assert_code(&output, 0);
        assert!(fs::read(fixture.path("object.plain")).unwrap() == plain, "{len} bytes");
        let output = fixture.open(&file, &["--domain", DOMAIN, "--zone", ZONE, "-o", "-"]);
        assert_code(&output, 0);
        assert!(output.stdout == plain, "{len} bytes");
    }
}

#[tokio::test]
async fn a_tenant_is_part_of_what_opens_it() {
    let fixture = Fixture::new("acme").await;
    let file = fixture.path("object");
    fs::write(&file, fixture.seal(Some("acme"), b"x")).unwrap();
    assert_code(&fixture.open(&file, &["--domain", DOMAIN, "--tenant", "acme"]), 0);
    for wrong in [&["--domain", DOMAIN][..], &["--domain", DOMAIN, "--tenant", "other"]] {
        assert_code(&fixture.open(&file, wrong), 1);
    }
}

#[tokio::test]
async fn nothing_is_left_of_what_does_not_verify() {
    let fixture = Fixture::new("").await;
    let file = fixture.path("object");
    let good = fixture.seal(None, &vec![1; 3 * SEGMENT]);
    fs::write(&file, &good).unwrap();
    assert_code(&fixture.open(&file, &["--domain", "other"]), 1);
    assert_code(&fixture.open(&file, &["--domain", DOMAIN, "--zone", "none"]), 2);

    let flipped_at = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let last = good.len() - 1;
    let cut = good[..160 + 2 * SEALED_SEGMENT].to_vec();
    let longer = [&good[..], b"0"].concat();
    for (what, bytes) in [
        ("the wrapped DEK", flipped_at(50)),
        ("the salt", flipped_at(110)),
        ("the commitment", flipped_at(130)),
        ("the first segment", flipped_at(200)),
        ("the empty last segment", flipped_at(last)),
        ("a cut at a boundary", cut),
        ("one byte more", longer),
        ("no envelope", b"plain text".to_vec()),
    ] {
        fs::write(&file, bytes).unwrap();
        let output = fixture.open(&file, &["--domain", DOMAIN]);
        assert_eq!(output.status.code(), Some(1), "{what}");
        assert_eq!(fixture.names(), ["object"], "{what}");
        assert!(!output.stderr.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn an_envelope_by_reference_needs_the_catalog_and_says_so() {
    let mut fixture = Fixture::new("").await;
    fixture.block = KeyBlock::catalog(KEK, fixture.dek.id());
    let file = fixture.path("object");
    fs::write(&file, fixture.seal(None, b"x")).unwrap();
    let output = fixture.open(&file, &["--domain", DOMAIN]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("catalog"), "{}", text(&output.stderr));
}

#[test]
fn a_bad_configuration_is_64() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("bridge.yaml");
    fs::write(&config, "nonsense: true").unwrap();
    assert_code(&keyway(&["open", "x", "--domain", "d", "--config", config.to_str().unwrap()]), 64);
    assert_code(&keyway(&["open", "x", "--domain", "d", "--config", "/nowhere/bridge.yaml"]), 64);
}

#[tokio::test]
async fn inspect_explains_an_object_byte_by_byte() {
    let fixture = Fixture::new("").await;
    let file = fixture.path("object");
    let sealed = fixture.seal(None, &vec![0; SEGMENT + 5]);
    fs::write(&file, &sealed).unwrap();
    let output = keyway(&["inspect", file.to_str().unwrap(), "--json"]);
    assert_code(&output, 0);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["form"], "object");
    assert_eq!(report["plain_length"], SEGMENT + 5);
    assert_eq!(report["segments"], 2);
    assert_eq!(report["length_possible"], true);
    // The fields cover the header without a gap, and their bytes are those of the file.
    let mut offset = 0;
    let mut hex = String::new();
    for field in report["fields"].as_array().unwrap() {
        assert_eq!(field["offset"], offset, "{field}");
        offset += field["length"].as_u64().unwrap();
        hex.push_str(field["hex"].as_str().unwrap());
    }
    assert_eq!(offset, 160);
    assert_eq!(hex::decode(hex).unwrap(), sealed[..160]);
    let meaning = |name: &str| {
        let fields = report["fields"].as_array().unwrap();
        fields.iter().find(|field| field["name"] == name).unwrap()["meaning"].as_str().unwrap().to_owned()
    };
    assert_eq!(meaning("zone"), "zone number 3");
    assert_eq!(meaning("keyring"), "keyring number 7");
    assert_eq!(meaning("KEK version"), "version 2");

    let table = text(&keyway(&["inspect", file.to_str().unwrap()]).stdout);
    assert!(table.contains("plaintext: 16 389 bytes (the length is possible)"), "{table}");
}

#[tokio::test]
async fn inspect_reads_the_compact_forms() {
    let fixture = Fixture::new("").await;
    let context = Context::object(ZONE, None, DOMAIN).digest();
    let blocks = [(KeyBlock::catalog(KEK, fixture.dek.id()), 82), (fixture.block, 154)];
    for (block, header) in blocks {
        let sealed =
            compact::seal(&fixture.dek, &block, [2; 24], &context, Implementation::selected(), b"four")
                .unwrap();
        let file = fixture.path("field");
        fs::write(&file, sealed).unwrap();
        let output = keyway(&["inspect", file.to_str().unwrap(), "--json"]);
        assert_code(&output, 0);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["form"], &report["plain_length"]), (&"compact".into(), &4.into()));
        assert_eq!(report["header_length"], header);
        let last = report["fields"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["offset"].as_u64().unwrap() + last["length"].as_u64().unwrap(), header);
    }
}

#[tokio::test]
async fn inspect_fails_for_what_is_no_envelope_or_a_broken_one() {
    let fixture = Fixture::new("").await;
    let file = fixture.path("object");
    let good = fixture.seal(None, &vec![0; SEGMENT]);
    let mut bad_suite = good.clone();
    bad_suite[5] = 0x77;
    for (what, bytes, says) in [
        ("text", b"hello world".to_vec(), "no envelope"),
        ("nothing", Vec::new(), "no envelope"),
        ("a cut at a boundary", good[..160 + SEALED_SEGMENT].to_vec(), "no plaintext seals to"),
        ("half a header", good[..100].to_vec(), "refused"),
        ("another suite", bad_suite, "refused: envelope suite 0x77"),
    ] {
        fs::write(&file, bytes).unwrap();
        let output = keyway(&["inspect", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{what}");
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(all.contains(says), "{what}: {all}");
    }
    assert_code(&keyway(&["inspect", "/nowhere"]), 1);
}

#[test]
fn pki_makes_what_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let args = [
        "pki",
        "--dir",
        path,
        "--bridge",
        "bridge",
        "--host",
        "b.example",
        "--client",
        "orders=spiffe://e.org/o",
        "--member",
        "spiffe://e.org/x/reports",
    ];
    assert_code(&keyway(&args), 0);
    for file in ["ca.crt", "bridge.crt", "bridge.key", "orders.crt", "reports.key"] {
        assert!(dir.path().join(file).exists(), "{file}");
    }
    assert_code(&keyway(&["pki", "--dir", path]), 2);
    assert_code(&keyway(&["pki", "--dir", path, "--client", "orders"]), 2);
    assert_code(&keyway(&["pki", "--dir", path, "--client", "../x=spiffe://e.org/o"]), 2);
    assert_code(&keyway(&["pki", "--dir", path, "--client", "ca=spiffe://e.org/o"]), 2);
}

#[test]
fn help_version_and_completions() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["dev", "--help"],
        &["completions", "bash"],
        &["completions", "zsh"],
    ] {
        let output = keyway(args);
        assert_code(&output, 0);
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
    assert!(text(&keyway(&["completions", "bash"]).stdout).contains("keyway"));
    assert_code(&keyway(&["no-such-command"]), 2);
    assert_code(&keyway(&["open", "x"]), 2);
}

#[test]
fn an_operator_without_a_bridge_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = keyway(&["keys", "--data-dir", dir.path().to_str().unwrap()]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("keyway dev"), "{}", text(&output.stderr));
}
