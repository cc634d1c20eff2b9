//! NDJSON: documents on lines, each sealed or opened as soon as it is whole.

use super::Documents;
use crate::body::digest::Declared;
use crate::body::held::Held;
use crate::body::{BodyError, Source};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{Stream, unfold};
use http::HeaderMap;
use http_body::Frame;

/// Lines on their way.
struct Lines {
    documents: Documents,
    source: Source,
    /// What has come of a line that is not whole.
    rest: BytesMut,
    /// How much of `rest` is known to hold no line's end.
    looked_at: usize,
    held: Held,
    /// What the client has said about all of it.
    declared: Declared,
    trailers: Option<HeaderMap>,
    has_ended: bool,
}

/// The lines of `source`.
pub(crate) fn stream(
    documents: Documents,
    source: Source,
    declared: Declared,
) -> impl Stream<Item = Result<Frame<Bytes>, BodyError>> + Send {
    let lines = Lines {
        documents,
        source,
        rest: BytesMut::new(),
        looked_at: 0,
        held: Held::default(),
        declared,
        trailers: None,
        has_ended: false,
    };
    unfold(Some(lines), |lines| async move {
        let mut lines = lines?;
        match lines.next().await {
            Ok(Some(frame)) => Some((Ok(frame), Some(lines))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

impl Lines {
    /// All lines that are whole, in one frame.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        loop {
            let mut out = BytesMut::new();
            while let Some(text) = self.take_line() {
                out.extend_from_slice(&line(&self.documents, text).await?);
            }
            if !out.is_empty() {
                return Ok(Some(Frame::data(out.freeze())));
            }
            if self.rest.len() > self.documents.max {
                return Err(BodyError::TooLarge);
            }
            self.held.resize(self.rest.len())?;
            if self.has_ended {
                return Ok(self.trailers.take().map(Frame::trailers));
            }
            match std::future::poll_fn(|cx| self.source.poll_frame(cx)).await.transpose()? {
                None => {
                    if let Some(last) = self.end().await? {
                        return Ok(Some(last));
                    }
                }
                Some(frame) => match frame.into_data() {
                    Ok(data) => {
                        self.declared.update(&data);
                        self.rest.extend_from_slice(&data);
                    }
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        crate::headers::drop_digests(&mut trailers);
                        self.trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
                        if let Some(last) = self.end().await? {
                            return Ok(Some(last));
                        }
                    }
                },
            }
        }
    }

    /// The last line may have no end of its own.
    async fn end(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        self.has_ended = true;
        self.declared.verify().map_err(BodyError::Digest)?;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let last = self.rest.split().freeze();
        self.looked_at = 0;
        Ok(Some(Frame::data(line(&self.documents, last).await?)))
    }

    /// The next whole line, with its end.
    fn take_line(&mut self) -> Option<Bytes> {
        let end = self.rest[self.looked_at..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end else {
            self.looked_at = self.rest.len();
            return None;
        };
        let line = self.rest.split_to(self.looked_at + end + 1).freeze();
        self.looked_at = 0;
        Some(line)
    }
}

/// One line, which has one document or none.
async fn line(documents: &Documents, text: Bytes) -> Result<Bytes, BodyError> {
    if text.len() > documents.max {
        return Err(BodyError::TooLarge);
    }
    // Blank lines keep a connection alive, and are no documents.
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(text);
    }
    let made = documents.carry(text).await;
    if let Err(BodyError::Field { reason, .. }) = &made {
        // There is no response to count it by.
        documents.route.metrics.open_failure(reason);
    }
    made
}
