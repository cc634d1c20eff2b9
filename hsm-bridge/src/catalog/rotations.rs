//! Rotations: each step is one transaction that changes states, takes a generation, and records that it was done.

use super::keks::insert_version;
use super::zones::next_generation;
use super::{Catalog, CatalogError, KekState, Write, small, uint};
use keyway_envelope::{KekRef, KekVersion, KeyringId, ZoneId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A rotation to be begun.
#[derive(Debug)]
pub(crate) struct NewRotation<'a> {
    pub(crate) id: &'a str,
    pub(crate) zone: ZoneId,
    pub(crate) keyring: KeyringId,
    /// The highest number that a backend holds a KEK for: the catalog may be older than that.
    pub(crate) above: KekVersion,
    pub(crate) actor: &'a str,
    pub(crate) reason: &'a str,
}

/// A rotation as recorded.
#[derive(Clone, Debug)]
pub(crate) struct RotationRow {
    pub(crate) id: String,
    pub(crate) zone: ZoneId,
    pub(crate) keyring: KeyringId,
    pub(crate) from: KekVersion,
    pub(crate) to: KekVersion,
    pub(crate) actor: String,
    pub(crate) reason: String,
    pub(crate) started_ms: u64,
    pub(crate) updated_ms: u64,
    pub(crate) ended_ms: Option<u64>,
    pub(crate) accept_generation: Option<u64>,
    pub(crate) promote_generation: Option<u64>,
    pub(crate) promoted_ms: Option<u64>,
    pub(crate) draining: bool,
    pub(crate) barrier: bool,
    pub(crate) retire_generation: Option<u64>,
    pub(crate) deks_total: u64,
    pub(crate) deks_rewrapped: u64,
}

/// A step whose effect is in the catalog alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The new version joins the accept set.
    Accept,
    /// The new version becomes primary, the old one is accepted.
    Promote,
    /// The old wraps are replaced; what is left is to wait for everybody.
    BeginDrain,
    /// Nobody seals under the old version any more: no DEK is issued under it from now on.
    CloseBarrier,
    /// The old version leaves the accept set.
    Retire,
    /// Nobody holds the old version.
    Finish,
}

impl RotationRow {
    pub(crate) fn old_kek(&self) -> KekRef {
        KekRef { zone: self.zone, keyring: self.keyring, version: self.from }
    }

    pub(crate) fn new_kek(&self) -> KekRef {
        KekRef { zone: self.zone, keyring: self.keyring, version: self.to }
    }
}

impl Catalog {
    /// Opens a rotation from the primary version to the next number that nobody has used, which is taken for good.
    pub(crate) async fn begin_rotation(&self, new: &NewRotation<'_>) -> Result<RotationRow, CatalogError> {
        let mut tx = self.begin().await?;
        let keyring = i64::from(new.keyring.0);
        let open: Option<String> =
            sqlx::query_scalar("SELECT id FROM rotations WHERE keyring_id = ? AND ended_ms IS NULL")
                .bind(keyring)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(id) = open {
            return Err(CatalogError::RotationOpen { id });
        }
        let primary: Option<i64> =
            sqlx::query_scalar("SELECT version FROM kek_versions WHERE keyring_id = ? AND state = 'primary'")
                .bind(keyring)
                .fetch_optional(&mut *tx)
                .await?;
        let from = primary.ok_or(CatalogError::Stale("the keyring has no primary version yet"))?;
        let last: i64 = sqlx::query_scalar("SELECT max(version) FROM kek_versions WHERE keyring_id = ?")
            .bind(keyring)
            .fetch_one(&mut *tx)
            .await?;
        let to: u16 = small(last.max(i64::from(new.above.0)) + 1)?;
        let now = self.now();
        let kek = KekRef { zone: new.zone, keyring: new.keyring, version: KekVersion(to) };
        insert_version(&mut tx, kek, KekState::Pending, now).await?;
        self.set_state(&mut tx, kek, KekState::Pending, new.actor, new.reason).await?;
        sqlx::query(
            "INSERT INTO rotations (id, keyring_id, from_version, to_version, actor, reason, started_ms, updated_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
        )
        .bind(new.id)
        .bind(keyring)
        .bind(from)
        .bind(i64::from(to))
        .bind(new.actor)
        .bind(new.reason)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.rotation(new.id).await?.ok_or(CatalogError::Stale("the rotation is gone"))
    }

