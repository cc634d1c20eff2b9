//! Every DEK, and the wraps that lead to it.

use super::{Catalog, CatalogError, small, uint};
use keyway_envelope::{DekId, KekVersion, KeyBlock, KeyringId};
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Executor, Row, Sqlite, SqliteConnection};

/// What a DEK is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Data of services.
    Data,
    /// The proof that a KEK version works; retired with its version.
    KnownAnswer,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::KnownAnswer => "known-answer",
        }
    }
}

/// One wrap to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct NewWrap {
    pub(crate) backend: String,
    pub(crate) block: KeyBlock,
}

/// A DEK to be recorded, with its live wraps, all by one KEK version.
#[derive(Clone, Debug)]
pub(crate) struct NewDek {
    pub(crate) id: DekId,
    pub(crate) keyring: KeyringId,
    pub(crate) version: KekVersion,
    pub(crate) service: String,
    pub(crate) tenant: String,
    pub(crate) purpose: Purpose,
    pub(crate) wraps: Vec<NewWrap>,
}

/// A DEK as recorded.
#[derive(Clone, Debug)]
pub(crate) struct DekRow {
    pub(crate) id: DekId,
    pub(crate) keyring: KeyringId,
    pub(crate) tenant: String,
    pub(crate) purpose: Purpose,
    pub(crate) live: bool,
    pub(crate) live_version: KekVersion,
    /// In the order in which they were made.
    pub(crate) wraps: Vec<NewWrap>,
}

/// New wraps of a DEK, each opened again and found to hold the same key.
#[derive(Debug)]
pub(crate) struct Rewrapped {
    pub(crate) id: DekId,
    pub(crate) wraps: Vec<NewWrap>,
}

/// SHA-256 of the 96 bytes: what is left of a wrap when its KEK is retired.
pub(crate) fn block_digest(block: &KeyBlock) -> [u8; 32] {
    Sha256::digest(block.to_bytes()).into()
}

impl Catalog {
    /// Records a DEK, if its version may be sealed under at this moment. After this it may be issued.
    ///
    /// The check is inside the transaction: once the write barrier is recorded, nothing new gets in under the old version.
    /// Those that are asked for at the same time share a commit.
    pub(crate) async fn record_dek(&self, dek: &NewDek, also: Option<&NewWrap>) -> Result<(), CatalogError> {
        let (dek, also) = (dek.clone(), also.cloned());
        self.group.commit(move |tx, now| Box::pin(record(tx, dek, also, now))).await
    }

    /// Records a further block of a known DEK, as superseded.
    pub(crate) async fn record_block(&self, id: DekId, wrap: &NewWrap) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        insert_wrap(&mut tx, id, wrap, "superseded", self.now()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Whether a DEK may be issued under a version: it is primary, or it was until the open rotation's promotion,
    /// whose barrier is not closed yet.
    pub(crate) async fn is_issuable(
        &self,
        keyring: KeyringId,
        version: KekVersion,
    ) -> Result<bool, CatalogError> {
        issuable(&self.read, keyring, version).await
    }

    /// A DEK with its live wraps.
    pub(crate) async fn dek(&self, id: DekId) -> Result<Option<DekRow>, CatalogError> {
        let Some(row) =
            sqlx::query("SELECT * FROM deks WHERE id = ?").bind(&id.0[..]).fetch_optional(&self.read).await?
        else {
            return Ok(None);
        };
        self.with_wraps(&row).await.map(Some)
    }

    /// Whether this block was ever made for this DEK.
    pub(crate) async fn knows_block(&self, block: &KeyBlock) -> Result<bool, CatalogError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM wraps WHERE dek_id = ? AND digest = ?")
            .bind(&block.dek_id().0[..])
            .bind(&block_digest(block)[..])
            .fetch_optional(&self.read)
            .await?;
        Ok(found.is_some())
    }

