//! The way of a keyring set: checked → known-answer tested → DEKs at hand → durable → published.
//!
//! Nothing of it is visible to the workers before the swap; what fails on the way leaves the last good set in place.

use super::calls::{BridgeCalls, CallError, patiently};
use super::plan::{Code, Plan, PlannedKeyring, Refusal};
use super::zone::{Applied, Zone, after};
use aws_lc_rs::digest::{SHA256, digest};
use futures_util::stream::{self, StreamExt};
use keyway_envelope::KekVersion;
use keyway_keycache::{KeyringSlot, Lease, Millis, SourceError};
use keyway_protocol::kat::{self, Answer};
use keyway_protocol::v1::{KeyringSet, SignedKeyringSet};
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, warn};

/// Calls to the bridge at once, from one apply.
const CALLS_MAX: usize = 16;
/// For asking again for DEKs that would otherwise leave the cache. What is not back by then is fetched when needed.
const REFRESH_MAX: Duration = Duration::from_secs(30);

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// Applies a set whose signature is good, which arrived at `heard`.
pub(super) async fn apply(
    zone: &Zone,
    calls: &BridgeCalls,
    signed: SignedKeyringSet,
    set: &KeyringSet,
    heard: Millis,
) -> Result<Arc<Applied>, Refusal> {
    if set.zone == *zone.name {
        zone.floor().check(set)?;
        zone.note_epoch(set.epoch);
    }
    let plan = Plan::read(&zone.name, set)?;
    let digest = sha256(&signed.keyring_set);
    if let Some(applied) = zone.applied().filter(|applied| applied.digest == digest) {
        // Sent again after a reconnect: all is done already.
        applied.renew(heard);
        return Ok(applied);
    }

    let answers = known_answers(zone, calls, &plan).await?;
    let kat_digest = kat::digest(plan.generation, &answers);
    for (slot, planned) in configured(zone, &plan) {
        prefetch_seal(zone, calls, slot, planned).await?;
        refresh_dropped(zone, calls, slot, planned).await;
    }

    let leases = plan.keyrings.iter().map(|keyring| {
        let lease = Lease::until(after(heard, keyring.seal_lease_ms), after(heard, keyring.open_lease_ms));
        Arc::new(lease)
    });
    let leases = leases.collect();
    let applied = Arc::new(Applied { signed, plan, digest, kat_digest, leases });
    let persisted = zone.persist(Arc::clone(&applied)).await;
    persisted.map_err(|error| Code::Persist.because(error.to_string()))?;
    zone.publish(&applied);
    Ok(applied)
}

/// The keyrings of the set that routes of ours use.
fn configured<'a>(zone: &'a Zone, plan: &'a Plan) -> impl Iterator<Item = (KeyringSlot, &'a PlannedKeyring)> {
    zone.slots.iter().filter_map(|(slot, name)| Some((*slot, plan.keyring(name)?)))
}

/// Opens the known answer of every version in the set.
async fn known_answers(zone: &Zone, calls: &BridgeCalls, plan: &Plan) -> Result<Vec<Answer>, Refusal> {
    let mut tests = Vec::new();
    for keyring in &plan.keyrings {
        for version in &keyring.versions {
            let (calls, zone) = (calls.clone(), Arc::clone(&zone.name));
            let (name, id) = (Arc::clone(&keyring.name), keyring.keyring_id);
            let version = version.clone();
            tests.push(async move {
                let number = version.version;
                let opened = patiently(|| calls.open(&version.key_block)).await.map_err(|error| {
                    call_refusal(Code::KnownAnswer, &format!("{name} v{number}: known answer"), &error)
                })?;
                // The proof is of this version: a DEK that came by the wrap of another one proves that one.
                if opened.keyring != *name || opened.fetched.kek_version != number {
                    return Err(Code::KnownAnswer.because(format!("{name} v{number}: opened by another key")));
                }
                let answer = kat::open_known_answer(&version.known_answer, &opened.fetched.dek, &zone)
                    .map_err(|error| Code::KnownAnswer.because(format!("{name} v{number}: {error}")))?;
                Ok((id, number, answer))
            });
        }
    }
    let outcomes: Vec<Result<Answer, Refusal>> =
        stream::iter(tests).buffer_unordered(CALLS_MAX).collect().await;
    outcomes.into_iter().collect()
}

