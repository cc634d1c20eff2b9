//! Running a program under callgrind, and reading what it counted.

use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;

/// A program under valgrind, to be named next; nothing is counted.
pub(crate) fn bare() -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=none", "--quiet"]);
    command
}

/// A program under callgrind, to be named next; the profile goes to `out`.
pub(crate) fn counting(out: &Path, options: &[&str]) -> Command {
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(out);
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).arg(file).args(options);
    command
}

/// Instructions in a profile.
pub(crate) fn total(profile: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(profile).with_context(|| format!("reading {}", profile.display()))?;
    totals(&text).with_context(|| format!("reading {}", profile.display()))
}

/// Instructions of the thread that ran `function`, from profiles that were made with `--separate-threads=yes`.
pub(crate) fn total_of_thread(profile: &Path, function: &str) -> anyhow::Result<u64> {
    let mut total = None;
    for thread in 1.. {
        let mut path = profile.as_os_str().to_owned();
        path.push(format!("-{thread:02}"));
        let Ok(text) = std::fs::read_to_string(&path) else { break };
        if text.contains(function) {
            ensure!(total.is_none(), "several threads ran {function}: which one is to be counted?");
            total = Some(totals(&text).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    total.with_context(|| format!("in {}-01 and so on no thread ran {function}", profile.display()))
}

fn totals(profile: &str) -> anyhow::Result<u64> {
    // With no instruction at all there is no such line.
    let total = profile.lines().rev().find_map(|line| line.strip_prefix("totals: ")).unwrap_or("0");
    total.trim().parse().with_context(|| format!("totals: {total}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_found_by_what_it_ran() {
        let dir = tempfile::tempdir().unwrap();
        let profile = dir.path().join("p");
        for (thread, text) in [(1, "fn=main\n"), (2, "fn=(3) a::worker\n1 2\ntotals: 2\n")] {
            std::fs::write(dir.path().join(format!("p-{thread:02}")), text).unwrap();
        }
        assert_eq!(total_of_thread(&profile, "a::worker").unwrap(), 2);
        assert_eq!(total_of_thread(&profile, "main").unwrap(), 0);
        assert!(total_of_thread(&profile, "nobody").is_err());
        std::fs::write(dir.path().join("p-03"), "fn=a::worker\n").unwrap();
        assert!(total_of_thread(&profile, "a::worker").is_err());
    }
}
