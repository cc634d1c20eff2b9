//! What a rotation costs those who are served meanwhile.

use super::Ground;
use super::bed::Bed;
use super::deks::fill;
use super::figures::{cell, columns, p99_us, rate, text, without_failures};
use super::wire::Wire;
use crate::load::{self, Exchange, Plan, Sample};
use crate::section::{Bound, Cell, Section, Spread, Table, Target};
use anyhow::{Context, ensure};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const THROUGHPUT_MIN: f64 = 0.97;
const P99_MAX: f64 = 1.2;
const BODY_BYTES: u64 = 1024;
const CONNECTIONS: usize = 16;
/// Of what one connection after the other could reach: far from saturation, so that the delay is the system's own.
const PACE_PART: f64 = 0.3;
/// A window is as long as one rotation, but no shorter than this: enough requests for a p99.
const WINDOW_MIN: Duration = Duration::from_secs(2);
const METHOD: &str = "Three windows of load one after the other: before, during and after. All through the middle one, \
    rotations are run by `keyway rotate start --watch`, the next as soon as one is done: a rotation of a keyring with few DEKs takes a \
    fraction of a second, and a window with one of them would be mostly quiet. In alternation the same three windows are run \
    with nothing in the middle: what that shows is the machine's noise, and what rotations show beyond it is their \
    price. The ratio is the middle window to the mean of its neighbours. Bridge, command and upstream run on the load \
    generator's core and take of its time while they rotate; that is in the figures too. 1 KiB sealed GET, 16 connections.";
const SWAP_METHOD: &str = "The same three windows with load by the clock (open loop, 30 % of the rate that closed-loop load \
    reaches; a request's latency begins when it was due), for a sidecar whose cache has been filled with DEKs, each for a \
    tenant of its own, through the bridge. A rotation pushes several keyrings: each is applied whole, and DEKs that the \
    sidecar seals with are fetched ahead.";

/// Windows of one turn.
struct Turn {
    before: Sample,
    during: Sample,
    after: Sample,
    /// How long each rotation took, if there were any.
    rotations: Vec<Duration>,
}

/// How the windows of a kind came out.
#[derive(Default)]
struct Ratios {
    rate: Vec<f64>,
    p99: Vec<f64>,
    before_us: Vec<f64>,
    during_us: Vec<f64>,
    rotation_s: Vec<f64>,
}

/// Throughput and p99 of closed-loop load.
pub(super) fn measure(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let bed = prepared(ground)?;
    let window = window(&bed)?;
    let kinds = take_turns(ground, |rotates| turn(&bed, window, rotates, load::run))?;
    let [control, rotation] = &kinds;
    let noise = noise(control);
    Ok(Section {
        title: "A rotation under load".to_owned(),
        method: format!("{METHOD} Windows of {:.1} s.", window.as_secs_f64()),
        tables: vec![Table {
            title: "During, in relation to before and after".to_owned(),
            columns: columns(&HEADS),
            rows: vec![row("nothing (noise)", control), row("rotations", rotation)],
        }],
        targets: vec![
            Target::judge(
                "throughput during a rotation / beside it",
                Bound::AtLeast(THROUGHPUT_MIN),
                Spread::of(&rotation.rate),
                noise.clone(),
            ),
            Target::judge(
                "p99 during a rotation / beside it",
                Bound::AtMost(P99_MAX),
                Spread::of(&rotation.p99),
                noise,
            ),
        ],
        plots: Vec::new(),
    })
}

/// p99 of paced load while keyrings are swapped, by DEKs in the cache.
pub(super) fn measure_swap(ground: &Ground<'_>) -> anyhow::Result<Section> {
    let sizes: &[u64] = ground.pick(&[0, 100, 10_000], &[0, 100]);
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for deks in sizes {
        let bed = prepared(ground)?;
        let calm = load::run(&plan(&bed, WINDOW_MIN))?;
        let pace = rate(&without_failures(calm, "load before the rotations")?) * PACE_PART;
        fill(&bed, 0..*deks)?;
        let window = window(&bed)?;
        let paced = |plan: &Plan| load::pace(plan, pace);
        let [control, rotation] = take_turns(ground, |rotates| turn(&bed, window, rotates, paced))?;
        rows.push(row(&format!("{deks} DEKs: nothing (noise)"), &control));
        rows.push(row(&format!("{deks} DEKs: rotations"), &rotation));
        targets.push(Target::judge(
            format!("keyring swap with {deks} DEKs: p99 during / beside it"),
            Bound::AtMost(P99_MAX),
            Spread::of(&rotation.p99),
            noise(&control),
        ));
    }
    Ok(Section {
        title: "Keyring swap by DEKs in the cache".to_owned(),
        method: format!("{METHOD} {SWAP_METHOD}"),
        tables: vec![Table {
            title: "During, in relation to before and after".to_owned(),
            columns: columns(&HEADS),
            rows,
        }],
        targets,
        plots: Vec::new(),
    })
}

