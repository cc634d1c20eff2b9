//! Rotations: what is observed, how it looks to people, and the engine that acts on the decision.

pub mod decide;
pub(crate) mod engine;

use crate::catalog::{CatalogError, MemberRow, RotationRow};
use crate::clock::millis;
use crate::zone::Zone;
use decide::{Done, Member, Next, Observed, Phase, Reach, decide, phase};
use keyway_protocol::v1;
use std::sync::PoisonError;

/// Members that a text names; the rest is counted.
const NAMED_MAX: usize = 3;

impl Zone {
    /// Everything that the decision about a rotation depends on, as it is now.
    pub(crate) async fn observe(&self, row: &RotationRow) -> Result<Observed, CatalogError> {
        let now = self.shared.clock.now_ms();
        let versions = self.catalog().versions(self.id).await?;
        let target = versions.iter().find(|kek| kek.keyring == row.keyring && kek.version == row.to);
        let places = target.map_or(&[][..], |kek| &kek.places);
        let up = self.keys.hsms.up();
        let members = self.catalog().members(self.id).await?;
        // Counted last: whatever was under way before the barrier was recorded is in the catalog by now.
        let live_wraps = self.catalog().count_live(row.keyring, row.from).await?;
        let soak_ms = millis(self.config.rotation.soak);
        Ok(Observed {
            done: Done {
                proved: target.is_some_and(|kek| kek.known_answer.is_some()),
                accept: row.accept_generation,
                promote: row.promote_generation,
                draining: row.draining,
                barrier: row.barrier,
                retire: row.retire_generation,
                ended: row.ended_ms.is_some(),
            },
            wraps_required: self.config.wraps_required,
            backends_up: up.len(),
            places: places.len(),
            places_up: up.iter().filter(|hsm| places.iter().any(|place| place.backend == hsm.name())).count(),
            soaked: row.promoted_ms.is_some_and(|at| now >= at.saturating_add(soak_ms)),
            live_wraps,
            members: members.iter().map(|member| self.seen(member, now)).collect(),
            failure: self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(&row.id).cloned(),
        })
    }

    fn seen(&self, row: &MemberRow, now: u64) -> Member {
        Member {
            name: row.key.to_string(),
            reach: self.reach(row, now),
            applied: row.applied_generation,
            nack: row.nack.clone(),
        }
    }

    /// Whether a member can be talked to, and if not, whether it may still seal.
    pub(crate) fn reach(&self, row: &MemberRow, now: u64) -> Reach {
        if self.directory.is_connected(&row.key) {
            Reach::Connected
        } else if now <= row.lease_end_ms {
            Reach::Unreachable
        } else {
            Reach::Gone
        }
    }

    /// A rotation as operators see it.
    pub(crate) async fn describe(&self, row: &RotationRow) -> Result<v1::Rotation, CatalogError> {
        let keyring = self.keyring(row.keyring).map(|keyring| keyring.config.name.clone());
        let mut shown = v1::Rotation {
            id: row.id.clone(),
            zone: self.name().to_owned(),
            // A keyring that was taken out of the configuration keeps its history.
            keyring: keyring.unwrap_or_else(|| format!("#{}", row.keyring)),
            from_version: row.from.0.into(),
            to_version: row.to.0.into(),
            phase: Phase::Done.name().to_owned(),
            detail: format!("version {} is retired, nobody holds it", row.from),
            deks_total: row.deks_total.max(row.deks_rewrapped),
            deks_rewrapped: row.deks_rewrapped,
            generation: row
                .retire_generation
                .or(row.promote_generation)
                .or(row.accept_generation)
                .unwrap_or(0),
            actor: row.actor.clone(),
            reason: row.reason.clone(),
            started_ms: row.started_ms,
            updated_ms: row.updated_ms,
            ended_ms: row.ended_ms.unwrap_or(0),
            ..v1::Rotation::default()
        };
        if row.ended_ms.is_some() {
            return Ok(shown);
        }
        let seen = self.observe(row).await?;
        let counted: Vec<_> = seen.members.iter().filter(|member| member.reach != Reach::Gone).collect();
        let applied = counted.iter().filter(|member| member.applied >= shown.generation).count();
        shown.members_total = u32::try_from(counted.len()).unwrap_or(u32::MAX);
        shown.members_applied = u32::try_from(applied).unwrap_or(u32::MAX);
        let next = decide(&seen);
        shown.phase = match &next {
            Next::Pause(_) => "paused".to_owned(),
            _ => phase(&seen).name().to_owned(),
        };
        shown.detail = detail(&seen, &next);
        if row.promote_generation.is_some() {
            shown.deks_total = shown.deks_total.max(row.deks_rewrapped + seen.live_wraps);
        }
        Ok(shown)
    }
}

/// Why a rotation is where it is.
fn detail(seen: &Observed, next: &Next) -> String {
    match next {
        Next::Wait { generation, members } => {
            let total = seen.members.iter().filter(|member| member.reach != Reach::Gone).count();
            let named = members.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
            let more = members.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let waiting = members.len();
            format!(
                "waiting for {waiting} of {total} members to apply generation {generation}: {named}{more}"
            )
        }
        Next::Soak => "the new version is primary; it proves itself before the old wraps are replaced".into(),
        Next::Pause(reason) => format!("{} stands: {reason}", phase(seen).name()),
        Next::Do(_) => match phase(seen) {
            Phase::Rewrap | Phase::Drain if seen.live_wraps > 0 => {
                format!("{} DEKs are still wrapped by the old version", seen.live_wraps)
            }
            phase => format!("{} is under way", phase.name()),
        },
        Next::Nothing => String::new(),
    }
}
