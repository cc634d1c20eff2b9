//! The push server: members attach, hear what they are to hold, and ask for DEKs.
//!
//! Who a caller is comes from its certificate; what it may do, from the configuration. No message says either.

mod attach;

use crate::deks::Quota;
use crate::zone::Zone;
use attach::Member;
use keyway_protocol::tls::PeerInfo;
use keyway_protocol::v1::fleet_server::Fleet;
use keyway_protocol::v1::{
    BridgeMessage, DekResponse, Hello, IssueDekRequest, MemberMessage, OpenDekRequest, member_message,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

/// Messages on their way to one member. More waiting ones mean that it does not read.
const OUTBOX: usize = 4;
/// A member speaks first, and at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC service `keyway.v1.Fleet`.
#[derive(Clone, Debug)]
pub(crate) struct FleetService {
    pub(crate) zones: Arc<[Arc<Zone>]>,
    pub(crate) quota: Arc<Quota>,
    /// Streams end when it is cancelled …
    pub(crate) stop: CancellationToken,
    /// … and are waited for here, with everything else that is under way.
    pub(crate) streams: TaskTracker,
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type AttachStream = ReceiverStream<Result<BridgeMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = peer(&request)?;
        let mut inbound = request.into_inner();
        let hello = hello(&mut inbound).await?;
        let zone = self.admitted(&peer, &hello.zone)?;
        let member = Member::admit(zone, &peer, hello).await?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let stop = self.stop.clone();
        // A task of its own: what it writes to the catalog is not cut short when the member goes away.
        self.streams.spawn(member.serve(inbound, outbox, stop));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn issue_dek(&self, request: Request<IssueDekRequest>) -> Result<Response<DekResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        let zone = self.admitted(&peer, &request.zone)?;
        // Detached, so that a caller that hangs up leaves nothing half done.
        let issued = self.streams.spawn(async move { zone.issue(&peer.spiffe_id, &request).await });
        Ok(Response::new(issued.await.map_err(ended)??))
    }

    async fn open_dek(&self, request: Request<OpenDekRequest>) -> Result<Response<DekResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        let zone = self.admitted(&peer, &request.zone)?;
        let quota = self.quota.clone();
        let opened =
            self.streams.spawn(async move { zone.open_dek(&peer.spiffe_id, &request, &quota).await });
        Ok(Response::new(opened.await.map_err(ended)??))
    }
}

impl FleetService {
    /// The zone, if this caller has any right in it. Whether there is a zone of that name is nobody else's business.
    fn admitted(&self, peer: &PeerInfo, zone: &str) -> Result<Arc<Zone>, Status> {
        self.zones
            .iter()
            .find(|known| known.name() == zone && known.admits(&peer.spiffe_id))
            .cloned()
            .ok_or_else(|| Status::permission_denied(format!("{} is no member of this zone", peer.spiffe_id)))
    }
}

/// Who calls.
pub(crate) fn peer<T>(request: &Request<T>) -> Result<PeerInfo, Status> {
    request
        .extensions()
        .get::<PeerInfo>()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("no client certificate"))
}

async fn hello(inbound: &mut Streaming<MemberMessage>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("a member says hello first"))??;
    match first.and_then(|message| message.body) {
        Some(member_message::Body::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("a member says hello first")),
    }
}

fn ended(error: tokio::task::JoinError) -> Status {
    tracing::error!(%error, "a request's task failed");
    Status::internal("the request was ended")
}
