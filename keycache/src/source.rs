//! Where DEKs come from.

use crate::keyring::KeyringName;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use keyway_envelope::{Dek, KekVersion, KeyBlock};

/// Asks for a DEK to seal with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// For which keyring.
    pub keyring: KeyringName,
    /// For which tenant; empty for none.
    pub tenant: Box<str>,
    /// The version that is (about to be) primary here.
    pub kek_version: KekVersion,
}

/// Asks for the DEK behind a key block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The keyring of the route; the answer has to belong to it.
    pub keyring: KeyringName,
    /// The block found in an envelope.
    pub key_block: KeyBlock,
}

/// A DEK, as it comes from the bridge or from the state on disk.
pub struct FetchedDek {
    /// The key.
    pub dek: Dek,
    /// Issue: the block to write into envelopes. Open: the block that was asked for.
    pub key_block: KeyBlock,
    /// The version whose wrap gave us the DEK.
    pub kek_version: KekVersion,
    /// The tenant that it was made for; empty for none.
    pub tenant: Box<str>,
    /// Messages already sealed with it (from the state on disk; 0 from the bridge).
    pub messages: u64,
    /// Plaintext bytes already sealed with it.
    pub bytes: u64,
}

impl fmt::Debug for FetchedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchedDek")
            .field("dek", &self.dek)
            .field("kek_version", &self.kek_version)
            .finish_non_exhaustive()
    }
}

/// Why the source gives no DEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No answer (in time); worth asking again later.
    #[error("the bridge does not answer")]
    Unavailable,
    /// There is no such DEK, or the block is not authentic. The answer will not change soon: cached.
    #[error("the bridge refused the key block")]
    Refused,
    /// The caller may not. Cached, shorter.
    #[error("the bridge's policy refuses it")]
    NotAllowed,
}

/// A future that gives a DEK.
pub type DekFuture = Pin<Box<dyn Future<Output = Result<FetchedDek, SourceError>> + Send>>;

/// The bridge, as the cache sees it. Futures are driven on the control runtime, never on a worker.
pub trait DekSource: Send + Sync + 'static {
    /// A new DEK to seal with.
    fn issue(&self, request: IssueRequest) -> DekFuture;
    /// The DEK behind a block.
    fn open(&self, request: OpenRequest) -> DekFuture;
}
