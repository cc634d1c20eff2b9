//! What the members of a zone are to hold, and each member's part of it.

use super::Zone;
use crate::catalog::{CatalogError, KekState, Place};
use crate::clock::millis;
use crate::config::ZoneConfig;
use keyway_envelope::{KekVersion, KeyringId};
use keyway_protocol::{kat, v1};

/// One generation of a zone's keyrings. Immutable.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) generation: u64,
    rotation_id: String,
    pub(crate) keyrings: Vec<KeyringView>,
}

/// A keyring that has a primary.
#[derive(Debug)]
pub(crate) struct KeyringView {
    pub(crate) id: KeyringId,
    pub(crate) primary: KekVersion,
    /// The accept set.
    pub(crate) versions: Vec<VersionView>,
    /// Where the primary lives.
    pub(crate) primary_places: Vec<Place>,
    pub(crate) primary_since_ms: u64,
}

impl KeyringView {
    /// How many of the configured backends hold the primary.
    pub(crate) fn places_in(&self, config: &ZoneConfig) -> usize {
        let holds = |name: &str| self.primary_places.iter().any(|place| place.backend == name);
        config.backends.iter().filter(|backend| holds(&backend.name)).count()
    }
}

#[derive(Debug)]
pub(crate) struct VersionView {
    pub(crate) version: KekVersion,
    pub(crate) places: Vec<Place>,
    known_answer: Vec<u8>,
    answer: [u8; kat::ANSWER_LEN],
}

impl View {
    pub(super) async fn read(zone: &Zone) -> Result<Self, CatalogError> {
        let snapshot = zone.catalog().snapshot(zone.id).await?;
        let mut keyrings = Vec::with_capacity(zone.keyrings.len());
        for keyring in &zone.keyrings {
            let mine = || snapshot.versions.iter().filter(|row| row.keyring == keyring.id);
            let Some(primary) = mine().find(|row| row.state == KekState::Primary) else { continue };
            let versions = mine()
                .filter(|row| row.state.in_accept_set())
                .map(|row| {
                    let (known_answer, answer) = row
                        .known_answer
                        .clone()
                        .ok_or(CatalogError::Damaged("an accepted version has no known answer"))?;
                    Ok(VersionView { version: row.version, places: row.places.clone(), known_answer, answer })
                })
                .collect::<Result<_, CatalogError>>()?;
            keyrings.push(KeyringView {
                id: keyring.id,
                primary: primary.version,
                versions,
                primary_places: primary.places.clone(),
                primary_since_ms: primary.changed_ms,
            });
        }
        Ok(Self { generation: snapshot.generation, rotation_id: snapshot.rotation, keyrings })
    }

    pub(crate) fn keyring(&self, id: KeyringId) -> Option<&KeyringView> {
        self.keyrings.iter().find(|keyring| keyring.id == id)
    }

    /// What one service gets: the keyrings in which it has a right, and nothing of the others.
    pub(crate) fn set_for(&self, zone: &Zone, service: &str, nonce: [u8; 16]) -> v1::KeyringSet {
        let keyrings = self
            .keyrings
            .iter()
            .filter_map(|view| {
                let config = &zone.keyring(view.id)?.config;
                let rights = config.rights(service)?;
                let versions = view.versions.iter().map(|version| v1::KekVersion {
                    version: version.version.0.into(),
                    known_answer: version.known_answer.clone(),
                });
                Some(v1::Keyring {
                    name: config.name.clone(),
                    keyring_id: view.id.0,
                    primary: view.primary.0.into(),
                    versions: versions.collect(),
                    seal_lease_ms: millis(config.leases.seal),
                    open_lease_ms: millis(config.leases.open),
                    may_seal: rights.seal,
                    may_open: rights.open,
                    dek_soft_messages: config.limits.soft_messages,
                    dek_hard_messages: config.limits.hard_messages,
                    dek_soft_bytes: config.limits.soft_bytes.0,
                    dek_hard_bytes: config.limits.hard_bytes.0,
                })
            })
            .collect();
        v1::KeyringSet {
            zone: zone.name().to_owned(),
            zone_id: zone.id.0.into(),
            generation: self.generation,
            epoch: zone.catalog().epoch(),
            rotation_id: self.rotation_id.clone(),
            keyrings,
            nonce: nonce.to_vec(),
        }
    }

    /// The digest that only a member can give that has opened every known answer of its set.
    pub(crate) fn expected_digest(&self, zone: &Zone, service: &str) -> [u8; 32] {
        let answers: Vec<kat::Answer> = self
            .keyrings
            .iter()
            .filter(|view| {
                zone.keyring(view.id).is_some_and(|keyring| keyring.config.rights(service).is_some())
            })
            .flat_map(|view| view.versions.iter().map(|version| (view.id, version.version, version.answer)))
            .collect();
        kat::digest(self.generation, &answers)
    }
}

impl KeyringView {
    /// A version of the accept set.
    pub(crate) fn version(&self, version: KekVersion) -> Option<&VersionView> {
        self.versions.iter().find(|known| known.version == version)
    }
}