const HEADS: [&str; 8] = [
    "in the middle window",
    "turns",
    "rotations",
    "throughput ratio",
    "p99 ratio",
    "p99 before, µs",
    "p99 during, µs",
    "rotation, s",
];

fn prepared(ground: &Ground<'_>) -> anyhow::Result<Bed> {
    let bed = ground.bed()?;
    Wire::connect(bed.data())?.put("/objects/rotation", BODY_BYTES, None)?;
    Ok(bed)
}

fn plan(bed: &Bed, window: Duration) -> Plan {
    let exchange = Exchange::Get { path: "/objects/rotation".to_owned(), body: BODY_BYTES };
    Plan { measure: window, ..bed.plan(CONNECTIONS, exchange) }
}

/// As long as a rotation takes here; one is run for it.
fn window(bed: &Bed) -> anyhow::Result<Duration> {
    Ok(rotate(bed.rotation()?)?.max(WINDOW_MIN))
}

/// Turns with and without a rotation, in alternation: `[without, with]`.
fn take_turns(
    ground: &Ground<'_>,
    mut turn: impl FnMut(bool) -> anyhow::Result<Turn>,
) -> anyhow::Result<[Ratios; 2]> {
    let mut kinds = [Ratios::default(), Ratios::default()];
    for round in 0..ground.rounds {
        // Neither always follows the other.
        let first = round % 2 == 0;
        for rotates in [first, !first] {
            kinds[usize::from(rotates)].add(turn(rotates)?);
        }
    }
    Ok(kinds)
}

fn turn(
    bed: &Bed,
    window: Duration,
    rotates: bool,
    load: impl Fn(&Plan) -> anyhow::Result<Sample> + Sync,
) -> anyhow::Result<Turn> {
    let plan = plan(bed, window);
    let run = |what: &str| without_failures(load(&plan)?, what);
    let before = run("before a rotation")?;
    let (during, rotations) = std::thread::scope(|scope| {
        let rotations = scope.spawn(|| {
            sleep(plan.warm_up);
            if rotates { rotate_for(bed, window) } else { Ok(Vec::new()) }
        });
        let during = run("during a rotation");
        let rotations = rotations.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((during?, rotations?))
    })?;
    Ok(Turn { before, during, after: run("after a rotation")?, rotations })
}

/// Runs rotations, one after the other, until `window` has passed; the last is run to its end.
fn rotate_for(bed: &Bed, window: Duration) -> anyhow::Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut taken = Vec::new();
    while begun.elapsed() < window {
        taken.push(rotate(bed.rotation()?)?);
    }
    Ok(taken)
}

/// Runs a rotation to its end; gives how long it took.
fn rotate(mut command: Command) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let output = command.output().context("running keyway rotate")?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the rotation did not end well ({}): {}", output.status, said());
    Ok(begun.elapsed())
}

impl Ratios {
    fn add(&mut self, turn: Turn) {
        let beside = |of: fn(&Sample) -> f64| f64::midpoint(of(&turn.before), of(&turn.after));
        self.rate.push(rate(&turn.during) / beside(rate));
        self.p99.push(p99_us(&turn.during) / beside(p99_us));
        self.before_us.push(p99_us(&turn.before));
        self.during_us.push(p99_us(&turn.during));
        self.rotation_s.extend(turn.rotations.iter().map(Duration::as_secs_f64));
    }
}

fn row(what: &str, ratios: &Ratios) -> Vec<Cell> {
    vec![
        text(what),
        text(ratios.rate.len().to_string()),
        text(ratios.rotation_s.len().to_string()),
        cell(Spread::of(&ratios.rate), 3),
        cell(Spread::of(&ratios.p99), 2),
        cell(Spread::of(&ratios.before_us), 0),
        cell(Spread::of(&ratios.during_us), 0),
        cell(Spread::of(&ratios.rotation_s), 2),
    ]
}

fn noise(control: &Ratios) -> String {
    let (Some(rate), Some(p99)) = (Spread::of(&control.rate), Spread::of(&control.p99)) else {
        return String::new();
    };
    format!(
        "without a rotation: throughput {:.3} ({:.3} to {:.3}), p99 {:.2} ({:.2} to {:.2}); no request failed",
        rate.median, rate.low, rate.high, p99.median, p99.low, p99.high
    )
}
