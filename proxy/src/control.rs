//! The member's side of the control plane: what the bridge says becomes what the workers serve from.
//!
//! One push stream per zone, each a task on the control runtime; workers never wait for any of them. What comes in is
//! verified, known-answer tested, made durable, published with one swap, and only then acknowledged (`apply`). With
//! the bridge gone a proxy goes on within its leases, and from disk over its own restart (`state`).
//!
//! ```text
//! run: connect → Hello → Welcome → { keyring set → apply → APPLIED | NACK, heartbeat → leases } → back-off → connect
//! ```

mod apply;
mod backoff;
mod calls;
mod disk;
mod plan;
mod report;
mod restore;
mod session;
mod source;
mod state;
mod zone;

pub use report::Traffic;
pub use zone::{LastNack, ZoneStatus};

use disk::StateDir;
use keyway_keycache::KeyCache;
use keyway_protocol::dek_transport::MemberKey;
use keyway_protocol::tls::TlsFiles;
use source::BridgeSource;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zone::Zone;

/// The control plane can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No bridge is configured.
    #[error("bridge.endpoints is empty: there is no bridge to connect to")]
    NoEndpoints,
    /// The directory for the state can't be used.
    #[error("state directory {path}: {source}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The identity's files can't be read.
    #[error("identity: {0}")]
    Identity(#[from] keyway_protocol::Error),
}

/// Where the bridge is and who we are.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// `https://host:port` of each bridge; tried in turn.
    pub endpoints: Vec<String>,
    /// Our certificate and key, and the authority of the bridge's. Read anew for every connection, so a renewed
    /// certificate is used without a restart.
    pub identity: TlsFiles,
    /// Where the sealed last-good keyring and the pinned key of the bridge are kept.
    pub state_dir: PathBuf,
    /// Stable name of this instance among those of its service.
    pub instance: String,
    /// How long things take.
    pub timing: Timing,
}

/// Durations, with defaults for production.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Upper bound of the first pause before connecting again; doubles from there. The pause is random below it.
    pub backoff_min: Duration,
    /// Where the doubling ends.
    pub backoff_max: Duration,
    /// For one call to the bridge, waiting for a connection included.
    pub call_deadline: Duration,
    /// Between reports of use.
    pub report_every: Duration,
    /// Between two writes of the state at least.
    pub save_apart: Duration,
    /// The state is written this often even if no DEK came: for the ends of leases and the use counters.
    pub save_every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            call_deadline: Duration::from_secs(5),
            report_every: Duration::from_secs(5),
            save_apart: Duration::from_secs(1),
            save_every: Duration::from_secs(60),
        }
    }
}

/// Totals of the data path since the start, asked for at every report.
pub type TrafficSource = Arc<dyn Fn() -> Traffic + Send + Sync>;

/// The running control plane.
#[derive(Debug)]
pub struct Control {
    zones: BTreeMap<Arc<str>, Arc<Zone>>,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Loads the state on disk into `cache`, connects `cache` to the bridge, and starts one push stream for each zone that
/// `cache` has keyrings of, on `runtime`.
///
/// When this returns, what the disk held is served from; `traffic` is asked from the control runtime.
///
/// # Errors
/// [`ControlError`]. A state that can't be read is no error: it is logged, and the proxy waits for its bridge.
pub fn start(
    config: ControlConfig,
    cache: Arc<KeyCache>,
    traffic: TrafficSource,
    runtime: &Handle,
) -> Result<Control, ControlError> {
    if config.endpoints.is_empty() {
        return Err(ControlError::NoEndpoints);
    }
    // Fails here, with a name, rather than at every attempt to connect.
    keyway_protocol::tls::client_config(&config.identity)?;
    let dir = StateDir::open(&config.state_dir)
        .map_err(|source| ControlError::StateDir { path: config.state_dir.clone(), source })?;
    let config = Arc::new(config);
    let member_key = Arc::new(MemberKey::generate());

    let mut zones = BTreeMap::new();
    for name in cache.names() {
        if !zones.contains_key(&name.zone) {
            let zone = Zone::new(Arc::clone(&name.zone), &config, &cache, &dir, &member_key);
            restore::restore(&zone);
            zones.insert(Arc::clone(&name.zone), Arc::new(zone));
        }
    }
    cache.set_source(Arc::new(BridgeSource::new(&zones, config.timing.call_deadline)), runtime.clone());

    let stop = CancellationToken::new();
    // `KeyCache::changed` wakes one waiter only, so one task waits and tells every zone.
    let (changed, _) = watch::channel(());
    let mut tasks = Vec::with_capacity(2 * zones.len() + 1);
    for zone in zones.values() {
        let run = session::run(Arc::clone(zone), Arc::clone(&traffic));
        tasks.push(spawn_until(runtime, &stop, run));
        let save = Arc::clone(zone).keep_saved(changed.subscribe());
        tasks.push(spawn_until(runtime, &stop, save));
    }
    tasks.push(spawn_until(runtime, &stop, async move {
        loop {
            cache.changed().await;
            changed.send_replace(());
        }
    }));
    Ok(Control { zones, stop, tasks: Mutex::new(tasks) })
}

fn spawn_until(
    runtime: &Handle,
    stop: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let stop = stop.clone();
    runtime.spawn(async move {
        let _ = stop.run_until_cancelled(work).await;
    })
}

impl Control {
    /// How each zone stands, for the admin port.
    #[must_use]
    pub fn status(&self) -> Vec<ZoneStatus> {
        self.zones.values().map(|zone| zone.status.borrow().clone()).collect()
    }

    /// Follows one zone's status.
    #[must_use]
    pub fn watch(&self, zone: &str) -> Option<watch::Receiver<ZoneStatus>> {
        self.zones.get(zone).map(|zone| zone.status.subscribe())
    }

    /// Ends the streams and writes the state a last time. What is cached stays usable.
    pub async fn shutdown(&self) {
        self.end().await;
        for zone in self.zones.values() {
            zone.save_logged().await;
        }
    }

    async fn end(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            let _ = task.await;
        }
    }
}

/// Ends the streams. Only [`Control::shutdown`] writes the state as well.
impl Drop for Control {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
