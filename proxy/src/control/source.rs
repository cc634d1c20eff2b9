//! The bridge as the key cache sees it: DEKs on demand.

use super::calls::{BridgeCalls, CallError};
use super::zone::Zone;
use keyway_keycache::source::DekFuture;
use keyway_keycache::{DekSource, FetchedDek, IssueRequest, OpenRequest, SourceError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, warn};

type Connected = watch::Receiver<Option<BridgeCalls>>;

/// Calls the bridge over each zone's own connection.
pub(super) struct BridgeSource {
    zones: BTreeMap<Arc<str>, Connected>,
    deadline: Duration,
}

impl BridgeSource {
    pub(super) fn new(zones: &BTreeMap<Arc<str>, Arc<Zone>>, deadline: Duration) -> Self {
        let zones = zones.iter().map(|(name, zone)| (Arc::clone(name), zone.bridge.subscribe())).collect();
        Self { zones, deadline }
    }

    fn connected(&self, zone: &str) -> Option<Connected> {
        self.zones.get(zone).cloned()
    }
}

impl DekSource for BridgeSource {
    fn issue(&self, request: IssueRequest) -> DekFuture {
        let (connected, deadline) = (self.connected(&request.keyring.zone), self.deadline);
        Box::pin(within(deadline, async move {
            let calls = wait_for(connected).await?;
            let outcome = calls.issue(&request.keyring.name, &request.tenant, request.kek_version).await;
            outcome.map_err(|error| told("issue", &request.keyring, &error))
        }))
    }

    fn open(&self, request: OpenRequest) -> DekFuture {
        let (connected, deadline) = (self.connected(&request.keyring.zone), self.deadline);
        Box::pin(within(deadline, async move {
            let calls = wait_for(connected).await?;
            let opened = calls
                .open(&request.key_block)
                .await
                .map_err(|error| told("open", &request.keyring, &error))?;
            // The block names a keyring by number; only the bridge knows that it is this route's.
            if opened.keyring != *request.keyring.name {
                return Err(SourceError::Refused);
            }
            Ok(opened.fetched)
        }))
    }
}

async fn within(
    deadline: Duration,
    fetch: impl Future<Output = Result<FetchedDek, SourceError>>,
) -> Result<FetchedDek, SourceError> {
    tokio::time::timeout(deadline, fetch).await.unwrap_or(Err(SourceError::Unavailable))
}

/// The connection, as soon as there is one: a bridge that restarts costs its callers a moment, not an error.
async fn wait_for(connected: Option<Connected>) -> Result<BridgeCalls, SourceError> {
    let mut connected = connected.ok_or(SourceError::Unavailable)?;
    let calls = connected.wait_for(Option::is_some).await.map_err(|_| SourceError::Unavailable)?;
    calls.clone().ok_or(SourceError::Unavailable)
}

fn told(operation: &str, keyring: &keyway_keycache::KeyringName, error: &CallError) -> SourceError {
    match error {
        // Not a matter of load or network: somebody should look.
        CallError::Transport(_) | CallError::Answer(_) => {
            warn!(%keyring, %error, "{operation}: the bridge's answer can't be used");
        }
        _ => debug!(%keyring, %error, "{operation}: no DEK"),
    }
    error.to_source()
}
