//! What a second worker adds.

use super::{Bed, Options, Row, figures, rows};
use crate::machine::{Noise, available_cores};
use crate::pairs::{Rules, Turns, interleave};
use crate::section::{Bound, Cell, Section, Spread, Table, Target, Verdict};
use std::collections::BTreeMap;

const SYSTEM: &str = "keyway";
const WHAT: &str = "sealed 1 KiB GET: throughput of 2 workers / 1 worker";
const AT_LEAST: f64 = 1.8;
/// The row that is run with one and with two workers.
const ROW: &str = "get-1k-64";
/// Two for the workers, one for generator and upstream, one for everything else.
const CORES_MIN: usize = 4;

/// The section, if its row was asked for. With fewer than four cores the load could not be kept apart from two workers:
/// then it is computed from CPU time, and not judged.
pub(super) fn section(
    options: &Options,
    bed: &mut Bed,
    noise: &mut Noise,
    rounds: &BTreeMap<String, Turns>,
) -> anyhow::Result<Option<Section>> {
    let Some(row) = rows().into_iter().find(|row| row.name == ROW && options.wants(row)) else {
        return Ok(None);
    };
    if !options.systems(&row).any(|system| system == SYSTEM) {
        return Ok(None);
    }
    let cores = available_cores();
    let section = if cores.len() >= CORES_MIN {
        measured(options, &row, bed, noise, &cores)?
    } else if let Some(turns) = rounds.get(ROW) {
        computed(turns, cores.len())
    } else {
        return Ok(None);
    };
    Ok(Some(Section { title: "Scaling".to_owned(), ..section }))
}

fn measured(
    options: &Options,
    row: &Row,
    bed: &mut Bed,
    noise: &mut Noise,
    cores: &[usize],
) -> anyhow::Result<Section> {
    let names = ["1 worker", "2 workers"];
    // A system has its cores for life, so it is started anew for each turn.
    let turns = interleave(
        &names,
        Rules::rounds(options.rounds),
        || noise.calibrate().iter().map(|one| one.nanos).fold(0.0, f64::max),
        |workers| {
            bed.move_to(cores[..=workers].to_vec());
            bed.start(SYSTEM, row.tls)?;
            bed.seed(SYSTEM, row)?;
            bed.turn(SYSTEM, row, options.warm_up, options.measure)
        },
    );
    bed.move_to(vec![cores[0]]);
    let metric = row.parts.first().map(figures::throughput).unwrap_or_default();
    let figure = turns.ratio(names[1], names[0], &metric);
    let why = turns.failed.values().next().cloned().unwrap_or_default();
    let rows = names.iter().map(|name| {
        let figure = |metric: &str, digits| figures::cell(turns.figure(name, metric), digits);
        vec![
            Cell::Text((*name).to_owned()),
            figure(&metric, 0),
            figure("p99_us", 1),
            figure("busy_percent", 0),
        ]
    });
    Ok(Section {
        method: "Generator and upstream have a core of their own. If “busy” is far below 100 % for each worker, that \
                 one core was the limit."
            .to_owned(),
        tables: vec![Table {
            title: row.what.to_owned(),
            columns: ["workers", "req/s", "p99 µs", "busy %"].map(str::to_owned).to_vec(),
            rows: rows.collect(),
        }],
        targets: vec![turns.judge(WHAT, Bound::AtLeast(AT_LEAST), figure, &why)],
        ..Section::default()
    })
}

fn computed(turns: &Turns, cores: usize) -> Section {
    let capacity = turns.figure(SYSTEM, "cpu_us_per_request").map(|cpu| Spread {
        median: 1e6 / cpu.median,
        low: 1e6 / cpu.high,
        high: 1e6 / cpu.low,
    });
    let twice =
        capacity.map(|one| Spread { median: one.median * 2.0, low: one.low * 2.0, high: one.high * 2.0 });
    let row = |name: &str, figure| vec![Cell::Text(name.to_owned()), figures::cell(figure, 0)];
    Section {
        method: format!(
            "With {cores} cores the load can't be kept apart from two workers. This is computed: what a core can do \
             at the CPU time that one request costs. Twice that is the most that two can do; whether they do is only \
             told by a machine of {CORES_MIN} cores."
        ),
        tables: vec![Table {
            title: "Capacity by CPU time".to_owned(),
            columns: vec!["workers".to_owned(), "req/s".to_owned()],
            rows: vec![row("1 worker", capacity), row("2 workers, at most", twice)],
        }],
        targets: vec![Target {
            what: WHAT.to_owned(),
            bound: Bound::AtLeast(AT_LEAST),
            figure: None,
            verdict: Verdict::NotMeasured,
            why: format!(
                "needs {CORES_MIN} cores, there are {cores}; see the section for what CPU time says"
            ),
        }],
        ..Section::default()
    }
}
