//! Rates of DEKs, and where the time of one goes.

use super::bed::{Bed, Keystore, softhsm};
use super::calls::{Ask, Calls, callers, issue, load};
use super::metrics::Metrics;
use super::{Lab, figure, text};
use crate::section::{Cell, Section, Spread, Table};
use anyhow::Context;
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, WrapMechanism, ZoneId};
use keyway_protocol::dek_transport::{MemberKey, seal_dek};
use std::time::{Duration, Instant};

/// More blocks than the bridge keeps DEKs at hand (4096), so that each is opened by the key backend.
const BLOCKS: usize = 5000;
const CALLERS: [usize; 3] = [1, 16, 64];
/// SoftHSM's sessions: the bridge's default.
const SESSIONS: usize = 2;

pub(super) fn measure(lab: &Lab) -> anyhow::Result<Section> {
    let (mut rates, mut parts) = (Vec::new(), Vec::new());
    let hpke_us = hpke_us()?;
    let mut keystores = vec![Keystore::Software];
    match softhsm() {
        Ok(_) => keystores.push(Keystore::SoftHsm(SESSIONS)),
        Err(error) => rates.push(vec![text(format!("{error}"))]),
    }
    for keystore in keystores {
        let bed = Bed::start(&lab.dir, keystore, lab.bridge_core)?;
        let (rows, row) = lab.run(keystore_rows(lab, &bed, keystore, hpke_us))?;
        rates.extend(rows);
        parts.push(row);
    }
    for row in &mut rates {
        row.resize(RATE_COLUMNS.len(), text("–"));
    }
    Ok(Section {
        title: "Bridge: DEKs".to_owned(),
        method: method(lab),
        tables: vec![
            table("DEKs issued and opened", &RATE_COLUMNS, rates),
            table("Where the time of one issue goes (one caller), µs", &PART_COLUMNS, parts),
        ],
        ..Section::default()
    })
}

const RATE_COLUMNS: [&str; 7] =
    ["call", "keystore", "callers", "per second", "p50, µs", "p99, µs", "bridge CPU, µs/call"];
const PART_COLUMNS: [&str; 6] = [
    "keystore",
    "whole call",
    "TLS, HTTP/2, gRPC, identity",
    "HPKE",
    "wrap in the key backend",
    "catalog, till durable",
];

fn method(lab: &Lab) -> String {
    format!(
        "The real `keyway-bridge` on {}, callers on {}, each with a TLS 1.3 connection (client certificates) and an X25519 key \
         of its own. *issue* makes a DEK, wraps it (and opens the wrap again), records it with an fsync, seals it by HPKE. \
         *open, cached* asks for a DEK that the bridge has at hand, *open* for one that the key backend has to unwrap. \
         *refused* ends at the caller's identity: TLS, HTTP/2 and gRPC alone. In the second table the whole call and \
         the refused call are medians at the caller, HPKE is timed in the harness, the others are means of the \
         bridge's own histograms; what is missing to the whole call is scheduling between the bridge's threads.",
        lab.where_bridge(),
        lab.where_harness(),
    )
}

fn table(title: &str, columns: &[&str], rows: Vec<Vec<Cell>>) -> Table {
    Table { title: title.to_owned(), columns: columns.iter().map(ToString::to_string).collect(), rows }
}

async fn keystore_rows(
    lab: &Lab,
    bed: &Bed,
    keystore: Keystore,
    hpke_us: f64,
) -> anyhow::Result<(Vec<Vec<Cell>>, Vec<Cell>)> {
    let mut makers = callers(bed, 64, &Ask::Issue(1)).await?;
    let blocks = issue(&mut makers, 1, BLOCKS).await?;
    drop(makers);
    let asks = [
        ("issue", Ask::Issue(1)),
        ("open", Ask::Open(blocks.clone().into())),
        ("open, cached", Ask::Open(vec![blocks[0].clone()].into())),
        ("refused", Ask::Refused),
    ];
    let (mut rows, mut parts) = (Vec::new(), Vec::new());
    for (name, ask) in &asks {
        for count in CALLERS {
            let mut callers = callers(bed, count, ask).await?;
            let mut rounds = Vec::with_capacity(lab.rounds);
            let before = Metrics::read(bed.admin)?;
            for _ in 0..lab.rounds {
                rounds.push(load(bed, &mut callers, ask, lab.warm_up(), lab.measure()).await?);
            }
            rows.push(row(name, keystore, count, &rounds)?);
            if count == 1 && matches!(ask, Ask::Issue(_) | Ask::Refused) {
                parts.push((
                    spread(&rounds, |calls| calls.quantile_us(0.5))?,
                    Metrics::read(bed.admin)?,
                    before,
                ));
            }
        }
    }
    let [(whole, after, before), (refused, ..)] = parts.as_slice() else {
        anyhow::bail!("the parts of a call were not measured");
    };
    let mean = |histogram, label| match after.mean_us(before, histogram, label) {
        Some((mean, _)) => figure(Spread { median: mean, low: mean, high: mean }, 0),
        None => text("–"),
    };
    let parts = vec![
        text(keystore.label()),
        figure(*whole, 0),
        figure(*refused, 0),
        figure(Spread { median: hpke_us, low: hpke_us, high: hpke_us }, 0),
        mean("keyway_hsm_operation_seconds", "op=\"wrap\""),
        mean("keyway_catalog_commit_seconds", ""),
    ];
    Ok((rows, parts))
}

fn spread(rounds: &[Calls], of: impl Fn(&Calls) -> f64) -> anyhow::Result<Spread> {
    Spread::of(&rounds.iter().map(of).collect::<Vec<_>>()).context("no round was run")
}

fn row(name: &str, keystore: Keystore, callers: usize, rounds: &[Calls]) -> anyhow::Result<Vec<Cell>> {
    Ok(vec![
        text(name),
        text(keystore.label()),
        text(callers.to_string()),
        figure(spread(rounds, |calls| calls.per_second)?, 0),
        figure(spread(rounds, |calls| calls.quantile_us(0.5))?, 0),
        figure(spread(rounds, |calls| calls.quantile_us(0.99))?, 0),
        figure(spread(rounds, |calls| calls.bridge_cpu_us)?, 0),
    ])
}

/// One DEK sealed to an X25519 key, in microseconds.
fn hpke_us() -> anyhow::Result<f64> {
    const TIMES: u32 = 2000;
    let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };
    let id = DekId([7; 16]);
    let block = KeyBlock::inline(kek, id, WrapMechanism::AesGcm, &[7; 60]).context("a key block")?;
    let dek = Dek::new(id, zeroize::Zeroizing::new([7; 32]));
    let to = MemberKey::generate().public();
    let mut began = Instant::now();
    for round in 0..TIMES + TIMES / 10 {
        // The first tenth warms up.
        if round == TIMES / 10 {
            began = Instant::now();
        }
        std::hint::black_box(seal_dek(&to, &dek, &block, super::bed::ZONE, super::bed::KEYRING, "")?);
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES))
}

impl Lab {
    fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.short { 200 } else { 1000 })
    }

    fn measure(&self) -> Duration {
        Duration::from_millis(if self.short { 1000 } else { 4000 })
    }
}
