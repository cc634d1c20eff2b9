//! Key backends alone: wraps and unwraps per second, in a process of its own that has the token's configuration.

use super::bed::{Keystore, backend, softhsm};
use super::{Lab, figure, text};
use crate::section::{Section, Spread, Table};
use crate::systems::program;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::process::Command;

/// Calls under way at the same time; more than any number of sessions here.
pub const BACKEND_CALLERS: usize = 16;
const SESSIONS: [usize; 3] = [1, 2, 4];

/// What the process measures.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rates {
    /// Wraps per second, each opened again before it counts.
    pub wraps_per_s: f64,
    /// Unwraps per second.
    pub unwraps_per_s: f64,
}

pub(super) fn measure(lab: &Lab) -> anyhow::Result<Section> {
    let mut keystores = vec![Keystore::Software];
    if softhsm().is_ok() {
        keystores.extend(SESSIONS.map(Keystore::SoftHsm));
    }
    let mut rows = Vec::new();
    for keystore in keystores {
        let mut rounds = Vec::with_capacity(lab.rounds);
        for _ in 0..lab.rounds {
            rounds.push(round(lab, keystore)?);
        }
        let spread = |of: fn(&Rates) -> f64| {
            Spread::of(&rounds.iter().map(of).collect::<Vec<_>>()).context("no round was run")
        };
        rows.push(vec![
            text(keystore.label()),
            figure(spread(|rates| rates.wraps_per_s)?, 0),
            figure(spread(|rates| rates.unwraps_per_s)?, 0),
        ]);
    }
    Ok(Section {
        title: "Bridge: key backends".to_owned(),
        method: format!(
            "The bridge's own backends in a process of their own, on all cores, {BACKEND_CALLERS} calls under way. A wrap is opened again and \
             compared before it is given out. SoftHSM is a library in that process; what a network HSM adds is its round trip, and \
             sessions are what hides that. SoftHSM's own locks decide what more sessions bring here."
        ),
        tables: vec![Table {
            title: "Operations per second".to_owned(),
            columns: ["keystore", "wraps per second", "unwraps per second"].map(str::to_owned).to_vec(),
            rows,
        }],
        ..Section::default()
    })
}

fn round(lab: &Lab, keystore: Keystore) -> anyhow::Result<Rates> {
    let dir = tempfile::tempdir_in(&lab.dir).context("making a directory")?;
    let config = serde_json::to_string(&backend(dir.path(), keystore)?)?;
    let seconds = if lab.short { "1" } else { "4" };
    let measured = Command::new(program("keyway-bench-backend")?)
        .args([&config, seconds])
        .env("SOFTHSM2_CONF", dir.path().join("softhsm2.conf"))
        .output()
        .context("keyway-bench-backend does not run")?;
    ensure!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    serde_json::from_slice(&measured.stdout).context("keyway-bench-backend prints JSON")
}
