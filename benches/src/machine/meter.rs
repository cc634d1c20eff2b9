//! What processes take of the machine.

use super::describe::kib;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Ticks that times of whole processes may be off by: they are rounded down twice, and the current tick is not in.
const TICKS_OFF: u64 = 3;

/// Reads what a fixed set of processes takes.
#[derive(Clone, Debug)]
pub struct Meter {
    pids: Vec<u32>,
}

/// CPU time of processes up to now.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    processes: BTreeMap<u32, Process>,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// On a CPU, in user space and in the kernel, over all processes.
    pub cpu: Duration,
    /// By the clock.
    pub elapsed: Duration,
}

/// Memory and descriptors, summed over the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident; pages that processes share count for each.
    pub resident_bytes: u64,
    /// Sum of each process's highest since it started, or since [`Meter::reset_peak`].
    pub peak_bytes: u64,
    /// Proportional: shared pages are divided among those who share. `None` if the kernel does not tell us.
    pub proportional_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// One process.
#[derive(Clone, Debug, Default)]
struct Process {
    /// Nanoseconds by thread: exact, but threads that have ended are missing.
    tasks_ns: BTreeMap<u32, u64>,
    /// Of all threads there ever were, by the scheduler's ticks.
    ticks: u64,
}

impl Meter {
    /// Of the processes `pids`.
    #[must_use]
    pub fn new(pids: Vec<u32>) -> Self {
        Self { pids }
    }

    /// CPU time up to now. Processes that are gone count as nothing.
    #[must_use]
    pub fn read(&self) -> Reading {
        let processes = self.pids.iter().map(|&pid| (pid, Process::read(pid))).collect();
        Reading { at: Instant::now(), processes }
    }

    /// Memory now.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut sum = Memory { proportional_bytes: Some(0), ..Memory::default() };
        for pid in &self.pids {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
            let status = read("status").unwrap_or_default();
            sum.resident_bytes += kib(&status, "VmRSS:").unwrap_or(0);
            sum.peak_bytes += kib(&status, "VmHWM:").unwrap_or(0);
            let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
            sum.threads += threads.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
            let proportional = read("smaps_rollup").ok().and_then(|text| kib(&text, "Pss:"));
            sum.proportional_bytes = sum.proportional_bytes.zip(proportional).map(|(sum, own)| sum + own);
            sum.descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |dir| dir.count() as u64);
        }
        sum
    }

    /// Forgets the highest: from now on [`Memory::peak_bytes`] is that of what follows.
    ///
    /// # Errors
    /// The kernel does not let us; peaks stay those since the start.
    pub fn reset_peak(&self) -> std::io::Result<()> {
        self.pids.iter().try_for_each(|pid| fs::write(format!("/proc/{pid}/clear_refs"), "5"))
    }
}

impl Reading {
    /// What was used since an `earlier` reading of the same meter.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Usage {
        let none = Process::default();
        let cpu_ns = self
            .processes
            .iter()
            .map(|(pid, process)| process.since_ns(earlier.processes.get(pid).unwrap_or(&none)))
            .sum();
        Usage { cpu: Duration::from_nanos(cpu_ns), elapsed: self.at.duration_since(earlier.at) }
    }
}

impl Process {
    fn read(pid: u32) -> Self {
        let mut tasks_ns = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Ok(tid) = task.file_name().to_string_lossy().parse() else { continue };
            let spent = fs::read_to_string(task.path().join("schedstat")).ok();
            let spent = spent.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
            tasks_ns.extend(spent.map(|spent: u64| (tid, spent)));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Self { tasks_ns, ticks: ticks(&stat).unwrap_or(0) }
    }

    /// Nanoseconds. By the threads, unless the whole process tells that some have ended with time of their own.
    fn since_ns(&self, earlier: &Self) -> u64 {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let whole = self.ticks.saturating_sub(earlier.ticks);
        let tasks: u64 = self
            .tasks_ns
            .iter()
            .map(|(tid, spent)| spent.saturating_sub(earlier.tasks_ns.get(tid).copied().unwrap_or(0)))
            .sum();
        if whole.saturating_sub(TICKS_OFF) * tick_ns > tasks { whole * tick_ns } else { tasks }
    }
}

/// utime + stime of /proc/PID/stat. The name before them may have spaces and brackets of its own.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(tasks_ms: &[(u32, u64)], ticks: u64) -> Process {
        Process { tasks_ns: tasks_ms.iter().map(|&(tid, ms)| (tid, ms * 1_000_000)).collect(), ticks }
    }

    #[test]
    fn threads_count_exactly_and_ended_ones_by_ticks() {
        let before = process(&[(1, 500), (2, 700)], 120);
        let ms = |after: Process| after.since_ns(&before) / 1_000_000;
        assert_eq!(ms(process(&[(1, 507), (2, 708)], 121)), 15);
        assert_eq!(ms(process(&[(1, 507), (2, 708), (3, 5)], 122)), 20, "a new thread");
        assert_eq!(ms(process(&[(1, 507)], 160)), 400, "a thread that ended, with most of the time");
        assert_eq!(ms(Process::default()), 0, "a process that ended");
    }

    #[test]
    fn names_may_have_brackets() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 2 3 4 500 60 7 8 20 0 1 0 9";
        assert_eq!(ticks(stat), Some(560));
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn work_of_this_process_is_seen() {
        let meter = Meter::new(vec![std::process::id()]);
        let before = meter.read();
        let begun = Instant::now();
        let mut sum = 0_u64;
        while begun.elapsed() < Duration::from_millis(100) {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        let usage = meter.read().since(&before);
        // Others may have had the CPU in between, and other tests run in this process.
        assert!(usage.cpu >= Duration::from_millis(10), "{usage:?}");
        assert!(usage.elapsed >= Duration::from_millis(100), "{usage:?}");
        let memory = meter.memory();
        assert!(memory.resident_bytes > 0 && memory.peak_bytes >= memory.resident_bytes, "{memory:?}");
        assert!(memory.descriptors > 0 && memory.threads > 0, "{memory:?}");
    }
}
