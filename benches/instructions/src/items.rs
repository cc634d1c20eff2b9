//! Functions of the hot path. Each is counted in a process of its own, so that none depends on what ran before it.

mod envelope;
mod keycache;
mod proxy;

use crate::baseline::Counts;
use crate::callgrind;
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Stdio;

/// A function, ready to be called.
type Work = Box<dyn FnMut()>;

/// Something to count.
pub(crate) struct Item {
    name: String,
    /// Calls that are counted; as many are made before, to warm up.
    calls: u64,
    prepare: Box<dyn Fn() -> Work>,
}

impl Item {
    fn new(name: impl Into<String>, calls: u64, prepare: impl Fn() -> Work + 'static) -> Self {
        Self { name: name.into(), calls, prepare: Box::new(prepare) }
    }
}

fn all() -> Vec<Item> {
    [envelope::items(), keycache::items(), proxy::items()].into_iter().flatten().collect()
}

/// Collecting is switched on where this begins and off where it ends: callgrind finds it by its name.
const COUNTED: &str = "--toggle-collect=*counted_calls*";

#[inline(never)]
fn counted_calls(calls: u64, work: &mut dyn FnMut()) {
    for _ in 0..calls {
        work();
    }
}

/// What runs under callgrind.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let item = all().into_iter().find(|item| item.name == name);
    let item = item.with_context(|| format!("there is no item {name:?}"))?;
    let mut work = (item.prepare)();
    for _ in 0..item.calls {
        work();
    }
    counted_calls(item.calls, &mut work);
    Ok(())
}

/// Counts those that are wanted.
pub(crate) fn count_all(dir: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Counts> {
    all()
        .into_iter()
        .filter(|item| wanted(&item.name))
        .map(|item| {
            let count = count(dir, &item).with_context(|| format!("counting {}", item.name))?;
            Ok((item.name, count))
        })
        .collect()
}

fn count(dir: &Path, item: &Item) -> anyhow::Result<u64> {
    let out = dir.join(item.name.replace(['/', ' ', ','], "_"));
    let own = std::env::current_exe().context("finding this program")?;
    let output = callgrind::counting(&out, &["--collect-atstart=no", COUNTED])
        .arg(own)
        .args(["--item", &item.name])
        .stdin(Stdio::null())
        .output()
        .context("valgrind can't be run: apt-get install valgrind")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let total = callgrind::total(&out)?;
    ensure!(total > 0, "callgrind did not find the function to count: was the program stripped?");
    Ok(total.div_ceil(item.calls))
}
