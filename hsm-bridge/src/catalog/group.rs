//! Group commit: what many callers ask for at the same time becomes durable by one commit.
//!
//! A commit waits for the disk (`fsync`), and there is one writer. With a commit each, callers would wait for the sum of
//! all commits before theirs. One task takes what is waiting, whatever came in during the last commit, makes one
//! transaction of it, and answers after its commit: nobody is told "recorded" before it is on the disk.
//!
//! A change that is refused or fails is taken back alone (a savepoint); the others stand. A commit that fails, fails all
//! of its group: none of it is in the catalog.

use super::{CatalogError, Leader, Write};
use futures_util::future::BoxFuture;
use sqlx::{Acquire, SqliteConnection};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Changes in one transaction. It bounds how long the write lock is held: some milliseconds.
const GROUP_MAX: usize = 128;
/// Changes that may wait. More callers wait for room.
const WAITING_MAX: usize = 4096;

/// What a change does to the catalog, inside the group's transaction.
/// The time is the transaction's.
type Work =
    Box<dyn for<'t> FnOnce(&'t mut SqliteConnection, i64) -> BoxFuture<'t, Result<(), CatalogError>> + Send>;

/// A change, and who waits for it.
struct Change {
    work: Work,
    reply: oneshot::Sender<Result<(), CatalogError>>,
}

/// Where changes are handed in. The task ends when this is dropped.
#[derive(Debug)]
pub(super) struct Group {
    changes: mpsc::Sender<Change>,
}

impl Group {
    /// Starts the task.
    pub(super) fn start(leader: Arc<Leader>) -> Self {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(serve(leader, waiting));
        Self { changes }
    }

    /// Makes a change; `Ok` when it is durable.
    pub(super) async fn commit<W>(&self, work: W) -> Result<(), CatalogError>
    where
        W: for<'t> FnOnce(&'t mut SqliteConnection, i64) -> BoxFuture<'t, Result<(), CatalogError>>
            + Send
            + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let closed = || CatalogError::Group("the catalog is closed".to_owned());
        self.changes.send(Change { work: Box::new(work), reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

async fn serve(leader: Arc<Leader>, mut waiting: mpsc::Receiver<Change>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while waiting.recv_many(&mut group, GROUP_MAX).await > 0 {
        let (work, replies): (Vec<_>, Vec<_>) =
            group.drain(..).map(|change: Change| (change.work, change.reply)).unzip();
        let outcomes = match commit(&leader, work).await {
            Ok(outcomes) => outcomes,
            Err(error) => replies.iter().map(|_| Err(for_each(&error))).collect(),
        };
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // Who does not wait any more has been recorded all the same.
            let _ = reply.send(outcome);
        }
    }
}

/// One transaction: an outcome for each, or the error that all of them share.
async fn commit(leader: &Leader, group: Vec<Work>) -> Result<Vec<Result<(), CatalogError>>, CatalogError> {
    let mut tx = leader.begin().await?;
    let mut outcomes = Vec::with_capacity(group.len());
    for work in group {
        outcomes.push(apart(&mut tx, work, leader.now()).await?);
    }
    tx.commit().await?;
    Ok(outcomes)
}

/// Inner: what came of one change. Outer: the transaction itself has failed.
async fn apart(tx: &mut Write, work: Work, now: i64) -> Result<Result<(), CatalogError>, CatalogError> {
    let mut savepoint = tx.begin().await?;
    let outcome = work(&mut savepoint, now).await;
    if outcome.is_ok() {
        savepoint.commit().await?;
    } else {
        savepoint.rollback().await?;
    }
    Ok(outcome)
}

/// An error of the whole group, for one of it.
fn for_each(error: &CatalogError) -> CatalogError {
    match error {
        CatalogError::Deposed { ours, theirs } => CatalogError::Deposed { ours: *ours, theirs: *theirs },
        error => CatalogError::Group(error.to_string()),
    }
}
