//! How cost grows with the length of bodies.

use super::Ground;
use super::figures::{
    Curves, axis, columns, float, megabytes_per_second, p99_us, rate, size, text, without_failures,
};
use super::wire::Wire;
use crate::load::{self, Exchange, Plan};
use crate::section::{Plot, Section, Table};
use std::time::Duration;

const WAYS: [&str; 2] = ["GET", "PUT"];
const CONNECTIONS: usize = 4;
const METHOD: &str = "Four connections, sealed bodies of one length, as fast as they are answered. Memory is the most that was \
    resident (VmHWM), of a sidecar of its own for each point. At lengths of which few fit into a window, p99 is that of few \
    requests, and where none fits there is none; throughput counts all bytes that moved.";

/// From 64 B to 1 GiB.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let lengths: &[u64] = ground.pick(
        &[64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20, 128 << 20, 1 << 30],
        &[64, 16 << 10, 1 << 20, 1 << 30],
    );
    let window = Duration::from_secs(ground.pick(5, 1));
    let mut curves = Curves::default();
    for _ in 0..ground.rounds {
        for way in WAYS {
            for &length in lengths {
                point(ground, way, length, window, &mut curves)?;
            }
        }
    }
    let names = |what: &str| WAYS.map(|way| format!("{way} {what}"));
    let rows = lengths.iter().map(|&length| {
        let mut row = vec![text(size(length))];
        for (what, digits) in [("requests", 0), ("rate", 1), ("p99", 0), ("memory", 1)] {
            row.extend(names(what).iter().map(|curve| curves.cell(curve, length, digits)));
        }
        row
    });
    let plot = |name: &str, what: &str, label: &str, is_log: bool| Plot {
        name: format!("sizes-{name}"),
        title: format!("{label} by length of bodies"),
        x: axis("length of bodies, bytes", true),
        y: axis(label, is_log),
        series: WAYS.map(|way| curves.series(&format!("{way} {what}"), way)).into(),
    };
    Ok(Section {
        title: "Growth with the length of bodies".to_owned(),
        method: METHOD.to_owned(),
        tables: vec![Table {
            title: "By length".to_owned(),
            columns: columns(&[
                "length",
                "GET, requests/s",
                "PUT, requests/s",
                "GET, MB/s",
                "PUT, MB/s",
                "GET p99, µs",
                "PUT p99, µs",
                "GET peak, MB",
                "PUT peak, MB",
            ]),
            rows: rows.collect(),
        }],
        targets: Vec::new(),
        plots: vec![
            plot("throughput", "rate", "Throughput, MB/s", true),
            plot("p99", "p99", "p99, µs", true),
            plot("memory", "memory", "Peak of resident memory, MB", false),
        ],
    })
}

fn point(
    ground: &Ground<'_>,
    way: &str,
    length: u64,
    window: Duration,
    curves: &mut Curves,
) -> anyhow::Result<()> {
    let bed = ground.bed()?;
    let exchange = if way == "GET" {
        let path = "/objects/growth".to_owned();
        Wire::connect(bed.data())?.put(&path, length, None)?;
        Exchange::Get { path, body: length }
    } else {
        Exchange::Put { path: "/sink/{n}".to_owned(), body: length }
    };
    let meter = bed.meter()?;
    meter.reset_peak()?;
    let plan = Plan { measure: window, ..bed.plan(CONNECTIONS, exchange) };
    let sample = without_failures(load::run(&plan)?, &format!("{way} of {}", size(length)))?;
    curves.add(&format!("{way} rate"), length, megabytes_per_second(&sample));
    curves.add(&format!("{way} memory"), length, float(bed.memory()?.peak_bytes) / 1e6);
    if sample.requests > 0 {
        curves.add(&format!("{way} requests"), length, rate(&sample));
        curves.add(&format!("{way} p99"), length, p99_us(&sample));
    }
    Ok(())
}
