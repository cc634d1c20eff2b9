//! Observes, asks the decision, writes the audit record, performs the effect, observes again.
//!
//! One engine per zone. It is woken by members (attached, applied, refused, left), by operators, and by a slow tick that
//! sees lease ends and HSMs that come back. It holds nothing that a restart would miss.

use super::decide::{Action, Next, decide};
use crate::audit::BRIDGE;
use crate::catalog::{CatalogError, DekRow, NewRotation, Place, Rewrapped, RotationRow, Step};
use crate::config::RotateConfig;
use crate::keys::KeyError;
use crate::zone::{Zone, ZoneKeyring};
use core::time::Duration;
use futures_util::{StreamExt, TryStreamExt, stream};
use keyway_envelope::KekRef;
use keyway_protocol::v1;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The longest time between two looks.
const TICK: Duration = Duration::from_secs(1);
/// How often key backends are looked after.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// DEKs that are rewrapped in one transaction.
const BATCH: u32 = 64;
/// A look counts what is left, which takes longer the more there is: so it is taken once per this part of it.
const LOOK_PER: u64 = 64;
/// HSM operations at the same time.
const PARALLEL: usize = 4;

/// Why the engine stops.
#[derive(Debug, Error)]
pub(crate) enum Stop {
    /// Another bridge has the lead.
    #[error(transparent)]
    Deposed(CatalogError),
    /// A test lets the process die here.
    #[error("stopped by a test before {0}")]
    Crash(&'static str),
}

/// What one step failed with.
enum Failed {
    Stop(Stop),
    Step(KeyError),
}

impl From<KeyError> for Failed {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Catalog(error @ CatalogError::Deposed { .. }) => Self::Stop(Stop::Deposed(error)),
            error => Self::Step(error),
        }
    }
}

impl From<CatalogError> for Failed {
    fn from(error: CatalogError) -> Self {
        KeyError::from(error).into()
    }
}

/// The rotations of one zone.
#[derive(Debug)]
pub(crate) struct Engine {
    zone: Arc<Zone>,
    stop: CancellationToken,
    /// What watchers were told last.
    told: HashMap<String, v1::Rotation>,
}

impl Engine {
    pub(crate) fn new(zone: Arc<Zone>, stop: CancellationToken) -> Self {
        Self { zone, stop, told: HashMap::new() }
    }

