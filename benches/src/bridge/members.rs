//! Members as the protocol describes them, many in one process: each a stream of its own over a TLS connection of its own.
//!
//! A set is applied as a sidecar applies it: signature, known answer of every version through the bridge, a DEK for the
//! new primary, APPLIED with the digests. It is not written to a disk: a thousand sidecars have a thousand disks.

use super::bed::{Bed, KEYRING, ZONE};
use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest::{SHA256, digest as sha};
use futures_util::{StreamExt, TryStreamExt, stream};
use keyway_envelope::{KekVersion, KeyringId};
use keyway_protocol::dek_transport::MemberKey;
use keyway_protocol::kat::{digest, known_answer_key_block, open_known_answer};
use keyway_protocol::signing::VerifyKey;
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::{
    Applied, Hello, IssueDekRequest, KeyringSet, MemberMessage, OpenDekRequest, Received, SignedKeyringSet,
    bridge_message, member_message,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Members that connect at the same time; a handshake waits five seconds at most.
const JOINING: usize = 64;

/// All of them.
pub(super) struct Fleet {
    seen: Arc<Seen>,
    members: JoinSet<anyhow::Result<()>>,
    applied: watch::Receiver<()>,
}

/// What has come to the members, by generation.
#[derive(Debug)]
struct Seen {
    generations: Mutex<BTreeMap<u64, Push>>,
    moved: watch::Sender<()>,
}

/// One generation on its way.
#[derive(Clone, Debug)]
pub(super) struct Push {
    /// At the first member.
    pub(super) first_received: Instant,
    /// The last APPLIED so far went out.
    pub(super) last_applied: Instant,
    /// Members that have applied it.
    pub(super) applied: usize,
    /// Of all sets and signatures, in bytes.
    pub(super) bytes: u64,
}

impl Fleet {
    /// Lets `count` members join, and waits until each has applied its first set.
    pub(super) async fn join(bed: &Bed, count: usize) -> anyhow::Result<Self> {
        let (moved, applied) = watch::channel(());
        let seen = Arc::new(Seen { generations: Mutex::default(), moved });
        let members = stream::iter(0..count).map(|n| attach(bed, n, seen.clone()));
        let attached: Vec<_> = members.buffer_unordered(JOINING).try_collect().await?;
        let mut fleet = Self { seen, members: JoinSet::new(), applied };
        for (member, inbound) in attached {
            fleet.members.spawn(member.run(inbound));
        }
        fleet.until(|seen| seen.values().map(|push| push.applied).sum::<usize>() >= count).await?;
        Ok(fleet)
    }

    /// Waits until what was seen is enough; fails if a member fails.
    pub(super) async fn until(
        &mut self,
        enough: impl Fn(&BTreeMap<u64, Push>) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            if enough(&self.seen.lock()) {
                return Ok(());
            }
            tokio::select! {
                ended = self.members.join_next() => match ended {
                    Some(Ok(Ok(()))) | None => bail!("a member's stream ended"),
                    Some(Ok(Err(error))) => return Err(error.context("a simulated member failed")),
                    Some(Err(error)) => return Err(error.into()),
                },
                _ = self.applied.changed() => {}
            }
        }
    }

    pub(super) fn generation(&self, generation: u64) -> Option<Push> {
        self.seen.lock().get(&generation).cloned()
    }

    /// The generations that were seen, in their order.
    pub(super) fn generations(&self) -> Vec<u64> {
        self.seen.lock().keys().copied().collect()
    }
}

impl Seen {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Push>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, generation: u64, bytes: usize) {
        let now = Instant::now();
        let fresh = Push { first_received: now, last_applied: now, applied: 0, bytes: 0 };
        let mut generations = self.lock();
        generations.entry(generation).or_insert(fresh).bytes += bytes as u64;
    }

    fn applied(&self, generation: u64) {
        if let Some(push) = self.lock().get_mut(&generation) {
            push.applied += 1;
            push.last_applied = Instant::now();
        }
        self.moved.send_replace(());
    }
}

