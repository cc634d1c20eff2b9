//! The table of workloads, measured.
//!
//! ```text
//! rows (what is asked, of whom) ─► bed (systems that run) ─► turns ─┬─► figures (tables, plots)
//!                                                                   └─► targets
//! ```
//! A new protocol is one more [`Row`] in [`rows`].

mod bed;
pub(crate) mod figures;
mod quoted;
mod rows;
mod scaling;
mod targets;
pub(crate) mod turn;

pub use bed::Bed;
pub use rows::{Group, Part, Row, Tls, Unit, rows};

use crate::machine::Noise;
use crate::pairs::{Rules, Turns, interleave};
use crate::section::Section;
use crate::systems;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rows whose name contains one of these; all if empty.
    pub only: Vec<String>,
    /// Systems with these names; all of each row if empty.
    pub systems: Vec<String>,
    /// The rows of the short form only.
    pub is_smoke: bool,
    /// Rounds of each row.
    pub rounds: usize,
    /// Before each measurement.
    pub warm_up: Duration,
    /// Of each turn.
    pub measure: Duration,
    /// For configurations and logs of what runs.
    pub dir: PathBuf,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The sections, in the order in which they are read.
    pub sections: Vec<Section>,
    /// All rounds, by row.
    pub rounds: BTreeMap<String, Turns>,
    /// Versions of the systems that were measured.
    pub versions: BTreeMap<String, String>,
    /// What the watch over the machine says.
    pub machine: BTreeMap<String, String>,
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|part| row.name.contains(part.as_str()));
        named && (row.is_smoke || !self.is_smoke)
    }

    fn systems<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'static str> + 'a {
        row.systems
            .iter()
            .copied()
            .filter(|name| !self.is_smoke || rows::SMOKE.contains(name))
            .filter(|name| self.systems.is_empty() || self.systems.iter().any(|wanted| wanted == name))
    }
}

/// Measures the rows that are asked for. `tell` hears what is going on.
///
/// # Errors
/// No row has such a name, or the machinery itself fails. A system that fails is left out, and the report says why.
pub fn measure(options: &Options, mut tell: impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let wanted: Vec<Row> = rows().into_iter().filter(|row| options.wants(row)).collect();
    let names: Vec<&str> = rows().iter().map(|row| row.name).collect();
    anyhow::ensure!(!wanted.is_empty(), "no row has such a name; there are: {}", names.join(", "));
    for system in &options.systems {
        systems::by_name(system)?;
    }
    let mut bed = Bed::new(options.dir.clone())?;
    let mut noise = Noise::watch(&bed.cores());
    let mut outcome = Outcome::default();
    for (index, row) in wanted.iter().enumerate() {
        tell(&format!("[{}/{}] {}: {}", index + 1, wanted.len(), row.name, row.what));
        let compared: Vec<&str> = options.systems(row).collect();
        let turns = measure_row(options, row, &compared, &mut bed, &mut noise, &mut outcome.versions);
        for (system, why) in &turns.failed {
            tell(&format!("  {system} is left out: {why}"));
        }
        outcome.rounds.insert(row.name.to_owned(), turns);
    }
    let judgement = noise.judge();
    outcome.machine.insert("calibration, spread over median".to_owned(), format!("{:.3}", judgement.spread));
    outcome
        .machine
        .insert("time stolen by the hypervisor".to_owned(), format!("{:.2} %", judgement.steal * 100.0));
    if let Some(why) = judgement.too_noisy {
        outcome.machine.insert("noise over the whole run".to_owned(), why);
    }
    let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    outcome.machine.insert("core of what is measured".to_owned(), list(bed.system_cores()));
    let load_core = bed.load_core().map_or_else(|| "the same".to_owned(), |core| core.to_string());
    outcome.machine.insert("core of generator and upstream".to_owned(), load_core);
    outcome.sections = figures::sections(&wanted, &outcome.rounds);
    // A run of some rows is not asked about the others.
    let is_partial = options.is_smoke || !options.only.is_empty();
    targets::add(&mut outcome.sections, &outcome.rounds, is_partial);
    if !options.is_smoke {
        outcome.sections.extend(scaling::section(options, &mut bed, &mut noise, &outcome.rounds)?);
    }
    if !is_partial {
        outcome.sections.push(quoted::section());
    }
    Ok(outcome)
}

fn measure_row(
    options: &Options,
    row: &Row,
    systems: &[&str],
    bed: &mut Bed,
    noise: &mut Noise,
    versions: &mut BTreeMap<String, String>,
) -> Turns {
    // All run before the first turn: starting is not what is measured.
    let mut failed = BTreeMap::new();
    let mut ready = Vec::new();
    for &system in systems {
        let started = bed.start(system, row.tls).and_then(|version| {
            versions.insert(system.to_owned(), version);
            bed.seed(system, row)
        });
        match started {
            Ok(()) => ready.push(system),
            Err(error) => {
                failed.insert(system.to_owned(), format!("{error:#}"));
            }
        }
    }
    let mut turns = interleave(
        &ready,
        Rules::rounds(options.rounds),
        || noise.calibrate().iter().map(|one| one.nanos).fold(0.0, f64::max),
        |system| bed.turn(ready[system], row, options.warm_up, options.measure),
    );
    turns.failed.extend(failed);
    turns
}
