//! Wires a proxy together, starts it, reloads it, drains it.

use crate::admin;
use crate::config::{Config, Identity, Protocol};
use crate::control::{self, Control, ControlConfig, Timing, Traffic};
use crate::keys::Keys;
use crate::route::RouteTable;
use crate::server::{self, ListenerShared, Service, TlsSlot, WorkerShared};
use crate::stack::{Serving, Totals};
use crate::tcp::TcpService;
use crate::telemetry::Telemetry;
use crate::transform::Transform;
use crate::upstream::Upstream;
use arc_swap::ArcSwap;
use keyway_keycache::{CacheLimits, KeyCache, KeyringName, Millis};
use keyway_protocol::tls::TlsFiles;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// A proxy can't start, or can't take a new configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No AES-256-GCM implementation gives right answers here.
    #[error(transparent)]
    Aead(#[from] keyway_envelope::aead::NoneUsable),
    /// An address can't be listened on.
    #[error("cannot listen on {address} ({what}): {error}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Which listener, or the admin port.
        what: String,
        /// Why.
        error: std::io::Error,
    },
    /// A listener's routes, upstream or certificates are not usable.
    #[error("listener {listener}: {message}")]
    Listener {
        /// Which.
        listener: String,
        /// What and why.
        message: String,
    },
    /// The bridge client can't be set up.
    #[error("{0}")]
    Control(#[from] control::ControlError),
    /// A thread or runtime could not be made.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A reload asks for what only a restart can do.
    #[error("{0} cannot change without a restart")]
    NeedsRestart(String),
}

/// What ends the control runtime, and the thread that it lives on.
type ControlThread = (oneshot::Sender<()>, JoinHandle<()>);

/// A proxy that serves.
#[derive(Debug)]
pub struct Running {
    listeners: Vec<(Arc<ListenerShared>, SocketAddr)>,
    admin_addr: SocketAddr,
    cache: Arc<KeyCache>,
    telemetry: Telemetry,
    config: Arc<ArcSwap<Config>>,
    control: Option<Arc<Control>>,
    drain: CancellationToken,
    workers: Vec<JoinHandle<()>>,
    /// Ends the control runtime when it is dropped.
    control_thread: Option<ControlThread>,
}

/// Starts a proxy. When this returns every port is bound; `/readyz` tells when the keyrings are there.
///
/// # Errors
/// [`StartError`]; nothing is left running then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let started = Instant::now();
    for found in
        keyway_envelope::aead::select(|| u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))?
    {
        tracing::info!(
            implementation = found.implementation.name(),
            known_answers = found.passes,
            ns_per_segment = found.ticks_per_segment,
            "AES-256-GCM"
        );
    }
    tracing::info!(selected = keyway_envelope::Implementation::selected().name(), "AES-256-GCM serves");
    let names: BTreeSet<KeyringName> = config.keyrings().collect();
    let clock = boot_clock;
    let cache = KeyCache::new(names.into_iter().collect(), CacheLimits::default(), clock);
    let telemetry = Telemetry::new();
    let totals = Arc::new(Totals::default());

    let mut listeners = Vec::new();
    let mut per_worker: Vec<Vec<_>> = (0..config.worker_count()).map(|_| Vec::new()).collect();
    for listener in &config.listeners {
        let bind_error =
            |error| StartError::Bind { address: listener.bind, what: listener.name.clone(), error };
        let shared = Arc::new(build_listener(&config, listener, &cache, &telemetry)?);
        let sockets = server::bind_all(listener.bind, per_worker.len()).map_err(bind_error)?;
        let address = sockets[0].local_addr().map_err(bind_error)?;
        for (worker, socket) in per_worker.iter_mut().zip(sockets) {
            worker.push((Arc::clone(&shared), socket));
        }
        listeners.push((shared, address));
    }

    let admin_socket = std::net::TcpListener::bind(config.admin)
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .map_err(|error| StartError::Bind { address: config.admin, what: "admin".to_owned(), error })?;
    let admin_addr = admin_socket.local_addr()?;
    let drain = CancellationToken::new();
    let (runtime, control_thread) = control_runtime()?;
    if !keyway_envelope::memory_is_locked() {
        tracing::warn!(
            "keys could not be locked into memory; raise RLIMIT_MEMLOCK (LimitMEMLOCK= of systemd)"
        );
    }
    let control = start_control(&config, &cache, &totals, &runtime)?.map(Arc::new);
    let config = Arc::new(ArcSwap::from_pointee(config));
    let state = admin::State {
        cache: Arc::clone(&cache),
        telemetry: telemetry.clone(),
        control: control.clone(),
        drain: drain.clone(),
        config: Arc::clone(&config),
    };
    runtime.spawn(admin::serve(admin_socket, state));

    let worker_shared = WorkerShared {
        connections: Arc::new(Semaphore::new(config.load().limits.connections.min(Semaphore::MAX_PERMITS))),
        totals,
        drain: drain.clone(),
        drain_timeout: config.load().drain_timeout.0,
    };
    let workers = per_worker
        .into_iter()
        .enumerate()
        .map(|(n, sockets)| spawn_worker(n, cache.reader(), sockets, worker_shared.clone()))
        .collect::<Result<_, _>>()?;
    Ok(Running {
        listeners,
        admin_addr,
        cache,
        telemetry,
        config,
        control,
        drain,
        workers,
        control_thread: Some(control_thread),
    })
}

