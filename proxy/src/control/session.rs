//! One push stream after the other: connect, say who we are, do what the pinned bridge says.

use super::apply::apply;
use super::backoff::Backoff;
use super::calls::BridgeCalls;
use super::plan::{Code, Refusal};
use super::report::Reporter;
use super::zone::{LastNack, Zone};
use super::{TrafficSource, disk};
use core::convert::Infallible;
use futures_util::FutureExt;
use keyway_keycache::Millis;
use keyway_protocol::signing::VerifyKey;
use keyway_protocol::tls;
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::{
    self, BridgeMessage, Heartbeat, Hello, KeyringSet, MemberMessage, Nack, Received, SignedKeyringSet,
    Welcome, bridge_message, member_message,
};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::{error, info, warn};

/// Messages on their way out. Few and small; a bridge that does not read them is treated as gone.
const OUTGOING_MAX: usize = 64;
/// For a bridge to answer Hello, and to take a message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Heartbeats that may be missed before the stream counts as dead.
const MISSED_MAX: u32 = 3;
/// What a bridge may ask for as the time between heartbeats.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 100..=300_000;

/// Why a stream ended. All of these lead to another attempt.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Protocol(#[from] keyway_protocol::Error),
    #[error("the bridge ended the stream: {:?}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("the bridge ended the stream")]
    Ended,
    #[error("the bridge is silent")]
    Silent,
    #[error("the bridge's first message is not a Welcome")]
    NoWelcome,
    #[error("the bridge is at epoch {theirs}, and we have obeyed epoch {ours}: it is no longer the leader")]
    Deposed { theirs: u64, ours: u64 },
    #[error(
        "the bridge's verification key is {theirs}, and {pinned} is pinned in {file}; remove the file if this is right"
    )]
    AnotherKey { theirs: VerifyKey, pinned: VerifyKey, file: String },
    #[error("the pinned key in {file}: {source}")]
    Pin { file: String, source: std::io::Error },
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Keeps a stream for as long as it is polled.
pub(super) async fn run(zone: Arc<Zone>, traffic: TrafficSource) {
    let timing = zone.config.timing;
    let mut backoff = Backoff::new(timing.backoff_min, timing.backoff_max);
    let mut reporter = Reporter::default();
    for endpoint in zone.config.endpoints.iter().cycle() {
        let began = Instant::now();
        let Err(why) = session(&zone, endpoint, &traffic, &mut reporter).await;
        // A bridge that welcomes and hangs up at once must not draw a fleet into a storm: only a stream that has
        // lasted makes the next pause short.
        if began.elapsed() >= timing.backoff_max {
            backoff.reset();
        }
        let pause = backoff.pause();
        if matches!(why, SessionError::AnotherKey { .. } | SessionError::Pin { .. }) {
            error!(zone = %zone.name, endpoint, %why, "the bridge is not trusted");
        } else {
            warn!(zone = %zone.name, endpoint, %why, ?pause, "no stream to the bridge");
        }
        zone.status.send_modify(|status| {
            status.endpoint = None;
            status.last_error = Some(why.to_string());
        });
        tokio::time::sleep(pause).await;
    }
}

/// Takes the connection away from those who fetch DEKs, however the stream ends.
struct Published<'a>(&'a Zone);

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.0.bridge.send_replace(None);
    }
}

