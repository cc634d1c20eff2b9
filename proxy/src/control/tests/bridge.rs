//! A bridge for tests: a real gRPC server behind real TLS, on a runtime of its own so that it can be killed at once.

use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, WrapMechanism, ZoneId};
use keyway_protocol::dek_transport::seal_dek;
use keyway_protocol::kat;
use keyway_protocol::signing::SigningKey;
use keyway_protocol::tls::{Incoming, TlsFiles, server_config};
use keyway_protocol::v1::fleet_server::{Fleet, FleetServer};
use keyway_protocol::v1::{
    BridgeMessage, DekResponse, Heartbeat, IssueDekRequest, Keyring, KeyringSet, MemberMessage,
    OpenDekRequest, SignedKeyringSet, Welcome, bridge_message, member_message,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use zeroize::Zeroizing;

pub(super) const ZONE: &str = "payments";
pub(super) const ZONE_ID: ZoneId = ZoneId(3);
pub(super) const KEYRING: &str = "default";
pub(super) const KEYRING_ID: KeyringId = KeyringId(7);
/// No test waits longer for anything; a limit against hanging, not a measure.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// An authority and what it has issued.
pub(super) struct Pki {
    pub(super) dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { dir: TempDir::new().unwrap(), authority }
    }

    pub(super) fn issue(&self, name: &str) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let uri = format!("spiffe://example.org/{name}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let at = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        write(&at("crt"), &certificate.pem());
        write(&at("key"), &key.serialize_pem());
        write(&at("ca"), &self.authority.pem());
        TlsFiles { cert: at("crt"), key: at("key"), ca: at("ca") }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// A row of the catalog.
#[derive(Clone)]
struct Row {
    block: KeyBlock,
    key: [u8; 32],
    tenant: String,
    /// The version of the newest wrap.
    version: KekVersion,
    /// A known answer's DEK is never rewrapped.
    pinned: bool,
}

/// What survives the bridge's restarts.
pub(super) struct Catalog {
    pub(super) pkcs8: Zeroizing<Vec<u8>>,
    pub(super) signing: SigningKey,
    pub(super) epoch: AtomicU64,
    pub(super) issued: AtomicU64,
    pub(super) opened: AtomicU64,
    /// What IssueDek answers for these tenants.
    pub(super) refuse_issue: Mutex<HashMap<String, Code>>,
    /// OpenDek answers only while a permit is there.
    pub(super) open_gate: tokio::sync::Semaphore,
    rows: Mutex<HashMap<DekId, Row>>,
}

impl Catalog {
    pub(super) fn new() -> Arc<Self> {
        Self::with_key(SigningKey::generate_pkcs8().unwrap())
    }

    /// Another bridge of the same fleet: it signs with the same key.
    pub(super) fn with_key(pkcs8: Zeroizing<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self {
            signing: SigningKey::from_pkcs8(&pkcs8).unwrap(),
            pkcs8,
            epoch: AtomicU64::new(1),
            issued: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            refuse_issue: Mutex::default(),
            open_gate: tokio::sync::Semaphore::new(1),
            rows: Mutex::default(),
        })
    }

    /// A new DEK in the catalog.
    fn make(&self, version: KekVersion, tenant: &str, pinned: bool) -> Row {
        let (mut id, mut key) = ([0; 16], [0; 32]);
        aws_lc_rs::rand::fill(&mut id).unwrap();
        aws_lc_rs::rand::fill(&mut key).unwrap();
        let kek = KekRef { zone: ZONE_ID, keyring: KEYRING_ID, version };
        let block = KeyBlock::inline(kek, DekId(id), WrapMechanism::AesGcm, &[0x3C; 60]).unwrap();
        let row = Row { block, key, tenant: tenant.to_owned(), version, pinned };
        self.rows.lock().unwrap().insert(DekId(id), row.clone());
        row
    }

    /// A DEK as another member might have used it: its block and its bytes.
    pub(super) fn somebody_elses(&self, version: u16, tenant: &str) -> (KeyBlock, [u8; 32]) {
        let row = self.make(KekVersion(version), tenant, false);
        (row.block, row.key)
    }

    /// Wraps every DEK by `version` too.
    pub(super) fn rewrap(&self, version: u16) {
        let mut rows = self.rows.lock().unwrap();
        rows.values_mut().filter(|row| !row.pinned).for_each(|row| row.version = KekVersion(version));
    }

    /// What must never happen: a known answer that opens by the wrap of another version.
    pub(super) fn rewrap_known_answers(&self, version: u16) {
        let mut rows = self.rows.lock().unwrap();
        rows.values_mut().filter(|row| row.pinned).for_each(|row| row.version = KekVersion(version));
    }

    /// A set and the digest of its known answers.
    pub(super) fn set(&self, generation: u64, primary: u16, accepted: &[u16]) -> (KeyringSet, [u8; 32]) {
        let mut answers = Vec::new();
        let versions = accepted.iter().map(|version| {
            let row = self.make(KekVersion(*version), "", true);
            let dek = Dek::new(row.block.dek_id(), Zeroizing::new(row.key));
            let mut answer = [0; 32];
            aws_lc_rs::rand::fill(&mut answer).unwrap();
            answers.push((KEYRING_ID, KekVersion(*version), answer));
            let known_answer = kat::seal_known_answer(&dek, &row.block, [8; 24], ZONE, &answer);
            keyway_protocol::v1::KekVersion { version: (*version).into(), known_answer }
        });
        let keyring = Keyring {
            name: KEYRING.into(),
            keyring_id: KEYRING_ID.0,
            primary: primary.into(),
            versions: versions.collect(),
            seal_lease_ms: 3_600_000,
            open_lease_ms: 36_000_000,
            may_seal: true,
            may_open: true,
            ..Keyring::default()
        };
        let set = KeyringSet {
            zone: ZONE.into(),
            zone_id: ZONE_ID.0.into(),
            generation,
            epoch: self.epoch.load(Ordering::Relaxed),
            keyrings: vec![keyring],
            ..KeyringSet::default()
        };
        (set, kat::digest(generation, &answers))
    }

    fn answer(&self, row: &Row, recipient: &[u8], block: &KeyBlock) -> Response<DekResponse> {
        let dek = Dek::new(row.block.dek_id(), Zeroizing::new(row.key));
        let (encapsulated_key, sealed_dek) =
            seal_dek(recipient, &dek, block, ZONE, KEYRING, &row.tenant).unwrap();
        Response::new(DekResponse {
            key_block: block.to_bytes().to_vec(),
            keyring: KEYRING.into(),
            tenant: row.tenant.clone(),
            kek_version: row.version.0.into(),
            encapsulated_key,
            sealed_dek,
        })
    }
}

type Outbox = mpsc::UnboundedSender<Result<BridgeMessage, Status>>;

/// The service. Every stream's messages go into one inbox; the newest stream has the outbox.
#[derive(Clone)]
struct Service {
    catalog: Arc<Catalog>,
    inbox: mpsc::UnboundedSender<member_message::Body>,
    outbox: Arc<Mutex<Option<Outbox>>>,
}

#[tonic::async_trait]
impl Fleet for Service {
    type AttachStream = UnboundedReceiverStream<Result<BridgeMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (outbox, messages) = mpsc::unbounded_channel();
        let welcome = Welcome {
            verify_key: self.catalog.signing.verify_key().to_bytes().to_vec(),
            epoch: self.catalog.epoch.load(Ordering::Relaxed),
            heartbeat_ms: 300_000,
        };
        let body = Some(bridge_message::Body::Welcome(welcome));
        outbox.send(Ok(BridgeMessage { body })).unwrap();
        *self.outbox.lock().unwrap() = Some(outbox);
        let (mut incoming, inbox) = (request.into_inner(), self.inbox.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let _ = inbox.send(message.body.unwrap());
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(messages)))
    }

    async fn issue_dek(&self, request: Request<IssueDekRequest>) -> Result<Response<DekResponse>, Status> {
        let request = request.into_inner();
        self.catalog.issued.fetch_add(1, Ordering::Relaxed);
        if let Some(code) = self.catalog.refuse_issue.lock().unwrap().get(&request.tenant) {
            return Err(Status::new(*code, "as the test wants"));
        }
        let version = KekVersion(u16::try_from(request.kek_version).unwrap());
        let row = self.catalog.make(version, &request.tenant, false);
        Ok(self.catalog.answer(&row, &request.recipient_key, &row.block))
    }

    async fn open_dek(&self, request: Request<OpenDekRequest>) -> Result<Response<DekResponse>, Status> {
        let request = request.into_inner();
        self.catalog.opened.fetch_add(1, Ordering::Relaxed);
        let _passed = self.catalog.open_gate.acquire().await.unwrap();
        let block = keyway_protocol::dek_transport::parse_key_block(&request.key_block)
            .map_err(|_| Status::invalid_argument("not a block"))?;
        let row = self.catalog.rows.lock().unwrap().get(&block.dek_id()).cloned();
        match row {
            Some(row) if row.block == block && row.tenant == "forbidden" => {
                Err(Status::permission_denied("not for this caller"))
            }
            Some(row) if row.block == block => Ok(self.catalog.answer(&row, &request.recipient_key, &block)),
            Some(_) => Err(Status::invalid_argument("not authentic")),
            None => Err(Status::not_found("no such DEK")),
        }
    }
}