/// Gets the DEK to seal with under the new primary for every tenant that is in use, so that no request waits for it.
async fn prefetch_seal(
    zone: &Zone,
    calls: &BridgeCalls,
    slot: KeyringSlot,
    planned: &PlannedKeyring,
) -> Result<(), Refusal> {
    if !planned.may_seal {
        return Ok(());
    }
    let mut tenants = zone.cache.tenants_in_use(slot);
    if !tenants.iter().any(|tenant| tenant.is_empty()) {
        tenants.push("".into());
    }
    tenants.retain(|tenant| zone.cache.cached_seal(slot, planned.primary, tenant).is_none());
    let fetches: Vec<_> = tenants
        .into_iter()
        .map(|tenant| {
            let (calls, name, primary) = (calls.clone(), Arc::clone(&planned.name), planned.primary);
            async move {
                let outcome = patiently(|| calls.issue(&name, &tenant, primary)).await;
                (tenant, outcome)
            }
        })
        .collect();
    let mut outcomes = stream::iter(fetches).buffer_unordered(CALLS_MAX);
    while let Some((tenant, outcome)) = outcomes.next().await {
        match outcome {
            Ok(fetched) => {
                zone.cache.install_seal(slot, fetched, planned.limits);
            }
            // One tenant that has been closed must not hold up the rotation of all others.
            Err(error) if !tenant.is_empty() => {
                warn!(zone = %zone.name, keyring = %planned.name, %error, "a tenant gets no DEK under the new primary");
            }
            Err(error) => {
                let what = format!("{} v{}: DEK to seal with", planned.name, planned.primary);
                return Err(call_refusal(Code::Dek, &what, &error));
            }
        }
    }
    Ok(())
}

/// Asks again for the cached DEKs that came by a version which is about to go. They come by a newer wrap, and readers
/// notice nothing; what does not come is fetched when it is needed.
async fn refresh_dropped(zone: &Zone, calls: &BridgeCalls, slot: KeyringSlot, planned: &PlannedKeyring) {
    let snapshot = zone.cache.snapshot();
    let Ok(current) = snapshot.keyring(slot) else { return };
    let dropped: Vec<KekVersion> =
        current.accepted.iter().copied().filter(|version| !planned.accepts(*version)).collect();
    let hanging = dropped.into_iter().flat_map(|version| zone.cache.hanging_from(slot, version));
    let blocks: Vec<_> = hanging.filter_map(|open| open.blocks.last().copied()).collect();
    if blocks.is_empty() {
        return;
    }
    let all = blocks.len();
    let mut refreshed = 0;
    let refresh = async {
        let fetches = blocks.into_iter().map(|block| {
            let calls = calls.clone();
            async move { calls.open(&block).await }
        });
        let fetches: Vec<_> = fetches.collect();
        let mut outcomes = stream::iter(fetches).buffer_unordered(CALLS_MAX);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(opened)
                    if opened.keyring == *planned.name && planned.accepts(opened.fetched.kek_version) =>
                {
                    zone.cache.install_open(slot, opened.fetched, planned.limits);
                    refreshed += 1;
                }
                Ok(_) => {}
                Err(error) => debug!(zone = %zone.name, %error, "a cached DEK is not renewed"),
            }
        }
    };
    let _ = tokio::time::timeout(REFRESH_MAX, refresh).await;
    debug!(zone = %zone.name, keyring = %planned.name, all, refreshed, "cached DEKs came again by a newer version");
}

/// The bridge's refusal counts as `code`; a bridge or HSM that does not answer is never the fault of the key.
fn call_refusal(code: Code, what: &str, error: &CallError) -> Refusal {
    let code = match error {
        CallError::Deadline => Code::Dek,
        CallError::Status { .. } if error.to_source() == SourceError::Unavailable => Code::Dek,
        _ => code,
    };
    code.because(format!("{what}: {error}"))
}
