//! The parts that run, and the order in which they start and stop.

use super::config::{self, ProxyPlan, Sidecar};
use super::{Addresses, write_config};
use crate::args::{DevArgs, Protocol};
use crate::error::Failure;
use crate::pki::Identity;
use crate::private_file;
use crate::store::{self, StoreConfig};
use anyhow::{Context as _, anyhow};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// All has to serve within this time.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(10);

/// What is ready before a port is bound.
pub(super) struct Prepared {
    pub(super) data_dir: PathBuf,
    pub(super) bridge_config: PathBuf,
    pub(super) operator: Identity,
    /// In the order in which they start: a server before the client that needs its address.
    pub(super) sidecars: Vec<(Sidecar, Identity)>,
    pub(super) hsm_command: Option<String>,
}

/// Everything that runs.
pub(super) struct Parts {
    bridge: keyway_bridge::Running,
    store: Option<store::Running>,
    /// In the order in which they were started; the last one is where data clients connect.
    proxies: Vec<(Sidecar, keyway_proxy::Running)>,
    data_dir: PathBuf,
}

impl Parts {
    /// Starts all and waits until it serves.
    pub(super) async fn start(args: &DevArgs, prepared: Prepared) -> Result<Self, Failure> {
        let Prepared { data_dir, bridge_config, sidecars, .. } = prepared;
        let bridge_config = keyway_bridge::config::Config::load(&bridge_config).map_err(Failure::config)?;
        let bridge = keyway_bridge::start(bridge_config).await.context("starting the bridge")?;
        let store = match &args.upstream {
            Some(_) => None,
            None => {
                let config = StoreConfig { listen: args.store_listen, dir: data_dir.join("store") };
                Some(store::start(config).await?)
            }
        };
        let upstream = match (&args.upstream, &store) {
            (Some(upstream), _) => upstream.clone(),
            (None, Some(store)) => format!("http://{}", config::reachable(store.addr())),
            (None, None) => return Err(anyhow!("neither an upstream nor a store").into()),
        };
        let mut parts = Self { bridge, store, proxies: Vec::new(), data_dir };
        let mut upstream = upstream;
        for (sidecar, identity) in sidecars {
            let proxy = parts.start_proxy(args, sidecar, &identity, &upstream).await?;
            let scheme = if args.protocol == Protocol::Tcp { "tcp" } else { "http" };
            upstream = format!("{scheme}://{}", config::reachable(data_addr(&proxy)?));
            parts.proxies.push((sidecar, proxy));
        }
        for (sidecar, proxy) in &parts.proxies {
            tokio::time::timeout(READY_TIMEOUT, ready(proxy.admin_addr())).await.with_context(|| {
                format!("{} has no keyring after {READY_TIMEOUT:?}; the log says why", sidecar.name())
            })?;
        }
        Ok(parts)
    }

    async fn start_proxy(
        &self,
        args: &DevArgs,
        sidecar: Sidecar,
        identity: &Identity,
        upstream: &str,
    ) -> Result<keyway_proxy::Running, Failure> {
        let state_dir = self.data_dir.join(format!("{}-state", sidecar.name()));
        private_file::make_directory(&state_dir)
            .with_context(|| format!("making {}", state_dir.display()))?;
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let is_inner = sidecar == Sidecar::PairServer;
        let plan = ProxyPlan {
            sidecar,
            bind: if is_inner { free } else { args.listen },
            admin: if is_inner { free } else { args.admin },
            upstream,
            bridge: self.bridge.grpc_addr(),
            identity,
            state_dir: &state_dir,
        };
        let path = self.data_dir.join(format!("{}.yaml", sidecar.name()));
        let text = config::proxy(args, &plan);
        write_config(&path, &text)?;
        // The environment is for proxies of their own; here the arguments decide.
        let config = keyway_proxy::Config::parse(&path, &text, &BTreeMap::new()).map_err(Failure::config)?;
        let started = keyway_proxy::start(config).await;
        Ok(started.with_context(|| format!("starting {}", sidecar.name()))?)
    }

    /// Where everything is.
    pub(super) fn addresses(&self) -> Addresses {
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let outer = self.proxies.iter().rfind(|(sidecar, _)| *sidecar != Sidecar::PairServer);
        let inner = self.proxies.iter().find(|(sidecar, _)| *sidecar == Sidecar::PairServer);
        Addresses {
            data: outer.and_then(|(_, proxy)| data_addr(proxy).ok()).unwrap_or(unknown),
            proxy_admin: outer.map_or(unknown, |(_, proxy)| proxy.admin_addr()),
            server_admin: inner.map(|(_, proxy)| proxy.admin_addr()),
            server_data: inner.and_then(|(_, proxy)| data_addr(proxy).ok()),
            bridge_admin: self.bridge.admin_addr(),
            bridge: self.bridge.grpc_addr(),
            store: self.store.as_ref().map(store::Running::addr),
            data_dir: self.data_dir.clone(),
        }
    }

    /// Waits until a part has stopped by itself; gives why.
    pub(super) async fn failed(&self) -> Failure {
        match self.bridge.stopped().await {
            Ok(()) => anyhow!("the bridge has stopped").into(),
            Err(error) => anyhow!(error).context("the bridge has stopped").into(),
        }
    }

    /// Drains from the front: clients first, what they need last.
    pub(super) async fn stop(self) {
        for (_, proxy) in self.proxies.into_iter().rev() {
            proxy.drain().await;
        }
        if let Some(store) = self.store {
            store.shutdown().await;
        }
        self.bridge.shutdown().await;
    }
}

fn data_addr(proxy: &keyway_proxy::Running) -> Result<SocketAddr, Failure> {
    let addrs = proxy.listener_addrs();
    Ok(*addrs.get("dev").context("the proxy has no listener called dev")?)
}

/// Waits until the proxy's own readiness says so: what an orchestrator asks is what counts.
async fn ready(admin: SocketAddr) {
    while !is_ready(config::reachable(admin)).await {
        tokio::time::sleep(READY_PAUSE).await;
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(admin).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status == *b"HTTP/1.1 200")
    };
    ask.await.unwrap_or(false)
}
