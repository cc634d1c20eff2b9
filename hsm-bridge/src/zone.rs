//! One zone at run time: its configuration, keys, and what its members are to hold.

mod directory;
mod view;

pub(crate) use directory::{Connection, Directory};
pub(crate) use view::View;

use crate::audit::{AuditError, AuditLog};
use crate::catalog::{Catalog, CatalogError, ZoneSpec};
use crate::clock::{Clock, millis};
use crate::config::{KeyringConfig, ZoneConfig};
use crate::dek_cache::DekCache;
use crate::hooks::Hooks;
use crate::keys::Keys;
use crate::metrics::Metrics;
use keyway_envelope::{KeyringId, ZoneId};
use keyway_protocol::signing::SigningKey;
use keyway_protocol::v1;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};

/// Changes of rotations that a slow watcher may lag behind before it has to read the catalog.
const ROTATION_EVENTS: usize = 256;

/// What all zones of a bridge share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) catalog: Catalog,
    pub(crate) audit: AuditLog,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) signing: SigningKey,
    pub(crate) heartbeat: Duration,
    pub(crate) hooks: Hooks,
}

/// A keyring, with its number.
#[derive(Debug)]
pub(crate) struct ZoneKeyring {
    pub(crate) id: KeyringId,
    pub(crate) config: KeyringConfig,
}

/// One isolated cryptographic domain.
#[derive(Debug)]
pub(crate) struct Zone {
    pub(crate) id: ZoneId,
    pub(crate) config: ZoneConfig,
    pub(crate) keyrings: Vec<ZoneKeyring>,
    pub(crate) keys: Keys,
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Directory,
    pub(crate) deks: DekCache,
    /// What members are to hold. One writer: [`Zone::publish`].
    pub(crate) view: watch::Sender<Arc<View>>,
    /// Wakes the rotation engine.
    pub(crate) wake: Notify,
    /// Every change of a rotation, for watchers.
    pub(crate) rotations: broadcast::Sender<v1::Rotation>,
    /// What the last attempt of a rotation's next step failed with, by rotation.
    pub(crate) failures: Mutex<HashMap<String, String>>,
}

impl Zone {
    /// Takes a zone of the configuration into the catalog and publishes what its members are to hold.
    pub(crate) async fn open(
        config: ZoneConfig,
        keys: Keys,
        shared: Arc<Shared>,
    ) -> Result<Self, CatalogError> {
        let spec = ZoneSpec {
            name: config.name.clone(),
            keyrings: config.keyrings.iter().map(|keyring| keyring.name.clone()).collect(),
            config_digest: config_digest(&config),
        };
        let row = shared.catalog.adopt_zone(&spec).await?;
        let keyrings = row
            .keyrings
            .into_iter()
            .zip(&config.keyrings)
            .map(|(id, config)| ZoneKeyring { id, config: config.clone() })
            .collect();
        let zone = Self {
            id: row.id,
            config,
            keyrings,
            keys,
            directory: Directory::default(),
            deks: DekCache::default(),
            view: watch::Sender::new(Arc::default()),
            wake: Notify::new(),
            rotations: broadcast::Sender::new(ROTATION_EVENTS),
            failures: Mutex::default(),
            shared,
        };
        zone.publish().await?;
        Ok(zone)
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    pub(crate) fn keyring_named(&self, name: &str) -> Option<&ZoneKeyring> {
        self.keyrings.iter().find(|keyring| keyring.config.name == name)
    }

    pub(crate) fn keyring(&self, id: KeyringId) -> Option<&ZoneKeyring> {
        self.keyrings.iter().find(|keyring| keyring.id == id)
    }

    /// Whether a service has any right in this zone.
    pub(crate) fn admits(&self, service: &str) -> bool {
        self.keyrings.iter().any(|keyring| keyring.config.rights(service).is_some())
    }

    /// Reads the catalog and hands what it says to every stream.
    pub(crate) async fn publish(&self) -> Result<Arc<View>, CatalogError> {
        let view = Arc::new(View::read(self).await?);
        self.view.send_if_modified(|current| {
            // Generations never go down, whichever reader was faster.
            if view.generation < current.generation {
                return false;
            }
            // The same generation is the same to members: they are not told twice. Each telling costs the whole fleet its
            // known answers, and one that is late would ask for those of a version that has been retired meanwhile.
            let newer = view.generation > current.generation;
            *current = view.clone();
            newer
        });
        Ok(view)
    }

    /// Writes an audit record of something that is about to happen in this zone.
    pub(crate) async fn audit(
        &self,
        actor: &str,
        action: &str,
        subject: &str,
        details: serde_json::Value,
    ) -> Result<(), AuditError> {
        self.shared.audit.record(actor, action, subject, details).await?;
        self.shared.metrics.audit_record();
        Ok(())
    }

    /// How long a member may seal after a message of ours was *sent*, in milliseconds.
    ///
    /// Its lease runs from the arrival. A stream whose member does not answer pings is closed within two heartbeats, so
    /// nothing arrives later than that.
    ///
    /// `held_ms`: the longest lease that it may hold. It goes on with a longer one than the configuration's until it has
    /// applied a set that gives the shorter.
    pub(crate) fn sealing_ms(&self, held_ms: u64) -> u64 {
        held_ms.max(self.seal_lease_ms()) + 2 * millis(self.shared.heartbeat)
    }

    /// The longest seal lease that a keyring set of this configuration gives.
    pub(crate) fn seal_lease_ms(&self) -> u64 {
        millis(self.keyrings.iter().map(|keyring| keyring.config.leases.seal).max().unwrap_or_default())
    }

    /// By how much a recorded lease end may run ahead, so that not every heartbeat is a write.
    pub(crate) fn lease_margin_ms(&self) -> u64 {
        let heartbeat = millis(self.shared.heartbeat);
        (self.sealing_ms(0) / 8).clamp(heartbeat, heartbeat.max(10 * 60 * 1000))
    }
}

/// Over everything that the configuration contributes to a keyring set. A change makes a new generation.
fn config_digest(config: &ZoneConfig) -> [u8; 32] {
    let parts: Vec<_> = config
        .keyrings
        .iter()
        .map(|keyring| (&keyring.name, &keyring.leases, &keyring.limits, &keyring.services))
        .collect();
    let text = serde_json::to_vec(&parts).expect("a configuration has string keys only");
    Sha256::digest(text).into()
}
