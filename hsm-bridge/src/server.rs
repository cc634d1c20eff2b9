//! Starts everything in order, and stops it in order.

use crate::admin::{Admin, router};
use crate::audit::{AuditLog, BRIDGE};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, ZoneConfig};
use crate::deks::Quota;
use crate::error::{Error, Result};
use crate::fleet::FleetService;
use crate::hooks::Hooks;
use crate::hsms::Hsms;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::operator::OperatorService;
use crate::rotation::engine::{Engine, first_versions};
use crate::signing_key;
use crate::zone::{Shared, Zone};
use keyway_protocol::tls::{Incoming, TlsFiles, server_config};
use keyway_protocol::v1::fleet_server::FleetServer;
use keyway_protocol::v1::operator_server::OperatorServer;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// How long streams may take to end at a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// The longest request. A key block has 96 bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// A running bridge. Dropped, it stops as a crash would, and resumes as after one.
#[derive(Debug)]
pub struct Running {
    grpc_addr: SocketAddr,
    admin_addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
    abort: CancellationToken,
    shared: Arc<Shared>,
    failure: Failure,
}

/// Why a task has ended by itself.
type Failure = Arc<Mutex<Option<String>>>;

/// Starts a bridge: opens key backends, catalog and audit file, makes first keys, then listens.
///
/// # Errors
/// [`Error`]: nothing is left running.
pub async fn start(config: Config) -> Result<Running> {
    start_with(config, Hooks::default()).await
}

pub(crate) async fn start_with(config: Config, hooks: Hooks) -> Result<Running> {
    config.validate("configuration")?;
    for warning in config.warnings() {
        warn!("configuration: {warning}");
    }
    let tls = server_config(&TlsFiles {
        cert: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        ca: config.tls.client_ca.clone(),
    })?;
    let clock = Clock::start();
    // Everything that can fail comes before the lead is taken: a start that fails must not stop the bridge that runs.
    let audit = AuditLog::open(&config.audit.file, clock)?;
    let grpc = bind(config.listen).await?;
    let admin = bind(config.admin).await?;
    let metrics = Metrics::new();
    let mut backends = Vec::with_capacity(config.zones.len());
    for zone in &config.zones {
        backends.push(open_backends(zone, metrics.clone()).await?);
    }
    let shared = shared(&config, clock, audit, metrics, hooks).await?;
    shared.audit.record(BRIDGE, "bridge.start", "bridge", json!({ "epoch": shared.catalog.epoch() })).await?;
    let mut zones = Vec::with_capacity(config.zones.len());
    for (zone, hsms) in config.zones.iter().zip(backends) {
        zones.push(Arc::new(open_zone(zone.clone(), hsms, shared.clone()).await?));
    }
    let zones: Arc<[Arc<Zone>]> = zones.into();
    let running = Running {
        grpc_addr: local(&grpc, config.listen)?,
        admin_addr: local(&admin, config.admin)?,
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
        shared,
        failure: Failure::default(),
    };
    for zone in zones.iter() {
        running.spawn_engine(zone.clone());
    }
    running.spawn_grpc(Incoming::new(grpc, tls), &zones);
    running.spawn_admin(admin, zones);
    info!(grpc = %running.grpc_addr, admin = %running.admin_addr, epoch = running.shared.catalog.epoch(), "bridge is up");
    Ok(running)
}

async fn shared(
    config: &Config,
    clock: Clock,
    audit: AuditLog,
    metrics: Metrics,
    hooks: Hooks,
) -> Result<Arc<Shared>> {
    let store = config.store_path().ok_or_else(|| ConfigError::Invalid {
        file: "configuration".into(),
        problems: vec!["store: write sqlite:///path/to/bridge.db".into()],
    })?;
    let signing = signing_key::load_or_make(&signing_key::path_beside(&store))?;
    let catalog = Catalog::open(&store, clock).await?;
    Ok(Arc::new(Shared { catalog, audit, clock, metrics, signing, heartbeat: config.heartbeat, hooks }))
}

async fn open_backends(config: &ZoneConfig, metrics: Metrics) -> Result<Hsms> {
    Hsms::open(&config.name, &config.backends, config.wraps_required, metrics)
        .await
        .map_err(|source| Error::Hsm { zone: config.name.clone(), source })
}