    /// Runs until the bridge stops, or must not write any more.
    pub(crate) async fn run(mut self) -> Result<(), Stop> {
        let mut tick = interval(TICK.min(self.zone.shared.heartbeat));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = interval(HEALTH_EVERY);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Opening has looked already.
        health.reset();
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.zone.wake.notified() => {}
                _ = tick.tick() => {}
                _ = health.tick() => self.zone.keys.hsms.check().await,
            }
            match self.look().await {
                Ok(()) => {}
                Err(Failed::Stop(stop)) => return Err(stop),
                Err(Failed::Step(error)) => {
                    error!(zone = self.zone.name(), %error, "the rotation engine failed");
                }
            }
        }
    }

    /// One look at everything.
    async fn look(&mut self) -> Result<(), Failed> {
        self.zone.catalog().check_lead().await?;
        // A publication that failed after its commit is made good.
        if self.zone.catalog().generation(self.zone.id).await? != self.zone.view.borrow().generation {
            self.zone.publish().await?;
        }
        match first_versions(&self.zone).await.map_err(Failed::from) {
            Err(Failed::Step(error)) => {
                warn!(zone = self.zone.name(), %error, "a first key could not be made");
            }
            outcome => outcome?,
        }
        self.begin_due().await?;
        for row in self.zone.catalog().open_rotations(self.zone.id).await? {
            self.drive(row).await?;
        }
        Ok(())
    }

    /// Takes a rotation as far as it goes now.
    async fn drive(&mut self, mut row: RotationRow) -> Result<(), Failed> {
        while !self.stop.is_cancelled() {
            let mut seen = self.zone.observe(&row).await?;
            // An earlier failure is for people; here it is tried again.
            seen.failure = None;
            let Next::Do(action) = decide(&seen) else { break };
            self.tell(&row).await?;
            match self.perform(&row, action, seen.live_wraps).await {
                Ok(()) => self.forget_failure(&row.id),
                Err(Failed::Stop(stop)) => return Err(Failed::Stop(stop)),
                Err(Failed::Step(error)) => {
                    self.remember_failure(&row.id, &error);
                    break;
                }
            }
            let Some(next) = self.zone.catalog().rotation(&row.id).await? else { break };
            row = next;
        }
        self.tell(&row).await
    }

    /// Audit record first, then the effect.
    async fn perform(&self, row: &RotationRow, action: Action, live: u64) -> Result<(), Failed> {
        match action {
            Action::Generate => self.generate(row).await,
            Action::Rewrap => self.rewrap_some(row, live).await,
            Action::Accept => self.step(row, Step::Accept, "rotation.accept").await,
            Action::Promote => self.step(row, Step::Promote, "rotation.promote").await,
            Action::BeginDrain => self.step(row, Step::BeginDrain, "rotation.drain").await,
            Action::CloseBarrier => self.step(row, Step::CloseBarrier, "rotation.barrier").await,
            Action::Retire => self.step(row, Step::Retire, "rotation.retire").await,
            Action::Finish => self.step(row, Step::Finish, "rotation.done").await,
        }
    }

    async fn announce(
        &self,
        row: &RotationRow,
        action: &'static str,
        details: serde_json::Value,
    ) -> Result<(), Failed> {
        let keyring = self.zone.keyring(row.keyring).map_or("?", |keyring| &keyring.config.name);
        let subject = format!("{}/{keyring} v{} to v{}", self.zone.name(), row.from, row.to);
        info!(zone = self.zone.name(), rotation = row.id, action, "rotation goes on");
        self.zone.audit(&row.actor, action, &subject, details).await.map_err(KeyError::from)?;
        if self.zone.shared.hooks.dies_before(action) {
            return Err(Failed::Stop(Stop::Crash(action)));
        }
        Ok(())
    }

    async fn step(&self, row: &RotationRow, step: Step, action: &'static str) -> Result<(), Failed> {
        let live = self.zone.catalog().count_live(row.keyring, row.from).await?;
        let mut details = json!({ "rotation": row.id });
        if step == Step::Retire {
            // The proof: counted after the write barrier, and once more in the transaction that retires.
            details = json!({ "rotation": row.id, "live_wraps": live, "barrier": row.barrier });
        }
        self.announce(row, action, details).await?;
        self.zone.catalog().step(row, step).await?;
        self.zone.publish().await?;
        if step == Step::Finish {
            let took = self.zone.shared.clock.now_ms().saturating_sub(row.started_ms);
            self.zone.shared.metrics.rotation_ended(Duration::from_millis(took));
        }
        Ok(())
    }

    async fn generate(&self, row: &RotationRow) -> Result<(), Failed> {
        let zone = &self.zone;
        let backends: Vec<_> = zone.keys.hsms.up().iter().map(|hsm| hsm.name().to_owned()).collect();
        self.announce(row, "rotation.generate", json!({ "rotation": row.id, "backends": backends })).await?;
        let keyring = zone.keyring(row.keyring).ok_or(KeyError::Check("the keyring is not configured"))?;
        let version = zone.keys.make_version(row.new_kek(), &keyring.config.name, zone.catalog()).await?;
        zone.catalog().record_proof(&version).await?;
        Ok(())
    }

    /// Batches until the next look is worth it: one where little is left, or where the pace is set.
    async fn rewrap_some(&self, row: &RotationRow, live: u64) -> Result<(), Failed> {
        let batches = match self.zone.config.rotation.rewrap_per_second {
            Some(_) => 1,
            None => (live / LOOK_PER / u64::from(BATCH)).max(1),
        };
        for _ in 0..batches {
            if self.stop.is_cancelled() {
                break;
            }
            self.rewrap(row).await?;
        }
        Ok(())
    }

    /// One batch. What a crash cuts off is found again: it still has its old wrap.
    async fn rewrap(&self, row: &RotationRow) -> Result<(), Failed> {
        let zone = &self.zone;
        let rate = zone.config.rotation.rewrap_per_second;
        let limit = rate.map_or(BATCH, |rate| rate.min(BATCH));
        let deks = zone.catalog().deks_under(row.keyring, row.from, limit).await?;
        let details = json!({ "rotation": row.id, "deks": deks.len() });
        self.announce(row, "rotation.rewrap", details).await?;
        let versions = zone.catalog().versions(zone.id).await?;
        let places: Arc<[Place]> = versions
            .into_iter()
            .find(|kek| kek.keyring == row.keyring && kek.version == row.to)
            .map(|kek| kek.places.into())
            .unwrap_or_default();
        let (owner, to) = (zone.clone(), row.new_kek());
        let batch: Vec<Rewrapped> = stream::iter(deks)
            .map(move |dek| rewrap_one(owner.clone(), dek, to, places.clone()))
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let done = zone.catalog().rewrap(&row.id, (row.from, row.to), &batch).await?;
        zone.shared.metrics.rewrapped(done);
        if let Some(rate) = rate {
            let pause = Duration::from_secs(1) * limit / rate;
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Begins the rotations whose time has come.
    async fn begin_due(&self) -> Result<(), Failed> {
        let zone = &self.zone;
        let now = zone.shared.clock.now_ms();
        let view = zone.view.borrow().clone();
        for keyring in &zone.keyrings {
            let (Some(plan), Some(current)) = (&keyring.config.rotate, view.keyring(keyring.id)) else {
                continue;
            };
            if !is_due(plan, current.primary_since_ms, now) {
                continue;
            }
            let open = zone.catalog().open_rotations(zone.id).await?;
            if open.iter().any(|rotation| rotation.keyring == keyring.id) {
                continue;
            }
            begin(zone, keyring, BRIDGE, "the cryptoperiod is over").await?;
        }
        Ok(())
    }

    /// Tells watchers, if there is something new.
    async fn tell(&mut self, row: &RotationRow) -> Result<(), Failed> {
        let shown = self.zone.describe(row).await?;
        if self.told.get(&row.id) == Some(&shown) {
            return Ok(());
        }
        if shown.ended_ms > 0 {
            self.told.remove(&row.id);
        } else {
            let before = self.told.insert(row.id.clone(), shown.clone());
            if before.is_none_or(|before| before.phase != shown.phase) {
                info!(zone = self.zone.name(), rotation = row.id, phase = shown.phase, detail = shown.detail);
            }
        }
        // No watcher is no error.
        let _ = self.zone.rotations.send(shown);
        Ok(())
    }

    fn remember_failure(&self, id: &str, error: &KeyError) {
        warn!(zone = self.zone.name(), rotation = id, %error, "a step failed; it is tried again");
        let mut failures = self.zone.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.insert(id.to_owned(), error.to_string());
    }

    fn forget_failure(&self, id: &str) {
        self.zone.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

async fn rewrap_one(
    zone: Arc<Zone>,
    dek: DekRow,
    to: KekRef,
    places: Arc<[Place]>,
) -> Result<Rewrapped, KeyError> {
    let wraps = zone.keys.rewrap(&dek, to, &places).await?;
    Ok(Rewrapped { id: dek.id, wraps })
}

/// Whether a cryptoperiod is over, and the time of day is right.
fn is_due(plan: &RotateConfig, primary_since_ms: u64, now_ms: u64) -> bool {
    let over = now_ms >= primary_since_ms.saturating_add(crate::clock::millis(plan.every));
    over && plan.window.is_none_or(|window| window.contains(now_ms))
}

/// Opens a rotation; the engine takes it from there.
pub(crate) async fn begin(
    zone: &Zone,
    keyring: &ZoneKeyring,
    actor: &str,
    reason: &str,
) -> Result<RotationRow, KeyError> {
    let id = ulid::Ulid::new().to_string();
    let subject = format!("{}/{}", zone.name(), keyring.config.name);
    zone.audit(actor, "rotation.start", &subject, json!({ "rotation": id, "reason": reason })).await?;
    let above = zone.keys.highest_version(zone.id, keyring.id).await?;
    let new = NewRotation { id: &id, zone: zone.id, keyring: keyring.id, above, actor, reason };
    let row = zone.catalog().begin_rotation(&new).await?;
    zone.publish().await?;
    zone.wake.notify_one();
    Ok(row)
}

/// Keyrings that have no version yet get their first.
pub(crate) async fn first_versions(zone: &Zone) -> Result<(), KeyError> {
    let view = zone.view.borrow().clone();
    for keyring in &zone.keyrings {
        // A keyring with a past keeps it: what it lacks is not a first version.
        if view.keyring(keyring.id).is_some() || zone.keys.hsms.up().len() < zone.config.wraps_required {
            continue;
        }
        let above = zone.keys.highest_version(zone.id, keyring.id).await?;
        let kek = zone.catalog().begin_first_version(zone.id, keyring.id, above).await?;
        let subject = format!("{}/{} v{}", zone.name(), keyring.config.name, kek.version);
        zone.audit(BRIDGE, "kek.generate", &subject, json!({ "kek": kek.to_string() })).await?;
        let version = zone.keys.make_version(kek, &keyring.config.name, zone.catalog()).await?;
        zone.catalog().record_first_version(&version, BRIDGE).await?;
        zone.publish().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_due_after_its_period_and_in_its_window() {
        let day = 24 * 3600 * 1000;
        let plan =
            RotateConfig { every: Duration::from_hours(24), window: Some("02:00-04:00".parse().unwrap()) };
        let began = 20_000 * day + 3 * 3600 * 1000;
        assert!(!is_due(&plan, began, began + day - 1));
        assert!(is_due(&plan, began, began + day));
        assert!(!is_due(&plan, began, began + day + 2 * 3600 * 1000), "outside the window");
        let always = RotateConfig { window: None, ..plan };
        assert!(is_due(&always, began, began + day + 2 * 3600 * 1000));
    }
}
