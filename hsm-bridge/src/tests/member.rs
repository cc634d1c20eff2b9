//! A member as the protocol describes it, with switches for misbehaviour.

use super::bed::{Bed, LONG};
use keyway_envelope::Dek;
use keyway_envelope::{KekVersion, KeyringId};
use keyway_protocol::dek_transport::MemberKey;
use keyway_protocol::kat::{digest, known_answer_key_block, open_known_answer};
use keyway_protocol::signing::VerifyKey;
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::{
    Applied, BridgeMessage, DekResponse, Hello, IssueDekRequest, KeyringSet, MemberMessage, Nack,
    OpenDekRequest, Received, SignedKeyringSet, bridge_message::Body, member_message,
};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// What a member does with a keyring set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Apply,
    /// Says nothing until it is told to apply.
    Hold,
    /// Refuses.
    Refuse,
    /// Claims to have applied, with a digest of its own invention.
    Lie,
}

/// What it has seen and holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) generation: u64,
    pub(super) digest: Vec<u8>,
    pub(super) set: KeyringSet,
    pub(super) sets: u32,
    pub(super) heartbeats: u32,
    /// What the last heartbeat renewed.
    pub(super) renewed: u64,
    pub(super) ended: Option<Code>,
}

impl Held {
    pub(super) fn primary(&self) -> u32 {
        self.set.keyrings[0].primary
    }

    pub(super) fn accepted(&self) -> Vec<u32> {
        self.set.keyrings[0].versions.iter().map(|version| version.version).collect()
    }
}

pub(super) struct Member {
    pub(super) calls: Calls,
    behaviour: watch::Sender<Behaviour>,
    held: watch::Receiver<Held>,
    task: tokio::task::JoinHandle<()>,
}

/// The two calls.
#[derive(Clone)]
pub(super) struct Calls {
    client: FleetClient<Channel>,
    key: Arc<MemberKey>,
    zone: String,
}

impl Calls {
    pub(super) async fn new(bed: &Bed, addr: SocketAddr, service: &str, zone: &str) -> Self {
        let client = bed.fleet(addr, service).await;
        Self { client, key: Arc::new(MemberKey::generate()), zone: zone.to_owned() }
    }

    pub(super) async fn issue(&self, tenant: &str, version: u32) -> Result<(Dek, DekResponse), Status> {
        let request = IssueDekRequest {
            zone: self.zone.clone(),
            keyring: "default".into(),
            tenant: tenant.into(),
            recipient_key: self.key.public().to_vec(),
            kek_version: version,
        };
        let response = self.client.clone().issue_dek(request).await?.into_inner();
        Ok((self.key.open(&response, &self.zone).unwrap(), response))
    }

    pub(super) async fn open(&self, key_block: &[u8]) -> Result<(Dek, DekResponse), Status> {
        let request = OpenDekRequest {
            zone: self.zone.clone(),
            key_block: key_block.to_vec(),
            recipient_key: self.key.public().to_vec(),
        };
        let response = self.client.clone().open_dek(request).await?.into_inner();
        Ok((self.key.open(&response, &self.zone).unwrap(), response))
    }
}

impl Member {
    /// Attaches with nothing in hand.
    pub(super) async fn join(
        bed: &Bed,
        addr: SocketAddr,
        service: &str,
        instance: &str,
        behaviour: Behaviour,
    ) -> Self {
        Self::attach(bed, addr, service, instance, behaviour, Held::default()).await.unwrap()
    }

