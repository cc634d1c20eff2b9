//! The rows, as data.

use crate::load::{Connecting, Http};

/// One workload, and who is compared in it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Short and stable, for `--only` and the JSON.
    pub name: &'static str,
    /// What is done, for people.
    pub what: &'static str,
    /// Where in the report.
    pub group: Group,
    /// On which sides TLS is spoken.
    pub tls: Tls,
    /// Loads that run at the same time.
    pub parts: Vec<Part>,
    /// Who is compared.
    pub systems: Vec<&'static str>,
    /// In the short form, too.
    pub is_smoke: bool,
}

/// A section of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Requests of some KiB.
    Small,
    /// One request at a time.
    Latency,
    /// Bodies of many MiB.
    Bulk,
    /// Small beside bulk.
    Mixed,
    /// HTTP/2 towards the client.
    Http2,
    /// Encrypted TCP between two ends.
    Tcp,
    /// TLS on some side.
    Tls,
}

/// Where TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Between client and system.
    pub client: bool,
    /// Between system and upstream.
    pub upstream: bool,
}

/// One load.
#[derive(Clone, Debug)]
pub struct Part {
    /// Tells it apart from the others of its row; empty if there are none.
    pub label: &'static str,
    /// Which HTTP clients speak.
    pub http: Http,
    /// Connections.
    pub connections: usize,
    /// Requests under way on each connection.
    pub streams: usize,
    /// Whether each request has a connection of its own.
    pub connecting: Connecting,
    /// PUT rather than GET.
    pub is_upload: bool,
    /// Length of the bodies, in bytes.
    pub body: u64,
    /// What counts.
    pub unit: Unit,
}

/// What a load is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests per second.
    Requests,
    /// Megabytes (10⁶) of bodies per second.
    Megabytes,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const NO_TLS: Tls = Tls { client: false, upstream: false };

/// Who forwards without encryption, we with it, and nothing between.
const PLAIN: [&str; 7] =
    ["direct", "keyway", "keyway-pass", "nginx", "nginx-tuned", "haproxy", "haproxy-tuned"];
/// Who encrypts, too.
const PEERS: [&str; 2] = ["nginx-lua", "rclone-crypt"];
/// Where the untuned have nothing to add.
const TUNED: [&str; 5] = ["direct", "keyway", "keyway-pass", "nginx-tuned", "haproxy-tuned"];
/// The upstream speaks HTTP/1.1 only, so nothing is direct.
const HTTP2: [&str; 4] = ["keyway", "keyway-pass", "nginx-tuned-h2c", "haproxy-tuned"];
/// Pairs of ends.
const PAIRS: [&str; 4] = ["direct", "keyway-tcp", "stunnel", "spiped"];
/// In the short form.
pub(super) const SMOKE: [&str; 3] = ["keyway", "keyway-pass", "nginx-tuned"];

fn everyone() -> Vec<&'static str> {
    PLAIN.into_iter().chain(PEERS).collect()
}

/// GETs over HTTP/1.1.
fn get(body: u64, connections: usize) -> Part {
    let unit = if body < MIB { Unit::Requests } else { Unit::Megabytes };
    Part {
        label: "",
        http: Http::One,
        connections,
        streams: 1,
        connecting: Connecting::Once,
        is_upload: false,
        body,
        unit,
    }
}

/// PUTs over HTTP/1.1.
fn put(body: u64, connections: usize) -> Part {
    Part { is_upload: true, ..get(body, connections) }
}

fn http2(part: Part, streams: usize) -> Part {
    Part { http: Http::Two, streams, ..part }
}

/// A row of one part, without TLS.
fn row(name: &'static str, what: &'static str, group: Group, part: Part, systems: &[&'static str]) -> Row {
    Row { name, what, group, tls: NO_TLS, parts: vec![part], systems: systems.to_vec(), is_smoke: false }
}

fn smoke(row: Row) -> Row {
    Row { is_smoke: true, ..row }
}

/// All rows. Those with the same TLS follow each other, so that systems are started once for each.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = small();
    rows.extend(bulk());
    rows.extend(over_http2());
    rows.extend(tcp());
    rows.extend(tls());
    rows
}

fn small() -> Vec<Row> {
    use Group::{Latency, Mixed, Small};
    let beside = Row {
        parts: vec![Part { label: "small", ..get(KIB, 4) }, Part { label: "bulk", ..put(64 * MIB, 2) }],
        ..row(
            "mixed",
            "1 KiB GETs, 4 connections, beside 64 MiB PUTs, 2 connections",
            Mixed,
            get(KIB, 4),
            &TUNED,
        )
    };
    vec![
        smoke(row("get-1k-16", "1 KiB GET, 16 connections", Small, get(KIB, 16), &everyone())),
        row("get-1k-64", "1 KiB GET, 64 connections", Small, get(KIB, 64), &PLAIN),
        row("get-16k-16", "16 KiB GET, 16 connections", Small, get(16 * KIB, 16), &PLAIN),
        row("get-16k-64", "16 KiB GET, 64 connections", Small, get(16 * KIB, 64), &PLAIN),
        row("put-1k-16", "1 KiB PUT, 16 connections", Small, put(KIB, 16), &PLAIN),
        smoke(row("get-1k-1", "1 KiB GET, 1 connection", Latency, get(KIB, 1), &PLAIN)),
        smoke(beside),
    ]
}

fn bulk() -> Vec<Row> {
    use Group::Bulk;
    vec![
        smoke(row("up-64m-4", "64 MiB PUT, 4 connections", Bulk, put(64 * MIB, 4), &everyone())),
        smoke(row("down-64m-4", "64 MiB GET, 4 connections", Bulk, get(64 * MIB, 4), &everyone())),
        row("up-256m-1", "256 MiB PUT, 1 connection", Bulk, put(256 * MIB, 1), &TUNED),
        row("down-256m-1", "256 MiB GET, 1 connection", Bulk, get(256 * MIB, 1), &TUNED),
    ]
}