impl Running {
    /// The address of every listener, by name.
    #[must_use]
    pub fn listener_addrs(&self) -> BTreeMap<String, SocketAddr> {
        self.listeners.iter().map(|(listener, address)| (listener.name.clone(), *address)).collect()
    }

    /// The admin port's address.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Whether every keyring is applied.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.cache.snapshot().is_complete()
    }

    /// Replaces routes, limits and certificates with no connection lost. All or nothing.
    ///
    /// # Errors
    /// [`StartError`]; the old configuration stays in force then.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let old = self.config.load_full();
        let binds = |config: &Config| -> Vec<_> {
            config.listeners.iter().map(|listener| (listener.name.clone(), listener.bind)).collect()
        };
        let protocols = |config: &Config| -> Vec<_> {
            config.listeners.iter().map(|listener| listener.protocol).collect()
        };
        for (what, changed) in [
            ("the set of listeners and their addresses", binds(&old) != binds(&config)),
            ("a listener's protocol", protocols(&old) != protocols(&config)),
            ("admin", old.admin != config.admin),
            ("workers", old.worker_count() != config.worker_count()),
            ("limits.connections", old.limits.connections != config.limits.connections),
            ("drain_timeout", old.drain_timeout != config.drain_timeout),
            (
                "identity",
                serde_json::to_value(&old.identity).ok() != serde_json::to_value(&config.identity).ok(),
            ),
            ("bridge", serde_json::to_value(&old.bridge).ok() != serde_json::to_value(&config.bridge).ok()),
        ] {
            if changed {
                return Err(StartError::NeedsRestart(what.to_owned()));
            }
        }
        // Built whole before anything is published.
        let built = config
            .listeners
            .iter()
            .map(|listener| build_listener(&config, listener, &self.cache, &self.telemetry))
            .collect::<Result<Vec<_>, _>>()?;
        for ((current, _), new) in self.listeners.iter().zip(built) {
            match (&current.service, new.service) {
                (Service::Http(current), Service::Http(new)) => current.store(new.load_full()),
                // Connections that are open go on as they began.
                (Service::Tcp(current), Service::Tcp(new)) => current.store(new.load_full()),
                // Refused above.
                _ => {}
            }
            current.tls.store(new.tls.load_full());
            current.limits.store(new.limits.load_full());
        }
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// Resolves when somebody asks for a drain through the admin port.
    pub async fn drain_requested(&self) {
        self.drain.cancelled().await;
    }

    /// Stops accepting, lets streams end within `drain_timeout`, then closes what is left.
    pub async fn drain(mut self) {
        self.drain.cancel();
        let workers = std::mem::take(&mut self.workers);
        let _ =
            tokio::task::spawn_blocking(move || workers.into_iter().for_each(|worker| drop(worker.join())))
                .await;
        if let Some(control) = self.control.take() {
            control.shutdown().await;
        }
        if let Some((stop, thread)) = self.control_thread.take() {
            let _ = stop.send(());
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

fn build_listener(
    config: &Config,
    listener: &crate::config::Listener,
    cache: &Arc<KeyCache>,
    telemetry: &Telemetry,
) -> Result<ListenerShared, StartError> {
    let failed = |message: String| StartError::Listener { listener: listener.name.clone(), message };
    let limits = &config.limits;
    let service = if listener.protocol == Protocol::Tcp {
        let tcp = TcpService::build(listener, limits, cache, telemetry).map_err(failed)?;
        Service::Tcp(ArcSwap::from_pointee(tcp))
    } else {
        Service::Http(Arc::new(ArcSwap::from_pointee(http_service(config, listener, cache, telemetry)?)))
    };
    let tls = listener.tls.as_ref().map(server::acceptor).transpose().map_err(failed)?;
    Ok(ListenerShared {
        name: listener.name.clone(),
        service,
        tls: ArcSwap::from_pointee(tls.map(TlsSlot)),
        limits: ArcSwap::from_pointee(limits.clone()),
        active: telemetry.gauge("keyway_connections_active", &[("listener", &listener.name)]),
    })
}

fn http_service(
    config: &Config,
    listener: &crate::config::Listener,
    cache: &Arc<KeyCache>,
    telemetry: &Telemetry,
) -> Result<Serving, StartError> {
    let failed = |message: String| StartError::Listener { listener: listener.name.clone(), message };
    let routes = RouteTable::build(listener, cache, telemetry).map_err(failed)?;
    let limits = &config.limits;
    let upstream = Upstream::new(&listener.upstream, listener.upstream_tls.as_ref(), limits)
        .map_err(|error| failed(error.to_string()))?;
    let keys = Keys::new(Arc::clone(cache), limits.key_timeout.0);
    let json_max = usize::try_from(limits.json_body.0).unwrap_or(usize::MAX);
    let transform = Transform { role: listener.role, keys, upstream, json_max };
    Ok(Serving { routes, transform })
}

fn spawn_worker(
    n: usize,
    reader: keyway_keycache::Reader,
    sockets: Vec<(Arc<ListenerShared>, std::net::TcpListener)>,
    shared: WorkerShared,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
        if let Err(error) = server::run_worker(reader, sockets, &shared) {
            tracing::error!(worker = n, %error, "worker ended");
        }
    })
}

