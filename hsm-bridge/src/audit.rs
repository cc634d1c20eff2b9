//! The audit record: one JSON object per line, appended and never changed, durable before the effect that it announces.
//!
//! A record says what is about to be done, by whom and to what. After a crash the same intention may be there twice; an
//! effect without its record can't be. No record holds a secret.

use crate::clock::Clock;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use tracing::warn;

/// The actor of what the bridge does by itself.
pub const BRIDGE: &str = "keyway-bridge";

/// The audit file can't be used. Nothing that needs a record is done then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Reading or writing failed.
    #[error("audit file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another bridge writes it.
    #[error("audit file {}: another process is using it", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line in the middle is no record: the file was changed by somebody else.
    #[error("audit file {}: line {line} is no record; restore the file or move it away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
    /// A number is missing: the file was changed by somebody else.
    #[error("audit file {}: line {line} has sequence {found}, expected {expected}", path.display())]
    Gap {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// The sequence that is there.
        found: u64,
        /// The one that should be.
        expected: u64,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1, 2, 3 … without a gap.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// A SPIFFE id, or the bridge itself.
    pub actor: String,
    /// What is about to be done: `rotation.promote`.
    pub action: String,
    /// To what: `payments/default v2`.
    pub subject: String,
    /// More, by action.
    #[serde(default)]
    pub details: serde_json::Value,
}

/// The open file.
#[derive(Clone, Debug)]
pub(crate) struct AuditLog {
    inner: Arc<Mutex<Inner>>,
    clock: Clock,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    /// Of the last record in the file.
    sequence: u64,
    /// Up to here the file is whole.
    len: u64,
}

impl AuditLog {
    /// Opens the file, keeps every other bridge out of it, and reads it through. A last line that a crash has cut is removed: its effect has not taken place.
    pub(crate) fn open(path: &Path, clock: Clock) -> Result<Self, AuditError> {
        let at = |source| AuditError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            // Never over what is there, whoever else writes.
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        let (sequence, len) = read_through(&file, path)?;
        let there = file.metadata().map_err(at)?.len();
        if there > len {
            warn!(path = %path.display(), bytes = there - len, "the last audit record was cut by a crash; removed");
            file.set_len(len).map_err(at)?;
            file.sync_all().map_err(at)?;
        }
        // The name of a new file has to survive a power cut too.
        let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)?;
        let inner = Inner { path: path.to_owned(), file, sequence, len };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), clock })
    }

    /// Lets the next bridge have the file. Nothing is written after this.
    pub(crate) fn release(&self) {
        // The lock goes with the process at the latest.
        let _ = self.inner.lock().unwrap_or_else(PoisonError::into_inner).file.unlock();
    }

    /// Writes a record; when this returns, it is on the disk.
    pub(crate) async fn record(
        &self,
        actor: &str,
        action: &str,
        subject: &str,
        details: serde_json::Value,
    ) -> Result<u64, AuditError> {
        let record = Record {
            sequence: 0,
            time_ms: self.clock.now_ms(),
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            details,
        };
        let inner = self.inner.clone();
        // A disk may take its time; the runtime's threads must not wait for it.
        tokio::task::spawn_blocking(move || {
            inner.lock().unwrap_or_else(PoisonError::into_inner).append(record)
        })
        .await
        .unwrap_or_else(|error| Err(AuditError::Io { path: PathBuf::new(), source: io::Error::other(error) }))
    }
}

impl Inner {
    fn append(&mut self, mut record: Record) -> Result<u64, AuditError> {
        record.sequence = self.sequence + 1;
        let mut line = serde_json::to_vec(&record).expect("a record has string keys only");
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line must not stand before the next one.
            let _ = self.file.set_len(self.len);
            return Err(AuditError::Io { path: self.path.clone(), source });
        }
        self.len += line.len() as u64;
        self.sequence = record.sequence;
        Ok(record.sequence)
    }
}

/// The last sequence, and how far the file is whole.
fn read_through(file: &File, path: &Path) -> Result<(u64, u64), AuditError> {
    let at = |source| AuditError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(file);
    let (mut sequence, mut len, mut line) = (0, 0, Vec::new());
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(at)?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let record: Record = serde_json::from_slice(&line)
            .map_err(|_| AuditError::Damaged { path: path.to_owned(), line: number })?;
        if record.sequence != sequence + 1 {
            let (found, expected) = (record.sequence, sequence + 1);
            return Err(AuditError::Gap { path: path.to_owned(), line: number, found, expected });
        }
        sequence = record.sequence;
        len += read as u64;
    }
    Ok((sequence, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn write(path: &Path, times: u64) -> u64 {
        let log = AuditLog::open(path, Clock::start()).unwrap();
        let mut last = 0;
        for n in 0..times {
            last = log.record("me", "test.act", "thing", json!({ "n": n })).await.unwrap();
        }
        last
    }

    #[tokio::test]
    async fn the_sequence_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        assert_eq!(write(&path, 3).await, 3);
        assert_eq!(write(&path, 2).await, 5);
        let text = std::fs::read_to_string(&path).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!((records[1].actor.as_str(), &records[1].details), ("me", &json!({ "n": 1 })));
    }

    #[tokio::test]
    async fn a_torn_last_line_is_removed_and_its_number_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        write(&path, 2).await;
        let whole = std::fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in [last + 1, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(write(&path, 1).await, 2);
        }
    }

    #[tokio::test]
    async fn a_second_writer_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let first = AuditLog::open(&path, Clock::start()).unwrap();
        assert!(matches!(AuditLog::open(&path, Clock::start()), Err(AuditError::InUse { .. })));
        first.record("me", "test.act", "thing", json!({})).await.unwrap();
        first.release();
        assert_eq!(write(&path, 1).await, 2);
    }

    #[test]
    fn a_changed_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, "not json\n").unwrap();
        assert!(matches!(AuditLog::open(&path, Clock::start()), Err(AuditError::Damaged { line: 1, .. })));
        let two = r#"{"sequence":2,"time_ms":0,"actor":"a","action":"b","subject":"c"}"#;
        std::fs::write(&path, format!("{two}\n")).unwrap();
        assert!(matches!(AuditLog::open(&path, Clock::start()), Err(AuditError::Gap { expected: 1, .. })));
    }
}
