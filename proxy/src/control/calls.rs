//! The two calls of a member: a DEK to seal with, and the DEK behind a key block.

use keyway_envelope::{KekVersion, KeyBlock};
use keyway_keycache::{FetchedDek, SourceError};
use keyway_protocol::dek_transport::{MemberKey, parse_key_block};
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::{DekResponse, IssueDekRequest, OpenDekRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// A call to the bridge failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the bridge did not answer in time")]
    Deadline,
    #[error("the bridge answered {code:?}: {message}")]
    Status { code: Code, message: String },
    #[error(transparent)]
    Transport(#[from] keyway_protocol::Error),
    #[error("the bridge's answer does not belong to the question: {0}")]
    Answer(&'static str),
}

impl CallError {
    /// What the cache does about it. Only a clear word of the bridge is a refusal; everything else is worth another try.
    pub(super) fn to_source(&self) -> SourceError {
        match self {
            Self::Status { code: Code::NotFound | Code::InvalidArgument, .. } => SourceError::Refused,
            Self::Status { code: Code::PermissionDenied | Code::Unauthenticated, .. } => {
                SourceError::NotAllowed
            }
            _ => SourceError::Unavailable,
        }
    }

    /// Whether the same call may succeed in a moment.
    fn is_transient(&self) -> bool {
        match self {
            Self::Deadline => true,
            Self::Status { code, .. } => {
                matches!(
                    code,
                    Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
                )
            }
            Self::Transport(_) | Self::Answer(_) => false,
        }
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status { code: status.code(), message: status.message().to_owned() }
    }
}

/// A DEK that was opened, and the keyring that the bridge says it is of.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) keyring: String,
    pub(super) fetched: FetchedDek,
}

/// Calls for one zone over one connection. Clones share the connection.
#[derive(Clone, Debug)]
pub(super) struct BridgeCalls {
    client: FleetClient<Channel>,
    zone: Arc<str>,
    member_key: Arc<MemberKey>,
    deadline: Duration,
}

impl BridgeCalls {
    pub(super) fn new(
        client: FleetClient<Channel>,
        zone: Arc<str>,
        member_key: Arc<MemberKey>,
        deadline: Duration,
    ) -> Self {
        Self { client, zone, member_key, deadline }
    }

    /// A DEK to seal with. Its record is durable at the bridge before it comes.
    pub(super) async fn issue(
        &self,
        keyring: &str,
        tenant: &str,
        version: KekVersion,
    ) -> Result<FetchedDek, CallError> {
        let request = IssueDekRequest {
            zone: self.zone.to_string(),
            keyring: keyring.to_owned(),
            tenant: tenant.to_owned(),
            recipient_key: self.member_key.public().to_vec(),
            kek_version: version.0.into(),
        };
        let mut client = self.client.clone();
        let response = self.timed("issue", client.issue_dek(self.with_deadline(request))).await?;
        if response.keyring != keyring || response.tenant != tenant {
            return Err(CallError::Answer("another keyring or tenant"));
        }
        let fetched = self.open_transport(&response)?;
        if fetched.kek_version != version || fetched.key_block.kek().version != version {
            return Err(CallError::Answer("another KEK version"));
        }
        Ok(fetched)
    }

    /// The DEK behind `block`.
    pub(super) async fn open(&self, block: &KeyBlock) -> Result<Opened, CallError> {
        let request = OpenDekRequest {
            zone: self.zone.to_string(),
            key_block: block.to_bytes().to_vec(),
            recipient_key: self.member_key.public().to_vec(),
        };
        let mut client = self.client.clone();
        let response = self.timed("open", client.open_dek(self.with_deadline(request))).await?;
        let fetched = self.open_transport(&response)?;
        if fetched.key_block != *block {
            return Err(CallError::Answer("another key block"));
        }
        Ok(Opened { keyring: response.keyring, fetched })
    }

    fn open_transport(&self, response: &DekResponse) -> Result<FetchedDek, CallError> {
        let dek = self.member_key.open(response, &self.zone)?;
        let kek_version = u16::try_from(response.kek_version)
            .map(KekVersion)
            .map_err(|_| CallError::Answer("the KEK version is out of range"))?;
        Ok(FetchedDek {
            dek,
            key_block: parse_key_block(&response.key_block)?,
            kek_version,
            tenant: response.tenant.as_str().into(),
            messages: 0,
            bytes: 0,
        })
    }

    /// The deadline also travels with the request: the bridge need not work for nobody.
    fn with_deadline<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    async fn timed(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<DekResponse>, Status>>,
    ) -> Result<DekResponse, CallError> {
        let began = Instant::now();
        let outcome = tokio::time::timeout(self.deadline, call).await;
        metrics::histogram!("keyway_dek_fetch_seconds", "operation" => operation).record(began.elapsed());
        Ok(outcome.map_err(|_| CallError::Deadline)??.into_inner())
    }
}

/// Attempts of [`patiently`].
const ATTEMPTS: u32 = 4;
/// The first pause of [`patiently`]; doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// Calls again after a failure that may pass. For the control task, which has nobody waiting at its door.
pub(super) async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut attempt = 0;
    loop {
        match call().await {
            Err(error) if attempt + 1 < ATTEMPTS && error.is_transient() => {
                tokio::time::sleep(PAUSE * 2u32.pow(attempt)).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}
