//! What is printed: results to standard output, everything else to standard error.

use keyway_benches::load::Sample;
use keyway_benches::report::Report;
use keyway_benches::section::Section;
use keyway_benches::{systems as known, table};
use serde::Serialize;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

/// What is going on.
pub(super) fn tell(text: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

pub(super) fn targets(report: &Report) -> anyhow::Result<()> {
    print(&report.summary())
}

pub(super) fn section(section: &Section) -> anyhow::Result<()> {
    print(&keyway_benches::report::section(section))
}

/// One line of a list.
#[derive(Serialize)]
struct Known {
    name: &'static str,
    encrypts: bool,
    version: Option<String>,
    missing: Option<String>,
}

/// What can be measured here.
pub(super) fn systems(as_json: bool) -> anyhow::Result<ExitCode> {
    let list: Vec<Known> = known::all()
        .iter()
        .map(|system| {
            let (version, missing) = match system.version() {
                Ok(version) => (Some(version), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            Known { name: system.name(), encrypts: system.seals(), version, missing }
        })
        .collect();
    if as_json {
        json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    for one in &list {
        let state = one.version.as_deref().or(one.missing.as_deref()).unwrap_or_default();
        let mark = if one.version.is_some() { ' ' } else { '✗' };
        print(&format!("{mark} {:<18} {}", one.name, state.lines().next().unwrap_or_default()))?;
    }
    let names: Vec<&str> = list.iter().map(|one| one.name).collect();
    let packages = known::missing_packages(&names)?;
    if !packages.is_empty() {
        print(&format!("\napt-get install --no-install-recommends {}", packages.join(" ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of the table.
pub(super) fn rows(as_json: bool) -> anyhow::Result<ExitCode> {
    let rows = table::rows();
    if as_json {
        let list: Vec<_> = rows
            .iter()
            .map(|row| serde_json::json!({ "name": row.name, "what": row.what, "systems": row.systems }))
            .collect();
        json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    for row in &rows {
        print(&format!("{:<18} {}", row.name, row.what))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One load's figures.
#[derive(Serialize)]
struct Figures {
    requests: u64,
    failures: u64,
    first_failure: Option<String>,
    seconds: f64,
    requests_per_s: f64,
    mb_per_s: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^53")]
pub(super) fn sample(sample: &Sample, as_json: bool) -> anyhow::Result<()> {
    let seconds = sample.elapsed.as_secs_f64();
    let micros = |percent: f64| sample.latency.value_at_percentile(percent) as f64 / 1e3;
    let figures = Figures {
        requests: sample.requests,
        failures: sample.failures,
        first_failure: sample.first_failure.clone(),
        seconds,
        requests_per_s: sample.requests as f64 / seconds,
        mb_per_s: sample.bytes as f64 / seconds / 1e6,
        p50_us: micros(50.0),
        p90_us: micros(90.0),
        p99_us: micros(99.0),
        p999_us: micros(99.9),
        max_us: sample.latency.max() as f64 / 1e3,
    };
    if as_json {
        return json(&figures);
    }
    print(&format!(
        "{} requests in {seconds:.2} s: {:.0} req/s, {:.1} MB/s\n\
         p50 {:.1} µs, p90 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, max {:.1} µs",
        figures.requests,
        figures.requests_per_s,
        figures.mb_per_s,
        figures.p50_us,
        figures.p90_us,
        figures.p99_us,
        figures.p999_us,
        figures.max_us
    ))?;
    if figures.failures > 0 {
        tell(&format!(
            "{} failed: {}",
            figures.failures,
            figures.first_failure.as_deref().unwrap_or("no reason given")
        ));
    }
    Ok(())
}
