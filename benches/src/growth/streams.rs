//! Many bodies of 1 GiB at once.

use super::Ground;
use super::figures::{cell, columns, float, megabytes_per_second, text};
use super::memory::megabytes;
use super::wire::Wire;
use crate::load::{self, Exchange, Plan};
use crate::section::{Bound, Section, Spread, Table, Target};
use anyhow::ensure;
use std::time::Duration;

const STREAMS: usize = 1_000;
const BODY_BYTES: u64 = 1 << 30;
const PEAK_MB_MAX: f64 = 200.0;
const METHOD: &str = "1,000 connections upload at once, each a body that declares 1 GiB; then 1,000 others, to a sidecar of \
    its own, download one stored object of 1 GiB, sealed. It runs for a fixed time: all of it would be \
    1 TiB, more than two cores move in minutes. Bodies are in the middle of their way all the while, so what \
    is resident is what it would be to their end; each has to move, none may fail. The peak is VmHWM, the kernel's own \
    record of the most that was resident, set back before the load starts.";

/// Uploads, then downloads.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let seconds = ground.pick(30, 6);
    let ways = ["upload", "download"];
    let mut peaks = [Vec::new(), Vec::new()];
    let mut rates = [Vec::new(), Vec::new()];
    let mut idle = [Vec::new(), Vec::new()];
    for _ in 0..ground.rounds {
        for (way, name) in ways.iter().enumerate() {
            let bed = ground.bed()?;
            let exchange = if *name == "upload" {
                Exchange::Put { path: "/sink/{n}".to_owned(), body: BODY_BYTES }
            } else {
                Wire::connect(bed.data())?.put("/objects/large", BODY_BYTES, None)?;
                Exchange::Get { path: "/objects/large".to_owned(), body: BODY_BYTES }
            };
            idle[way].push(megabytes(&bed)?);
            let meter = bed.meter()?;
            meter.reset_peak()?;
            let plan = Plan { measure: Duration::from_secs(seconds), ..bed.plan(STREAMS, exchange) };
            let sample = load::run(&plan)?;
            let first = sample.first_failure.as_deref().unwrap_or_default();
            ensure!(sample.failures == 0, "{name}: {} streams failed; the first: {first}", sample.failures);
            peaks[way].push(float(bed.memory()?.peak_bytes) / 1e6);
            rates[way].push(megabytes_per_second(&sample));
        }
    }
    let rows = ways.iter().enumerate().map(|(way, name)| {
        vec![
            text(format!("{STREAMS} × {name}")),
            cell(Spread::of(&idle[way]), 1),
            cell(Spread::of(&peaks[way]), 1),
            cell(Spread::of(&rates[way]), 0),
        ]
    });
    let targets = ways.iter().zip(&peaks).map(|(name, peaks)| {
        let what = format!("1,000 streams of 1 GiB, {name}: peak, MB resident");
        Target::judge(what, Bound::AtMost(PEAK_MB_MAX), Spread::of(peaks), "")
    });
    Ok(Section {
        title: "Memory with 1,000 streams".to_owned(),
        method: format!("{METHOD} Here it ran {seconds} s each way."),
        tables: vec![Table {
            title: "Peak of resident memory".to_owned(),
            columns: columns(&["load", "before, MB", "peak, MB", "moved, MB/s"]),
            rows: rows.collect(),
        }],
        targets: targets.collect(),
        plots: Vec::new(),
    })
}
