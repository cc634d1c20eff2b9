//! Rewrap of a large catalog, and what a caller notices of it.

use super::bed::{Bed, Keystore, softhsm};
use super::calls::{Ask, Caller, callers, histogram, issue};
use super::{Lab, audit, count, figure, rotation, text};
use crate::section::{Cell, Section, Spread, Table};
use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use std::cell::Cell as Shared;
use std::path::Path;
use std::time::{Duration, Instant};

/// The probe asks for a DEK so often; it measures how long that takes and adds no load to speak of.
const PROBE_EVERY: Duration = Duration::from_millis(10);
/// Before the rotation begins.
const CALM: Duration = Duration::from_secs(3);

struct Round {
    issued_per_s: f64,
    rewrapped_per_s: f64,
    rewrap_s: f64,
    cpu_us_per_dek: f64,
    calm: Histogram<u64>,
    busy: Histogram<u64>,
    database_mib: f64,
}

pub(super) fn measure(lab: &Lab) -> anyhow::Result<Section> {
    let mut cases = vec![(Keystore::Software, if lab.short { 10_000 } else { 100_000 })];
    if softhsm().is_ok() {
        cases.push((Keystore::SoftHsm(2), if lab.short { 2000 } else { 20_000 }));
    }
    let mut rows = Vec::new();
    for (keystore, deks) in cases {
        // One round: a second rotation of the same catalog is another one, and making a new one takes as long again.
        let bed = Bed::start(&lab.dir, keystore, lab.bridge_core)?;
        let round = lab.run(round(&bed, deks)).with_context(|| bed.bridge.log())?;
        rows.push(row(keystore, deks, &round));
    }
    let columns = [
        "keystore",
        "DEKs",
        "issued before, per second",
        "rewrapped, per second",
        "rewrap phase, s",
        "bridge CPU, µs/DEK",
        "issue p50 / p99 before, ms",
        "issue p50 / p99 meanwhile, ms",
        "catalog, MiB",
    ];
    Ok(Section {
        title: "Bridge: rewrap".to_owned(),
        method: format!(
            "DEKs are issued by the bridge to 64 callers, then the keyring is rotated with no member attached. Each DEK is unwrapped, \
             wrapped by the new KEK, opened again twice (by the backend and by the caller of it), and its old wrap is \
             superseded in a durable transaction. Meanwhile one caller asks for a DEK every {PROBE_EVERY:?}. Bridge on {}, \
             harness on {}.",
            lab.where_bridge(),
            lab.where_harness(),
        ),
        tables: vec![Table {
            title: "Rewrap".to_owned(),
            columns: columns.map(str::to_owned).to_vec(),
            rows,
        }],
        ..Section::default()
    })
}

async fn round(bed: &Bed, deks: usize) -> anyhow::Result<Round> {
    let mut makers = callers(bed, 64, &Ask::Issue(1)).await?;
    let began = Instant::now();
    let made = issue(&mut makers, 1, deks).await?.len();
    let issued_per_s = count(made as u64) / began.elapsed().as_secs_f64();
    drop(makers);
    let stage = Shared::new(Stage::Calm);
    let mut probe = Caller::new(bed.member().await?);
    let (probed, rotated) = tokio::join!(probe_until_done(&mut probe, &stage), rotate(bed, &stage));
    let ((id, rewrapped, cpu), (calm, busy)) = (rotated?, probed?);
    ensure!(rewrapped >= deks as u64, "{rewrapped} of {deks} DEKs were rewrapped");
    let times = audit::times(&bed.audit_file(), &id)?;
    let time = |name: &str| times.get(name).copied().with_context(|| format!("no audit record of {name}"));
    let rewrap_s = count(time("rotation.drain")? - time("rotation.rewrap")?) / 1000.0;
    Ok(Round {
        issued_per_s,
        rewrapped_per_s: count(rewrapped) / rewrap_s,
        rewrap_s,
        cpu_us_per_dek: cpu * 1e6 / count(rewrapped),
        calm,
        busy,
        database_mib: count(size_of(&bed.audit_file().with_file_name("bridge.db"))?) / f64::from(1 << 20),
    })
}

fn size_of(file: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(file).with_context(|| format!("{}", file.display()))?.len())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Calm,
    Rewrap,
    After,
    Done,
}

/// Gives the rotation's id, how many DEKs it has rewrapped, and the bridge's CPU time in the rewrap phase.
async fn rotate(bed: &Bed, stage: &Shared<Stage>) -> anyhow::Result<(String, u64, f64)> {
    tokio::time::sleep(CALM).await;
    let outcome = follow(bed, stage).await;
    stage.set(Stage::Done);
    outcome
}

async fn follow(bed: &Bed, stage: &Shared<Stage>) -> anyhow::Result<(String, u64, f64)> {
    stage.set(Stage::After);
    let (id, mut changes) = rotation::start(bed).await?;
    let (mut from, mut cpu) = (None, 0.0);
    while let Some(change) = changes.message().await? {
        match change.phase.as_str() {
            "rewrap" if from.is_none() => {
                from = Some(bed.meter().read());
                stage.set(Stage::Rewrap);
            }
            "drain" | "retire" if stage.get() == Stage::Rewrap => {
                cpu = from.as_ref().map_or(0.0, |from| bed.cpu_s_since(from));
                stage.set(Stage::After);
            }
            "done" => return Ok((id, change.deks_rewrapped, cpu)),
            _ => {}
        }
    }
    bail!("the rotation's stream ended early")
}

async fn probe_until_done(
    probe: &mut Caller,
    stage: &Shared<Stage>,
) -> anyhow::Result<(Histogram<u64>, Histogram<u64>)> {
    let (mut calm, mut busy) = (histogram()?, histogram()?);
    let mut version = 1;
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stage.get() != Stage::Done {
        ticks.tick().await;
        let before = stage.get();
        // As a member that goes over with the promotion.
        if before == Stage::Rewrap {
            version = 2;
        }
        let took = match probe.ask(&Ask::Issue(version), 0).await {
            Ok((took, _)) => u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
            Err(_) if before == Stage::After && version == 1 => {
                version = 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        match (before, stage.get()) {
            (Stage::Calm, Stage::Calm) => calm.saturating_record(took),
            (Stage::Rewrap, Stage::Rewrap) => busy.saturating_record(took),
            _ => {}
        }
    }
    Ok((calm, busy))
}

fn row(keystore: Keystore, deks: usize, round: &Round) -> Vec<Cell> {
    let once = |value: f64, digits| figure(Spread { median: value, low: value, high: value }, digits);
    let latency = |histogram: &Histogram<u64>| {
        let ms = |quantile| count(histogram.value_at_quantile(quantile)) / 1e6;
        if histogram.is_empty() { text("–") } else { text(format!("{:.2} / {:.2}", ms(0.5), ms(0.99))) }
    };
    vec![
        text(keystore.label()),
        text(deks.to_string()),
        once(round.issued_per_s, 0),
        once(round.rewrapped_per_s, 0),
        once(round.rewrap_s, 1),
        once(round.cpu_us_per_dek, 0),
        latency(&round.calm),
        latency(&round.busy),
        once(round.database_mib, 0),
    ]
}