async fn session(
    zone: &Zone,
    endpoint: &str,
    traffic: &TrafficSource,
    reporter: &mut Reporter,
) -> Result<Infallible, SessionError> {
    let channel = tls::connect(endpoint, tls::client_config(&zone.config.identity)?).await?;
    let mut client = FleetClient::new(channel);
    let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
    send(&outgoing, member_message::Body::Hello(hello(zone))).await?;
    let attached = tokio::time::timeout(PATIENCE, client.attach(ReceiverStream::new(messages)));
    let mut incoming = attached.await.map_err(|_| SessionError::Silent)??.into_inner();
    let first =
        tokio::time::timeout(PATIENCE, incoming.message()).await.map_err(|_| SessionError::Silent)??;
    let Some(bridge_message::Body::Welcome(welcome)) = first.and_then(|message| message.body) else {
        return Err(SessionError::NoWelcome);
    };
    let pinned = check_welcome(zone, &welcome)?;

    let calls = calls(zone, client);
    zone.bridge.send_replace(Some(calls.clone()));
    let _published = Published(zone);
    zone.status.send_modify(|status| {
        status.endpoint = Some(endpoint.to_owned());
        status.last_error = None;
    });
    info!(zone = %zone.name, endpoint, epoch = welcome.epoch, "connected to the bridge");

    let heartbeat_ms = welcome.heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
    let silence = Duration::from_millis(heartbeat_ms) * MISSED_MAX;
    Stream { zone, calls, pinned, outgoing }.follow(incoming, silence, traffic, reporter).await
}

fn calls(zone: &Zone, client: FleetClient<Channel>) -> BridgeCalls {
    let deadline = zone.config.timing.call_deadline;
    BridgeCalls::new(client, Arc::clone(&zone.name), Arc::clone(&zone.member_key), deadline)
}

fn hello(zone: &Zone) -> Hello {
    let applied = zone.applied();
    Hello {
        zone: zone.name.to_string(),
        instance: zone.config.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: applied.as_ref().map_or(0, |applied| applied.plan.generation),
        digest: applied.map_or_else(Vec::new, |applied| applied.digest.to_vec()),
        epoch: zone.floor().epoch,
        keyrings: zone.slots.iter().map(|(_, name)| name.to_string()).collect(),
    }
}

/// Trust on first use; after that only the pinned key.
fn check_welcome(zone: &Zone, welcome: &Welcome) -> Result<VerifyKey, SessionError> {
    let theirs = VerifyKey::from_bytes(&welcome.verify_key)?;
    let file = || zone.pin_path.display().to_string();
    let pin_error = |source| SessionError::Pin { file: file(), source };
    match disk::read_pin(&zone.pin_path).map_err(pin_error)? {
        Some(pinned) if pinned != theirs => {
            return Err(SessionError::AnotherKey { theirs, pinned, file: file() });
        }
        Some(_) => {}
        None => {
            zone.forget_floor();
            disk::write_pin(&zone.pin_path, theirs).map_err(pin_error)?;
            info!(zone = %zone.name, key = %theirs, "first contact: the bridge's verification key is pinned");
        }
    }
    let ours = zone.floor().epoch;
    if welcome.epoch < ours {
        return Err(SessionError::Deposed { theirs: welcome.epoch, ours });
    }
    Ok(theirs)
}

/// The stream after its Welcome.
struct Stream<'a> {
    zone: &'a Zone,
    calls: BridgeCalls,
    pinned: VerifyKey,
    outgoing: mpsc::Sender<MemberMessage>,
}

