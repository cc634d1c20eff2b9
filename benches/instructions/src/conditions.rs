//! What counts depend on beside the code: compilers, C library, valgrind, and the CPU that it emulates.

use crate::callgrind;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::process::Command;

/// The same code has the same counts only where all of these are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conditions {
    rustc: String,
    /// AWS-LC is C and assembler.
    cc: String,
    /// Its memcpy is in every count.
    libc: String,
    valgrind: String,
    architecture: String,
    /// What valgrind shows of the CPU to the program under it, by which AES, SHA-2 and memcpy choose their code.
    cpu_features: Vec<String>,
}

impl Conditions {
    /// Those of this machine.
    pub(crate) fn here() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("finding this program")?;
        let mut seen = callgrind::bare();
        seen.arg(own).arg("--features");
        Ok(Self {
            rustc: first_line(Command::new("rustc").arg("--version"))?,
            cc: first_line(Command::new("cc").arg("--version"))?,
            libc: first_line(Command::new("getconf").arg("GNU_LIBC_VERSION"))?,
            valgrind: first_line(Command::new("valgrind").arg("--version"))?,
            architecture: std::env::consts::ARCH.to_owned(),
            cpu_features: first_line(&mut seen)?.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// In which conditions `now` is another, in words.
    pub(crate) fn differences(&self, now: &Self) -> Vec<String> {
        let features = |conditions: &Self| conditions.cpu_features.join(" ");
        [
            ("rustc", self.rustc.clone(), now.rustc.clone()),
            ("cc", self.cc.clone(), now.cc.clone()),
            ("libc", self.libc.clone(), now.libc.clone()),
            ("valgrind", self.valgrind.clone(), now.valgrind.clone()),
            ("architecture", self.architecture.clone(), now.architecture.clone()),
            ("CPU under valgrind", features(self), features(now)),
        ]
        .into_iter()
        .filter(|(_, before, now)| before != now)
        .map(|(what, before, now)| format!("{what}: {before} in the baseline, {now} here"))
        .collect()
    }
}

fn first_line(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} can't be run: is it installed?"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).with_context(|| format!("{name} prints no text"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Instruction sets that the libraries here ask for, as far as this CPU has them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    [
        ("ssse3", has!("ssse3")),
        ("sse4.2", has!("sse4.2")),
        ("aes", has!("aes")),
        ("pclmulqdq", has!("pclmulqdq")),
        ("sha", has!("sha")),
        ("popcnt", has!("popcnt")),
        ("lzcnt", has!("lzcnt")),
        ("movbe", has!("movbe")),
        ("bmi1", has!("bmi1")),
        ("bmi2", has!("bmi2")),
        ("adx", has!("adx")),
        ("fma", has!("fma")),
        ("avx", has!("avx")),
        ("avx2", has!("avx2")),
        ("vaes", has!("vaes")),
        ("vpclmulqdq", has!("vpclmulqdq")),
        ("avx512f", has!("avx512f")),
        ("rdrand", has!("rdrand")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

/// Instruction sets that the libraries here ask for, as far as this CPU has them.
#[cfg(target_arch = "aarch64")]
pub(crate) fn features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    [
        ("neon", has!("neon")),
        ("aes", has!("aes")),
        ("pmull", has!("pmull")),
        ("sha2", has!("sha2")),
        ("sha3", has!("sha3")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

/// Other CPUs are told apart by their architecture alone.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn features() -> Vec<&'static str> {
    Vec::new()
}
