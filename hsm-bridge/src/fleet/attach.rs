//! One member's stream, from its hello to its end.

use crate::catalog::{CatalogError, MemberKey, MemberRow};
use crate::keys;
use crate::zone::{Connection, View, Zone};
use keyway_protocol::tls::PeerInfo;
use keyway_protocol::v1::{
    Applied, BridgeMessage, Heartbeat, Hello, MemberMessage, Nack, Report, Welcome, bridge_message,
    member_message,
};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

/// Keyring sets that an answer may still come for.
const SENT_MAX: usize = 8;
/// The longest name of an instance, in bytes.
const INSTANCE_MAX: usize = 128;
/// Refused sets are sent again after a heartbeat, two, four … up to this many.
const RETRY_HEARTBEATS_MAX: u32 = 12;

type Outbox = mpsc::Sender<Result<BridgeMessage, Status>>;

/// An admitted member and what was sent to it.
pub(super) struct Member {
    zone: Arc<Zone>,
    key: MemberKey,
    connection: Connection,
    /// What a heartbeat may renew: the generation that it has applied on this stream, or held when its lease had not
    /// ended. 0 if neither: a lease that has ended comes back with the current set only.
    renewable: u64,
    /// It holds the current set already; a heartbeat is enough.
    is_current: bool,
    /// Recorded: until then it may seal.
    lease_end_ms: u64,
    /// Recorded: the longest seal lease that it may hold.
    lease_ms: u64,
    sent: VecDeque<Sent>,
    retry: Option<Retry>,
}

/// A keyring set on its way, and what the right answer to it is.
struct Sent {
    generation: u64,
    digest: [u8; 32],
    known_answers: [u8; 32],
    at: Instant,
}

/// A refused set is sent again: the cause may be gone.
struct Retry {
    at: Instant,
    heartbeats: u32,
}

/// Why a stream ends.
enum End {
    /// The member closed it or its network is gone.
    Left,
    /// The bridge stops.
    Stopping,
    /// A newer stream of the same member is there.
    Replaced,
    /// It does not read what it is sent.
    Slow,
    /// The catalog failed.
    Catalog(CatalogError),
}

impl From<CatalogError> for End {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

impl Member {
    /// Takes a member in. From here on it counts: its lease end is recorded before anything is sent.
    pub(super) async fn admit(zone: Arc<Zone>, peer: &PeerInfo, hello: Hello) -> Result<Self, Status> {
        let printable = hello.instance.bytes().all(|byte| byte.is_ascii_graphic());
        if hello.instance.is_empty() || hello.instance.len() > INSTANCE_MAX || !printable {
            return Err(Status::invalid_argument(
                "an instance's name is 1 to 128 printable ASCII characters",
            ));
        }
        let view = zone.view.borrow().clone();
        // A member that has heard of a newer leader, or of a newer generation, is right: this bridge stands on an old
        // catalog (invariants 5 and 6).
        if hello.epoch > zone.catalog().epoch() || hello.generation > view.generation {
            warn!(
                service = peer.spiffe_id,
                instance = hello.instance,
                epoch = hello.epoch,
                generation = hello.generation,
                ours = view.generation,
                "a member has seen a newer bridge; was an old copy of the catalog restored?"
            );
            return Err(Status::failed_precondition("this bridge is older than one that you have seen"));
        }
        let now = zone.shared.clock.now_ms();
        let key = MemberKey { service: peer.spiffe_id.clone(), instance: hello.instance };
        let leases = zone.directory.leases.lock().await;
        // A member whose lease has ended was not waited for: what it holds may be retired by now.
        let before = zone.catalog().member(zone.id, &key).await?;
        let unexpired = before.as_ref().is_some_and(|row| now <= row.lease_end_ms);
        // Nor is one waited for that has acknowledged more than it holds now (its disk is a copy of an earlier day).
        let rolled_back = before.as_ref().is_some_and(|row| hello.generation < row.applied_generation);
        let held_ms = before.map_or(0, |row| row.lease_ms);
        let row = MemberRow {
            key: key.clone(),
            version: hello.version.chars().take(INSTANCE_MAX).collect(),
            key_exchange: peer.key_exchange.clone(),
            applied_generation: hello.generation,
            applied_digest: Vec::new(),
            applied_ms: 0,
            seen_ms: now,
            lease_end_ms: now + zone.sealing_ms(held_ms) + zone.lease_margin_ms(),
            // Recorded before a set is sent that gives it.
            lease_ms: zone.seal_lease_ms(),
            nack: None,
        };
        let row = zone.catalog().member_attached(zone.id, &row).await?;
        let is_current = row.applied_generation == view.generation
            && row.applied_generation == hello.generation
            && !hello.digest.is_empty()
            && row.applied_digest == hello.digest;
        let connection = zone.directory.enter(&key);
        drop(leases);
        info!(zone = zone.name(), member = %key, generation = hello.generation, "member attached");
        zone.wake.notify_one();
        Ok(Self {
            key,
            connection,
            renewable: if (unexpired && !rolled_back) || is_current { row.applied_generation } else { 0 },
            is_current,
            lease_end_ms: row.lease_end_ms,
            lease_ms: row.lease_ms,
            sent: VecDeque::new(),
            retry: None,
            zone,
        })
    }

