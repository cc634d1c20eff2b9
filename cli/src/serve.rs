//! What commands that serve have in common: signals, the ready file, the store's own command.

use crate::args::StoreArgs;
use crate::error::Failure;
use crate::output;
use crate::private_file;
use crate::store::{self, Durability, StoreConfig};
use anyhow::Context as _;
use serde::Serialize;
use std::path::Path;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM. Made before anything starts, so that none is lost.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Writes the ready file whole, so that whoever waits for it never reads half of it.
pub(crate) fn write_ready(path: Option<&Path>, addresses: &impl Serialize) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_vec_pretty(addresses)?;
    private_file::write_public(path, &text).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// `keyway store`.
pub(crate) fn store(args: StoreArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        let durability = if args.no_sync { Durability::Cached } else { Durability::Synced };
        let running =
            store::start_with(StoreConfig { listen: args.listen, dir: args.dir }, durability).await?;
        write_ready(args.ready_file.as_deref(), &serde_json::json!({ "store": running.addr() }))?;
        output::line(&format!("the object store serves on http://{}", running.addr()))?;
        stop.next().await;
        running.shutdown().await;
        Ok(())
    })
}
