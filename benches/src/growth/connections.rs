//! How cost grows with connections that are all busy.

use super::Ground;
use super::figures::{Curves, axis, columns, float, p99_us, rate, text, without_failures};
use super::wire::Wire;
use crate::load::{self, Exchange, Plan};
use crate::section::{Plot, Section, Table};
use std::time::Duration;

const BODY_BYTES: u64 = 1024;
const METHOD: &str = "Connections that each ask for 1 KiB, sealed, again when they were answered: the load is as much as the \
    sidecar serves, so p99 grows with the number of those who wait (p99 × throughput is about the connections). Memory is the most that was resident, \
    of a sidecar of its own for each point.";

/// From 1 to 10,000.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let counts: &[usize] =
        ground.pick(&[1, 4, 16, 64, 256, 1_000, 2_500, 5_000, 10_000], &[1, 16, 256, 2_000]);
    let window = Duration::from_secs(ground.pick(5, 1));
    let mut curves = Curves::default();
    for _ in 0..ground.rounds {
        for &count in counts {
            let bed = ground.bed()?;
            let path = "/objects/growth".to_owned();
            Wire::connect(bed.data())?.put(&path, BODY_BYTES, None)?;
            let exchange = Exchange::Get { path, body: BODY_BYTES };
            let plan = Plan {
                // All have had a turn before the clock starts.
                warm_up: Duration::from_millis(if count > 1_000 { 2_000 } else { 300 }),
                measure: window,
                ..bed.plan(count, exchange)
            };
            let sample = without_failures(load::run(&plan)?, &format!("{count} connections"))?;
            curves.add("rate", count as u64, rate(&sample));
            curves.add("p99", count as u64, p99_us(&sample));
            curves.add("memory", count as u64, float(bed.memory()?.peak_bytes) / 1e6);
        }
    }
    let rows = counts.iter().map(|&count| {
        let x = count as u64;
        let cells = [("rate", 0), ("p99", 0), ("memory", 1)];
        let figures = cells.map(|(curve, digits)| curves.cell(curve, x, digits));
        std::iter::once(text(count.to_string())).chain(figures).collect()
    });
    let plot = |curve: &str, label: &str, is_log: bool| Plot {
        name: format!("connections-{curve}"),
        title: format!("{label} by busy connections"),
        x: axis("connections", true),
        y: axis(label, is_log),
        series: vec![curves.series(curve, "keyway")],
    };
    Ok(Section {
        title: "Growth with connections".to_owned(),
        method: METHOD.to_owned(),
        tables: vec![Table {
            title: "By connections".to_owned(),
            columns: columns(&["connections", "requests/s", "p99, µs", "peak, MB"]),
            rows: rows.collect(),
        }],
        targets: Vec::new(),
        plots: vec![
            plot("rate", "Requests/s", false),
            plot("p99", "p99, µs", true),
            plot("memory", "Peak of resident memory, MB", false),
        ],
    })
}
