//! KEK versions: states, history, places.

use super::deks::{NewDek, insert_dek};
use super::zones::next_generation;
use super::{Catalog, CatalogError, Write, small, uint};
use core::fmt;
use core::str::FromStr;
use keyway_envelope::{KekRef, KekVersion, KeyringId, WrapMechanism, ZoneId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use std::collections::BTreeMap;

/// The states of a KEK version (rotation protocol; NIST SP 800-57 names in the documentation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KekState {
    Pending,
    Accepted,
    Primary,
    Retired,
    Destroyed,
    Compromised,
}

impl KekState {
    pub(crate) const ALL: [Self; 6] =
        [Self::Pending, Self::Accepted, Self::Primary, Self::Retired, Self::Destroyed, Self::Compromised];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Accepted => "accepted",
            Self::Primary => "primary",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
            Self::Compromised => "compromised",
        }
    }

    /// Whether members hold it, so that a block under it may be opened.
    pub(crate) fn in_accept_set(self) -> bool {
        matches!(self, Self::Accepted | Self::Primary)
    }
}

impl fmt::Display for KekState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KekState {
    type Err = CatalogError;

    fn from_str(name: &str) -> Result<Self, CatalogError> {
        Self::ALL
            .into_iter()
            .find(|state| state.name() == name)
            .ok_or(CatalogError::Damaged("an unknown state of a KEK"))
    }
}

/// Where a KEK lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) backend: String,
    pub(crate) kind: String,
    pub(crate) mechanism: WrapMechanism,
    pub(crate) extractable: bool,
}

/// A KEK version as recorded.
#[derive(Clone, Debug)]
pub(crate) struct KekRow {
    pub(crate) keyring: KeyringId,
    pub(crate) version: KekVersion,
    pub(crate) state: KekState,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
    /// The envelope and what is in it.
    pub(crate) known_answer: Option<(Vec<u8>, [u8; 32])>,
    pub(crate) places: Vec<Place>,
}

/// What a keyring set is made of.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    /// The first open rotation; empty if there is none.
    pub(crate) rotation: String,
    /// By keyring and version.
    pub(crate) versions: Vec<KekRow>,
}

/// A version that was generated and proved.
#[derive(Debug)]
pub(crate) struct NewVersion {
    pub(crate) kek: KekRef,
    pub(crate) places: Vec<Place>,
    /// The DEK of its known answer.
    pub(crate) dek: NewDek,
    pub(crate) known_answer: Vec<u8>,
    pub(crate) answer: [u8; 32],
}

impl Catalog {
    /// All versions of a zone's keyrings, by keyring and version.
    pub(crate) async fn versions(&self, zone: ZoneId) -> Result<Vec<KekRow>, CatalogError> {
        versions_on(&mut *self.read.acquire().await?, zone).await
    }

    /// What a keyring set is made of, all of one moment.
    pub(crate) async fn snapshot(&self, zone: ZoneId) -> Result<Snapshot, CatalogError> {
        // A read transaction sees one state of the database, whatever is committed beside it.
        let mut tx = self.read.begin().await?;
        let generation: i64 = sqlx::query_scalar("SELECT generation FROM zones WHERE id = ?")
            .bind(i64::from(zone.0))
            .fetch_one(&mut *tx)
            .await?;
        let rotation: Option<String> = sqlx::query_scalar(
            "SELECT r.id FROM rotations r JOIN keyrings k ON k.id = r.keyring_id \
             WHERE k.zone_id = ? AND r.ended_ms IS NULL ORDER BY r.started_ms, r.id",
        )
        .bind(i64::from(zone.0))
        .fetch_optional(&mut *tx)
        .await?;
        let versions = versions_on(&mut tx, zone).await?;
        Ok(Snapshot { generation: uint(generation)?, rotation: rotation.unwrap_or_default(), versions })
    }