/// A running bridge. Dropped, it is gone as after a SIGKILL.
pub(super) struct Bridge {
    pub(super) catalog: Arc<Catalog>,
    pub(super) addr: SocketAddr,
    inbox: mpsc::UnboundedReceiver<member_message::Body>,
    outbox: Arc<Mutex<Option<Outbox>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Bridge {
    pub(super) async fn start(pki: &Pki, catalog: &Arc<Catalog>) -> Self {
        Self::start_at(pki, catalog, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn start_at(pki: &Pki, catalog: &Arc<Catalog>, addr: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = server_config(&pki.issue("bridge")).unwrap();
        let bind = async move { Incoming::new(TcpListener::bind(addr).await.unwrap(), config) };
        let incoming = runtime.spawn(bind).await.unwrap();
        let addr = incoming.local_addr().unwrap();
        let (inbox_sender, inbox) = mpsc::unbounded_channel();
        let outbox = Arc::default();
        let service =
            Service { catalog: Arc::clone(catalog), inbox: inbox_sender, outbox: Arc::clone(&outbox) };
        let server = tonic::transport::Server::builder().add_service(FleetServer::new(service));
        runtime.spawn(server.serve_with_incoming(incoming));
        Self { catalog: Arc::clone(catalog), addr, inbox, outbox, runtime: Some(runtime) }
    }

    /// As SIGKILL does: connections and listener are closed with no goodbye. Gives the address, free again.
    pub(super) async fn kill(mut self) -> SocketAddr {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        self.addr
    }

    pub(super) fn endpoint(&self) -> String {
        format!("https://{}", self.addr)
    }

    /// The next message of a member, of any kind.
    pub(super) async fn next(&mut self) -> member_message::Body {
        tokio::time::timeout(PATIENCE, self.inbox.recv()).await.expect("the member says nothing").unwrap()
    }

    pub(super) async fn hello(&mut self) -> keyway_protocol::v1::Hello {
        match self.next().await {
            member_message::Body::Hello(hello) => hello,
            other => panic!("not a Hello: {other:?}"),
        }
    }

    pub(super) async fn applied(&mut self) -> keyway_protocol::v1::Applied {
        match (self.next().await, self.next().await) {
            (member_message::Body::Received(received), member_message::Body::Applied(applied)) => {
                assert_eq!(received.generation, applied.generation);
                applied
            }
            other => panic!("not RECEIVED and APPLIED: {other:?}"),
        }
    }

    /// The code and reason of the next NACK; RECEIVED comes before it if the signature was good.
    pub(super) async fn nack(&mut self, generation: u64, signature_is_good: bool) -> (String, String) {
        if signature_is_good {
            assert!(matches!(self.next().await, member_message::Body::Received(_)));
        }
        match self.next().await {
            member_message::Body::Nack(nack) => {
                assert_eq!(nack.generation, generation);
                (nack.code, nack.reason)
            }
            other => panic!("not a NACK: {other:?}"),
        }
    }

    pub(super) fn push(&self, set: &KeyringSet) {
        self.push_signed(self.catalog.signing.sign_keyring_set(set));
    }

    pub(super) fn push_signed(&self, signed: SignedKeyringSet) {
        self.send(bridge_message::Body::KeyringSet(signed));
    }

    pub(super) fn heartbeat(&self, generation: u64) {
        let epoch = self.catalog.epoch.load(Ordering::Relaxed);
        self.send(bridge_message::Body::Heartbeat(Heartbeat { generation, epoch }));
    }

    fn send(&self, body: bridge_message::Body) {
        let outbox = self.outbox.lock().unwrap();
        outbox.as_ref().expect("a member is connected").send(Ok(BridgeMessage { body: Some(body) })).unwrap();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
