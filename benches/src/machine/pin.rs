//! Which cores who may run on.

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::ffi::OsStr;
use std::process::Command;

/// The cores that this thread may run on.
#[must_use]
pub fn available_cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// The cores of this process but for `taken`; all of them if none is left.
#[must_use]
pub fn other_cores(taken: &[usize]) -> Vec<usize> {
    // The first thread's: the caller's own thread may be pinned to one core already.
    let set = sched_getaffinity(Some(rustix::process::getpid())).or_else(|_| sched_getaffinity(None));
    let all: Vec<usize> =
        set.map_or_else(|_| vec![0], |set| (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect());
    let rest: Vec<usize> = all.iter().copied().filter(|core| !taken.contains(core)).collect();
    if rest.is_empty() { all } else { rest }
}

/// Keeps the calling thread on `cores`; threads that it starts later inherit that.
///
/// # Errors
/// None of the cores is there.
pub fn pin_thread(cores: &[usize]) -> anyhow::Result<()> {
    sched_setaffinity(None, &set(cores)).with_context(|| format!("cannot run on the cores {cores:?}"))
}

/// Keeps a running process, all its threads, on `cores`.
///
/// # Errors
/// The process is gone or not ours, or none of the cores is there.
pub fn pin_process(pid: u32, cores: &[usize]) -> anyhow::Result<()> {
    let set = set(cores);
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        let task = task?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        match sched_setaffinity(task, &set) {
            // The thread has ended since the directory was read.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot keep process {pid} on the cores {cores:?}"));
            }
        }
    }
    Ok(())
}

/// A command that starts `program` on `cores`; anywhere if there are none.
///
/// taskset replaces itself by the program, so the child's id is the program's.
#[must_use]
pub fn command(cores: &[usize], program: impl AsRef<OsStr>) -> Command {
    if cores.is_empty() {
        return Command::new(program);
    }
    let list: Vec<String> = cores.iter().map(ToString::to_string).collect();
    let mut command = Command::new("taskset");
    command.arg("-c").arg(list.join(",")).arg(program);
    command
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for &core in cores.iter().filter(|&&core| core < CpuSet::MAX_CPU) {
        set.set(core);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_what_it_is_told_to() {
        let last = *available_cores().last().unwrap();
        let status = command(&[last], "sh")
            .args(["-c", "grep Cpus_allowed_list /proc/self/status"])
            .output()
            .expect("taskset is part of util-linux");
        assert_eq!(String::from_utf8_lossy(&status.stdout).trim(), format!("Cpus_allowed_list:\t{last}"));

        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        pin_process(child.id(), &[last]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{last}\n")), "{status}");

        std::thread::spawn(move || {
            pin_thread(&[last]).unwrap();
            assert_eq!(available_cores(), [last]);
            assert!(pin_thread(&[]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn others_are_what_is_not_taken() {
        let all = available_cores();
        assert_eq!(other_cores(&all), all, "with nothing left it has to share");
        if all.len() > 1 {
            assert_eq!(other_cores(&all[..1]), &all[1..]);
        }
    }
}
