//! What kind of machine it is. No date and no host name: two reports of one machine describe it alike.

use super::available_cores;
use serde::{Deserialize, Serialize};

/// Flags of the CPU that decide how fast AES-GCM is.
const FLAGS: [&str; 8] =
    ["aes", "vaes", "pclmulqdq", "vpclmulqdq", "avx2", "avx512f", "avx512vl", "hypervisor"];

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU, as it calls itself.
    pub cpu: String,
    /// Which of the flags that matter it has.
    pub flags: Vec<String>,
    /// Cores that this process may run on.
    pub cores: usize,
    /// The kernel's name, release and architecture.
    pub kernel: String,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// TCP's congestion control, which bounds what the loopback carries.
    pub congestion_control: String,
}

/// Looks at this machine; what can't be read is `unknown`, or 0.
#[must_use]
pub fn describe() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, flags) = cpu(&read("/proc/cpuinfo"));
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned();
    Machine {
        cpu,
        flags,
        cores: available_cores().len(),
        kernel: format!("{} {} {}", part(uname.sysname()), part(uname.release()), part(uname.machine())),
        memory_bytes: kib(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0),
        congestion_control: if congestion.is_empty() { "unknown".to_owned() } else { congestion },
    }
}

fn cpu(cpuinfo: &str) -> (String, Vec<String>) {
    let field = |names: [&str; 2]| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(key, value)| names.contains(&key.trim()).then(|| value.trim().to_owned()))
    };
    // "Features" is what ARM calls them.
    let all = field(["flags", "Features"]).unwrap_or_default();
    let has = |flag: &&str| all.split_ascii_whitespace().any(|one| one == *flag);
    let flags = FLAGS.iter().filter(|flag| has(flag)).map(|flag| (*flag).to_owned()).collect();
    (field(["model name", "Hardware"]).unwrap_or_else(|| "unknown".to_owned()), flags)
}

/// The line `key` of a /proc file in KiB, in bytes.
pub(super) fn kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_prints() {
        let text =
            "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu aes avx2 vaes xaesx\n\nprocessor\t: 1\n";
        assert_eq!(cpu(text), ("AMD EPYC".to_owned(), vec!["aes".into(), "vaes".into(), "avx2".into()]));
        assert_eq!(cpu(""), ("unknown".to_owned(), Vec::new()));
        assert_eq!(kib("MemFree: 1 kB\nMemTotal:       24 kB\n", "MemTotal:"), Some(24 * 1024));
    }

    #[test]
    fn describes_this_machine() {
        let machine = describe();
        assert!(machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
    }
}
