//! Certificates, configuration, and the operator's side.

use crate::audit::Record;
use crate::backend::{BackendConfig, BackendKind, SoftwareConfig};
use crate::config::{
    AuditConfig, Config, KeyringConfig, LeaseConfig, LimitConfig, Operation, RotationConfig, ServiceConfig,
    TlsConfig, ZoneConfig,
};
use crate::hooks::Hooks;
use crate::server::{Running, start_with};
use keyway_protocol::tls::{TlsFiles, client_config, connect};
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::operator_client::OperatorClient;
use keyway_protocol::v1::{ListRequest, Rotation, RotationRef, StartRotationRequest};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;

pub(super) const ORDERS: &str = "spiffe://example.org/orders";
pub(super) const REPORTS: &str = "spiffe://example.org/reports";
pub(super) const INTAKE: &str = "spiffe://example.org/intake";
pub(super) const OTHER: &str = "spiffe://example.org/other-zone";
pub(super) const OPS: &str = "spiffe://example.org/ops/payments";

/// A guard against waiting for ever; no test depends on how long it is.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) struct Bed {
    pub(super) dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    pub(super) config: Config,
}

impl Bed {
    /// Zone `payments` for orders, reports and intake; zone `archive` for another service.
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let path = |name: &str| dir.path().join(name);
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            tls: TlsConfig {
                cert: path("bridge.crt"),
                key: path("bridge.key"),
                client_ca: path("bridge.ca"),
            },
            store: format!("sqlite://{}", path("bridge.db").display()),
            audit: AuditConfig { file: path("audit.jsonl"), checkpoint_every: None },
            heartbeat: Duration::from_millis(100),
            zones: vec![
                zone(
                    "payments",
                    &path("payments.keys"),
                    &[
                        (ORDERS, &[Operation::Seal, Operation::Open]),
                        (REPORTS, &[Operation::Open]),
                        (INTAKE, &[Operation::Seal]),
                    ],
                ),
                zone("archive", &path("archive.keys"), &[(OTHER, &[Operation::Seal, Operation::Open])]),
            ],
        };
        let bed = Self { dir, authority, config };
        bed.identity("bridge", "spiffe://example.org/bridge");
        bed
    }

    fn identity(&self, name: &str, uri: &str) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let write = |kind: &str, pem: String| {
            let path = self.dir.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, pem).unwrap();
            path
        };
        TlsFiles {
            cert: write("crt", certificate.pem()),
            key: write("key", key.serialize_pem()),
            ca: write("ca", self.authority.pem()),
        }
    }

    pub(super) async fn start(&self) -> Running {
        self.start_with(Hooks::default()).await
    }

    pub(super) async fn start_with(&self, hooks: Hooks) -> Running {
        start_with(self.config.clone(), hooks).await.unwrap()
    }

    async fn channel(&self, addr: SocketAddr, service: &str) -> Channel {
        let name = service.rsplit('/').next().unwrap();
        let files = self.identity(name, service);
        connect(&format!("https://{addr}"), client_config(&files).unwrap()).await.unwrap()
    }

    pub(super) async fn fleet(&self, addr: SocketAddr, service: &str) -> FleetClient<Channel> {
        FleetClient::new(self.channel(addr, service).await)
    }

    pub(super) async fn operator(&self, addr: SocketAddr) -> Ops {
        Ops { client: OperatorClient::new(self.channel(addr, OPS).await) }
    }

    pub(super) async fn operator_as(&self, addr: SocketAddr, who: &str) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel(addr, who).await)
    }

    /// The audit file; its sequence has no gap.
    pub(super) fn audit(&self) -> Vec<Record> {
        let text = std::fs::read_to_string(&self.config.audit.file).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(records.iter().zip(1..).all(|(record, sequence)| record.sequence == sequence));
        records
    }
}

fn zone(name: &str, keystore: &std::path::Path, services: &[(&str, &[Operation])]) -> ZoneConfig {
    let services =
        services.iter().map(|(id, ops)| ServiceConfig { id: (*id).to_owned(), ops: ops.to_vec() }).collect();
    ZoneConfig {
        name: name.to_owned(),
        backends: vec![BackendConfig {
            name: "soft".to_owned(),
            kind: BackendKind::Software(SoftwareConfig::new(keystore)),
        }],
        wraps_required: 1,
        admins: vec![OPS.to_owned()],
        keyrings: vec![KeyringConfig {
            name: "default".to_owned(),
            rotate: None,
            leases: LeaseConfig { seal: Duration::from_secs(3600), open: Duration::from_secs(7200) },
            limits: LimitConfig::default(),
            services,
        }],
        rotation: RotationConfig::default(),
    }
}

/// An operator of zone `payments`.
pub(super) struct Ops {
    pub(super) client: OperatorClient<Channel>,
}

impl Ops {
    pub(super) async fn rotate(&mut self) -> Rotation {
        let request = StartRotationRequest {
            zone: "payments".into(),
            keyring: "default".into(),
            reason: "a test".into(),
        };
        self.client.start_rotation(request).await.unwrap().into_inner()
    }

    /// Follows a rotation until `enough`; gives everything that was seen.
    pub(super) async fn follow(&mut self, id: &str, enough: impl Fn(&Rotation) -> bool) -> Vec<Rotation> {
        let follow = async {
            let mut changes =
                self.client.watch_rotation(RotationRef { id: id.to_owned() }).await.unwrap().into_inner();
            let mut seen = Vec::new();
            loop {
                let change =
                    changes.message().await.unwrap().expect("the rotation ended before what was waited for");
                seen.push(change.clone());
                if enough(&change) {
                    return seen;
                }
            }
        };
        tokio::time::timeout(LONG, follow).await.expect("the rotation does not go on")
    }

    pub(super) async fn until_done(&mut self, id: &str) -> Vec<Rotation> {
        self.follow(id, |rotation| rotation.phase == "done").await
    }

    /// State of each version of payments/default, and how many DEKs it carries.
    pub(super) async fn versions(&mut self) -> Vec<(u32, String, u64)> {
        let request = ListRequest { zone: "payments".into() };
        let keys = self.client.list_keys(request).await.unwrap().into_inner().keys;
        keys.into_iter().map(|key| (key.version, key.state, key.live_deks)).collect()
    }
}
