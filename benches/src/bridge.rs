//! The bridge under load: DEKs, key backends, push, rotations, rewrap.
//!
//! ```text
//! bed (certificates, configuration, process) ─┬─► calls, deks ─────► DEKs issued and opened
//!                                             ├─► members, rotation ─► push and phases
//!                                             └─► rewrap
//! backends ─► keyway-bench-backend (wraps and unwraps alone)
//! ```
//! The bridge has one core and the harness, a single thread, another one: neither can hide what it costs behind the other.

mod audit;
mod backends;
mod bed;
mod calls;
mod deks;
mod members;
mod metrics;
mod rewrap;
mod rotation;

pub use backends::{BACKEND_CALLERS, Rates};

use crate::section::{Cell, Section, Spread};
use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::path::PathBuf;

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds of each figure; at least one.
    pub rounds: usize,
    /// Short rounds and smaller fleets and catalogs.
    pub short: bool,
    /// Parts whose name contains one of these; all if empty. The parts are `deks`, `backends`, `rotation` and `rewrap`.
    pub only: Vec<String>,
    /// A directory for catalogs and keystores. Its disk's fsync is part of what is measured: no tmpfs.
    pub dir: PathBuf,
}

/// A part: its name and how it is measured.
type Part = (&'static str, fn(&Lab) -> anyhow::Result<Section>);

const PARTS: [Part; 4] = [
    ("bridge-deks", deks::measure),
    ("bridge-backends", backends::measure),
    ("bridge-rotation", rotation::measure),
    ("bridge-rewrap", rewrap::measure),
];

/// Measures the parts that are asked for, one after the other.
///
/// # Errors
/// A program is missing or fails; with what it said.
pub fn measure(options: &Options) -> anyhow::Result<Vec<Section>> {
    std::fs::create_dir_all(&options.dir).with_context(|| format!("making {}", options.dir.display()))?;
    let lab = Lab::new(options)?;
    let asked = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part));
    PARTS
        .iter()
        .filter(|(name, _)| asked(name))
        .map(|(name, measure)| measure(&lab).with_context(|| format!("measuring {name}")))
        .collect()
}

/// Who runs where, and for how long.
#[derive(Debug)]
struct Lab {
    rounds: usize,
    short: bool,
    dir: PathBuf,
    /// Not pinned where there is only one core.
    bridge_core: Option<usize>,
    harness_core: Option<usize>,
}

impl Lab {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("reading which cores may be used")?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        let pins = match cores.as_slice() {
            [first, .., last] => Some((*first, *last)),
            _ => None,
        };
        Ok(Self {
            rounds: options.rounds.max(1),
            short: options.short,
            dir: options.dir.clone(),
            bridge_core: pins.map(|(first, _)| first),
            harness_core: pins.map(|(_, last)| last),
        })
    }

    /// Runs the harness's side: on this thread, on its core.
    fn run<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let before = sched_getaffinity(None)?;
        if let Some(core) = self.harness_core {
            let mut one = CpuSet::new();
            one.set(core);
            sched_setaffinity(None, &one).context("pinning the harness")?;
        }
        let outcome = runtime.block_on(work);
        sched_setaffinity(None, &before).context("unpinning the harness")?;
        outcome
    }

    fn where_bridge(&self) -> &'static str {
        if self.bridge_core.is_some() { "one core" } else { "all cores" }
    }

    fn where_harness(&self) -> &'static str {
        if self.harness_core.is_some() { "another core" } else { "the same core" }
    }
}

fn figure(value: Spread, digits: usize) -> Cell {
    Cell::Figure { value, digits }
}

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

fn count(value: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "what is counted here is far below 2^53")]
    let value = value as f64;
    value
}
