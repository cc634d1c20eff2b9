//! Memory, start, rotation under load, and how cost grows.
//!
//! Each part has its own bridge and sidecar (`bed`), so that what one leaves behind is in no other's figures.

mod bed;
mod cache;
mod connections;
mod deks;
mod figures;
mod memory;
mod rotation;
mod sizes;
mod start;
mod streams;
mod wire;

use crate::section::Section;
use anyhow::{Context, ensure};
use bed::{Bed, Cores};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What to measure, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds of each figure; at least one.
    pub rounds: usize,
    /// Fewer points and shorter windows: for a look, not for a conclusion.
    pub short: bool,
    /// Names of parts (see [`PARTS`]); all if there are none.
    pub only: Vec<String>,
    /// The core of the sidecar.
    pub proxy_core: Option<usize>,
    /// The core of the load generator, which the upstream and the bridge share.
    pub load_core: Option<usize>,
    /// Where directories are made; they are removed again.
    pub dir: PathBuf,
}

type Part = fn(&Ground<'_>) -> anyhow::Result<Section>;

const ALL: [(&str, Part); 8] = [
    ("memory", memory::measure),
    ("streams", streams::measure),
    ("start", start::measure),
    ("rotation", rotation::measure),
    ("swap", rotation::measure_swap),
    ("sizes", sizes::measure),
    ("connections", connections::measure),
    ("deks", deks::measure),
];

/// The names that [`Options::only`] takes.
pub const PARTS: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut at = 0;
    while at < ALL.len() {
        names[at] = ALL[at].0;
        at += 1;
    }
    names
};

/// What all parts stand on.
struct Ground<'a> {
    rounds: usize,
    short: bool,
    cores: Cores,
    upstream: SocketAddr,
    dir: &'a Path,
}

impl Ground<'_> {
    fn bed(&self) -> anyhow::Result<Bed> {
        Bed::start(self.dir, self.upstream, self.cores)
    }

    /// `short` if it is to be short.
    fn pick<T>(&self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }
}

/// Measures the parts that `options` names, in their order.
///
/// # Errors
/// A name is unknown, a program is missing, or a part could not be measured; with its name.
pub fn measure(options: &Options) -> anyhow::Result<Vec<Section>> {
    ensure!(options.rounds > 0, "no rounds: ask for one at least");
    for name in &options.only {
        ensure!(PARTS.contains(&name.as_str()), "{name} is no part of this: there are {}", PARTS.join(", "));
    }
    let cores = Cores { proxy: options.proxy_core, load: options.load_core };
    let ground = Ground {
        rounds: options.rounds,
        short: options.short,
        cores,
        upstream: bed::upstream(cores.load)?,
        dir: &options.dir,
    };
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    ALL.iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, part)| part(&ground).with_context(|| format!("measuring {name}")))
        .collect()
}