fn over_http2() -> Vec<Row> {
    use Group::Http2;
    let h2 = |name, what, part| row(name, what, Http2, part, &HTTP2);
    vec![
        h2("h2-1k-1x32", "1 KiB GET, 1 connection of 32 streams", http2(get(KIB, 1), 32)),
        h2("h2-1k-8x8", "1 KiB GET, 8 connections of 8 streams", http2(get(KIB, 8), 8)),
        h2("h2-up", "64 MiB PUT, 2 connections of 2 streams", http2(put(64 * MIB, 2), 2)),
        h2("h2-down", "64 MiB GET, 2 connections of 2 streams", http2(get(64 * MIB, 2), 2)),
    ]
}

/// Both ends on the one core. What is carried is HTTP, but none of them knows.
fn tcp() -> Vec<Row> {
    use Group::Tcp;
    vec![
        row("tcp-1k", "1 KiB GET, 16 connections", Tcp, get(KIB, 16), &PAIRS),
        row("tcp-up", "64 MiB PUT, 4 connections", Tcp, put(64 * MIB, 4), &PAIRS),
        row("tcp-down", "64 MiB GET, 4 connections", Tcp, get(64 * MIB, 4), &PAIRS),
    ]
}

fn tls() -> Vec<Row> {
    let on = |client, upstream, rows: [(&'static str, &'static str, Part); 3]| {
        rows.map(|(name, what, part)| Row {
            tls: Tls { client, upstream },
            ..row(name, what, Group::Tls, part, &TUNED)
        })
    };
    let parts = || [get(KIB, 16), put(64 * MIB, 4), get(64 * MIB, 4)];
    let [one, two, three] = parts();
    let client = on(
        true,
        false,
        [
            ("tls-client-1k", "TLS towards the client: 1 KiB GET, 16 connections", one),
            ("tls-client-up", "TLS towards the client: 64 MiB PUT, 4 connections", two),
            ("tls-client-down", "TLS towards the client: 64 MiB GET, 4 connections", three),
        ],
    );
    let handshake = |name, what, connecting| Row {
        tls: Tls { client: true, upstream: false },
        ..row(name, what, Group::Tls, Part { connecting, ..get(KIB, 16) }, &TUNED)
    };
    let handshakes = [
        handshake("tls-handshake", "A TLS handshake for each 1 KiB GET, 16 at a time", Connecting::Anew),
        handshake(
            "tls-resumed",
            "A resumed TLS session for each 1 KiB GET, 16 at a time",
            Connecting::Resumed,
        ),
    ];
    let [one, two, three] = parts();
    let upstream = on(
        false,
        true,
        [
            ("tls-upstream-1k", "TLS towards the upstream: 1 KiB GET, 16 connections", one),
            ("tls-upstream-up", "TLS towards the upstream: 64 MiB PUT, 4 connections", two),
            ("tls-upstream-down", "TLS towards the upstream: 64 MiB GET, 4 connections", three),
        ],
    );
    let [one, two, three] = parts();
    let both = on(
        true,
        true,
        [
            ("tls-both-1k", "TLS on both sides: 1 KiB GET, 16 connections", one),
            ("tls-both-up", "TLS on both sides: 64 MiB PUT, 4 connections", two),
            ("tls-both-down", "TLS on both sides: 64 MiB GET, 4 connections", three),
        ],
    );
    client.into_iter().chain(handshakes).chain(upstream).chain(both).collect()
}

impl Group {
    /// In the order of the report.
    pub(super) const ALL: [Self; 7] =
        [Self::Small, Self::Latency, Self::Bulk, Self::Mixed, Self::Http2, Self::Tcp, Self::Tls];

    /// Which of ours the others are compared with.
    pub(super) fn own(self) -> &'static str {
        if self == Self::Tcp { "keyway-tcp" } else { "keyway" }
    }

    /// Its heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Small => "Small requests",
            Self::Latency => "Latency",
            Self::Bulk => "Bulk",
            Self::Mixed => "Small requests beside bulk",
            Self::Http2 => "HTTP/2",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        }
    }
}

impl Part {
    /// The name of `metric` in this part's readings.
    #[must_use]
    pub fn key(&self, metric: &str) -> String {
        if self.label.is_empty() { metric.to_owned() } else { format!("{}.{metric}", self.label) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_told_apart() {
        let rows = rows();
        let names: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows.len());
        for row in &rows {
            let labels: BTreeSet<&str> = row.parts.iter().map(|part| part.label).collect();
            assert_eq!(labels.len(), row.parts.len(), "{}", row.name);
            for part in &row.parts {
                assert!(part.streams == 1 || part.http == Http::Two, "{}", row.name);
                assert!(part.connecting == Connecting::Once || part.http == Http::One, "{}", row.name);
            }
        }
    }

    #[test]
    fn systems_are_started_once_for_each_kind_of_tls() {
        let mut kinds: Vec<Tls> = rows().iter().map(|row| row.tls).collect();
        kinds.dedup();
        assert_eq!(kinds.len(), 4);
    }

    #[test]
    fn the_short_form_takes_two_minutes() {
        let rows: Vec<Row> = rows().into_iter().filter(|row| row.is_smoke).collect();
        for row in &rows {
            assert!(SMOKE.iter().all(|system| row.systems.contains(system)), "{}", row.name);
        }
        assert_eq!(rows.len(), 5);
    }
}
