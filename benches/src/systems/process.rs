//! Programs that are started for a measurement, and are gone after it.

use crate::machine;
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take until it serves.
const START_MAX: Duration = Duration::from_secs(20);
/// From SIGTERM to SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
/// Attempts to find a port that no one takes before the program does.
const PORTS_MAX: usize = 5;
/// Of a log, in an error message.
const LOG_TAIL: usize = 4000;

/// A program with all the processes that it has started, in a process group of its own; all stopped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    logs: Vec<PathBuf>,
}

/// Where a program is, and whether something answers there.
pub(super) type Serving = (Process, SocketAddr);

impl Process {
    /// Starts `program` on `cores` with what `configure` adds to its command line. What it prints goes to `NAME.log` in
    /// `dir`.
    ///
    /// # Errors
    /// There is no such program.
    pub fn start(
        name: &str,
        dir: &Path,
        cores: &[usize],
        program: impl AsRef<OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("writing {}", log.display()))?;
        let mut command = machine::command(cores, program);
        configure(&mut command);
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        Ok(Self { name: name.to_owned(), child, group, logs: vec![log] })
    }

    /// Another file that it logs to.
    #[must_use]
    pub fn with_log(mut self, log: PathBuf) -> Self {
        self.logs.push(log);
        self
    }

    /// Its own id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The ids of all processes of its group, its own first.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        members(self.id())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |path: &PathBuf| fs::read(path).unwrap_or_default();
        let text: Vec<u8> = self.logs.iter().flat_map(read).collect();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until `ready` gives something.
    ///
    /// # Errors
    /// It ended, or took too long; with its log.
    pub fn wait_until<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = ready() {
                return Ok(found);
            }
            let problem = match self.child.try_wait()? {
                Some(status) => format!("ended ({status})"),
                None if begun.elapsed() > START_MAX => format!("is not ready after {START_MAX:?}"),
                None => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            let log = self.log();
            let tail = log.floor_char_boundary(log.len().saturating_sub(LOG_TAIL));
            anyhow::bail!("{} {problem}; its log:\n{}", self.name, &log[tail..]);
        }
    }

    /// Waits until someone takes connections at `address`.
    ///
    /// # Errors
    /// As [`Process::wait_until`].
    pub fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        self.wait_until(|| TcpStream::connect(address).ok().map(drop))
    }

    /// Waits until it has started so many others.
    ///
    /// # Errors
    /// As [`Process::wait_until`].
    pub(super) fn wait_for_children(&mut self, count: usize) -> anyhow::Result<()> {
        let group = self.id();
        self.wait_until(|| (members(group).len() > count).then_some(()))
    }

    /// SIGTERM to the program itself, and waits for all its processes to end; SIGKILL to those that don't.
    pub fn stop(&mut self) {
        // The program stops its own workers, as it knows how.
        let _ = kill_process(self.group, Signal::TERM);
        if !self.ends_within(STOP_MAX) {
            self.kill();
        }
    }

    /// SIGKILL to all its processes, as a power cut would.
    pub fn kill(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        self.ends_within(STOP_MAX);
    }

    /// Waits for the program and for all that it has started.
    fn ends_within(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            // Members that have ended don't count, so the last thing left to do is to collect our own child.
            if self.pids().is_empty() {
                let _ = self.child.wait();
                return true;
            }
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Until it was waited for, its id is no one else's; and a group's is not while the group has a process.
        if matches!(self.child.try_wait(), Ok(None)) || !self.pids().is_empty() {
            self.stop();
        }
    }
}

/// Starts a program that can't choose a port by itself: on one that is free now, or on another if that is taken meanwhile.
pub(super) fn serve(start: impl Fn(SocketAddr) -> anyhow::Result<Process>) -> anyhow::Result<Serving> {
    let mut attempts = 0;
    loop {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        attempts += 1;
        let mut process = start(address)?;
        match process.wait_for(address) {
            Ok(()) => return Ok((process, address)),
            Err(error) if attempts == PORTS_MAX || !process.log().contains("in use") => return Err(error),
            Err(_) => {}
        }
    }
}

/// The file of a program, or an absolute path that exists.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are in sbin, which is not in everyone's path.
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// As [`find`], or which package has it.
pub(super) fn installed((program, package): (&str, &str)) -> anyhow::Result<PathBuf> {
    find(program).with_context(|| {
        format!("{program} is not installed: apt-get install --no-install-recommends {package}")
    })
}

/// The first line with anything in it that a program prints when it is called so.
pub(super) fn version(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {}", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| line.contains(|letter: char| letter.is_ascii_digit()));
    line.map(str::to_owned).with_context(|| format!("{} does not tell its version", program.display()))
}

/// The processes of a group that have not ended, the first of it first.
fn members(group: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = all
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid| group_of(*pid) == Some(group))
        .collect();
    pids.sort_unstable_by_key(|&pid| (pid != group, pid));
    pids
}

/// The process group of a process that has not ended.
fn group_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_ended = matches!(fields.next()?, "Z" | "X");
    let group = fields.nth(1)?.parse().ok()?;
    (!is_ended).then_some(group)
}
