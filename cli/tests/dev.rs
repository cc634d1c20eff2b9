//! `keyway dev` as a process of its own: bodies, ciphertext, rotation, recovery, restart.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const SEGMENT: usize = 16 * 1024;

/// A running `keyway dev`; killed when dropped.
struct Dev {
    child: Child,
    banner: String,
    ready: Value,
    client: Client<HttpConnector, Full<Bytes>>,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
    command.stdin(Stdio::null()).env("KEYWAY_LOG", "warn,cryptoki::mechanism=off");
    command
}

fn method(method: Method) -> http::request::Builder {
    Request::builder().method(method)
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Dev {
    fn start(data_dir: &Path, more: &[&str]) -> Self {
        let ready_file = data_dir.with_extension("ready.json");
        let mut child = program()
            .args([
                "dev",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--bridge-listen",
                "127.0.0.1:0",
            ])
            .args(["--bridge-admin", "127.0.0.1:0", "--store-listen", "127.0.0.1:0", "--workers", "1"])
            .args([
                "--data-dir".as_ref(),
                data_dir.as_os_str(),
                "--ready-file".as_ref(),
                ready_file.as_os_str(),
            ])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut banner = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            banner.push_str(&line);
            banner.push('\n');
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        assert!(banner.contains("Ctrl-C"), "dev did not start: {banner}");
        let ready = serde_json::from_slice(&fs::read(&ready_file).unwrap()).unwrap();
        Self { child, banner, ready, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    fn addr(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.ready))
    }

    async fn ask(
        &self,
        part: &str,
        request: http::request::Builder,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (Response<()>, Bytes) {
        let uri = format!("http://{}{path}", self.addr(part));
        let response =
            self.client.request(request.uri(uri).body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        (Response::from_parts(head, ()), body.collect().await.unwrap().to_bytes())
    }

    async fn put(&self, path: &str, body: &Bytes) -> StatusCode {
        self.ask("data", method(Method::PUT), path, body.clone()).await.0.status()
    }

    async fn get(&self, part: &str, path: &str) -> (Response<()>, Bytes) {
        self.ask(part, method(Method::GET), path, "").await
    }

    /// SIGTERM, and the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn header(response: &Response<()>, name: &HeaderName) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|n| u8::try_from((n * 31 + n / 251 + n / 65_521) % 256).unwrap()).collect()
}

fn sealed_len(plain: usize) -> usize {
    160 + plain + 16 * (plain / SEGMENT + 1)
}

fn softhsm_is_installed() -> bool {
    Path::new("/usr/lib/softhsm/libsofthsm2.so").exists()
}

/// Everything that a person would try, on one keystore.
async fn tour(hsm: &str) {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("dev");
    let flag = ["--data-dir", data_dir.to_str().unwrap()];
    let dev = Dev::start(&data_dir, &["--hsm", hsm]);
    let sizes = [0, 1, SEGMENT - 1, SEGMENT, 3 * SEGMENT + 5, 3_000_000];
    for len in sizes {
        let path = format!("/objects/{len}");
        let plain = pattern(len);
        assert_eq!(dev.put(&path, &plain).await, StatusCode::CREATED);
        let (got, body) = dev.get("data", &path).await;
        assert_eq!((got.status(), header(&got, &CONTENT_LENGTH)), (StatusCode::OK, len.to_string()));
        assert!(body == plain, "{len} bytes");
        let (head, _) = dev.ask("data", method(Method::HEAD), &path, "").await;
        assert_eq!(header(&head, &CONTENT_LENGTH), len.to_string());
        let (_, stored) = dev.get("store", &path).await;
        assert_eq!(stored.len(), sealed_len(len));
        assert!(stored.starts_with(b"\xFBKWY"));
        assert!(
            len < 64 || !stored.windows(64).any(|window| window == &plain[..64]),
            "plaintext in the store"
        );
    }
    let (got, body) =
        dev.ask("data", method(Method::GET).header(RANGE, "bytes=20000-40000"), "/objects/3000000", "").await;
    assert_eq!(got.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(header(&got, &CONTENT_RANGE), "bytes 20000-40000/3000000");
    assert!(body == pattern(3_000_000).slice(20_000..=40_000));
    assert_eq!(dev.get("data", "/elsewhere").await.0.status(), StatusCode::NOT_FOUND);

    // The members and the rotation, from another process.
    let members: Value = serde_json::from_str(&succeed(&["members", "--json", flag[0], flag[1]])).unwrap();
    assert_eq!(members[0]["state"], "connected");
    assert_eq!(members[0]["key_exchange"], "X25519MLKEM768");
    let watched = succeed(&["rotate", "start", "--watch", "--reason", "a test", flag[0], flag[1]]);
    assert!(watched.contains("done"), "{watched}");
    let keys: Value = serde_json::from_str(&succeed(&["keys", "--json", flag[0], flag[1]])).unwrap();
    let state = |version: u64| {
        keys.as_array().unwrap().iter().find(|key| key["version"] == version).unwrap()["state"].clone()
    };
    assert_eq!((state(1), state(2)), ("retired".into(), "primary".into()));
    let rotations: Value =
        serde_json::from_str(&succeed(&["rotate", "status", "--json", flag[0], flag[1]])).unwrap();
    assert_eq!((&rotations[0]["phase"], &rotations[0]["reason"]), (&"done".into(), &"a test".into()));
    for args in [&["keys"][..], &["members"], &["rotate", "status"]] {
        assert!(succeed(&[args, &flag].concat()).lines().count() > 1, "{args:?}");
    }
    assert!(dev.get("data", "/objects/3000000").await.1 == pattern(3_000_000), "what was sealed before");
    assert_eq!(dev.put("/objects/after", &pattern(70_000)).await, StatusCode::CREATED);

    // Stopped, its objects are recovered from HSM and ciphertext; started again, it serves them.
    assert_eq!(dev.stop(), Some(0));
    for (name, len) in [("3000000", 3_000_000), ("after", 70_000)] {
        let object = data_dir.join(format!("store/objects/{name}@data"));
        let out = dir.path().join(name);
        succeed(&[
            "open",
            object.to_str().unwrap(),
            "--domain",
            "objects",
            "-o",
            out.to_str().unwrap(),
            flag[0],
            flag[1],
        ]);
        assert!(fs::read(out).unwrap() == pattern(len));
    }
    let dev = Dev::start(&data_dir, &["--hsm", hsm]);
    for len in sizes {
        assert!(
            dev.get("data", &format!("/objects/{len}")).await.1 == pattern(len),
            "{len} after the restart"
        );
    }
    assert_eq!(dev.stop(), Some(0));
}

#[tokio::test]
async fn on_the_software_keystore() {
    tour("software").await;
}

#[tokio::test]
async fn on_softhsm() {
    if !softhsm_is_installed() {
        eprintln!("skipped: SoftHSM is not installed");
        return;
    }
    tour("pkcs11").await;
}

#[tokio::test]
async fn the_kek_in_the_token_can_be_looked_at_and_not_taken() {
    if !softhsm_is_installed() || Command::new("pkcs11-tool").arg("--version").output().is_err() {
        eprintln!("skipped: SoftHSM or pkcs11-tool is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("dev"), &["--hsm", "pkcs11"]);
    let command = dev.banner.lines().find(|line| line.contains("pkcs11-tool")).unwrap();
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let listed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(listed.contains("AES") && listed.contains("never extractable"), "{listed}");
}

#[tokio::test]
async fn the_curl_of_the_banner_works() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("dev"), &[]);
    fs::write(dir.path().join("README.md"), "read me").unwrap();
    let commands: Vec<_> =
        dev.banner.lines().map(str::trim).filter(|line| line.starts_with("curl")).collect();
    assert_eq!(commands.len(), 3, "{}", dev.banner);
    let outputs: Vec<_> = commands
        .iter()
        .map(|command| Command::new("sh").args(["-c", command]).current_dir(dir.path()).output().unwrap())
        .collect();
    assert!(outputs.iter().all(|output| output.status.success()));
    assert_eq!(outputs[1].stdout, b"read me");
    assert!(String::from_utf8_lossy(&outputs[2].stdout).contains("plaintext: 7 bytes"));
}

#[tokio::test]
async fn a_pair_seals_between_its_sidecars_only() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = keyway_cli::store::start(keyway_cli::store::StoreConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        dir: dir.path().join("upstream"),
    })
    .await
    .unwrap();
    let url = format!("http://{}", upstream.addr());
    let dev = Dev::start(&dir.path().join("dev"), &["--upstream", &url, "--pair"]);
    assert_eq!(dev.put("/any/path", &pattern(100_000)).await, StatusCode::CREATED);
    assert!(
        fs::read(dir.path().join("upstream/any/path@data")).unwrap() == pattern(100_000),
        "opened before the upstream"
    );
    assert!(dev.get("data", "/any/path").await.1 == pattern(100_000));
    // Between the two it is an envelope.
    let (_, between) = dev.get("server_data", "/any/path").await;
    assert!(between.starts_with(b"\xFBKWY"));
    assert_eq!(dev.stop(), Some(0));
}

#[tokio::test]
async fn pass_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("dev"), &["--mode", "pass"]);
    assert_eq!(dev.put("/objects/x", &pattern(1000)).await, StatusCode::CREATED);
    assert!(dev.get("store", "/objects/x").await.1 == pattern(1000));
    assert!(dev.get("data", "/objects/x").await.1 == pattern(1000));
}