struct Member {
    client: FleetClient<Channel>,
    key: MemberKey,
    out: mpsc::Sender<MemberMessage>,
    seen: Arc<Seen>,
    verify: Option<VerifyKey>,
    /// The version that it holds a DEK of to seal with.
    seals_under: u32,
}

type Inbound = Streaming<keyway_protocol::v1::BridgeMessage>;

async fn attach(bed: &Bed, number: usize, seen: Arc<Seen>) -> anyhow::Result<(Member, Inbound)> {
    let mut client = bed.member().await?;
    let (out, messages) = mpsc::channel(8);
    let hello = Hello {
        zone: ZONE.into(),
        instance: format!("member-{number}"),
        version: env!("CARGO_PKG_VERSION").into(),
        keyrings: vec![KEYRING.into()],
        ..Hello::default()
    };
    out.send(MemberMessage { body: Some(member_message::Body::Hello(hello)) }).await?;
    let inbound = client.attach(ReceiverStream::new(messages)).await.context("attaching")?.into_inner();
    let key = MemberKey::generate();
    Ok((Member { client, key, out, seen, verify: None, seals_under: 0 }, inbound))
}

impl Member {
    async fn run(mut self, mut inbound: Inbound) -> anyhow::Result<()> {
        while let Some(message) = inbound.message().await? {
            match message.body {
                Some(bridge_message::Body::Welcome(welcome)) => {
                    self.verify = Some(VerifyKey::from_bytes(&welcome.verify_key)?);
                }
                Some(bridge_message::Body::KeyringSet(signed)) => self.apply(&signed).await?,
                Some(bridge_message::Body::Heartbeat(_)) | None => {}
            }
        }
        Ok(())
    }

    async fn apply(&mut self, signed: &SignedKeyringSet) -> anyhow::Result<()> {
        let set = self.verify.context("a set came before Welcome")?.verify(signed)?;
        let generation = set.generation;
        self.seen.received(generation, signed.keyring_set.len() + signed.signature.len());
        self.say(member_message::Body::Received(Received { generation })).await?;
        let kat_digest = self.known_answers(&set).await?;
        self.dek_to_seal_with(&set).await?;
        let digest = sha(&SHA256, &signed.keyring_set).as_ref().to_vec();
        let applied = Applied { generation, kat_digest: kat_digest.to_vec(), digest };
        self.say(member_message::Body::Applied(applied)).await?;
        self.seen.applied(generation);
        Ok(())
    }

    async fn known_answers(&mut self, set: &KeyringSet) -> anyhow::Result<[u8; 32]> {
        let mut answers = Vec::new();
        for keyring in &set.keyrings {
            for version in &keyring.versions {
                let key_block = known_answer_key_block(&version.known_answer)?.to_bytes().to_vec();
                let recipient_key = self.key.public().to_vec();
                let request = OpenDekRequest { zone: ZONE.into(), key_block, recipient_key };
                let response = self.client.open_dek(request).await?.into_inner();
                let dek = self.key.open(&response, ZONE)?;
                ensure!(response.kek_version == version.version, "a known answer of another version");
                let answer = open_known_answer(&version.known_answer, &dek, ZONE)?;
                let number = KekVersion(version.version.try_into()?);
                answers.push((KeyringId(keyring.keyring_id), number, answer));
            }
        }
        Ok(digest(set.generation, &answers))
    }

    async fn dek_to_seal_with(&mut self, set: &KeyringSet) -> anyhow::Result<()> {
        let primary = set.keyrings.first().context("a set without a keyring")?.primary;
        if self.seals_under == primary {
            return Ok(());
        }
        let request = IssueDekRequest {
            zone: ZONE.into(),
            keyring: KEYRING.into(),
            tenant: String::new(),
            recipient_key: self.key.public().to_vec(),
            kek_version: primary,
        };
        let response = self.client.issue_dek(request).await?.into_inner();
        self.key.open(&response, ZONE)?;
        self.seals_under = primary;
        Ok(())
    }

    async fn say(&self, body: member_message::Body) -> anyhow::Result<()> {
        self.out.send(MemberMessage { body: Some(body) }).await.context("the stream is gone")
    }
}
