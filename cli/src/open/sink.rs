//! Where recovered plaintext goes: to its file only once everything is verified.

use anyhow::Context as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Stdout, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A target that is kept or leaves nothing.
pub(super) enum Sink {
    /// Bytes leave before the end is verified; the caller has asked for that with `-`.
    Stdout(Stdout),
    File {
        file: File,
        temporary: PathBuf,
        target: PathBuf,
        kept: bool,
    },
}

impl Sink {
    pub(super) fn create(target: &Path) -> anyhow::Result<Self> {
        if target == Path::new("-") {
            return Ok(Self::Stdout(io::stdout()));
        }
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(io::Error::other)?;
        let mut name = target.file_name().context("the output needs a file name")?.to_owned();
        name.push(format!(".{}", hex::encode(suffix)));
        let temporary = target.with_file_name(name);
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(|| format!("writing beside {}", target.display()))?;
        Ok(Self::File { file, temporary, target: target.to_owned(), kept: false })
    }

    /// All is verified: the file gets its name.
    pub(super) fn keep(mut self) -> io::Result<()> {
        match &mut self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, temporary, target, kept } => {
                file.sync_all()?;
                fs::rename(&*temporary, &*target)?;
                *kept = true;
                Ok(())
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::File { temporary, kept: false, .. } = self
            && let Err(error) = fs::remove_file(&*temporary)
        {
            eprintln!(
                "keyway: could not remove {}: {error}; it holds unverified plaintext",
                temporary.display()
            );
        }
    }
}
