//! The admin port: health, metrics, keyring status, drain. Never a secret.

use crate::config::Config;
use crate::control::Control;
use crate::telemetry::Telemetry;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::{get, post};
use keyway_keycache::{KeyCache, Millis, Snapshot};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the handlers look at.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) cache: Arc<KeyCache>,
    pub(crate) telemetry: Telemetry,
    pub(crate) control: Option<Arc<Control>>,
    pub(crate) drain: CancellationToken,
    pub(crate) config: Arc<arc_swap::ArcSwap<Config>>,
}

/// Serves until the runtime ends.
pub(crate) async fn serve(socket: std::net::TcpListener, state: State) {
    tokio::spawn(upkeep(state.telemetry.clone()));
    let app = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/keyring", get(keyring))
        .route("/config", get(config))
        .route("/drain", post(drain))
        .route("/quitquitquit", post(drain))
        .with_state(state);
    let served = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => axum::serve(listener, app).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin port ended");
    }
}

async fn upkeep(telemetry: Telemetry) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        telemetry.upkeep();
    }
}

type Shared = axum::extract::State<State>;

async fn readyz(axum::extract::State(state): Shared) -> (StatusCode, String) {
    if state.drain.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    match not_ready(&state.cache.snapshot(), &state.cache) {
        missing if missing.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        missing => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for keyrings: {}\n", missing.join(", ")))
        }
    }
}

/// Keyrings that are not applied, or whose leases are both over.
fn not_ready(snapshot: &Snapshot, cache: &KeyCache) -> Vec<String> {
    let now = cache.now();
    cache
        .names()
        .iter()
        .zip(&snapshot.keyrings)
        .filter(|(_, keyring)| {
            let ends =
                keyring.as_ref().map(|keyring| keyring.lease.open_until().max(keyring.lease.seal_until()));
            ends.is_none_or(|end| end <= now)
        })
        .map(|(name, _)| name.to_string())
        .collect()
}

async fn metrics(axum::extract::State(state): Shared) -> impl IntoResponse {
    let snapshot = state.cache.snapshot();
    let now = state.cache.now();
    for keyring in snapshot.keyrings.iter().flatten() {
        let name = keyring.name.to_string();
        let labels = [("keyring", name.as_str())];
        #[expect(
            clippy::cast_precision_loss,
            reason = "a gauge is a float; generations stay far below 2^52"
        )]
        state.telemetry.gauge("keyway_keyring_generation", &labels).set(keyring.generation as f64);
        let lease = Duration::from_millis(keyring.lease.seal_until().0.saturating_sub(now.0));
        state.telemetry.gauge("keyway_seal_lease_seconds", &labels).set(lease.as_secs_f64());
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float; the cache is bounded far below 2^52"
    )]
    state.telemetry.gauge("keyway_dek_cache_entries", &[]).set(state.cache.entries() as f64);
    for (slot, version, totals) in state.cache.use_totals() {
        let (keyring, version) = (state.cache.names()[slot.0].to_string(), version.to_string());
        let labels = [("keyring", keyring.as_str()), ("kek_version", version.as_str())];
        state.telemetry.counter("keyway_sealed_bytes_total", &labels).absolute(totals.sealed_bytes);
        state.telemetry.counter("keyway_opened_bytes_total", &labels).absolute(totals.opened_bytes);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.telemetry.render())
}

async fn keyring(axum::extract::State(state): Shared) -> Json<Value> {
    let snapshot = state.cache.snapshot();
    let now = state.cache.now();
    let left = |until: Millis| until.0.saturating_sub(now.0) / 1000;
    let keyrings: Vec<Value> = state
        .cache
        .names()
        .iter()
        .zip(&snapshot.keyrings)
        .map(|(name, keyring)| match keyring {
            None => json!({ "keyring": name.to_string(), "applied": false }),
            Some(keyring) => json!({
                "keyring": name.to_string(),
                "applied": true,
                "generation": keyring.generation,
                "primary": keyring.primary.0,
                "accepted": keyring.accepted.iter().map(|version| version.0).collect::<Vec<_>>(),
                "may_seal": keyring.may_seal,
                "may_open": keyring.may_open,
                "seal_lease_seconds": left(keyring.lease.seal_until()),
                "open_lease_seconds": left(keyring.lease.open_until()),
            }),
        })
        .collect();
    let zones: Vec<Value> = state
        .control
        .iter()
        .flat_map(|control| control.status())
        .map(|zone| {
            json!({
                "zone": &*zone.zone,
                "bridge": zone.endpoint,
                "generation": zone.generation,
                "epoch": zone.epoch,
                "from_disk": zone.from_disk,
                "last_nack": zone.last_nack.map(|nack| {
                    json!({ "generation": nack.generation, "code": nack.code, "reason": nack.reason })
                }),
                "last_error": zone.last_error,
            })
        })
        .collect();
    Json(json!({ "keyrings": keyrings, "zones": zones, "dek_cache_entries": state.cache.entries() }))
}

/// The configuration in force. It holds paths of keys, never keys.
async fn config(axum::extract::State(state): Shared) -> Json<Value> {
    Json(serde_json::to_value(&**state.config.load()).unwrap_or_default())
}

async fn drain(axum::extract::State(state): Shared) -> (StatusCode, &'static str) {
    state.drain.cancel();
    (StatusCode::ACCEPTED, "draining\n")
}
