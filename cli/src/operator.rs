//! What an operator asks a bridge: rotations, keys, members. Over gRPC with an administrator's certificate.

mod keys;
mod members;
mod profile;
mod progress;
mod rotate;

pub use keys::run as keys;
pub use members::run as members;
pub use profile::{Profile, default_data_dir};
pub use rotate::run as rotate;

use crate::args::BridgeArgs;
use crate::error::Failure;
use anyhow::{Context as _, anyhow};
use keyway_protocol::tls::{self, TlsFiles};
use keyway_protocol::v1::operator_client::OperatorClient;
use std::future::Future;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A bridge that was found, and the connection to it.
struct Session {
    profile: Profile,
    client: OperatorClient<Channel>,
}

impl Session {
    async fn open(args: &BridgeArgs) -> Result<Self, Failure> {
        let profile = Profile::find(args)?;
        let files = TlsFiles { cert: profile.cert.clone(), key: profile.key.clone(), ca: profile.ca.clone() };
        let config = tls::client_config(&files).map_err(Failure::config)?;
        let channel = tls::connect(&profile.bridge, config).await.with_context(|| {
            format!("no bridge at {} (is it running? `keyway dev` starts one)", profile.bridge)
        })?;
        Ok(Self { profile, client: OperatorClient::new(channel) })
    }
}

/// Runs an operator's command on a runtime of its own.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// A bridge's refusal, in words for people.
fn refused(what: &str) -> impl Fn(Status) -> Failure {
    move |status| {
        let hint = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                ": this certificate is not an administrator's of that zone"
            }
            _ => "",
        };
        let reason = if status.message().is_empty() {
            format!("{:?}", status.code())
        } else {
            status.message().into()
        };
        Failure::Failed(anyhow!("{what}: {reason}{hint}"))
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
