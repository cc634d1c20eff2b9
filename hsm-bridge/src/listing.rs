//! Keys, members and rotations as people see them: the same for operators (gRPC) and the admin port (JSON).

use crate::catalog::CatalogError;
use crate::rotation::decide::Reach;
use crate::zone::Zone;
use keyway_protocol::v1;

/// Ended rotations that are listed.
pub(crate) const ROTATIONS_MAX: u32 = 50;

impl Zone {
    /// Every version of every keyring, with where it lives and what it carries.
    pub(crate) async fn list_keys(&self) -> Result<Vec<v1::Key>, CatalogError> {
        let mut keys = Vec::new();
        for kek in self.catalog().versions(self.id).await? {
            let Some(keyring) = self.keyring(kek.keyring) else { continue };
            keys.push(v1::Key {
                zone: self.name().to_owned(),
                keyring: keyring.config.name.clone(),
                version: kek.version.0.into(),
                state: kek.state.name().to_owned(),
                places: kek
                    .places
                    .iter()
                    .map(|place| v1::KeyPlace {
                        backend: place.backend.clone(),
                        kind: place.kind.clone(),
                        mechanism: crate::backend::mechanism_name(place.mechanism).to_owned(),
                        extractable: place.extractable,
                    })
                    .collect(),
                created_ms: kek.created_ms,
                changed_ms: kek.changed_ms,
                live_deks: self.catalog().count_live(kek.keyring, kek.version).await?,
            });
        }
        Ok(keys)
    }

    /// Every member that the zone ever had.
    pub(crate) async fn list_members(&self) -> Result<Vec<v1::Member>, CatalogError> {
        let now = self.shared.clock.now_ms();
        let rows = self.catalog().members(self.id).await?;
        let shown = rows.into_iter().map(|row| {
            let state = match self.reach(&row, now) {
                Reach::Connected => "connected",
                Reach::Unreachable => "disconnected",
                Reach::Gone => "expired",
            };
            v1::Member {
                zone: self.name().to_owned(),
                state: state.to_owned(),
                generation: row.applied_generation,
                applied_ms: row.applied_ms,
                seen_ms: if state == "connected" { now } else { row.seen_ms },
                lease_ends_ms: row.lease_end_ms,
                last_nack: row.nack.map(|(_, why)| why).unwrap_or_default(),
                version: row.version,
                key_exchange: row.key_exchange,
                service: row.key.service,
                instance: row.key.instance,
            }
        });
        Ok(shown.collect())
    }

    /// The last rotations, the newest first.
    pub(crate) async fn list_rotations(&self) -> Result<Vec<v1::Rotation>, CatalogError> {
        let mut shown = Vec::new();
        for row in self.catalog().rotations(self.id, ROTATIONS_MAX).await? {
            shown.push(self.describe(&row).await?);
        }
        Ok(shown)
    }
}
