//! The admin port: health, metrics, and what there is, as JSON. Read-only; no secret is reachable from here.

use crate::rotation::decide::Phase;
use crate::zone::Zone;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the handlers look at.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) zones: Arc<[Arc<Zone>]>,
}

/// All routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/zones", get(zones))
        .route("/api/v1/keys", get(keys))
        .route("/api/v1/members", get(members))
        .route("/api/v1/rotations", get(rotations))
        .with_state(admin)
}

/// Something behind the handler failed.
struct Failed(crate::catalog::CatalogError);

impl From<crate::catalog::CatalogError> for Failed {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        tracing::error!(error = %self.0, "the admin port can't read the catalog");
        (StatusCode::SERVICE_UNAVAILABLE, "the catalog failed; the bridge's log says why\n").into_response()
    }
}

/// Ready: every keyring has a primary, and as many key backends answer as the policy asks for.
async fn readyz(State(admin): State<Admin>) -> Response {
    let mut reasons = Vec::new();
    for zone in admin.zones.iter() {
        let view = zone.view.borrow().clone();
        for keyring in zone.keyrings.iter().filter(|keyring| view.keyring(keyring.id).is_none()) {
            reasons.push(format!("{}/{} has no key yet\n", zone.name(), keyring.config.name));
        }
        let (up, required) = (zone.keys.hsms.up().len(), zone.config.wraps_required);
        if up < required {
            reasons.push(format!("zone {}: {up} of {required} key backends answer\n", zone.name()));
        }
    }
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.concat()).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Result<Response, Failed> {
    for zone in admin.zones.iter() {
        gauges(zone).await?;
    }
    let text = admin.zones.first().map(|zone| zone.shared.metrics.render()).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// Gauges are what is there now, so they are looked at when somebody asks.
async fn gauges(zone: &Zone) -> Result<(), Failed> {
    let metrics = &zone.shared.metrics;
    let name = zone.name().to_owned();
    let mut states = BTreeMap::from([("connected", 0), ("disconnected", 0), ("expired", 0)]);
    for member in zone.list_members().await? {
        *states
            .entry(if member.state == "connected" { "connected" } else { state_label(&member.state) })
            .or_default() += 1;
    }
    for (state, count) in states {
        metrics.gauge("keyway_members", &[("zone", name.clone()), ("state", state.to_owned())], count);
    }
    for key in zone.list_keys().await? {
        let labels =
            [("zone", name.clone()), ("keyring", key.keyring), ("kek_version", key.version.to_string())];
        metrics.gauge("keyway_catalog_deks", &labels, key.live_deks);
    }
    let open = zone.catalog().open_rotations(zone.id).await?;
    for keyring in &zone.keyrings {
        let mut phase = 0;
        if let Some(row) = open.iter().find(|row| row.keyring == keyring.id) {
            let seen = zone.observe(row).await?;
            let now = crate::rotation::decide::phase(&seen);
            phase = Phase::ALL.iter().position(|known| *known == now).map_or(0, |index| index as u64 + 1);
        }
        let labels = [("zone", name.clone()), ("keyring", keyring.config.name.clone())];
        metrics.gauge("keyway_rotation_phase", &labels, phase);
        metrics.gauge("keyway_keyring_generation", &labels, zone.view.borrow().generation);
    }
    Ok(())
}

fn state_label(state: &str) -> &'static str {
    if state == "disconnected" { "disconnected" } else { "expired" }
}

async fn zones(State(admin): State<Admin>) -> Json<Value> {
    let zones: Vec<_> = admin
        .zones
        .iter()
        .map(|zone| {
            let view = zone.view.borrow().clone();
            let backends = zone
                .keys
                .hsms
                .all()
                .iter()
                .map(|hsm| json!({ "name": hsm.name(), "kind": hsm.kind(), "up": hsm.is_up() }));
            let keyrings = zone.keyrings.iter().map(|keyring| {
                json!({
                    "name": keyring.config.name,
                    "id": keyring.id.0,
                    "primary": view.keyring(keyring.id).map(|keyring| keyring.primary.0),
                    "services": keyring.config.services,
                })
            });
            json!({
                "name": zone.name(),
                "id": zone.id.0,
                "generation": view.generation,
                "epoch": zone.catalog().epoch(),
                "wraps_required": zone.config.wraps_required,
                "backends": backends.collect::<Vec<_>>(),
                "keyrings": keyrings.collect::<Vec<_>>(),
            })
        })
        .collect();
    Json(json!({ "zones": zones }))
}

async fn keys(State(admin): State<Admin>) -> Result<Json<Value>, Failed> {
    let mut keys = Vec::new();
    for zone in admin.zones.iter() {
        keys.extend(zone.list_keys().await?.into_iter().map(|key| {
            let places = key.places.iter().map(|place| {
                json!({
                    "backend": place.backend, "kind": place.kind,
                    "mechanism": place.mechanism, "extractable": place.extractable,
                })
            });
            json!({
                "zone": key.zone, "keyring": key.keyring, "version": key.version, "state": key.state,
                "places": places.collect::<Vec<_>>(), "created_ms": key.created_ms,
                "changed_ms": key.changed_ms, "live_deks": key.live_deks,
            })
        }));
    }
    Ok(Json(json!({ "keys": keys })))
}

async fn members(State(admin): State<Admin>) -> Result<Json<Value>, Failed> {
    let mut members = Vec::new();
    for zone in admin.zones.iter() {
        members.extend(zone.list_members().await?.into_iter().map(|member| {
            json!({
                "zone": member.zone, "service": member.service, "instance": member.instance,
                "state": member.state, "generation": member.generation, "applied_ms": member.applied_ms,
                "seen_ms": member.seen_ms, "lease_ends_ms": member.lease_ends_ms,
                "last_nack": member.last_nack, "version": member.version, "key_exchange": member.key_exchange,
            })
        }));
    }
    Ok(Json(json!({ "members": members })))
}

async fn rotations(State(admin): State<Admin>) -> Result<Json<Value>, Failed> {
    let mut rotations = Vec::new();
    for zone in admin.zones.iter() {
        rotations.extend(zone.list_rotations().await?.into_iter().map(|rotation| {
            json!({
                "id": rotation.id, "zone": rotation.zone, "keyring": rotation.keyring,
                "from_version": rotation.from_version, "to_version": rotation.to_version,
                "phase": rotation.phase, "detail": rotation.detail,
                "members_total": rotation.members_total, "members_applied": rotation.members_applied,
                "deks_total": rotation.deks_total, "deks_rewrapped": rotation.deks_rewrapped,
                "generation": rotation.generation, "actor": rotation.actor, "reason": rotation.reason,
                "started_ms": rotation.started_ms, "updated_ms": rotation.updated_ms,
                "ended_ms": rotation.ended_ms,
            })
        }));
    }
    Ok(Json(json!({ "rotations": rotations })))
}