impl Stream<'_> {
    async fn follow(
        &self,
        mut incoming: Streaming<BridgeMessage>,
        silence: Duration,
        traffic: &TrafficSource,
        reporter: &mut Reporter,
    ) -> Result<Infallible, SessionError> {
        let zone = self.zone;
        let every = zone.config.timing.report_every;
        let mut reports = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut deadline = tokio::time::Instant::now() + silence;
        // Leases run from when the bridge spoke. What is there as soon as a piece of work ends may have been said at any
        // time since it began; so that is what counts for it, until nothing is waiting any more.
        let mut busy_since = Some(zone.cache.now());
        loop {
            let message = match incoming.message().now_or_never() {
                Some(message) => message,
                None => {
                    busy_since = None;
                    tokio::select! {
                        message = incoming.message() => message,
                        _ = reports.tick() => {
                            busy_since = Some(zone.cache.now());
                            let report = reporter.next(&zone.slots, &zone.cache.use_totals(), traffic());
                            send(&self.outgoing, member_message::Body::Report(report)).await?;
                            continue;
                        }
                        () = tokio::time::sleep_until(deadline) => return Err(SessionError::Silent),
                    }
                }
            };
            // What is waiting after a silence may be as old as the silence: this process may have been stopped.
            if tokio::time::Instant::now() > deadline {
                return Err(SessionError::Silent);
            }
            let heard = *busy_since.get_or_insert_with(|| zone.cache.now());
            self.handle(message?.ok_or(SessionError::Ended)?, heard).await?;
            // From the end of the work: while a set is applied nothing is read.
            deadline = tokio::time::Instant::now() + silence;
        }
    }

    /// `heard`: no later than when the bridge said it, but for the time on the network.
    async fn handle(&self, message: BridgeMessage, heard: Millis) -> Result<(), SessionError> {
        match message.body {
            Some(bridge_message::Body::KeyringSet(signed)) => self.keyring_set(signed, heard).await,
            Some(bridge_message::Body::Heartbeat(heartbeat)) => self.heartbeat(heartbeat, heard),
            // A second Welcome says nothing new; a kind of message that this version does not know has no body.
            Some(bridge_message::Body::Welcome(_)) | None => Ok(()),
        }
    }

    /// Renews the leases, if it speaks of what we serve from and comes from no deposed leader.
    fn heartbeat(&self, heartbeat: Heartbeat, heard: Millis) -> Result<(), SessionError> {
        let ours = self.zone.floor().epoch;
        if heartbeat.epoch < ours {
            return Err(SessionError::Deposed { theirs: heartbeat.epoch, ours });
        }
        if let Some(applied) = self.zone.applied()
            && applied.plan.generation == heartbeat.generation
        {
            applied.renew(heard);
            self.zone.status.send_if_modified(|status| std::mem::take(&mut status.from_disk));
        }
        Ok(())
    }

    async fn keyring_set(&self, signed: SignedKeyringSet, heard: Millis) -> Result<(), SessionError> {
        let set = match self.pinned.verify(&signed) {
            Ok(set) => set,
            Err(error) => {
                // Not to be trusted; good enough to tell the bridge which message was meant.
                let generation = KeyringSet::decode(&*signed.keyring_set).map_or(0, |set| set.generation);
                let code = match error {
                    keyway_protocol::Error::KeyringSet(_) => Code::Parse,
                    _ => Code::Signature,
                };
                return self.refuse(generation, code.because(error.to_string())).await;
            }
        };
        let generation = set.generation;
        send(&self.outgoing, member_message::Body::Received(Received { generation })).await?;
        match apply(self.zone, &self.calls, signed, &set, heard).await {
            Ok(applied) => {
                info!(zone = %self.zone.name, generation, epoch = set.epoch, "keyring set applied");
                let message = v1::Applied {
                    generation,
                    kat_digest: applied.kat_digest.to_vec(),
                    digest: applied.digest.to_vec(),
                };
                send(&self.outgoing, member_message::Body::Applied(message)).await?;
                self.zone.status.send_modify(|status| {
                    status.generation = generation;
                    status.epoch = set.epoch;
                    status.from_disk = false;
                    status.last_nack = None;
                });
                Ok(())
            }
            Err(refusal) => self.refuse(generation, refusal).await,
        }
    }

    /// Says no, and goes on with the last good set. It is for the bridge to send another.
    async fn refuse(&self, generation: u64, refusal: Refusal) -> Result<(), SessionError> {
        let Refusal { code, reason } = refusal;
        let code = code.as_str();
        warn!(zone = %self.zone.name, generation, code, reason, "keyring set refused; the last good one stays");
        let nack = Nack { generation, code: code.to_owned(), reason: reason.clone() };
        send(&self.outgoing, member_message::Body::Nack(nack)).await?;
        self.zone.status.send_modify(|status| status.last_nack = Some(LastNack { generation, code, reason }));
        Ok(())
    }
}

async fn send(
    outgoing: &mpsc::Sender<MemberMessage>,
    body: member_message::Body,
) -> Result<(), SessionError> {
    let sent = outgoing.send_timeout(MemberMessage { body: Some(body) }, PATIENCE);
    sent.await.map_err(|_| SessionError::Silent)
}
