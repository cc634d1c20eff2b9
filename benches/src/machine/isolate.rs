//! A network of our own: no one else's traffic, and none of the host's settings.

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use std::process::Command;

/// Settings of the new namespace.
const SETTINGS: [(&str, &str); 6] = [
    // The default of many hosts, BBR, paces the loopback to a third of what it carries.
    ("net/ipv4/tcp_congestion_control", "reno"),
    // Systems that don't keep connections alive leave thousands of ports waiting.
    ("net/ipv4/ip_local_port_range", "10240 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/tcp_max_syn_backlog", "65535"),
    ("net/core/somaxconn", "65535"),
    // A connection that was idle between two turns starts as fast as it was.
    ("net/ipv4/tcp_slow_start_after_idle", "0"),
];

/// How far the harness is from the host's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Whether it is in a network namespace of its own.
    pub is_private: bool,
    /// Descriptors that a process may have.
    pub descriptors: u64,
    /// What could not be done, and what follows from it.
    pub notes: Vec<String>,
}

/// Moves the calling thread, with all threads and processes that it starts from now on, into a network namespace with
/// nothing but a loopback. Call it before any other thread exists. What can't be done is noted, and the harness goes on.
#[must_use]
pub fn isolate() -> Isolation {
    let mut isolation = Isolation { descriptors: raise_descriptors(), ..Isolation::default() };
    match unshare() {
        Ok(()) => isolation.is_private = true,
        Err(why) => isolation.notes.push(format!("shares the host's network and its settings: {why}")),
    }
    if isolation.is_private {
        // Never the host's own settings: only those of the namespace that was just made.
        for (name, value) in SETTINGS {
            if let Err(error) = std::fs::write(format!("/proc/sys/{name}"), value) {
                isolation.notes.push(format!("{} stays as it is: {error}", name.replace('/', ".")));
            }
        }
    }
    isolation
}

fn unshare() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    // Looked for first: without it the new loopback would stay down, and there is no way back.
    let there = Command::new("ip").args(["link", "show", "lo"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        return Err("needs ip: apt-get install iproute2".to_owned());
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe for the sake of CLONE_FILES, which this does not ask for"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNET).map_err(|error| format!("unshare: {error}"))?;
    let up =
        Command::new("ip").args(["link", "set", "lo", "up"]).output().map_err(|error| error.to_string())?;
    if up.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&up.stderr).into_owned()) }
}

/// As many descriptors as are allowed; processes started from now on inherit that.
fn raise_descriptors() -> u64 {
    let Rlimit { maximum, current } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.or(current).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_private_loopback_carries_connections() {
        // Of the calling thread only, so the other tests keep their network.
        std::thread::spawn(|| {
            let isolation = isolate();
            assert!(isolation.descriptors > 0);
            if !isolation.is_private {
                println!("not isolated: {:?}", isolation.notes);
                return;
            }
            let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(interfaces.contains("lo:") && !interfaces.contains("eth0:"), "{interfaces}");
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap().write_all(b"here").unwrap();
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "here");
        })
        .join()
        .unwrap();
    }
}