    /// One rotation.
    pub(crate) async fn rotation(&self, id: &str) -> Result<Option<RotationRow>, CatalogError> {
        let row = sqlx::query(
            "SELECT r.*, k.zone_id FROM rotations r JOIN keyrings k ON k.id = r.keyring_id WHERE r.id = ?",
        )
        .bind(id)
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(rotation).transpose()
    }

    /// A zone's rotations, the last begun first.
    pub(crate) async fn rotations(&self, zone: ZoneId, limit: u32) -> Result<Vec<RotationRow>, CatalogError> {
        let rows = sqlx::query(
            "SELECT r.*, k.zone_id FROM rotations r JOIN keyrings k ON k.id = r.keyring_id WHERE k.zone_id = ? \
             ORDER BY r.started_ms DESC, r.id DESC LIMIT ?",
        )
        .bind(i64::from(zone.0))
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(rotation).collect()
    }

    /// A zone's open rotations, the first begun first.
    pub(crate) async fn open_rotations(&self, zone: ZoneId) -> Result<Vec<RotationRow>, CatalogError> {
        let rows = sqlx::query(
            "SELECT r.*, k.zone_id FROM rotations r JOIN keyrings k ON k.id = r.keyring_id \
             WHERE k.zone_id = ? AND r.ended_ms IS NULL ORDER BY r.started_ms, r.id",
        )
        .bind(i64::from(zone.0))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(rotation).collect()
    }

    /// Performs a step, if the rotation stands where the step begins.
    pub(crate) async fn step(&self, rotation: &RotationRow, step: Step) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        let actor = rotation.actor.as_str();
        let reason = format!("rotation {}", rotation.id);
        let (old, new) = (rotation.old_kek(), rotation.new_kek());
        let done = match step {
            Step::Accept => {
                self.set_state(&mut tx, new, KekState::Accepted, actor, &reason).await?;
                let generation = next_generation(&mut tx, rotation.zone).await?;
                sqlx::query(
                    "UPDATE rotations SET accept_generation = ?2, updated_ms = ?3 \
                     WHERE id = ?1 AND ended_ms IS NULL AND accept_generation IS NULL",
                )
                .bind(&rotation.id)
                .bind(super::int(generation))
            }
            Step::Promote => {
                // The old one first: a keyring has one primary at every statement.
                self.set_state(&mut tx, old, KekState::Accepted, actor, &reason).await?;
                self.set_state(&mut tx, new, KekState::Primary, actor, &reason).await?;
                let generation = next_generation(&mut tx, rotation.zone).await?;
                sqlx::query(
                    "UPDATE rotations SET promote_generation = ?2, promoted_ms = ?3, updated_ms = ?3, \
                     deks_total = (SELECT count(*) FROM deks d WHERE d.keyring_id = rotations.keyring_id \
                       AND d.live_version = rotations.from_version AND d.state = 'live' AND d.purpose = 'data') \
                     WHERE id = ?1 AND ended_ms IS NULL AND accept_generation IS NOT NULL \
                       AND promote_generation IS NULL",
                )
                .bind(&rotation.id)
                .bind(super::int(generation))
            }
            Step::BeginDrain => sqlx::query(
                "UPDATE rotations SET drain_ms = ?3, updated_ms = ?3 \
                 WHERE id = ?1 AND ended_ms IS NULL AND promote_generation IS NOT NULL AND drain_ms IS NULL AND ?2",
            )
            .bind(&rotation.id)
            .bind(1),
            Step::CloseBarrier => sqlx::query(
                "UPDATE rotations SET barrier_ms = ?3, updated_ms = ?3 \
                 WHERE id = ?1 AND ended_ms IS NULL AND drain_ms IS NOT NULL AND barrier_ms IS NULL AND ?2",
            )
            .bind(&rotation.id)
            .bind(1),
            Step::Retire => {
                self.set_state(&mut tx, old, KekState::Retired, actor, &reason).await?;
                retire_keys(&mut tx, old).await?;
                let generation = next_generation(&mut tx, rotation.zone).await?;
                // The proof is taken once more where nothing can change beside it.
                sqlx::query(
                    "UPDATE rotations SET retire_generation = ?2, updated_ms = ?3 \
                     WHERE id = ?1 AND ended_ms IS NULL AND barrier_ms IS NOT NULL AND retire_generation IS NULL \
                       AND NOT EXISTS (SELECT 1 FROM deks d WHERE d.keyring_id = rotations.keyring_id \
                         AND d.live_version = rotations.from_version AND d.state = 'live')",
                )
                .bind(&rotation.id)
                .bind(super::int(generation))
            }
            Step::Finish => sqlx::query(
                "UPDATE rotations SET ended_ms = ?3, updated_ms = ?3 \
                 WHERE id = ?1 AND ended_ms IS NULL AND retire_generation IS NOT NULL AND ?2",
            )
            .bind(&rotation.id)
            .bind(1),
        };
        let done = done.bind(self.now()).execute(&mut *tx).await?;
        if done.rows_affected() != 1 {
            return Err(CatalogError::Stale("the rotation has moved on, or references are left"));
        }
        tx.commit().await?;
        Ok(())
    }
}

