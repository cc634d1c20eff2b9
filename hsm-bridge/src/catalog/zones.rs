//! Zones and keyrings: names get numbers once.

use super::{Catalog, CatalogError, Write, int, small, uint};
use keyway_envelope::{KeyringId, ZoneId};

/// A zone as the configuration has it.
#[derive(Debug)]
pub(crate) struct ZoneSpec {
    pub(crate) name: String,
    pub(crate) keyrings: Vec<String>,
    /// Of what the configuration contributes to a keyring set.
    pub(crate) config_digest: [u8; 32],
}

/// A zone's numbers. Keyrings are in the order of the configuration.
#[derive(Debug)]
pub(crate) struct ZoneRow {
    pub(crate) id: ZoneId,
    pub(crate) keyrings: Vec<KeyringId>,
}

impl Catalog {
    /// Gives numbers to new zones and keyrings. A zone whose configuration has changed gets a new generation, so that
    /// its members hear of it.
    pub(crate) async fn adopt_zone(&self, spec: &ZoneSpec) -> Result<ZoneRow, CatalogError> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO zones (name, generation, config_digest) VALUES (?, 0, x'') ON CONFLICT DO NOTHING",
        )
        .bind(&spec.name)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE zones SET generation = generation + 1, config_digest = ?2 WHERE name = ?1 AND config_digest <> ?2",
        )
        .bind(&spec.name)
        .bind(&spec.config_digest[..])
        .execute(&mut *tx)
        .await?;
        let id: i64 = sqlx::query_scalar("SELECT id FROM zones WHERE name = ?")
            .bind(&spec.name)
            .fetch_one(&mut *tx)
            .await?;
        let mut keyrings = Vec::with_capacity(spec.keyrings.len());
        for name in &spec.keyrings {
            sqlx::query("INSERT INTO keyrings (zone_id, name) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(id)
                .bind(name)
                .execute(&mut *tx)
                .await?;
            let keyring: i64 = sqlx::query_scalar("SELECT id FROM keyrings WHERE zone_id = ? AND name = ?")
                .bind(id)
                .bind(name)
                .fetch_one(&mut *tx)
                .await?;
            keyrings.push(KeyringId(small(keyring)?));
        }
        tx.commit().await?;
        Ok(ZoneRow { id: ZoneId(small(id)?), keyrings })
    }

    /// The generation of a zone's keyring set.
    pub(crate) async fn generation(&self, zone: ZoneId) -> Result<u64, CatalogError> {
        let generation: i64 = sqlx::query_scalar("SELECT generation FROM zones WHERE id = ?")
            .bind(i64::from(zone.0))
            .fetch_one(&self.read)
            .await?;
        uint(generation)
    }
}

/// The next generation, in the transaction that makes it necessary.
pub(super) async fn next_generation(tx: &mut Write, zone: ZoneId) -> Result<u64, CatalogError> {
    let generation: i64 =
        sqlx::query_scalar("UPDATE zones SET generation = generation + 1 WHERE id = ? RETURNING generation")
            .bind(int(u64::from(zone.0)))
            .fetch_one(&mut **tx)
            .await?;
    uint(generation)
}
