//! A program that runs beside the harness: started, watched, ended.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A bridge has to be up by then. Opening a token and its trials take most of it.
const READY: Duration = Duration::from_secs(30);
/// And down by then.
const STOP: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// USER_HZ: what the kernel counts `utime` and `stime` in, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Ended when dropped.
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it and waits for `ready` to appear.
    pub(super) fn start(mut command: Command, log: &Path, ready: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("{name} does not start"))?;
        let mut process = Self { child, log: log.to_owned() };
        let deadline = Instant::now() + READY;
        while !ready.exists() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended ({status}): {}", process.log());
            }
            if Instant::now() > deadline {
                bail!("{name} is not ready after {READY:?}: {}", process.log());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(process)
    }

    /// The end of what it has logged.
    pub(super) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let tail = text.len().saturating_sub(2000);
        String::from_utf8_lossy(&text[tail..]).into_owned()
    }

    /// CPU time of all its threads so far, ended ones included, in seconds. Counted in hundredths.
    pub(super) fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name before the parenthesis may hold anything; utime and stime are fields 14 and 15 (proc(5)).
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let mut times = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let (user, system) = (times.next().context("utime")??, times.next().context("stime")??);
        Ok((user + system) / TICKS_PER_SECOND)
    }

    /// Resident memory, in MiB: now, and the most so far.
    pub(super) fn rss_mib(&self) -> anyhow::Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find(|line| line.starts_with(name)).context("/proc/PID/status")?;
            let kib: f64 = line.split_whitespace().nth(1).context("a field is empty")?.parse()?;
            Ok(kib / 1024.0)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP;
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
