//! Objects as files. Everything here blocks; the service calls it off the event loop.
//!
//! Bytes go to a temporary file, are synced, and get their name by `rename`: a reader sees the old object or the new
//! one, never half of one, and keeps what it has opened whatever happens to the name.

use super::Durability;
use super::conditions::{Validators, Verdict};
use super::digest::{DigestError, Expected};
use super::meta::{self, Meta};
use super::path::{ObjectPath, url_path_of};
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where uploads in progress are. An encoded segment never begins with a dot, so no object is called that.
const TEMPORARY: &str = ".tmp";
const LOCK: &str = ".lock";
/// Names are guarded by this many locks; two objects rarely share one.
const STRIPES: usize = 64;
/// A listing ends after this many objects.
pub(super) const LIST_MAX: usize = 10_000;

/// The data directory.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    durability: Durability,
    /// Makes an object's two renames one step for readers in this process.
    names: [RwLock<()>; STRIPES],
    hasher: RandomState,
    /// Held as long as the store runs: two stores in one directory would not see each other's `names`.
    _lock: File,
}

/// An object that was found: its open file and what belongs to it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) meta: Meta,
}

impl Stored {
    pub(super) fn validators(&self) -> Validators<'_> {
        Validators { etag: &self.meta.etag, modified: self.meta.modified() }
    }
}

/// One entry of a listing.
#[derive(Debug, serde::Serialize)]
pub(super) struct Listed {
    pub(super) path: String,
    pub(super) length: u64,
}

/// Why an upload did not become an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("a precondition of the request does not hold")]
    Precondition,
    #[error("storing the object: {0}")]
    Io(#[from] io::Error),
}

