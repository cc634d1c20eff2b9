//! Other people's servers, for what is carried over TCP: as Debian installs them.

use crate::eventually;
use crate::process::Process;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Service {
    // Dropped before its directory.
    _process: Process,
    address: SocketAddr,
    _dir: TempDir,
}

impl Service {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// PostgreSQL, with the superuser `keyway` and the database `postgres`.
    pub async fn postgres() -> Self {
        let dir = open_dir();
        let data = dir.path().join("data");
        let initdb = as_postgres(&postgres_program("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["--auth=trust", "--username=keyway", "--no-sync", "--encoding=UTF8", "--no-locale"])
            .output()
            .expect("initdb runs");
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let address = free_address();
        let mut command = as_postgres(&postgres_program("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(dir.path());
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-p"]);
        command.arg(address.port().to_string());
        Self::serve("postgres", dir, &mut command, address).await
    }

    /// Redis, with nothing in it.
    pub async fn redis() -> Self {
        let dir = open_dir();
        let address = free_address();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
        command.arg(address.port().to_string()).arg("--dir").arg(dir.path());
        Self::serve("redis", dir, &mut command, address).await
    }

    async fn serve(name: &str, dir: TempDir, command: &mut Command, address: SocketAddr) -> Self {
        let mut process = Process::start(name, dir.path(), command);
        eventually(name, async || {
            process.assert_alive();
            TcpStream::connect(address).ok()
        })
        .await;
        Self { _process: process, address, _dir: dir }
    }
}

/// A directory that another user may look into: PostgreSQL does not run as root.
fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).expect("it is ours");
    dir
}

/// A port that was free a moment ago: neither server takes port 0 and tells which it got.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound")
}

fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    // `setpriv` replaces itself by the program, so that who is stopped is the server.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

/// Debian keeps the servers of each version apart, and out of PATH.
fn postgres_program(name: &str) -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").expect("run ./test.sh, which installs postgresql");
    versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("bin").join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing: run ./test.sh, which installs postgresql"))
}
