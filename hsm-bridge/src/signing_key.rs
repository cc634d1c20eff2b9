//! The key that signs keyring sets. Members pin its public half, so it is kept beside the catalog.

use crate::error::{Error, Result};
use keyway_protocol::signing::SigningKey;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `bridge.db` → `bridge.db.signing-key`.
pub(crate) fn path_beside(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".signing-key");
    name.into()
}

/// Reads the key, or makes it at the first start (mode 0600).
pub(crate) fn load_or_make(path: &Path) -> Result<SigningKey> {
    let at = |source| Error::SigningKey { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(pkcs8) => Ok(SigningKey::from_pkcs8(&Zeroizing::new(pkcs8))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pkcs8 = SigningKey::generate_pkcs8()?;
            write_whole(path, &pkcs8).map_err(at)?;
            Ok(SigningKey::from_pkcs8(&pkcs8)?)
        }
        Err(error) => Err(at(error)),
    }
}

/// Under its name there is either the whole key or nothing, whenever the power goes.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_start_has_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("bridge.db"));
        let first = load_or_make(&path).unwrap();
        assert_eq!(load_or_make(&path).unwrap().verify_key(), first.verify_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"broken").unwrap();
        assert!(load_or_make(&path).is_err());
    }
}
