//! What operators may ask for. A caller has to be an administrator of the zone; of other zones it learns nothing.

use crate::catalog::CatalogError;
use crate::fleet::peer;
use crate::rotation::engine;
use crate::zone::Zone;
use keyway_protocol::v1::operator_server::Operator;
use keyway_protocol::v1::{
    KeyList, ListRequest, MemberList, Rotation, RotationList, RotationRef, StartRotationRequest,
};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

/// The longest reason that is recorded, in bytes.
const REASON_MAX: usize = 500;

/// The gRPC service `keyway.v1.Operator`.
#[derive(Clone, Debug)]
pub(crate) struct OperatorService {
    pub(crate) zones: Arc<[Arc<Zone>]>,
    pub(crate) stop: CancellationToken,
    /// What is under way is waited for at a shutdown.
    pub(crate) tasks: TaskTracker,
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type WatchRotationStream = ReceiverStream<Result<Rotation, Status>>;

    async fn start_rotation(
        &self,
        request: Request<StartRotationRequest>,
    ) -> Result<Response<Rotation>, Status> {
        let operator = peer(&request)?.spiffe_id;
        let request = request.into_inner();
        let zone = self.administered(&operator, &request.zone)?;
        if request.reason.len() > REASON_MAX {
            return Err(Status::invalid_argument("the reason is longer than 500 bytes"));
        }
        let started = self.tasks.spawn(async move { start(&zone, &operator, &request).await });
        let rotation = started.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(rotation))
    }

    async fn watch_rotation(
        &self,
        request: Request<RotationRef>,
    ) -> Result<Response<Self::WatchRotationStream>, Status> {
        let operator = peer(&request)?.spiffe_id;
        let id = request.into_inner().id;
        for zone in self.zones_of(&operator) {
            // Subscribed before the first look, so that no change falls between.
            let changes = zone.rotations.subscribe();
            if let Some(row) = zone.catalog().rotation(&id).await?.filter(|row| row.zone == zone.id) {
                let first = zone.describe(&row).await?;
                let (to, stream) = mpsc::channel(16);
                self.tasks.spawn(watch(zone.clone(), first, changes, to, self.stop.clone()));
                return Ok(Response::new(ReceiverStream::new(stream)));
            }
        }
        Err(Status::not_found("no such rotation"))
    }

    async fn list_rotations(&self, request: Request<ListRequest>) -> Result<Response<RotationList>, Status> {
        let mut rotations = Vec::new();
        for zone in self.asked(&request)? {
            rotations.extend(zone.list_rotations().await?);
        }
        Ok(Response::new(RotationList { rotations }))
    }

    async fn list_keys(&self, request: Request<ListRequest>) -> Result<Response<KeyList>, Status> {
        let mut keys = Vec::new();
        for zone in self.asked(&request)? {
            keys.extend(zone.list_keys().await?);
        }
        Ok(Response::new(KeyList { keys }))
    }

    async fn list_members(&self, request: Request<ListRequest>) -> Result<Response<MemberList>, Status> {
        let mut members = Vec::new();
        for zone in self.asked(&request)? {
            members.extend(zone.list_members().await?);
        }
        Ok(Response::new(MemberList { members }))
    }
}

impl OperatorService {
    fn zones_of<'a>(&'a self, operator: &'a str) -> impl Iterator<Item = &'a Arc<Zone>> {
        self.zones.iter().filter(move |zone| zone.config.admins.iter().any(|admin| admin == operator))
    }

    fn administered(&self, operator: &str, zone: &str) -> Result<Arc<Zone>, Status> {
        self.zones_of(operator)
            .find(|known| known.name() == zone)
            .cloned()
            .ok_or_else(|| Status::permission_denied(format!("{operator} is no administrator of this zone")))
    }

    /// The zone that is asked for, or all that the caller may see.
    fn asked(&self, request: &Request<ListRequest>) -> Result<Vec<Arc<Zone>>, Status> {
        let operator = peer(request)?.spiffe_id;
        if !request.get_ref().zone.is_empty() {
            return Ok(vec![self.administered(&operator, &request.get_ref().zone)?]);
        }
        let zones: Vec<_> = self.zones_of(&operator).cloned().collect();
        if zones.is_empty() {
            return Err(Status::permission_denied(format!("{operator} is no administrator of any zone")));
        }
        Ok(zones)
    }
}

async fn start(zone: &Zone, operator: &str, request: &StartRotationRequest) -> Result<Rotation, Status> {
    let keyring = zone.keyring_named(&request.keyring).ok_or_else(|| {
        Status::not_found(format!("zone {} has no keyring {:?}", zone.name(), request.keyring))
    })?;
    let open = zone.catalog().open_rotations(zone.id).await?;
    if let Some(open) = open.iter().find(|rotation| rotation.keyring == keyring.id) {
        return Err(CatalogError::RotationOpen { id: open.id.clone() }.into());
    }
    // A rotation that can't make its key would only stand there: better not begun.
    zone.keys.hsms.check().await;
    let (up, required) = (zone.keys.hsms.up().len(), zone.config.wraps_required);
    if up < required {
        let text = format!("{up} of the {required} key backends that the policy asks for answer");
        return Err(Status::failed_precondition(text));
    }
    let reason = if request.reason.is_empty() { "on demand" } else { &request.reason };
    let row = engine::begin(zone, keyring, operator, reason).await?;
    Ok(zone.describe(&row).await?)
}

/// The current state at once, then every change until the rotation ends.
async fn watch(
    zone: Arc<Zone>,
    first: Rotation,
    mut changes: broadcast::Receiver<Rotation>,
    to: mpsc::Sender<Result<Rotation, Status>>,
    stop: CancellationToken,
) {
    let id = first.id.clone();
    let mut shown = first;
    loop {
        let ended = shown.ended_ms > 0;
        if to.send(Ok(shown)).await.is_err() || ended {
            return;
        }
        shown = loop {
            let change = tokio::select! {
                () = stop.cancelled() => {
                    let _ = to.try_send(Err(Status::unavailable("the bridge stops")));
                    return;
                }
                () = to.closed() => return,
                change = changes.recv() => change,
            };
            match change {
                Ok(change) if change.id == id => break change,
                Ok(_) => {}
                Err(RecvError::Closed) => return,
                // Too slow for every change: the present state says enough.
                Err(RecvError::Lagged(_)) => match current(&zone, &id).await {
                    Ok(Some(now)) => break now,
                    Ok(None) => return,
                    Err(error) => {
                        let _ = to.try_send(Err(error.into()));
                        return;
                    }
                },
            }
        };
    }
}

async fn current(zone: &Zone, id: &str) -> Result<Option<Rotation>, CatalogError> {
    match zone.catalog().rotation(id).await? {
        Some(row) => zone.describe(&row).await.map(Some),
        None => Ok(None),
    }
}
