//! Members: what each has applied, and until when it may seal.

use super::{Catalog, CatalogError, int, uint};
use core::fmt;
use keyway_envelope::ZoneId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A member's name in its zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MemberKey {
    /// The SPIFFE id of its certificate.
    pub(crate) service: String,
    /// Its own name among those of its service.
    pub(crate) instance: String,
}

impl fmt::Display for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.service, self.instance)
    }
}

/// A member as recorded.
#[derive(Clone, Debug)]
pub(crate) struct MemberRow {
    pub(crate) key: MemberKey,
    pub(crate) version: String,
    pub(crate) key_exchange: String,
    pub(crate) applied_generation: u64,
    pub(crate) applied_digest: Vec<u8>,
    pub(crate) applied_ms: u64,
    pub(crate) seen_ms: u64,
    pub(crate) lease_end_ms: u64,
    /// The longest seal lease that it may hold.
    pub(crate) lease_ms: u64,
    /// The generation that it refused, and why.
    pub(crate) nack: Option<(u64, String)>,
}

impl Catalog {
    /// All members that a zone ever had.
    pub(crate) async fn members(&self, zone: ZoneId) -> Result<Vec<MemberRow>, CatalogError> {
        let rows = sqlx::query("SELECT * FROM members WHERE zone_id = ? ORDER BY service, instance")
            .bind(i64::from(zone.0))
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(member).collect()
    }

    /// One member, if the zone ever had it.
    pub(crate) async fn member(
        &self,
        zone: ZoneId,
        key: &MemberKey,
    ) -> Result<Option<MemberRow>, CatalogError> {
        let row = sqlx::query("SELECT * FROM members WHERE zone_id = ? AND service = ? AND instance = ?")
            .bind(i64::from(zone.0))
            .bind(&key.service)
            .bind(&key.instance)
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(member).transpose()
    }

    /// A member has said hello. From now on it counts, whatever it does, until `lease_end_ms`.
    ///
    /// If it holds less than what is recorded (its disk was wiped), what it holds is what counts.
    pub(crate) async fn member_attached(
        &self,
        zone: ZoneId,
        row: &MemberRow,
    ) -> Result<MemberRow, CatalogError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "INSERT INTO members (zone_id, service, instance, version, key_exchange, seen_ms, lease_end_ms, lease_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9) \
             ON CONFLICT DO UPDATE SET version = ?4, key_exchange = ?5, seen_ms = ?6, \
               lease_end_ms = max(lease_end_ms, ?7), lease_ms = max(lease_ms, ?9), applied_generation = min(applied_generation, ?8), \
               nack_generation = 0, nack = '' \
             RETURNING *",
        )
        .bind(i64::from(zone.0))
        .bind(&row.key.service)
        .bind(&row.key.instance)
        .bind(&row.version)
        .bind(&row.key_exchange)
        .bind(int(row.seen_ms))
        .bind(int(row.lease_end_ms))
        .bind(int(row.applied_generation))
        .bind(int(row.lease_ms))
        .fetch_one(&mut *tx)
        .await?;
        let row = member(&row)?;
        tx.commit().await?;
        Ok(row)
    }

    /// A member serves from this generation; its known answers were right. It seals within this set's lease now.
    pub(crate) async fn member_applied(
        &self,
        zone: ZoneId,
        key: &MemberKey,
        generation: u64,
        digest: &[u8],
        lease_ms: u64,
    ) -> Result<(), CatalogError> {
        let (key, digest) = (key.clone(), digest.to_vec());
        let recorded = self.group.commit(move |tx, now| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE members SET applied_generation = ?1, applied_digest = ?2, applied_ms = ?5, seen_ms = ?5, \
                       lease_ms = ?7, nack_generation = 0, nack = '' \
                     WHERE zone_id = ?3 AND service = ?4 AND instance = ?6 AND applied_generation <= ?1",
                )
                .bind(int(generation))
                .bind(digest)
                .bind(i64::from(zone.0))
                .bind(key.service)
                .bind(now)
                .bind(key.instance)
                .bind(int(lease_ms))
                .execute(tx)
                .await?;
                Ok(())
            })
        });
        // A push to a fleet is answered by all of it at once.
        recorded.await
    }

    /// A member goes on with what it had.
    pub(crate) async fn member_refused(
        &self,
        zone: ZoneId,
        key: &MemberKey,
        generation: u64,
        why: &str,
    ) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE members SET nack_generation = ?, nack = ?, seen_ms = ? \
             WHERE zone_id = ? AND service = ? AND instance = ?",
        )
        .bind(int(generation))
        .bind(why)
        .bind(self.now())
        .bind(i64::from(zone.0))
        .bind(&key.service)
        .bind(&key.instance)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Sets how long a member may seal. Before a message that extends a lease is sent, its end has to be here.
    pub(crate) async fn member_lease(
        &self,
        zone: ZoneId,
        key: &MemberKey,
        lease_end_ms: u64,
    ) -> Result<(), CatalogError> {
        let key = key.clone();
        let recorded = self.group.commit(move |tx, now| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE members SET lease_end_ms = ?, seen_ms = ? WHERE zone_id = ? AND service = ? AND instance = ?",
                )
                .bind(int(lease_end_ms))
                .bind(now)
                .bind(i64::from(zone.0))
                .bind(key.service)
                .bind(key.instance)
                .execute(tx)
                .await?;
                Ok(())
            })
        });
        recorded.await
    }
}

fn member(row: &SqliteRow) -> Result<MemberRow, CatalogError> {
    let nack_generation = uint(row.try_get("nack_generation")?)?;
    Ok(MemberRow {
        key: MemberKey { service: row.try_get("service")?, instance: row.try_get("instance")? },
        version: row.try_get("version")?,
        key_exchange: row.try_get("key_exchange")?,
        applied_generation: uint(row.try_get("applied_generation")?)?,
        applied_digest: row.try_get("applied_digest")?,
        applied_ms: uint(row.try_get("applied_ms")?)?,
        seen_ms: uint(row.try_get("seen_ms")?)?,
        lease_end_ms: uint(row.try_get("lease_end_ms")?)?,
        lease_ms: uint(row.try_get("lease_ms")?)?,
        nack: (nack_generation > 0).then_some((nack_generation, row.try_get("nack")?)),
    })
}