    /// Serves the stream to its end.
    pub(super) async fn serve(
        mut self,
        mut inbound: Streaming<MemberMessage>,
        outbox: Outbox,
        stop: CancellationToken,
    ) {
        let end = match self.run(&mut inbound, &outbox, &stop).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let status = match &end {
            End::Left => None,
            End::Stopping => Some(Status::unavailable("the bridge stops")),
            End::Replaced => Some(Status::aborted("a newer stream of this member is there")),
            End::Slow => Some(Status::resource_exhausted("the member does not read its stream")),
            End::Catalog(error) => {
                warn!(member = %self.key, %error, "a member's stream ends because the catalog failed");
                Some(Status::unavailable("the catalog failed"))
            }
        };
        if let Some(status) = status {
            // Full means that it does not read; then there is nobody to tell.
            let _ = outbox.try_send(Err(status));
        }
        self.leave().await;
    }

    async fn run(
        &mut self,
        inbound: &mut Streaming<MemberMessage>,
        outbox: &Outbox,
        stop: &CancellationToken,
    ) -> Result<core::convert::Infallible, End> {
        let heartbeat = self.zone.shared.heartbeat;
        let mut views = self.zone.view.subscribe();
        let view = views.borrow_and_update().clone();
        self.welcome(outbox).await?;
        if self.is_current && self.renewable == view.generation {
            self.heartbeat(outbox).await?;
        } else {
            self.push(outbox, &view).await?;
        }
        let mut ticks = interval_at(Instant::now() + heartbeat, heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry_at = self.retry.as_ref().map(|retry| retry.at);
            tokio::select! {
                () = stop.cancelled() => return Err(End::Stopping),
                () = self.connection.replaced.cancelled() => return Err(End::Replaced),
                changed = views.changed() => {
                    if changed.is_err() {
                        return Err(End::Stopping);
                    }
                    let view = views.borrow_and_update().clone();
                    self.retry = None;
                    self.push(outbox, &view).await?;
                }
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.hear(message).await?,
                    Ok(None) | Err(_) => return Err(End::Left),
                },
                _ = ticks.tick() => self.heartbeat(outbox).await?,
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    // Not rescheduled here: that is the next refusal's business.
                    if let Some(retry) = &mut self.retry {
                        retry.at += heartbeat * RETRY_HEARTBEATS_MAX;
                    }
                    let view = views.borrow().clone();
                    self.push(outbox, &view).await?;
                }
            }
        }
    }

    async fn hear(&mut self, message: MemberMessage) -> Result<(), End> {
        match message.body {
            Some(member_message::Body::Applied(applied)) => self.on_applied(&applied).await,
            Some(member_message::Body::Nack(nack)) => self.on_nack(&nack).await,
            Some(member_message::Body::Report(report)) => {
                self.on_report(&report);
                Ok(())
            }
            Some(member_message::Body::Received(received)) => {
                debug!(member = %self.key, generation = received.generation, "received");
                Ok(())
            }
            Some(member_message::Body::Hello(_)) | None => Ok(()),
        }
    }

    /// Only the answer to a set that was sent on this stream counts, with the digest of its bytes and its known answers.
    async fn on_applied(&mut self, applied: &Applied) -> Result<(), End> {
        let sent = self.sent.iter().find(|sent| sent.digest[..] == applied.digest[..]);
        let right = sent.filter(|sent| {
            sent.generation == applied.generation && sent.known_answers[..] == applied.kat_digest[..]
        });
        let Some(sent) = right else {
            let why = "KNOWN_ANSWER: the member's answer is not the known one";
            return self.refused(applied.generation, why).await;
        };
        self.zone.shared.metrics.push_acked(sent.at.elapsed());
        // Whatever was sent on this stream gives this lease: a configuration lasts as long as its process.
        let lease_ms = self.zone.seal_lease_ms();
        self.zone
            .catalog()
            .member_applied(self.zone.id, &self.key, applied.generation, &applied.digest, lease_ms)
            .await?;
        self.lease_ms = lease_ms;
        self.renewable = self.renewable.max(applied.generation);
        self.retry = None;
        info!(zone = self.zone.name(), member = %self.key, generation = applied.generation, "applied");
        self.zone.wake.notify_one();
        Ok(())
    }

    async fn on_nack(&mut self, nack: &Nack) -> Result<(), End> {
        let why: String = format!("{}: {}", nack.code, nack.reason).chars().take(300).collect();
        self.refused(nack.generation, &why).await
    }

    async fn refused(&mut self, generation: u64, why: &str) -> Result<(), End> {
        warn!(zone = self.zone.name(), member = %self.key, generation, why, "a member refuses a keyring set");
        self.zone.catalog().member_refused(self.zone.id, &self.key, generation, why).await?;
        let heartbeats =
            self.retry.as_ref().map_or(1, |retry| (retry.heartbeats * 2).min(RETRY_HEARTBEATS_MAX));
        self.retry = Some(Retry { at: Instant::now() + self.zone.shared.heartbeat * heartbeats, heartbeats });
        self.zone.wake.notify_one();
        Ok(())
    }

    fn on_report(&self, report: &Report) {
        for used in &report.uses {
            // Labels come from the configuration: a keyring that it does not have is not counted.
            if self.zone.keyring_named(&used.keyring).is_none() {
                continue;
            }
            let labels = [self.zone.name(), used.keyring.as_str()];
            self.zone.shared.metrics.fleet_use(labels, used);
        }
    }

    async fn welcome(&mut self, outbox: &Outbox) -> Result<(), End> {
        let welcome = Welcome {
            verify_key: self.zone.shared.signing.verify_key().to_bytes().to_vec(),
            epoch: self.zone.catalog().epoch(),
            heartbeat_ms: crate::clock::millis(self.zone.shared.heartbeat),
        };
        self.send(outbox, bridge_message::Body::Welcome(welcome)).await
    }

    /// Sends the whole set, and remembers what the right answer is.
    async fn push(&mut self, outbox: &Outbox, view: &View) -> Result<(), End> {
        let nonce = keys::random().map_err(|_| End::Catalog(CatalogError::Damaged("no randomness")))?;
        let set = view.set_for(&self.zone, &self.key.service, nonce);
        let signed = self.zone.shared.signing.sign_keyring_set(&set);
        self.renew().await?;
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            generation: view.generation,
            digest: Sha256::digest(&signed.keyring_set).into(),
            known_answers: view.expected_digest(&self.zone, &self.key.service),
            at: Instant::now(),
        });
        self.send(outbox, bridge_message::Body::KeyringSet(signed)).await
    }

    /// Says: what you have applied is good. A member that is behind is waited for by the rotation, so nothing is taken
    /// from it and its leases go on.
    async fn heartbeat(&mut self, outbox: &Outbox) -> Result<(), End> {
        self.renew().await?;
        let heartbeat = Heartbeat { generation: self.renewable, epoch: self.zone.catalog().epoch() };
        self.send(outbox, bridge_message::Body::Heartbeat(heartbeat)).await
    }

    /// Every message may extend the member's lease, so the end that it may lead to is recorded before.
    async fn renew(&mut self) -> Result<(), End> {
        let ends = self.zone.shared.clock.now_ms() + self.zone.sealing_ms(self.lease_ms);
        if ends > self.lease_end_ms {
            let recorded = ends + self.zone.lease_margin_ms();
            self.zone.catalog().member_lease(self.zone.id, &self.key, recorded).await?;
            self.lease_end_ms = recorded;
        }
        Ok(())
    }

    async fn send(&self, outbox: &Outbox, body: bridge_message::Body) -> Result<(), End> {
        let patience = self.zone.shared.heartbeat.max(Duration::from_secs(1));
        match timeout(patience, outbox.send(Ok(BridgeMessage { body: Some(body) }))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Left),
            Err(_) => Err(End::Slow),
        }
    }

    /// Nothing is sent any more: its lease ends a lease from now, and no later.
    async fn leave(&mut self) {
        let zone = self.zone.clone();
        let _held = zone.directory.leases.lock().await;
        if zone.directory.leave(&self.key, &self.connection) {
            let ends = zone.shared.clock.now_ms() + zone.sealing_ms(self.lease_ms);
            if let Err(error) = zone.catalog().member_lease(zone.id, &self.key, ends).await {
                debug!(member = %self.key, %error, "its recorded lease end stays, which is later");
            }
            info!(zone = zone.name(), member = %self.key, "member left");
        }
        zone.wake.notify_one();
    }
}
