//! How a rotation is shown while it goes on: a bar on a terminal, a line for each change elsewhere.

use crate::error::Failure;
use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use keyway_protocol::v1::Rotation;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(120);

/// What was shown last.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    phase: String,
    last_line: String,
}

impl Progress {
    /// `quiet`: something else prints the changes.
    pub(super) fn new(quiet: bool) -> Self {
        let bar = (!quiet && io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style =
                ProgressStyle::with_template("{spinner} {prefix:>8} [{bar:30}] {pos}/{len}  {wide_msg}");
            bar.set_style(style.expect("the template is a constant that parses").progress_chars("=> "));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, quiet, phase: String::new(), last_line: String::new() }
    }

    /// Shows where a rotation stands.
    pub(super) fn show(&mut self, rotation: &Rotation) -> Result<(), Failure> {
        let (done, total) = count(rotation);
        let line = line(rotation);
        let Some(bar) = &self.bar else {
            if self.quiet || line == self.last_line {
                return Ok(());
            }
            self.last_line.clone_from(&line);
            return output::line(&line);
        };
        if rotation.phase != self.phase {
            // The finished phase stays above the bar.
            if !self.last_line.is_empty() {
                bar.println(&self.last_line);
            }
            self.phase.clone_from(&rotation.phase);
        }
        self.last_line.clone_from(&line);
        bar.set_prefix(rotation.phase.clone());
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(rotation.detail.clone());
        if rotation.ended_ms > 0 {
            bar.finish_and_clear();
            return output::line(&line);
        }
        Ok(())
    }

    /// Shows something that is not the rotation's.
    pub(super) fn note(&mut self, text: &str) -> Result<(), Failure> {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.quiet || self.last_line == text => {}
            None => {
                text.clone_into(&mut self.last_line);
                return output::line(text);
            }
        }
        Ok(())
    }
}

/// What is counted in this phase: data keys where they are rewrapped, members elsewhere.
fn count(rotation: &Rotation) -> (u64, u64) {
    if rotation.phase == "rewrap" {
        (rotation.deks_rewrapped, rotation.deks_total)
    } else {
        (u64::from(rotation.members_applied), u64::from(rotation.members_total))
    }
}

fn line(rotation: &Rotation) -> String {
    format!(
        "{:<8} v{} to v{}  members {}/{}  rewrapped {}/{}  {}",
        rotation.phase,
        rotation.from_version,
        rotation.to_version,
        rotation.members_applied,
        rotation.members_total,
        rotation.deks_rewrapped,
        rotation.deks_total,
        rotation.detail
    )
    .trim_end()
    .to_owned()
}
