//! A program under measurement: started on its core, watched while it starts, ended by its number.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const READY_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Ended when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program`, on `core` if one is given. Does not wait for anything.
    pub(super) fn spawn(
        program: &str,
        arguments: &[&str],
        dir: &Path,
        core: Option<usize>,
    ) -> anyhow::Result<Self> {
        let path = crate::systems::program(program)?;
        let log = dir.join(format!("{program}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let cores: Vec<usize> = core.into_iter().collect();
        let mut command = crate::machine::command(&cores, path);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child =
            command.spawn().with_context(|| format!("{program} does not start (is util-linux there?)"))?;
        Ok(Self { child, name: program.to_owned(), log })
    }

    /// Waits until `ready` is there and gives its JSON.
    pub(super) fn wait_for(&mut self, ready: &Path) -> anyhow::Result<serde_json::Value> {
        self.wait("ready", || {
            Ok(std::fs::read(ready).ok().and_then(|text| serde_json::from_slice(&text).ok()))
        })
    }

    /// Asks `look` until it finds something; tells what the program said if it ends instead.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.log());
            }
            if Instant::now() > deadline {
                bail!("{} is not {what} after {READY_MAX:?}: {}", self.name, self.log());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it has logged.
    pub(super) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