impl Disk {
    /// Takes the directory over, makes it if it is missing, and throws away uploads that a crash left.
    pub(super) fn open(root: &Path, durability: Durability) -> io::Result<Self> {
        let temporary = root.join(TEMPORARY);
        make_directory(root)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(root.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another store already serves this directory")
            }
            fs::TryLockError::Error(error) => error,
        })?;
        if temporary.exists() {
            fs::remove_dir_all(&temporary)?;
        }
        make_directory(&temporary)?;
        Ok(Self {
            root: root.to_owned(),
            durability,
            names: [const { RwLock::new(()) }; STRIPES],
            hasher: RandomState::new(),
            _lock: lock,
        })
    }

    /// Opens an object.
    pub(super) fn find(&self, path: &ObjectPath) -> io::Result<Option<Stored>> {
        // The lock guards no data of its own, so a poisoned one is as good as new.
        let _name = self.name_lock(path).read().unwrap_or_else(PoisonError::into_inner);
        self.find_locked(path)
    }

    /// An upload that has no file yet.
    pub(super) fn begin(&self, expected: Expected) -> Upload {
        Upload { temporary: None, expected, written: 0 }
    }

    /// Adds bytes to an upload.
    pub(super) fn write(&self, upload: &mut Upload, chunks: &[Bytes]) -> io::Result<()> {
        upload.expected.update(chunks);
        let temporary = match &mut upload.temporary {
            Some(temporary) => temporary,
            none => none.insert(Temporary::create(&self.root.join(TEMPORARY))?),
        };
        write_all(&mut temporary.file, chunks)?;
        upload.written += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        Ok(())
    }

    /// Gives an upload its name. `allowed` judges what is there at that moment. Gives the object's tag, and whether
    /// it is new.
    pub(super) fn commit(
        &self,
        path: &ObjectPath,
        mut upload: Upload,
        headers: Vec<(String, String)>,
        allowed: impl FnOnce(Option<Validators<'_>>) -> Verdict,
    ) -> Result<(Meta, bool), CommitError> {
        self.write(&mut upload, &[])?;
        upload.expected.verify()?;
        let mut data = upload.temporary.expect("the write above made the file");
        let meta = Meta {
            etag: meta::fresh_etag().map_err(io::Error::other)?,
            modified_s: now_s(),
            inode: data.file.metadata()?.ino(),
            headers,
        };
        let mut side = Temporary::create(&self.root.join(TEMPORARY))?;
        side.file.write_all(&serde_json::to_vec(&meta).map_err(io::Error::other)?)?;
        if self.durability == Durability::Synced {
            data.file.sync_data()?;
            side.file.sync_data()?;
        }
        let directory = self.root.join(path.directory());
        self.make_parents(path.directory())?;

        let _name = self.name_lock(path).write().unwrap_or_else(PoisonError::into_inner);
        let current = self.find_locked(path)?;
        if allowed(current.as_ref().map(Stored::validators)) != Verdict::Go {
            return Err(CommitError::Precondition);
        }
        data.rename(&self.root.join(path.data()))?;
        side.rename(&self.root.join(path.meta()))?;
        if self.durability == Durability::Synced {
            File::open(directory)?.sync_all()?;
        }
        Ok((meta, current.is_none()))
    }

    /// Removes an object; `false` if there was none.
    pub(super) fn delete(
        &self,
        path: &ObjectPath,
        allowed: impl FnOnce(Option<Validators<'_>>) -> Verdict,
    ) -> Result<bool, CommitError> {
        let _name = self.name_lock(path).write().unwrap_or_else(PoisonError::into_inner);
        let current = self.find_locked(path)?;
        if allowed(current.as_ref().map(Stored::validators)) != Verdict::Go {
            return Err(CommitError::Precondition);
        }
        if current.is_none() {
            return Ok(false);
        }
        fs::remove_file(self.root.join(path.data()))?;
        match fs::remove_file(self.root.join(path.meta())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if self.durability == Durability::Synced {
            File::open(self.root.join(path.directory()))?.sync_all()?;
        }
        Ok(true)
    }

    /// Objects below a path, at most [`LIST_MAX`], in the order of their names.
    pub(super) fn list(&self, below: &ObjectPath) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        let mut directories = vec![self.root.join(below.children())];
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                // An object may be deleted while the listing goes on.
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    directories.push(path);
                } else if let Some(url) = path.strip_prefix(&self.root).ok().and_then(url_path_of) {
                    found.push(Listed { path: url, length: metadata.len() });
                }
            }
            if found.len() > LIST_MAX {
                break;
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found.truncate(LIST_MAX);
        Ok(found)
    }

    fn find_locked(&self, path: &ObjectPath) -> io::Result<Option<Stored>> {
        let file = match File::open(self.root.join(path.data())) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let meta = match fs::read(self.root.join(path.meta())) {
            Ok(bytes) => serde_json::from_slice::<Meta>(&bytes).ok(),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        let meta = match meta.filter(|meta| meta.inode == metadata.ino()) {
            Some(meta) => meta,
            None => Meta::of_bare_file(metadata.ino(), metadata.len(), metadata.modified()?),
        };
        Ok(Some(Stored { len: metadata.len(), file, meta }))
    }

    fn name_lock(&self, path: &ObjectPath) -> &RwLock<()> {
        let hash = usize::try_from(self.hasher.hash_one(path) % STRIPES as u64).expect("below 64");
        &self.names[hash]
    }

    /// Makes the directories above an object. A new one is synced into the one that holds it.
    fn make_parents(&self, relative: &Path) -> io::Result<()> {
        if self.root.join(relative).is_dir() {
            return Ok(());
        }
        let mut directory = self.root.clone();
        for part in relative {
            let above = directory.clone();
            directory.push(part);
            if !directory.is_dir() {
                make_directory(&directory)?;
                if self.durability == Durability::Synced {
                    File::open(above)?.sync_all()?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes on their way in. Dropped before [`Disk::commit`], they leave nothing behind.
pub(super) struct Upload {
    temporary: Option<Temporary>,
    expected: Expected,
    written: u64,
}

impl Upload {
    /// Bytes taken so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

/// A file that goes away unless it gets a name.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    fn create(directory: &Path) -> io::Result<Self> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(io::Error::other)?;
        let path = directory.join(hex::encode(name));
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        Ok(Self { file, path: Some(path) })
    }

    fn rename(&mut self, to: &Path) -> io::Result<()> {
        if let Some(from) = &self.path {
            fs::rename(from, to)?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "could not remove a temporary file");
        }
    }
}

fn write_all(file: &mut File, chunks: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    // Also drops leading empty slices, of which a write would report 0 bytes.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Nothing is stored there: also where a directory is missing, or a name is too long to exist.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