    /// How many DEKs a version carries.
    pub(crate) async fn count_live(
        &self,
        keyring: KeyringId,
        version: KekVersion,
    ) -> Result<u64, CatalogError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM deks \
             WHERE keyring_id = ? AND live_version = ? AND state = 'live' AND purpose = 'data'",
        )
        .bind(i64::from(keyring.0))
        .bind(i64::from(version.0))
        .fetch_one(&self.read)
        .await?;
        uint(count)
    }

    /// Some DEKs that a version still carries.
    pub(crate) async fn deks_under(
        &self,
        keyring: KeyringId,
        version: KekVersion,
        limit: u32,
    ) -> Result<Vec<DekRow>, CatalogError> {
        let rows = sqlx::query(
            "SELECT * FROM deks WHERE keyring_id = ? AND live_version = ? AND state = 'live' AND purpose = 'data' \
             ORDER BY id LIMIT ?",
        )
        .bind(i64::from(keyring.0))
        .bind(i64::from(version.0))
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await?;
        let mut deks = Vec::with_capacity(rows.len());
        for row in &rows {
            deks.push(self.with_wraps(row).await?);
        }
        Ok(deks)
    }

    /// Swaps the live wraps of a batch, each only if it is still by the old version. Gives how many were.
    pub(crate) async fn rewrap(
        &self,
        rotation: &str,
        (from, to): (KekVersion, KekVersion),
        batch: &[Rewrapped],
    ) -> Result<u64, CatalogError> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let mut done: u32 = 0;
        for dek in batch {
            let swapped = sqlx::query("UPDATE deks SET live_version = ? WHERE id = ? AND live_version = ?")
                .bind(i64::from(to.0))
                .bind(&dek.id.0[..])
                .bind(i64::from(from.0))
                .execute(&mut *tx)
                .await?;
            if swapped.rows_affected() == 0 {
                continue;
            }
            sqlx::query("UPDATE wraps SET state = 'superseded' WHERE dek_id = ? AND state = 'live'")
                .bind(&dek.id.0[..])
                .execute(&mut *tx)
                .await?;
            for wrap in &dek.wraps {
                insert_wrap(&mut tx, dek.id, wrap, "live", now).await?;
            }
            done += 1;
        }
        sqlx::query("UPDATE rotations SET deks_rewrapped = deks_rewrapped + ?, updated_ms = ? WHERE id = ?")
            .bind(i64::from(done))
            .bind(now)
            .bind(rotation)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(u64::from(done))
    }

    async fn with_wraps(&self, row: &SqliteRow) -> Result<DekRow, CatalogError> {
        let id: Vec<u8> = row.try_get("id")?;
        let wraps = sqlx::query(
            "SELECT backend, block FROM wraps WHERE dek_id = ? AND state = 'live' ORDER BY backend",
        )
        .bind(&id)
        .fetch_all(&self.read)
        .await?;
        let id = DekId(id.try_into().map_err(|_| CatalogError::Damaged("a DEK's id has not 16 bytes"))?);
        let wraps = wraps
            .iter()
            .map(|row| {
                let bytes: Vec<u8> = row.try_get("block")?;
                let bytes: &[u8; KeyBlock::LEN] = bytes
                    .as_slice()
                    .try_into()
                    .map_err(|_| CatalogError::Damaged("a key block has not 96 bytes"))?;
                let block = KeyBlock::parse(bytes)
                    .map_err(|_| CatalogError::Damaged("a key block does not parse"))?;
                Ok(NewWrap { backend: row.try_get("backend")?, block })
            })
            .collect::<Result<Vec<_>, CatalogError>>()?;
        Ok(DekRow {
            id,
            keyring: KeyringId(small(row.try_get("keyring_id")?)?),
            tenant: row.try_get("tenant")?,
            purpose: match row.try_get::<&str, _>("purpose")? {
                "data" => Purpose::Data,
                _ => Purpose::KnownAnswer,
            },
            live: row.try_get::<&str, _>("state")? == "live",
            live_version: KekVersion(small(row.try_get("live_version")?)?),
            wraps,
        })
    }
}

async fn issuable<'e>(
    on: impl Executor<'e, Database = Sqlite>,
    keyring: KeyringId,
    version: KekVersion,
) -> Result<bool, CatalogError> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM kek_versions v WHERE v.keyring_id = ?1 AND v.version = ?2 AND (v.state = 'primary' \
           OR (v.state = 'accepted' AND EXISTS (SELECT 1 FROM rotations r WHERE r.keyring_id = ?1 \
               AND r.from_version = ?2 AND r.ended_ms IS NULL \
               AND r.promote_generation IS NOT NULL AND r.barrier_ms IS NULL)))",
    )
    .bind(i64::from(keyring.0))
    .bind(i64::from(version.0))
    .fetch_optional(on)
    .await?;
    Ok(found.is_some())
}

async fn record(
    tx: &mut SqliteConnection,
    dek: NewDek,
    also: Option<NewWrap>,
    now: i64,
) -> Result<(), CatalogError> {
    if !issuable(&mut *tx, dek.keyring, dek.version).await? {
        return Err(CatalogError::NotIssuable { version: dek.version.0 });
    }
    insert_dek(tx, &dek, now).await?;
    if let Some(wrap) = also {
        insert_wrap(tx, dek.id, &wrap, "superseded", now).await?;
    }
    Ok(())
}

pub(super) async fn insert_dek(
    tx: &mut SqliteConnection,
    dek: &NewDek,
    now: i64,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO deks (id, keyring_id, service, tenant, purpose, state, live_version, created_ms) \
         VALUES (?, ?, ?, ?, ?, 'live', ?, ?)",
    )
    .bind(&dek.id.0[..])
    .bind(i64::from(dek.keyring.0))
    .bind(&dek.service)
    .bind(&dek.tenant)
    .bind(dek.purpose.name())
    .bind(i64::from(dek.version.0))
    .bind(now)
    .execute(&mut *tx)
    .await?;
    for wrap in &dek.wraps {
        insert_wrap(tx, dek.id, wrap, "live", now).await?;
    }
    Ok(())
}

async fn insert_wrap(
    tx: &mut SqliteConnection,
    id: DekId,
    wrap: &NewWrap,
    state: &str,
    now: i64,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO wraps (dek_id, digest, version, backend, mechanism, block, state, created_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(&id.0[..])
    .bind(&block_digest(&wrap.block)[..])
    .bind(i64::from(wrap.block.kek().version.0))
    .bind(&wrap.backend)
    .bind(i64::from(wrap.block.mechanism().to_byte()))
    .bind(&wrap.block.to_bytes()[..])
    .bind(state)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    Ok(())
}
