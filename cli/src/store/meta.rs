//! What is kept beside an object's bytes: validators and the headers that come back with it.

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES, HeaderMap,
    HeaderName, HeaderValue,
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Headers of a request that are given back with the object; `x-amz-meta-*` as well.
const KEPT: [HeaderName; 6] =
    [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_DISPOSITION, CACHE_CONTROL, EXPIRES];
/// User metadata, as S3 has it.
const USER_METADATA: &str = "x-amz-meta-";

/// The side file of an object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    /// A strong entity tag, with its quotes. Random: a new one for every write, whatever the bytes.
    pub(super) etag: String,
    /// Whole seconds since the Unix epoch, as HTTP dates have it.
    pub(super) modified_s: u64,
    /// Which file this describes. A crash between the two renames leaves a side file that belongs to another.
    pub(super) inode: u64,
    /// Names and values, in the order they came.
    pub(super) headers: Vec<(String, String)>,
}

/// A kept header's value is not text.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the value of {0} is not text")]
pub(super) struct NotText(HeaderName);

/// The headers of a request that stay with the object.
pub(super) fn kept_headers(headers: &HeaderMap) -> Result<Vec<(String, String)>, NotText> {
    headers
        .iter()
        .filter(|(name, _)| KEPT.contains(name) || name.as_str().starts_with(USER_METADATA))
        .map(|(name, value)| match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => Ok((name.as_str().to_owned(), text.to_owned())),
            Err(_) => Err(NotText(name.clone())),
        })
        .collect()
}

/// A fresh strong entity tag: 128 random bits.
pub(super) fn fresh_etag() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("\"{}\"", hex::encode(bytes)))
}

impl Meta {
    /// For bytes whose side file is lost: validators that change whenever the file does, no headers.
    pub(super) fn of_bare_file(inode: u64, len: u64, modified: SystemTime) -> Self {
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            etag: format!("\"{inode:x}-{len:x}-{:x}\"", since_epoch.as_nanos()),
            modified_s: since_epoch.as_secs(),
            inode,
            headers: Vec::new(),
        }
    }

    /// `Last-Modified`, as a time.
    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.modified_s)
    }

    /// Puts the kept headers into a response.
    pub(super) fn write_headers(&self, into: &mut HeaderMap) {
        for (name, value) in &self.headers {
            // Both were a request's header once; a side file edited by hand may hold anything.
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
                continue;
            };
            into.append(name, value);
        }
    }
}
