//! Bodies on their way: passed, sealed or opened.
//!
//! Every body is pulled: nothing is read before there is somebody to take it, so memory is bounded by a buffer and a
//! frame per body, and a slow reader slows its writer.

pub(crate) mod digest;
pub(crate) mod open;
pub(crate) mod seal;
pub(crate) mod source;

pub(crate) use open::OpenBody;
pub(crate) use seal::SealBody;
pub(crate) use source::Source;

use bytes::Bytes;
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

/// Any body that goes through the proxy.
#[derive(Debug)]
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Full(None) => true,
            Self::Full(Some(_)) => false,
            Self::Source(source) => source.is_end_stream(),
            Self::Seal(body) => body.is_end_stream(),
            Self::Open(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Source(source) => source.size_hint(),
            Self::Seal(body) => body.size_hint(),
            Self::Open(body) => body.size_hint(),
        }
    }
}