/// A runtime for the control task and the admin port, on a thread of its own: this may be called from inside another
/// runtime, where one can't be dropped.
fn control_runtime() -> std::io::Result<(tokio::runtime::Handle, ControlThread)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("control-root".to_owned()).spawn(move || {
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    Ok((handle, (stop, thread)))
}

fn start_control(
    config: &Config,
    cache: &Arc<KeyCache>,
    totals: &Arc<Totals>,
    runtime: &tokio::runtime::Handle,
) -> Result<Option<Control>, StartError> {
    let (Some(bridge), Some(identity)) = (&config.bridge, &config.identity) else { return Ok(None) };
    if cache.names().is_empty() {
        return Ok(None);
    }
    let config = ControlConfig {
        endpoints: bridge.endpoints.clone(),
        identity: tls_files(identity),
        state_dir: bridge.state_dir.clone(),
        instance: bridge.instance.clone().unwrap_or_else(host_name),
        timing: Timing::default(),
    };
    let totals = Arc::clone(totals);
    let traffic = Arc::new(move || Traffic { requests: totals.requests(), errors: totals.errors() });
    Ok(Some(control::start(config, Arc::clone(cache), traffic, runtime)?))
}

fn tls_files(identity: &Identity) -> TlsFiles {
    TlsFiles { cert: identity.cert.clone(), key: identity.key.clone(), ca: identity.ca.clone() }
}

/// Milliseconds since the machine started, those spent suspended included: a lease runs out while its holder sleeps.
fn boot_clock() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    Millis(u64::try_from(millis).unwrap_or(0))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
