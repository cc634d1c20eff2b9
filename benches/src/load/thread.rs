//! One thread, one runtime, one core.

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

/// How many tasks run between two looks at the sockets. Tokio's 61 lets bulk transfers delay small requests by
/// milliseconds, and what is measured should be the system's delay, not this program's.
const TASKS_BETWEEN_POLLS: u32 = 8;

/// After so many bytes a bulk transfer lets the others have the thread.
pub(crate) const YIELD_AFTER_BYTES: u64 = 512 * 1024;

/// Keeps the calling thread on `core`.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    anyhow::ensure!(core < CpuSet::MAX_CPU, "core {core} is beyond what the kernel knows");
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("pinning to core {core}: is there one?"))
}

/// A runtime for the calling thread.
pub(crate) fn runtime() -> anyhow::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .event_interval(TASKS_BETWEEN_POLLS)
        .build_local(LocalOptions::default())
        .context("starting a runtime")
}

/// Runs the future that `make` gives on a thread and a runtime of its own.
pub(crate) fn on_own_thread<T, M>(core: Option<usize>, make: M) -> anyhow::Result<T>
where
    T: Send,
    M: AsyncFnOnce() -> anyhow::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            core.map_or(Ok(()), pin)?;
            runtime()?.block_on(make())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes room for `sockets` more open files than a program has anyway.
pub(crate) fn raise_open_files(sockets: usize) -> anyhow::Result<()> {
    const OTHER_FILES: u64 = 256;
    let needed = u64::try_from(sockets)? + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    // Only root may raise the hard limit.
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).with_context(|| {
        format!("{needed} open files are needed: raise the limit with `ulimit -Hn {needed}`")
    })
}

/// Makes room for as many open files as the program may have without asking.
pub(crate) fn raise_open_files_to_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising the limit of open files")
}