/// What hangs from a version goes with it: its known answer's DEK, and the bytes of superseded wraps.
async fn retire_keys(tx: &mut Write, old: KekRef) -> Result<(), CatalogError> {
    let (keyring, version) = (i64::from(old.keyring.0), i64::from(old.version.0));
    sqlx::query(
        "UPDATE wraps SET state = 'superseded' WHERE version = ?2 AND dek_id IN \
         (SELECT id FROM deks WHERE keyring_id = ?1 AND live_version = ?2 AND purpose = 'known-answer')",
    )
    .bind(keyring)
    .bind(version)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE deks SET state = 'retired' WHERE keyring_id = ? AND live_version = ? AND purpose = 'known-answer'",
    )
    .bind(keyring)
    .bind(version)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "UPDATE wraps SET block = NULL WHERE state = 'superseded' AND version = ? \
         AND dek_id IN (SELECT id FROM deks WHERE keyring_id = ?)",
    )
    .bind(version)
    .bind(keyring)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn rotation(row: &SqliteRow) -> Result<RotationRow, CatalogError> {
    let optional = |column: &str| -> Result<Option<u64>, CatalogError> {
        row.try_get::<Option<i64>, _>(column)?.map(uint).transpose()
    };
    let number = |column: &str| -> Result<u64, CatalogError> { uint(row.try_get(column)?) };
    Ok(RotationRow {
        id: row.try_get("id")?,
        zone: ZoneId(small(row.try_get("zone_id")?)?),
        keyring: KeyringId(small(row.try_get("keyring_id")?)?),
        from: KekVersion(small(row.try_get("from_version")?)?),
        to: KekVersion(small(row.try_get("to_version")?)?),
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
        started_ms: number("started_ms")?,
        updated_ms: number("updated_ms")?,
        ended_ms: optional("ended_ms")?,
        accept_generation: optional("accept_generation")?,
        promote_generation: optional("promote_generation")?,
        promoted_ms: optional("promoted_ms")?,
        draining: optional("drain_ms")?.is_some(),
        barrier: optional("barrier_ms")?.is_some(),
        retire_generation: optional("retire_generation")?,
        deks_total: number("deks_total")?,
        deks_rewrapped: number("deks_rewrapped")?,
    })
}
