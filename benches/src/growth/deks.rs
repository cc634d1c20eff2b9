//! How cost grows with DEKs: in a real sidecar, and in its cache alone.

use super::Ground;
use super::bed::Bed;
use super::cache;
use super::figures::{Curves, axis, columns, p99_us, rate, text, without_failures};
use super::memory::megabytes;
use super::wire::Wire;
use crate::load::{self, Exchange, Plan};
use crate::section::{Cell, Plot, Section, Series, Table};
use keyway_keycache::CacheLimits;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BODY_BYTES: u64 = 1024;
const CONNECTIONS: usize = 16;
/// Tenants asked for at once while a cache is filled: fewer than a sidecar's flights.
const FILLERS: usize = 32;
/// With fewer, memory per DEK is that of tables which are mostly empty.
const COUNTED_MIN: u64 = 1_000;
const METHOD: &str = "In a sidecar: each DEK is issued by the bridge for a tenant of its own, one upload each, and is then cached \
    for sealing and opening. The cache keeps 65,536 for opening and, per version, 4,096 tenants for sealing; beyond \
    that more uploads change nothing but the clock, so what was in the cache at a point is in the table. The load is \
    1 KiB sealed GET on 16 connections, all of one DEK: it shows what a full cache costs those who hit. In the cache alone, \
    in this process and with its limits lifted: look-ups go through all DEKs in an order that defeats caches of the \
    CPU, and a swap is one publish of a new keyring, with its sweep through all DEKs.";

/// From 1 to 100,000.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let counts: &[u64] = ground.pick(&[1, 100, 1_000, 4_096, 10_000], &[1, 100, 500]);
    let alone: &[u64] = ground.pick(&[1, 100, 1_000, 10_000, 65_536, 100_000], &[1, 1_000, 100_000]);
    let window = Duration::from_secs(ground.pick(5, 1));
    let mut curves = Curves::default();
    for _ in 0..ground.rounds {
        in_a_sidecar(ground, counts, window, &mut curves)?;
        for &deks in alone {
            let costs = cache::measure(deks)?;
            curves.add("seal", deks, costs.seal_ns);
            curves.add("open", deks, costs.open_ns);
            curves.add("swap", deks, costs.swap_us);
            if deks >= COUNTED_MIN {
                curves.add("bytes", deks, costs.bytes_per_dek);
            }
        }
    }
    let sidecar = [("entries", 0), ("rate", 0), ("p99", 0), ("memory", 1), ("issued", 0)];
    let cache = [("open", 0), ("seal", 0), ("swap", 1), ("bytes", 0)];
    Ok(Section {
        title: "Growth with DEKs".to_owned(),
        method: METHOD.to_owned(),
        tables: vec![
            Table {
                title: "In a sidecar".to_owned(),
                columns: columns(&[
                    "tenants",
                    "DEKs cached",
                    "requests/s",
                    "p99, µs",
                    "resident, MB",
                    "issued/s",
                ]),
                rows: rows(&curves, counts, &sidecar),
            },
            Table {
                title: format!(
                    "The cache alone (in a sidecar it keeps {} at most)",
                    CacheLimits::default().entries
                ),
                columns: columns(&[
                    "DEKs",
                    "find to open, ns",
                    "find to seal, ns",
                    "swap, µs",
                    "bytes per DEK",
                ]),
                rows: rows(&curves, alone, &cache),
            },
        ],
        targets: Vec::new(),
        plots: vec![
            plot("deks-rate", "Requests/s", vec![curves.series("rate", "keyway")]),
            plot("deks-p99", "p99, µs", vec![curves.series("p99", "keyway")]),
            plot("deks-memory", "Resident memory, MB", vec![curves.series("memory", "keyway")]),
            plot(
                "deks-lookup",
                "Look-up, ns",
                vec![curves.series("open", "to open"), curves.series("seal", "to seal")],
            ),
            plot("deks-swap", "Swap of a keyring, µs", vec![curves.series("swap", "publish and sweep")]),
        ],
    })
}

fn rows(curves: &Curves, counts: &[u64], cells: &[(&str, usize)]) -> Vec<Vec<Cell>> {
    let row = |&count: &u64| {
        let figures = cells.iter().map(|(curve, digits)| curves.cell(curve, count, *digits));
        std::iter::once(text(count.to_string())).chain(figures).collect()
    };
    counts.iter().map(row).collect()
}

fn plot(name: &str, label: &str, series: Vec<Series>) -> Plot {
    Plot {
        name: name.to_owned(),
        title: format!("{label} by DEKs"),
        x: axis("DEKs", true),
        y: axis(label, false),
        series,
    }
}

fn in_a_sidecar(
    ground: &Ground<'_>,
    counts: &[u64],
    window: Duration,
    curves: &mut Curves,
) -> anyhow::Result<()> {
    let bed = ground.bed()?;
    let path = "/objects/growth".to_owned();
    Wire::connect(bed.data())?.put(&path, BODY_BYTES, None)?;
    let exchange = Exchange::Get { path, body: BODY_BYTES };
    let plan = Plan { measure: window, ..bed.plan(CONNECTIONS, exchange) };
    let mut known = 0;
    for &deks in counts {
        let issued = fill(&bed, known..deks)?;
        if deks - known >= FILLERS as u64 {
            curves.add("issued", deks, issued);
        }
        known = deks;
        let sample = without_failures(load::run(&plan)?, &format!("load beside {deks} DEKs"))?;
        curves.add("rate", deks, rate(&sample));
        curves.add("p99", deks, p99_us(&sample));
        curves.add("entries", deks, bed.metric("keyway_dek_cache_entries")?);
        curves.add("memory", deks, megabytes(&bed)?);
    }
    Ok(())
}

/// Has a DEK issued for each of these tenants; gives DEKs a second.
pub(super) fn fill(bed: &Bed, tenants: Range<u64>) -> anyhow::Result<f64> {
    let next = AtomicU64::new(tenants.start);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let filler = || -> anyhow::Result<()> {
            let mut wire = Wire::connect(bed.data())?;
            loop {
                let tenant = next.fetch_add(1, Ordering::Relaxed);
                if tenant >= tenants.end {
                    return Ok(());
                }
                wire.put("/sink/tenants/fill", 64, Some(&format!("tenant-{tenant}")))?;
            }
        };
        let fillers: Vec<_> = (0..FILLERS).map(|_| scope.spawn(filler)).collect();
        fillers
            .into_iter()
            .try_for_each(|filler| filler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(super::figures::float(tenants.end - tenants.start) / begun.elapsed().as_secs_f64())
}