#[test]
fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir: PathBuf = dir.path().join("dev");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let base = ["dev", "--data-dir", data_dir.to_str().unwrap()];
    for (more, code, says) in [
        (&["--listen", &taken][..], 1, "choose another address with --listen"),
        (&["--mode", "json"], 2, "give at least one"),
        (&["--field", "$.x"], 2, "--field is for --mode json"),
        (&["--mode", "grpc"], 2, "comes in a later version"),
        (&["--protocol", "tcp"], 2, "needs --upstream tcp://HOST:PORT"),
        (&["--protocol", "tcp", "--upstream", "http://a"], 2, "is not tcp://HOST:PORT"),
        (&["--upstream", "tcp://a:1"], 2, "is neither http:// nor https://"),
        (&["--protocol", "s3"], 2, "comes in a later version"),
        (&["--pair"], 2, "--upstream"),
        (&["--upstream", "ftp://x"], 2, "neither http:// nor https://"),
        (&["--zone", "../x"], 2, "use a-z"),
        (&["--workers", "0"], 2, "serve nobody"),
    ] {
        let output = run(&[&base[..], more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        assert!(error.contains(says), "{more:?}: {error}");
    }
}

#[tokio::test]
async fn two_in_one_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("dev");
    let _first = Dev::start(&data_dir, &["--mode", "pass"]);
    let output = run(&["dev", "--data-dir", data_dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another `keyway dev`"));
}
