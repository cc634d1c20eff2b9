//! The key backends of a zone, opened for reading.

use crate::error::Failure;
use anyhow::{Context as _, anyhow};
use keyway_bridge::backend::software::{Keystore, Secret};
use keyway_bridge::backend::{self, BackendError, BackendKind, KeyBackend};
use keyway_bridge::config::{Config, ZoneConfig};
use keyway_envelope::{Dek, KeyBlock};
use std::sync::Arc;

/// The backends that could be opened.
#[derive(Debug)]
pub struct Keys {
    backends: Vec<(String, Opened)>,
    /// Why the others could not.
    problems: Vec<String>,
}

#[derive(Debug)]
enum Opened {
    /// Read beside a running bridge, which holds the keystore's lock.
    Keystore(Box<Keystore>),
    Backend(Arc<dyn KeyBackend>),
}

impl Keys {
    /// Opens every backend of the zone; one that is out of order does not hinder the others.
    ///
    /// # Errors
    /// None could be opened.
    pub async fn open(zone: &ZoneConfig) -> Result<Self, Failure> {
        let mut keys = Self { backends: Vec::new(), problems: Vec::new() };
        for config in &zone.backends {
            let opened = match &config.kind {
                BackendKind::Software(software) => Secret::for_reading(software)
                    .and_then(|secret| Keystore::open(&software.path, &secret))
                    .map(|keystore| Opened::Keystore(Box::new(keystore))),
                BackendKind::Pkcs11(_) => backend::open(config).await.map(Opened::Backend),
            };
            match opened {
                Ok(opened) => keys.backends.push((config.name.clone(), opened)),
                Err(error) => keys.problems.push(format!("{}: {error}", config.name)),
            }
        }
        if keys.backends.is_empty() {
            return Err(Failure::Failed(anyhow!(
                "no key backend of zone {} can be opened: {}",
                zone.name,
                keys.problems.join("; ")
            )));
        }
        Ok(keys)
    }

    /// Opens a key block with the first backend that can.
    ///
    /// # Errors
    /// None can.
    pub async fn dek(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, Failure> {
        let mut problems = self.problems.clone();
        for (name, backend) in &self.backends {
            let found = match backend {
                Opened::Keystore(keystore) => keystore.unwrap(block, zone, tenant),
                Opened::Backend(backend) => backend.unwrap(block, zone, tenant).await,
            };
            match found {
                Ok(dek) => return Ok(dek),
                Err(BackendError::Refused) => problems.push(format!(
                    "{name}: the wrapped DEK was refused: another zone or tenant, or changed bytes"
                )),
                Err(error) => problems.push(format!("{name}: {error}")),
            }
        }
        Err(anyhow!(problems.join("; ")))
            .with_context(|| format!("opening the DEK under {}", block.kek()))
            .map_err(Failure::Failed)
    }
}

/// The zone that is meant.
///
/// # Errors
/// There is none by that name, or several and none was named.
pub fn zone_of<'a>(config: &'a Config, named: Option<&str>) -> Result<&'a ZoneConfig, Failure> {
    let names = || config.zones.iter().map(|zone| zone.name.as_str()).collect::<Vec<_>>().join(", ");
    match (named, config.zones.as_slice()) {
        (Some(named), zones) => zones.iter().find(|zone| zone.name == named).ok_or_else(|| {
            Failure::Usage(format!("the configuration has no zone {named:?}; it has: {}", names()))
        }),
        (None, [zone]) => Ok(zone),
        (None, _) => Err(Failure::Usage(format!("which zone? name one with --zone: {}", names()))),
    }
}
