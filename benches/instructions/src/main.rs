//! Instruction counts of the hot path, and whether they have grown: `benches/instructions/run.sh`.
//!
//! Times on a shared machine differ by more than most changes are worth; the number of instructions differs by less
//! than one percent. It is no time: it knows neither the kernel nor caches nor waiting. What it tells for sure is that a
//! change has put work on the path of a request, or taken some away.
//!
//! ```text
//! items (functions, one process each)  ─┐
//!                                       ├─► callgrind ─► counts ─► baseline.json
//! requests (the real proxy, sockets)   ─┘
//! ```
//! Valgrind emulates a CPU without AVX-512 and VAES, so AES takes another code path here than on a machine that has them:
//! counts of sealing are good for comparing with other such counts, not for reckoning times from them.
//!
//! Callgrind is used directly. gungraun (formerly iai-callgrind) was the other choice: its baselines are callgrind
//! profiles below `target/`, which nobody reads in a review, its runner has to be installed in the same version, and it
//! can't send requests to a server while it is counted.

mod baseline;
mod bridge;
mod callgrind;
mod conditions;
mod items;
mod pki;
mod process;
mod requests;
mod upstream;
mod wire;

use anyhow::{Context, ensure};
use baseline::{Baseline, Counts};
use clap::Parser;
use conditions::Conditions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Counts the instructions of the hot path and compares them with a baseline.
#[derive(Debug, Parser)]
#[command(name = "keyway-instructions")]
struct Arguments {
    /// The baseline.
    #[arg(long, value_name = "FILE", default_value = "benches/instructions/baseline.json")]
    baseline: PathBuf,
    /// Rewrites the baseline instead of comparing with it. With --only, what is left out keeps its count.
    #[arg(long)]
    save: bool,
    /// Only what has this in its name; may be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Counts this often and shows the spread; the median counts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Leaves the profiles in this directory, for callgrind_annotate.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// What this program runs under callgrind: one item.
    #[arg(long, hide = true)]
    item: Option<String>,
    /// What this program runs under valgrind: says which instructions the CPU has there.
    #[arg(long, hide = true)]
    features: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Standard error is the only place left to tell it.
            let _ = writeln!(std::io::stderr(), "keyway-instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing costs more than it may.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(name) = &arguments.item {
        items::run(name)?;
        return Ok(true);
    }
    let mut out = std::io::stdout();
    if arguments.features {
        writeln!(out, "{}", conditions::features().join(" "))?;
        return Ok(true);
    }
    ensure!(!cfg!(debug_assertions), "this is a debug build: use benches/instructions/run.sh");
    let conditions = Conditions::here()?;
    let baseline = Baseline::load(&arguments.baseline)?;
    if let Some(baseline) = baseline.as_ref().filter(|_| !arguments.save) {
        let differences = baseline.conditions.differences(&conditions);
        if !differences.is_empty() {
            writeln!(
                out,
                "not comparable: the baseline was made under other conditions, so nothing is compared"
            )?;
            for difference in differences {
                writeln!(out, "  {difference}")?;
            }
            return Ok(true);
        }
    }
    let counts = count(arguments)?;
    if arguments.save {
        let saved = Baseline::updated(baseline, conditions, counts, arguments.only.is_empty())?;
        saved.save(&arguments.baseline)?;
        writeln!(out, "saved: {}", arguments.baseline.display())?;
        return Ok(true);
    }
    let baseline = baseline.with_context(|| {
        format!("{} is not there: make it with --save, and commit it", arguments.baseline.display())
    })?;
    baseline.compare(&counts, arguments.only.is_empty(), &mut out)
}

fn count(arguments: &Arguments) -> anyhow::Result<Counts> {
    let wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|text| name.contains(text));
    let temporary = tempfile::tempdir().context("making a directory")?;
    let dir = arguments.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut rounds = Vec::new();
    for _ in 0..arguments.repeat {
        let mut counts = items::count_all(dir, wanted)?;
        counts.append(&mut requests::count_all(dir, wanted)?);
        ensure!(!counts.is_empty(), "nothing has {:?} in its name", arguments.only);
        rounds.push(counts);
    }
    if arguments.repeat > 1 {
        baseline::print_spread(&rounds, &mut std::io::stdout())?;
    }
    Ok(baseline::medians(&rounds))
}