async fn open_zone(config: ZoneConfig, hsms: Hsms, shared: Arc<Shared>) -> Result<Zone> {
    let name = config.name.clone();
    let zone = Zone::open(config, Keys { zone: name, hsms }, shared).await?;
    if let Err(error) = first_versions(&zone).await {
        warn!(zone = zone.name(), %error, "a first key could not be made; it is tried again");
    }
    warn_of_thin_keys(&zone);
    Ok(zone)
}

/// After a backend was added or more wraps are asked for, no DEK is issued with fewer; what is there still opens.
/// Not a matter of readiness: an operator has to reach the bridge for the rotation that ends it.
fn warn_of_thin_keys(zone: &Zone) {
    let (view, required) = (zone.view.borrow().clone(), zone.config.wraps_required);
    for keyring in &zone.keyrings {
        let Some(current) = view.keyring(keyring.id) else { continue };
        let (held, version) = (current.places_in(&zone.config), current.primary.0);
        if held < required {
            let keyring = &keyring.config.name;
            warn!(
                zone = zone.name(),
                keyring,
                version,
                "the primary is in {held} of the {required} key backends that the policy asks for; no DEK is issued until \
                 the keyring is rotated"
            );
        }
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|source| Error::Bind { addr, source })
}

fn local(listener: &TcpListener, addr: SocketAddr) -> Result<SocketAddr> {
    listener.local_addr().map_err(|source| Error::Bind { addr, source })
}

impl Running {
    /// Where members and operators connect.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where health, metrics and the read-only API are.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Waits until the bridge has to stop by itself: it has lost the lead, or a part of it has failed.
    ///
    /// # Errors
    /// Why. Returns without an error only after [`Running::shutdown`] was asked for elsewhere.
    pub async fn stopped(&self) -> Result<()> {
        self.stop.cancelled().await;
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(reason) => Err(Error::Stopped(reason)),
            None => Ok(()),
        }
    }

    /// Ends streams, finishes what is under way, and closes the catalog. Members go on within their leases.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            warn!("some streams did not end in time");
            self.abort.cancel();
            self.tasks.wait().await;
        }
        self.shared.catalog.close().await;
        self.shared.audit.release();
        info!("bridge has stopped");
    }

    fn spawn_engine(&self, zone: Arc<Zone>) {
        let engine = Engine::new(zone, self.stop.clone());
        let (stop, failure) = (self.stop.clone(), self.failure.clone());
        self.spawn(async move {
            if let Err(reason) = engine.run().await {
                error!(%reason, "the bridge must not go on");
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_string());
                stop.cancel();
            }
        });
    }

    fn spawn_grpc(&self, incoming: Incoming, zones: &Arc<[Arc<Zone>]>) {
        let heartbeat = self.shared.heartbeat;
        let fleet = FleetService {
            zones: zones.clone(),
            quota: Arc::new(Quota::default()),
            stop: self.stop.clone(),
            streams: self.tasks.clone(),
        };
        let operator =
            OperatorService { zones: zones.clone(), stop: self.stop.clone(), tasks: self.tasks.clone() };
        let server = tonic::transport::Server::builder()
            // A peer that does not answer is gone within two heartbeats: lease ends are computed from that.
            .http2_keepalive_interval(Some(heartbeat))
            .http2_keepalive_timeout(Some(heartbeat))
            .add_service(FleetServer::new(fleet).max_decoding_message_size(MESSAGE_MAX))
            .add_service(OperatorServer::new(operator).max_decoding_message_size(MESSAGE_MAX));
        let (stop, failure) = (self.stop.clone(), self.failure.clone());
        self.spawn(async move {
            let stopping = stop.clone();
            if let Err(reason) =
                server.serve_with_incoming_shutdown(incoming, stopping.cancelled_owned()).await
            {
                error!(%reason, "the gRPC server failed");
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_string());
                stop.cancel();
            }
        });
    }

    fn spawn_admin(&self, listener: TcpListener, zones: Arc<[Arc<Zone>]>) {
        let stop = self.stop.clone();
        self.spawn(async move {
            let served = axum::serve(listener, router(Admin { zones }));
            if let Err(error) = served.with_graceful_shutdown(stop.cancelled_owned()).await {
                error!(%error, "the admin port failed");
            }
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = abort.cancelled() => {}
            }
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.abort.cancel();
    }
}
