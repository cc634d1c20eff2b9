//! Resident memory: with nothing to do, and by idle connections.

use super::Ground;
use super::bed::{Bed, load_plan};
use super::figures::{Curves, axis, cell, columns, float, slope, text};
use crate::load::{Exchange, IdleConnections};
use crate::machine::Meter;
use crate::section::{Bound, Cell, Plot, Section, Spread, Table, Target};
use crate::systems::{self, Running, Setting};
use anyhow::Context as _;
use anyhow::ensure;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

const IDLE_MB_MAX: f64 = 15.0;
const CONNECTION_KB_MAX: f64 = 20.0;
/// What is read and not sealed yet, or answered and not recycled yet, has settled by then.
const SETTLE: Duration = Duration::from_secs(2);
/// Until a closed connection's task has ended and what it held is back.
const AFTER_CLOSE: Duration = Duration::from_secs(5);
const BODY_BYTES: u64 = 1024;
const METHOD: &str = "Resident memory (VmRSS of /proc/PID/status) of a sidecar with one worker, and of a tuned nginx that encrypts nothing (all its processes). Idle: two \
    seconds after it is ready, before its first request. Then keep-alive connections are opened in steps, each makes one GET of \
    1 KiB (sealed, by us) and stays open; two seconds later memory is read. The figure per connection is the slope of the line \
    through the steps, so what a sidecar takes anyway is not in it; kernel memory of the sockets is not in it either. \
    Pages that processes share count in each of them. Each round has processes of its own, because an allocator does not give everything back: the last column \
    is what is resident five seconds after all connections were closed.";

/// Who is measured: us, and what is known for taking little.
const OWN: &str = "keyway";
const PEER: &str = "nginx-tuned";

/// A system's rounds.
#[derive(Default)]
struct Figures {
    idle: Vec<f64>,
    slopes: Vec<f64>,
    left: Vec<f64>,
}

/// Idle, and by connections.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let steps: &[usize] = ground.pick(&[1_000, 5_000, 10_000], &[200, 1_000]);
    let mut curves = Curves::default();
    let (mut own, mut peer) = (Figures::default(), Figures::default());
    let mut peer_failed = None;
    for _ in 0..ground.rounds {
        let bed = ground.bed()?;
        sleep(SETTLE);
        own.idle.push(megabytes(&bed)?);
        own.add(OWN, bed.data(), &bed.meter()?, (ground, steps), &mut curves)?;
        drop(bed);
        if peer_failed.is_none() {
            // nginx may not be installed: our own figures stand without it.
            peer_failed = measure_peer(ground, steps, &mut peer, &mut curves).err();
        }
    }
    let mut section = section(&curves, steps, &own, &peer);
    if let Some(error) = peer_failed {
        // Writing to a String does not fail.
        let _ = write!(section.method, " {PEER} could not be measured: {error:#}.");
    }
    Ok(section)
}

fn measure_peer(
    ground: &Ground<'_>,
    steps: &[usize],
    figures: &mut Figures,
    curves: &mut Curves,
) -> anyhow::Result<()> {
    let system = systems::by_name(PEER)?;
    let dir =
        tempfile::Builder::new().prefix("memory-").tempdir_in(ground.dir).context("making a directory")?;
    let setting = Setting {
        dir: dir.path().to_owned(),
        upstream: ground.upstream,
        client_tls: false,
        upstream_tls: false,
        pki: dir.path().to_owned(),
        cores: ground.cores.proxy.map_or_else(crate::machine::available_cores, |core| vec![core]),
    };
    let running: Box<dyn Running> = system.start(&setting)?;
    sleep(SETTLE);
    let meter = Meter::new(running.pids());
    figures.idle.push(resident_mb(&meter)?);
    figures.add(PEER, running.address(), &meter, (ground, steps), curves)
}

impl Figures {
    /// Opens connections up to each step, closes them all, and reads memory before, between and after.
    fn add(
        &mut self,
        name: &str,
        address: SocketAddr,
        meter: &Meter,
        (ground, steps): (&Ground<'_>, &[usize]),
        curves: &mut Curves,
    ) -> anyhow::Result<()> {
        super::wire::Wire::connect(address)?.put("/objects/idle", BODY_BYTES, None)?;
        let mut points = vec![(0, resident_mb(meter)?)];
        let (mut held, mut opened) = (Vec::new(), 0);
        for step in steps {
            let exchange = Exchange::Get { path: "/objects/idle".to_owned(), body: BODY_BYTES };
            held.push(IdleConnections::open(&load_plan(address, ground.cores, step - opened, exchange))?);
            opened = *step;
            sleep(SETTLE);
            let lost: usize = held.iter().map(IdleConnections::lost).sum();
            ensure!(lost == 0, "{name} closed {lost} of {opened} idle connections");
            points.push((opened as u64, resident_mb(meter)?));
        }
        drop(held);
        for (connections, resident) in &points {
            curves.add(name, *connections, *resident);
        }
        // MB by thousands of connections are KB by one.
        let line: Vec<(f64, f64)> = points.iter().map(|(x, y)| (float(*x), y * 1e3)).collect();
        self.slopes.extend(slope(&line));
        sleep(AFTER_CLOSE);
        self.left.push(resident_mb(meter)?);
        Ok(())
    }

    fn row(&self, name: &str, curves: &Curves, steps: &[usize]) -> Vec<Cell> {
        let mut row = vec![text(name), cell(Spread::of(&self.idle), 1)];
        row.extend(steps.iter().map(|step| curves.cell(name, *step as u64, 1)));
        row.extend([cell(Spread::of(&self.slopes), 1), cell(Spread::of(&self.left), 1)]);
        row
    }
}

fn section(curves: &Curves, steps: &[usize], own: &Figures, peer: &Figures) -> Section {
    let mut names = columns(&["system", "idle, MB"]);
    names.extend(steps.iter().map(|step| format!("{step} connections, MB")));
    names.extend(columns(&["per connection, KB", "after closing, MB"]));
    let beside = Spread::of(&peer.slopes)
        .map_or_else(String::new, |peer| format!("{PEER} in the same run: {:.1} KB", peer.median));
    Section {
        title: "Memory".to_owned(),
        method: METHOD.to_owned(),
        tables: vec![Table {
            title: "Resident memory".to_owned(),
            columns: names,
            rows: vec![own.row(OWN, curves, steps), peer.row(PEER, curves, steps)],
        }],
        targets: vec![
            Target::judge("idle, MB resident", Bound::AtMost(IDLE_MB_MAX), Spread::of(&own.idle), ""),
            Target::judge(
                "per idle connection, KB resident",
                Bound::AtMost(CONNECTION_KB_MAX),
                Spread::of(&own.slopes),
                beside,
            ),
        ],
        plots: vec![Plot {
            name: "memory-connections".to_owned(),
            title: "Resident memory by idle connections".to_owned(),
            x: axis("connections", false),
            y: axis("resident memory, MB", false),
            series: [OWN, PEER].map(|name| curves.series(name, name)).into(),
        }],
    }
}

/// Resident now, in MB of a million bytes.
pub(super) fn megabytes(bed: &Bed) -> anyhow::Result<f64> {
    Ok(float(bed.memory()?.resident_bytes) / 1e6)
}

fn resident_mb(meter: &Meter) -> anyhow::Result<f64> {
    let resident = meter.memory().resident_bytes;
    ensure!(resident > 0, "the process has ended");
    Ok(float(resident) / 1e6)
}
