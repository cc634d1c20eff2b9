//! Bodies on their way: passed, sealed or opened.
//!
//! Every body is pulled: nothing is read before there is somebody to take it, so memory is bounded by a buffer and a
//! frame per body, and a slow reader slows its writer.

pub(crate) mod digest;
pub(crate) mod held;
pub(crate) mod open;
pub(crate) mod seal;
pub(crate) mod source;

pub(crate) use open::OpenBody;
pub(crate) use seal::SealBody;
pub(crate) use source::Source;

use bytes::Bytes;
use futures_util::stream::Stream;
use http_body::{Body, Frame, SizeHint};
use keyway_envelope::OpenError;
use keyway_keycache::KeyError;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Why a body broke off. The stream is reset; it never ends cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The client's body broke off.
    #[error("the request body broke off")]
    Client(#[source] hyper::Error),
    /// The upstream's body broke off.
    #[error("the upstream's body broke off")]
    Upstream(#[source] hyper::Error),
    /// The client reset its stream: what came is not all of it, however it looks.
    #[error("the request body was aborted")]
    Aborted,
    /// Nothing came for too long.
    #[error("the body stopped coming")]
    Idle {
        /// Whose body.
        from_upstream: bool,
    },
    /// A segment did not open.
    #[error("the sealed body could not be opened")]
    Open {
        /// For the metric.
        error: OpenError,
        /// Whose body.
        from_upstream: bool,
    },
    /// More or fewer bytes than its length said.
    #[error("the body has not the length that it declared")]
    Length {
        /// Whose body.
        from_upstream: bool,
    },
    /// Not what the client's digest header said.
    #[error("the body does not match its {0} header")]
    Digest(&'static str),
    /// A JSON document that can't be taken.
    #[error("a JSON document cannot be taken: {flaw}")]
    Json {
        /// Why not; nothing of its content.
        flaw: String,
        /// Whose.
        from_upstream: bool,
    },
    /// A field did not open.
    #[error("a sealed field could not be opened")]
    Field {
        /// For the metric.
        reason: &'static str,
        /// Whose body.
        from_upstream: bool,
    },
    /// A field that should be sealed is not.
    #[error("a field that this route seals is not sealed")]
    Plaintext {
        /// Whose body.
        from_upstream: bool,
    },
    /// A field that is to be sealed is sealed.
    #[error("a field is sealed already")]
    AlreadySealed {
        /// Whose body.
        from_upstream: bool,
    },
    /// Bodies that are held whole take all the memory that they may.
    #[error("too much is under way")]
    Overloaded,
    /// The key's limit was reached in the middle of the body.
    #[error("{0}")]
    Key(KeyError),
    /// Longer than an envelope can be.
    #[error("the body is too large to be sealed")]
    TooLarge,
}

impl BodyError {
    /// Finds ours among the causes of an error of hyper.
    pub(crate) fn find<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        loop {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            error = error.source()?;
        }
    }
}

/// Frames that are made one after the other.
pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, BodyError>> + Send>>;

/// Any body that goes through the proxy.
pub enum ProxyBody {
    /// Nothing.
    Empty,
    /// A few bytes of our own.
    Full(Option<Bytes>),
    /// As it comes.
    #[doc(hidden)]
    Source(Box<Source>),
    /// Being sealed.
    #[doc(hidden)]
    Seal(Box<SealBody>),
    /// Being opened.
    #[doc(hidden)]
    Open(Box<OpenBody>),
    /// Made piece by piece.
    #[doc(hidden)]
    Frames(Frames),
}

impl std::fmt::Debug for ProxyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Source(_) => "Source",
            Self::Seal(_) => "Seal",
            Self::Open(_) => "Open",
            Self::Frames(_) => "Frames",
        })
    }
}

impl ProxyBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Source(source) => source.poll_frame(cx),
            Self::Seal(body) => body.poll_frame(cx),
            Self::Open(body) => body.poll_frame(cx),
            Self::Frames(frames) => frames.as_mut().poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Full(None) => true,
            Self::Full(Some(_)) => false,
            Self::Source(source) => source.is_end_stream(),
            Self::Seal(body) => body.is_end_stream(),
            Self::Open(body) => body.is_end_stream(),
            Self::Frames(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Source(source) => source.size_hint(),
            Self::Seal(body) => body.size_hint(),
            Self::Open(body) => body.size_hint(),
            Self::Frames(_) => SizeHint::default(),
        }
    }
}
