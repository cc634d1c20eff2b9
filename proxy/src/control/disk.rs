//! Files of the control plane: written whole or not at all, readable by the proxy only.

use keyway_protocol::signing::VerifyKey;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory. Made with mode 0700 if it is not there.
#[derive(Clone, Debug)]
pub(super) struct StateDir(PathBuf);

impl StateDir {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The sealed last-good keyring set of a zone.
    pub(super) fn state(&self, zone: &str) -> PathBuf {
        self.0.join(format!("{}.state", file_name(zone)))
    }

    /// The pinned verification key of a zone's bridge.
    pub(super) fn pin(&self, zone: &str) -> PathBuf {
        self.0.join(format!("{}.bridge-key", file_name(zone)))
    }
}

/// A zone's name as a file's: what is not a plain letter, digit, `-` or `_` becomes `%XX`, so no two names meet.
fn file_name(zone: &str) -> String {
    let mut name = String::with_capacity(zone.len());
    for byte in zone.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name
}

/// Reads a file; `None` if there is none.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file durably: a new file beside it, synced, renamed over it, and the directory synced. After a crash
/// either the old or the new one is there, whole. One writer at a time.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
    let beside = path.with_added_extension("new");
    // What a crash has left there may have another mode.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

/// Reads the pinned key.
pub(super) fn read_pin(path: &Path) -> io::Result<Option<VerifyKey>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    parse_pin(&bytes).map(Some).ok_or_else(|| {
        io::Error::new(
            ErrorKind::InvalidData,
            "it is not a verification key; remove it to trust the bridge anew",
        )
    })
}

/// Pins a key: 64 hexadecimal digits and a newline.
pub(super) fn write_pin(path: &Path, key: VerifyKey) -> io::Result<()> {
    replace(path, format!("{key}\n").as_bytes())
}

fn parse_pin(bytes: &[u8]) -> Option<VerifyKey> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    VerifyKey::from_bytes(&hex::decode(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_of_zones_stay_in_the_directory_and_apart() {
        assert_eq!(file_name("payments-eu_1"), "payments-eu_1");
        assert_eq!(file_name("../../etc"), "%2E%2E%2F%2E%2E%2Fetc");
        assert_ne!(file_name("a.b"), file_name("a%2Eb"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(&dir.path().join("deep/er")).unwrap();
        let path = state.state("payments");
        assert_eq!(read(&path).unwrap(), None);
        // A crash has left a half-written file, readable by all.
        std::fs::write(path.with_added_extension("new"), b"half").unwrap();
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_pin_is_read_back_and_a_damaged_one_is_an_error_and_not_absent() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("pin");
        assert_eq!(read_pin(&path).unwrap(), None);
        let key = VerifyKey::from_bytes(&[7; 32]).unwrap();
        write_pin(&path, key).unwrap();
        assert_eq!(read_pin(&path).unwrap(), Some(key));
        std::fs::write(&path, "07070707").unwrap();
        assert_eq!(read_pin(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