    /// Attaches with what it held before.
    pub(super) async fn attach(
        bed: &Bed,
        addr: SocketAddr,
        service: &str,
        instance: &str,
        behaviour: Behaviour,
        held: Held,
    ) -> Result<Self, Status> {
        let calls = Calls::new(bed, addr, service, "payments").await;
        let (out, messages) = mpsc::channel(16);
        let hello = Hello {
            zone: "payments".into(),
            instance: instance.into(),
            version: "test".into(),
            generation: held.generation,
            digest: held.digest.clone(),
            epoch: held.set.epoch,
            keyrings: vec!["default".into()],
        };
        out.send(member_message::Body::Hello(hello).into_message()).await.unwrap();
        let inbound = calls.client.clone().attach(ReceiverStream::new(messages)).await?.into_inner();
        let (behaviour, behaves) = watch::channel(behaviour);
        let held = Held { sets: 0, heartbeats: 0, ended: None, ..held };
        let (tell, held) = watch::channel(held);
        let run = Run { calls: calls.clone(), out, tell, behaves, verify: None, pending: None };
        let task = tokio::spawn(run.run(inbound));
        Ok(Self { calls, behaviour, held, task })
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    pub(super) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    pub(super) async fn until(&mut self, enough: impl Fn(&Held) -> bool) -> Held {
        let waited = tokio::time::timeout(LONG, self.held.wait_for(enough)).await;
        waited.expect("the member does not get there").expect("the member's task has ended").clone()
    }
}

/// Its stream breaks off.
impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

trait IntoMessage {
    fn into_message(self) -> MemberMessage;
}

impl IntoMessage for member_message::Body {
    fn into_message(self) -> MemberMessage {
        MemberMessage { body: Some(self) }
    }
}

struct Run {
    calls: Calls,
    out: mpsc::Sender<MemberMessage>,
    tell: watch::Sender<Held>,
    behaves: watch::Receiver<Behaviour>,
    verify: Option<VerifyKey>,
    pending: Option<SignedKeyringSet>,
}

impl Run {
    async fn run(mut self, mut inbound: Streaming<BridgeMessage>) {
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(BridgeMessage { body: Some(body) })) => self.hear(body).await,
                    Ok(Some(_)) => {}
                    Ok(None) => return self.end(Code::Ok),
                    Err(status) => return self.end(status.code()),
                },
                changed = self.behaves.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Some(signed) = self.pending.take() {
                        self.answer(signed).await;
                    }
                }
            }
        }
    }

    fn end(&self, code: Code) {
        self.tell.send_modify(|held| held.ended = Some(code));
    }

    async fn hear(&mut self, body: Body) {
        match body {
            Body::Welcome(welcome) => self.verify = Some(VerifyKey::from_bytes(&welcome.verify_key).unwrap()),
            Body::Heartbeat(heartbeat) => self.tell.send_modify(|held| {
                held.heartbeats += 1;
                held.renewed = heartbeat.generation;
            }),
            Body::KeyringSet(signed) => {
                self.tell.send_modify(|held| held.sets += 1);
                self.answer(signed).await;
            }
        }
    }

    async fn answer(&mut self, signed: SignedKeyringSet) {
        let set = self.verify.expect("Welcome comes first").verify(&signed).unwrap();
        let generation = set.generation;
        self.say(member_message::Body::Received(Received { generation })).await;
        let behaviour = *self.behaves.borrow_and_update();
        match behaviour {
            Behaviour::Hold => self.pending = Some(signed),
            Behaviour::Refuse => {
                let nack = Nack { generation, code: "PERSIST".into(), reason: "disk full".into() };
                self.say(member_message::Body::Nack(nack)).await;
            }
            Behaviour::Lie => self.applied(&signed, set, vec![7; 32]).await,
            Behaviour::Apply => match self.known_answers(&set).await {
                Ok(kat) => self.applied(&signed, set, kat.to_vec()).await,
                Err(status) => {
                    let reason = status.to_string();
                    let nack = Nack { generation, code: "KNOWN_ANSWER".into(), reason };
                    self.say(member_message::Body::Nack(nack)).await;
                }
            },
        }
    }

    async fn applied(&self, signed: &SignedKeyringSet, set: KeyringSet, kat_digest: Vec<u8>) {
        let digest = Sha256::digest(&signed.keyring_set).to_vec();
        let generation = set.generation;
        assert!(generation >= self.tell.borrow().generation, "a generation went down");
        self.tell.send_modify(|held| {
            held.generation = generation;
            held.digest.clone_from(&digest);
            held.set = set;
        });
        self.say(member_message::Body::Applied(Applied { generation, kat_digest, digest })).await;
    }

    async fn known_answers(&self, set: &KeyringSet) -> Result<[u8; 32], Status> {
        let mut answers = Vec::new();
        for keyring in &set.keyrings {
            // Exactly one primary, and it is in the accept set.
            assert_eq!(keyring.versions.iter().filter(|known| known.version == keyring.primary).count(), 1);
            for version in &keyring.versions {
                let block = known_answer_key_block(&version.known_answer).unwrap();
                let (dek, response) = self.calls.open(&block.to_bytes()).await?;
                assert_eq!(response.kek_version, version.version);
                let answer = open_known_answer(&version.known_answer, &dek, &set.zone).unwrap();
                let version = KekVersion(version.version.try_into().unwrap());
                answers.push((KeyringId(keyring.keyring_id), version, answer));
            }
        }
        Ok(digest(set.generation, &answers))
    }

    async fn say(&self, body: member_message::Body) {
        // A bridge that is gone is seen at the inbound side.
        let _ = self.out.send(body.into_message()).await;
    }
}
