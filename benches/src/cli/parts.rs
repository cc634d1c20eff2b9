//! The commands that make reports.

use super::output::{self, tell};
use super::{OutArguments, PartArguments, SmokeArguments, TableArguments};
use anyhow::Context;
use keyway_benches::report::Report;
use keyway_benches::section::Section;
use keyway_benches::{bridge, growth, machine, table};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// Before each turn of the table: pools are filled, and congestion windows open.
const WARM_UP: Duration = Duration::from_millis(300);
/// Five rows of three systems in less than two minutes, with all spare rounds.
const SMOKE_ROUNDS: usize = 5;
const SMOKE_WARM_UP: Duration = Duration::from_millis(200);
const SMOKE_TURN: Duration = Duration::from_millis(500);
/// Of growth and bridge, in a full run.
const PART_ROUNDS: usize = 3;

pub(super) fn table(arguments: &TableArguments) -> anyhow::Result<ExitCode> {
    let mut report = begin()?;
    add_table(&mut report, &table_options(arguments))?;
    finish(&report, &arguments.out)
}

pub(super) fn smoke(arguments: &SmokeArguments) -> anyhow::Result<ExitCode> {
    let mut report = begin()?;
    add_table(&mut report, &|dir| table::Options {
        only: Vec::new(),
        systems: Vec::new(),
        is_smoke: true,
        rounds: SMOKE_ROUNDS,
        warm_up: SMOKE_WARM_UP,
        measure: SMOKE_TURN,
        dir: dir.to_owned(),
    })?;
    finish(&report, &arguments.out)
}

pub(super) fn growth(arguments: &PartArguments) -> anyhow::Result<ExitCode> {
    let mut report = begin()?;
    report.sections = growth_sections(&arguments.only, usize::from(arguments.rounds), arguments.short)?;
    finish(&report, &arguments.out)
}

pub(super) fn bridge(arguments: &PartArguments) -> anyhow::Result<ExitCode> {
    let mut report = begin()?;
    report.sections =
        bridge_sections(&arguments.only, usize::from(arguments.rounds), arguments.short, &arguments.out.out)?;
    finish(&report, &arguments.out)
}

/// Measures one part of a full run.
type Measure<'a> = &'a dyn Fn() -> anyhow::Result<Vec<Section>>;

/// All parts. What a part found is kept when the next one fails.
pub(super) fn full(arguments: &TableArguments) -> anyhow::Result<ExitCode> {
    let mut report = begin()?;
    let mut failures = Vec::new();
    if let Err(error) = add_table(&mut report, &table_options(arguments)) {
        failures.push(format!("table: {error:#}"));
    }
    report.save(&arguments.out.out)?;
    let parts: [(&str, Measure<'_>); 2] = [
        ("growth", &|| growth_sections(&[], PART_ROUNDS, false)),
        ("bridge", &|| bridge_sections(&[], PART_ROUNDS, false, &arguments.out.out)),
    ];
    for (name, measure) in parts {
        match measure() {
            Ok(sections) => report.sections.extend(sections),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
        report.save(&arguments.out.out)?;
    }
    let code = finish(&report, &arguments.out)?;
    anyhow::ensure!(
        failures.is_empty(),
        "the report lacks what could not be measured: {}. Once that is mended, run the part alone with --out \
         ANOTHER-DIR, and put both together: keyway-bench report {} ANOTHER-DIR",
        failures.join("; "),
        arguments.out.out.display()
    );
    Ok(code)
}

pub(super) fn merge(runs: &[std::path::PathBuf], out: &OutArguments) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    for run in runs {
        report.merge(Report::load(run)?).with_context(|| format!("taking in {}", run.display()))?;
    }
    finish(&report, out)
}

fn table_options(arguments: &TableArguments) -> impl Fn(&Path) -> table::Options + '_ {
    |dir| table::Options {
        only: arguments.only.clone(),
        systems: arguments.systems.clone(),
        is_smoke: false,
        rounds: usize::from(arguments.rounds),
        warm_up: WARM_UP,
        measure: arguments.seconds,
        dir: dir.to_owned(),
    }
}

/// Checks the build, leaves the host's network, and describes the machine. Before any other thread is started.
fn begin() -> anyhow::Result<Report> {
    anyhow::ensure!(
        !cfg!(debug_assertions),
        "this is a debug build, its figures mean nothing: cargo build --release -p keyway-benches -p keyway -p \
         keyway-bridge -p keyway-proxy --bins"
    );
    let isolation = machine::isolate();
    for note in &isolation.notes {
        tell(&format!("note: {note}"));
    }
    let described = machine::describe();
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let memory_gib = described.memory_bytes as f64 / f64::from(1 << 30);
    let mut machine = BTreeMap::from([
        ("cpu".to_owned(), described.cpu),
        ("cpu flags that matter".to_owned(), described.flags.join(" ")),
        ("cores".to_owned(), described.cores.to_string()),
        ("kernel".to_owned(), described.kernel),
        ("memory".to_owned(), format!("{memory_gib:.1} GiB")),
        ("congestion control".to_owned(), described.congestion_control),
        ("own network namespace".to_owned(), if isolation.is_private { "yes" } else { "no" }.to_owned()),
    ]);
    if !isolation.notes.is_empty() {
        machine.insert("could not be done".to_owned(), isolation.notes.join("; "));
    }
    // The directory of the program is nobody's business, and differs from machine to machine.
    let words: Vec<String> = std::env::args().skip(1).collect();
    Ok(Report {
        command: format!("keyway-bench {}", words.join(" ")),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine,
        ..Report::default()
    })
}

fn add_table(report: &mut Report, options: &dyn Fn(&Path) -> table::Options) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let outcome = table::measure(&options(dir.path()), tell)?;
    report.sections.extend(outcome.sections);
    report.rounds.extend(outcome.rounds);
    report.versions.extend(outcome.versions);
    report.machine.extend(outcome.machine);
    Ok(())
}

fn growth_sections(only: &[String], rounds: usize, short: bool) -> anyhow::Result<Vec<Section>> {
    tell("growth: memory, start, rotation, sizes, connections, DEKs");
    let dir = tempfile::tempdir()?;
    let cores = machine::available_cores();
    let (proxy_core, load_core) = match cores.as_slice() {
        [first, .., last] => (Some(*first), Some(*last)),
        _ => (None, None),
    };
    growth::measure(&growth::Options {
        rounds,
        short,
        only: only.to_vec(),
        proxy_core,
        load_core,
        dir: dir.path().to_owned(),
    })
}

fn bridge_sections(only: &[String], rounds: usize, short: bool, out: &Path) -> anyhow::Result<Vec<Section>> {
    tell("bridge: DEKs, backends, rotation, rewrap");
    // Beside the report rather than in /tmp: that may be memory, and the bridge's catalog waits for a disk.
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let dir = tempfile::tempdir_in(out)?;
    bridge::measure(&bridge::Options { rounds, short, only: only.to_vec(), dir: dir.path().to_owned() })
}

fn finish(report: &Report, out: &OutArguments) -> anyhow::Result<ExitCode> {
    report.save(&out.out)?;
    if out.json {
        output::json(report)?;
    } else {
        output::targets(report)?;
    }
    tell(&format!("report: {}", out.out.join("report.md").display()));
    let missed =
        report.targets().any(|(_, target)| target.verdict == keyway_benches::section::Verdict::NotMet);
    Ok(if out.check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
