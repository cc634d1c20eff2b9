//! `psql` and `redis-cli` through a TCP pair, in one session over a rotation: they know of nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keyway_tests::services::Service;
use keyway_tests::{Fleet, Hsm, eventually};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

async fn pair(service: SocketAddr) -> Fleet {
    let mut fleet = Fleet::without_proxy(Hsm::Software, ("4h", "7d")).await;
    fleet.start_tcp_pair(service, async |server| server).await;
    fleet
}

/// A program that answers on a line what it is told on a line.
struct Session {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Session {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, to, from }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.to.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    fn end(mut self) {
        drop(self.to.take());
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Rotates, and waits until both directions of an idle connection are under the new keys.
async fn rotate(fleet: &Fleet) {
    fleet.rotate().await;
    for sidecar in ["client", "server"] {
        eventually("new keys", async || {
            (fleet.metric(sidecar, "keyway_streams_rekeyed_total").await > 0).then_some(())
        })
        .await;
    }
}

fn psql(address: SocketAddr) -> Command {
    let mut command = Command::new("psql");
    command.args([
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        "127.0.0.1",
        "-U",
        "keyway",
        "-d",
        "postgres",
        "-p",
    ]);
    command.arg(address.port().to_string());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_keeps_its_session_and_its_transaction() {
    let postgres = Service::postgres().await;
    let fleet = pair(postgres.address()).await;
    let data = fleet.data_of("client");
    let mut session = Session::start(&mut psql(data));
    assert_eq!(session.ask("create temp table t (n int, note text); select 'made';"), "made");
    assert_eq!(session.ask("begin; insert into t select g, repeat('x', 1000) from generate_series(1, 5000) g; select count(*) from t;"), "5000");
    rotate(&fleet).await;
    assert_eq!(session.ask("commit; select sum(length(note)) from t;"), "5000000");
    // Megabytes in one answer.
    assert_eq!(session.ask("select repeat('abc', 3000000);").len(), 9_000_000);
    session.end();

    // And in: COPY, by a client of its own.
    let mut copy = Session::start(psql(data).args([
        "-c",
        "create table c (n int)",
        "-c",
        "copy c from stdin",
        "-c",
        "select sum(n) from c",
    ]));
    let mut to = copy.to.take().unwrap();
    for n in 0..200_000 {
        writeln!(to, "{n}").unwrap();
    }
    drop(to);
    let mut sum = String::new();
    copy.from.read_line(&mut sum).unwrap();
    assert_eq!(sum.trim(), "19999900000");
    copy.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_keeps_its_session() {
    let redis = Service::redis().await;
    let fleet = pair(redis.address()).await;
    let port = fleet.data_of("client").port().to_string();
    let mut session = Session::start(Command::new("redis-cli").args(["-p", &port]));
    assert_eq!(session.ask("set greeting hello"), "OK");
    assert_eq!(session.ask("client setname before"), "OK");
    rotate(&fleet).await;
    assert_eq!(session.ask("get greeting"), "hello");
    // The same connection, and not another one.
    assert_eq!(session.ask("client getname"), "before");
    let long = "v".repeat(2_000_000);
    assert_eq!(session.ask(&format!("set long {long}")), "OK");
    assert_eq!(session.ask("get long"), long);
    session.end();
}
