//! The durable record: zones, keyrings, KEK versions, every DEK with its wraps, rotations, members.
//!
//! It is the inventory: no key exists that it does not list. A DEK is in it before it is issued, so "does anything
//! live still need version 1?" is a query and not a guess. All SQL of the bridge is in this module's files.
//!
//! One writer: the bridge that opened it last. Opening takes the next leader epoch, and every write checks that the
//! epoch is still its own, inside the transaction that it guards.

mod deks;
mod group;
mod keks;
mod members;
mod rotations;
mod zones;

pub(crate) use deks::{DekRow, NewDek, NewWrap, Purpose, Rewrapped, block_digest};
pub(crate) use keks::{KekState, NewVersion, Place};
pub(crate) use members::{MemberKey, MemberRow};
pub(crate) use rotations::{NewRotation, RotationRow, Step};
pub(crate) use zones::ZoneSpec;

use crate::clock::Clock;
use group::Group;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Readers beside the one writer.
const READERS: u32 = 4;
/// How long a statement waits for another process' lock.
const BUSY: Duration = Duration::from_secs(5);

/// The catalog refused or failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The database failed.
    #[error("catalog: {0}")]
    Sql(#[from] sqlx::Error),
    /// The database was made by another version, or its schema was changed.
    #[error("catalog: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Another bridge has taken the lead; this one must not write any more.
    #[error("another bridge has taken over (its epoch is {theirs}, ours is {ours})")]
    Deposed {
        /// The epoch of this process.
        ours: u64,
        /// The epoch in the catalog.
        theirs: u64,
    },
    /// No DEK may be issued under this version (any more).
    #[error("version {version} is not one to seal under")]
    NotIssuable {
        /// The version.
        version: u16,
    },
    /// The keyring has an open rotation.
    #[error("rotation {id} of this keyring is still open")]
    RotationOpen {
        /// The open one.
        id: String,
    },
    /// A step that does not fit what is recorded; nothing was changed.
    #[error("catalog: {0}")]
    Stale(&'static str),
    /// The transaction that this change was part of has failed; nothing of it is recorded.
    #[error("{0}")]
    Group(String),
    /// A value that this program never writes.
    #[error("catalog is damaged: {0}")]
    Damaged(&'static str),
}

/// An open catalog, and the lead of it.
#[derive(Debug)]
pub(crate) struct Catalog {
    leader: Arc<Leader>,
    read: SqlitePool,
    /// For what many ask for at the same time.
    group: Group,
}

/// The one who writes.
#[derive(Debug)]
struct Leader {
    write: SqlitePool,
    epoch: u64,
    clock: Clock,
}

/// A write transaction of the leader. Dropped without commit, nothing has happened.
type Write = Transaction<'static, Sqlite>;

impl Catalog {
    /// Opens (or makes) the database, brings its schema up to date, and takes the lead.
    pub(crate) async fn open(path: &Path, clock: Clock) -> Result<Self, CatalogError> {
        // SQLite gives its side files the mode of this one.
        let mut private = std::fs::OpenOptions::new();
        private.append(true).create(true).mode(0o600).open(path).map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // With WAL, NORMAL could lose the last commits at a power cut: a DEK would be in use and not recorded.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let write = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new().max_connections(READERS).connect_with(options).await?;
        let epoch = take_lead(&write, int(clock.now_ms())).await?;
        let leader = Arc::new(Leader { write, epoch, clock });
        Ok(Self { read, group: Group::start(leader.clone()), leader })
    }

    /// The leader epoch of this process.
    pub(crate) fn epoch(&self) -> u64 {
        self.leader.epoch
    }

    /// Waits for what is under way and closes the files.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.leader.write.close().await;
    }

    async fn begin(&self) -> Result<Write, CatalogError> {
        self.leader.begin().await
    }

    /// Whether this process still has the lead.
    pub(crate) async fn check_lead(&self) -> Result<(), CatalogError> {
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM leader").fetch_one(&self.read).await?;
        let theirs = uint(epoch)?;
        if theirs == self.epoch() {
            Ok(())
        } else {
            Err(CatalogError::Deposed { ours: self.epoch(), theirs })
        }
    }

    fn now(&self) -> i64 {
        self.leader.now()
    }
}

impl Leader {
    /// A write transaction; it has the database's write lock, and the lead is checked.
    ///
    /// Each says what time it is: whatever is decided because a lease has ended is recorded with a later time than that.
    async fn begin(&self) -> Result<Write, CatalogError> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let epoch: i64 = sqlx::query_scalar("UPDATE leader SET clock_ms = ? RETURNING epoch")
            .bind(self.now())
            .fetch_one(&mut *tx)
            .await?;
        let theirs = uint(epoch)?;
        if theirs == self.epoch { Ok(tx) } else { Err(CatalogError::Deposed { ours: self.epoch, theirs }) }
    }

    fn now(&self) -> i64 {
        int(self.clock.now_ms())
    }
}

/// The next epoch, and every lease moved to this process' clock.
///
/// What was left of a lease when the last leader wrote is left now: no time between two processes is counted, because no
/// clock can be trusted to have measured it. What had ended then has ended.
async fn take_lead(write: &SqlitePool, now: i64) -> Result<u64, CatalogError> {
    let mut tx = write.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(
        "UPDATE members SET lease_end_ms = max(0, ?1 + lease_end_ms - (SELECT clock_ms FROM leader) \
           - (lease_end_ms <= (SELECT clock_ms FROM leader)))",
    )
    .bind(now)
    .execute(&mut *tx)
    .await?;
    let epoch: i64 = sqlx::query_scalar("UPDATE leader SET epoch = epoch + 1, clock_ms = ? RETURNING epoch")
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    uint(epoch)
}

/// To SQLite's only integer type. Everything counted here is far below 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> Result<u64, CatalogError> {
    u64::try_from(value).map_err(|_| CatalogError::Damaged("a number is negative"))
}

fn small<T: TryFrom<i64>>(value: i64) -> Result<T, CatalogError> {
    T::try_from(value).map_err(|_| CatalogError::Damaged("a number is out of its range"))
}

#[cfg(test)]
mod tests;
