//! What a backend can do, found out by doing it.
use super::{BackendConfig, BackendError};
use serde::Serialize;
/// What was found out.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {}
/// One attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {}
/// Finds out.
pub fn probe(_config: &BackendConfig) -> Result<ProbeReport, BackendError> {
    Ok(ProbeReport {})
}