    /// Takes a number for the first version of a keyring, above every number that a backend knows already (the catalog may
    /// have been lost). A second time gives the same.
    pub(crate) async fn begin_first_version(
        &self,
        zone: ZoneId,
        keyring: KeyringId,
        above: KekVersion,
    ) -> Result<KekRef, CatalogError> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query("SELECT version, state FROM kek_versions WHERE keyring_id = ?")
            .bind(i64::from(keyring.0))
            .fetch_all(&mut *tx)
            .await?;
        let version = match rows.as_slice() {
            [] => {
                let next = above.0.checked_add(1).ok_or(CatalogError::Stale("no version number is left"))?;
                let kek = KekRef { zone, keyring, version: KekVersion(next) };
                insert_version(&mut tx, kek, KekState::Pending, self.now()).await?;
                kek.version
            }
            [row] if row.try_get::<&str, _>("state")? == KekState::Pending.name() => {
                KekVersion(small(row.try_get("version")?)?)
            }
            _ => return Err(CatalogError::Stale("the keyring has a past and no primary version")),
        };
        tx.commit().await?;
        Ok(KekRef { zone, keyring, version })
    }

    /// Whether a backend was asked to make this version before.
    pub(crate) async fn was_attempted(&self, kek: KekRef, backend: &str) -> Result<bool, CatalogError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM kek_attempts WHERE keyring_id = ? AND version = ? AND backend = ?",
        )
        .bind(i64::from(kek.keyring.0))
        .bind(i64::from(kek.version.0))
        .bind(backend)
        .fetch_optional(&self.read)
        .await?;
        Ok(found.is_some())
    }

    /// Records that a backend is about to be asked to make this version.
    pub(crate) async fn record_attempt(&self, kek: KekRef, backend: &str) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        sqlx::query("INSERT INTO kek_attempts VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(i64::from(kek.keyring.0))
            .bind(i64::from(kek.version.0))
            .bind(backend)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// The first version of a keyring: primary at once, since nobody serves from the keyring yet.
    pub(crate) async fn record_first_version(
        &self,
        new: &NewVersion,
        actor: &str,
    ) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        self.prove(&mut tx, new).await?;
        self.set_state(&mut tx, new.kek, KekState::Primary, actor, "first version").await?;
        next_generation(&mut tx, new.kek.zone).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Records the places and the known answer of a pending version. A second time changes nothing.
    pub(crate) async fn record_proof(&self, new: &NewVersion) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        self.prove(&mut tx, new).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn prove(&self, tx: &mut Write, new: &NewVersion) -> Result<(), CatalogError> {
        let done = sqlx::query(
            "UPDATE kek_versions SET known_answer = ?, answer = ? \
             WHERE keyring_id = ? AND version = ? AND state = 'pending' AND known_answer IS NULL",
        )
        .bind(&new.known_answer)
        .bind(&new.answer[..])
        .bind(i64::from(new.kek.keyring.0))
        .bind(i64::from(new.kek.version.0))
        .execute(&mut **tx)
        .await?;
        if done.rows_affected() != 1 {
            return Err(CatalogError::Stale("the version is proved already, or not pending"));
        }
        for place in &new.places {
            sqlx::query("INSERT INTO kek_places VALUES (?, ?, ?, ?, ?, ?)")
                .bind(i64::from(new.kek.keyring.0))
                .bind(i64::from(new.kek.version.0))
                .bind(&place.backend)
                .bind(&place.kind)
                .bind(i64::from(place.mechanism.to_byte()))
                .bind(place.extractable)
                .execute(&mut **tx)
                .await?;
        }
        insert_dek(tx, &new.dek, self.now()).await
    }

    /// One transition, with its line of history.
    pub(super) async fn set_state(
        &self,
        tx: &mut Write,
        kek: KekRef,
        state: KekState,
        actor: &str,
        reason: &str,
    ) -> Result<(), CatalogError> {
        let now = self.now();
        sqlx::query("UPDATE kek_versions SET state = ?, changed_ms = ? WHERE keyring_id = ? AND version = ?")
            .bind(state.name())
            .bind(now)
            .bind(i64::from(kek.keyring.0))
            .bind(i64::from(kek.version.0))
            .execute(&mut **tx)
            .await?;
        sqlx::query(
            "INSERT INTO kek_history (keyring_id, version, state, at_ms, epoch, actor, reason) \
             VALUES (?, ?, ?, ?, (SELECT epoch FROM leader), ?, ?)",
        )
        .bind(i64::from(kek.keyring.0))
        .bind(i64::from(kek.version.0))
        .bind(state.name())
        .bind(now)
        .bind(actor)
        .bind(reason)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

async fn versions_on(on: &mut SqliteConnection, zone: ZoneId) -> Result<Vec<KekRow>, CatalogError> {
    let mut places: BTreeMap<(i64, i64), Vec<Place>> = BTreeMap::new();
    let rows = sqlx::query(
        "SELECT p.* FROM kek_places p JOIN keyrings k ON k.id = p.keyring_id WHERE k.zone_id = ? ORDER BY p.rowid",
    )
    .bind(i64::from(zone.0))
    .fetch_all(&mut *on)
    .await?;
    for row in &rows {
        let key = (row.try_get("keyring_id")?, row.try_get("version")?);
        places.entry(key).or_default().push(place(row)?);
    }
    let rows = sqlx::query(
        "SELECT v.* FROM kek_versions v JOIN keyrings k ON k.id = v.keyring_id WHERE k.zone_id = ? \
         ORDER BY v.keyring_id, v.version",
    )
    .bind(i64::from(zone.0))
    .fetch_all(&mut *on)
    .await?;
    rows.iter()
        .map(|row| {
            let key = (row.try_get("keyring_id")?, row.try_get("version")?);
            kek(row, places.remove(&key).unwrap_or_default())
        })
        .collect()
}

pub(super) async fn insert_version(
    tx: &mut Write,
    kek: KekRef,
    state: KekState,
    now: i64,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO kek_versions (keyring_id, version, state, created_ms, changed_ms) VALUES (?1, ?2, ?3, ?4, ?4)",
    )
    .bind(i64::from(kek.keyring.0))
    .bind(i64::from(kek.version.0))
    .bind(state.name())
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) fn mechanism(number: i64) -> Result<WrapMechanism, CatalogError> {
    u8::try_from(number)
        .ok()
        .and_then(WrapMechanism::from_byte)
        .ok_or(CatalogError::Damaged("an unknown wrap mechanism"))
}

fn place(row: &SqliteRow) -> Result<Place, CatalogError> {
    Ok(Place {
        backend: row.try_get("backend")?,
        kind: row.try_get("kind")?,
        mechanism: mechanism(row.try_get("mechanism")?)?,
        extractable: row.try_get("extractable")?,
    })
}

fn kek(row: &SqliteRow, places: Vec<Place>) -> Result<KekRow, CatalogError> {
    let envelope: Option<Vec<u8>> = row.try_get("known_answer")?;
    let answer: Option<Vec<u8>> = row.try_get("answer")?;
    let known_answer = match (envelope, answer) {
        (Some(envelope), Some(answer)) => {
            let answer =
                answer.try_into().map_err(|_| CatalogError::Damaged("a known answer has not 32 bytes"))?;
            Some((envelope, answer))
        }
        _ => None,
    };
    Ok(KekRow {
        keyring: KeyringId(small(row.try_get("keyring_id")?)?),
        version: KekVersion(small(row.try_get("version")?)?),
        state: row.try_get::<String, _>("state")?.parse()?,
        created_ms: uint(row.try_get("created_ms")?)?,
        changed_ms: uint(row.try_get("changed_ms")?)?,
        known_answer,
        places,
    })
}
