//! Our programs as processes.

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No start and no end takes longer, even under valgrind on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A running program that logs into a file; killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{} does not start", command.get_program().display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks until there is an answer, as long as the process lives.
    pub(crate) fn wait_for<T>(&mut self, what: &str, ask: impl Fn() -> Option<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before there was {what}:\n{}", self.log());
            }
            ensure!(began.elapsed() < PATIENCE, "waited too long for {what}:\n{}", self.log());
            thread::sleep(POLL);
        }
    }

    /// SIGTERM, and waits until it has ended well.
    pub(crate) fn terminate(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        kill_process(pid, Signal::TERM).context("stopping it")?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended with {status}:\n{}", self.log());
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `name` that was built beside this one.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program")?.with_file_name(name);
    ensure!(path.exists(), "{} is missing: use benches/instructions/run.sh, which builds it", path.display());
    Ok(path)
}

/// A ready file of ours, once it is there.
pub(crate) fn ready(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
