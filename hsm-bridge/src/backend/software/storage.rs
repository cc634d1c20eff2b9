//! The keystore on disk: one writer, whole files only.

use crate::backend::BackendError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// More than any keystore or secret has; keeps a wrong path from filling the memory.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// The file, held for this process alone until dropped (also by a kill).
#[derive(Debug)]
pub(super) struct Storage {
    path: PathBuf,
    _lock: File,
}

impl Storage {
    /// Takes the lock. Makes the folder, private to its owner, if it is absent.
    pub(super) fn lock(path: &Path) -> Result<Self, BackendError> {
        let failed = |what: &str, error: &dyn core::fmt::Display| {
            BackendError::Config(format!("can't {what} for the keystore {}: {error}", path.display()))
        };
        if path.file_name().is_none() {
            return Err(failed("find a file name", &"the path names a folder"));
        }
        make_folder(path).map_err(|error| failed("make the folder", &error))?;
        let lock = beside(path, ".lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|error| failed("open the lock file", &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(TryLockError::WouldBlock) => Err(BackendError::Config(format!(
                "the keystore {} is in use by another bridge; stop that one, or give this one a keystore of its own",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed("lock", &error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a keystore already.
    pub(super) fn exists(&self) -> Result<bool, BackendError> {
        self.path.try_exists().map_err(|error| {
            BackendError::Config(format!("can't look at the keystore {}: {error}", self.path.display()))
        })
    }

    /// The file as it is now.
    pub(super) fn read(&self) -> Result<Vec<u8>, BackendError> {
        read(&self.path).map_err(|error| {
            BackendError::Unavailable(format!("can't read the keystore {}: {error}", self.path.display()))
        })
    }

    /// Replaces the file; returns once that is durable.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), BackendError> {
        write_durably(&self.path, bytes).map_err(|error| {
            BackendError::Unavailable(format!("can't write the keystore {}: {error}", self.path.display()))
        })
    }
}

/// Reads a file whole, if it has a sane length.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Temporary file, sync, rename, sync of the folder: after a crash, the old file or the new one.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path, ".new");
    write_temporary(&temporary, bytes)?;
    std::fs::rename(&temporary, path)?;
    File::open(folder_of(path))?.sync_all()
}

/// As a write, for a file that must not be there: whoever comes second keeps the first one's.
pub(super) fn create_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_folder(path)?;
    let temporary = beside(path, &format!(".{}.new", std::process::id()));
    write_temporary(&temporary, bytes)?;
    // Unlike a rename, a link never replaces what is there.
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(folder_of(path))?.sync_all()
}

fn write_temporary(temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    // What a crash has left there is not ours to append to, and its mode may not be ours.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Refuses a file that others may read or write; `forbidden` are the mode bits that must be clear.
pub(crate) fn check_private(path: &Path, forbidden: u32) -> Result<(), BackendError> {
    let mode = std::fs::metadata(path)
        .map_err(|error| BackendError::Config(format!("can't look at {}: {error}", path.display())))?
        .permissions()
        .mode();
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(BackendError::Config(format!(
        "{} may be read or written by others (mode {:04o}); run: chmod 600 {}",
        path.display(),
        mode & 0o7777,
        path.display()
    )))
}

/// The first line of a file with a passphrase or a PIN, without its end.
///
/// Its group may read it: orchestrators hand secrets to a service through its group. Everybody may not.
pub(crate) fn read_first_line(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, BackendError> {
    let bytes = Zeroizing::new(read(path).map_err(|error| {
        BackendError::Config(format!("can't read the {what} file {}: {error}", path.display()))
    })?);
    check_private(path, 0o027)?;
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(BackendError::Config(format!(
            "the {what} file {} has an empty first line",
            path.display()
        )));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder_of(path))
}
