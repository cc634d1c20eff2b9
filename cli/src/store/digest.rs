//! Digests that a writer sends along, verified over the bytes as they arrive.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use md5::Md5;
use sha2::{Digest as _, Sha256};

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const AMZ_SHA256: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");
/// RFC 9530. For a store, the content is the representation.
const DICTIONARIES: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("repr-digest")];

/// Digests expected by one upload: `Content-MD5` (RFC 1864), `x-amz-checksum-sha256`, and the sha-256 entry of
/// `Content-Digest` and `Repr-Digest` (RFC 9530). Other algorithms are not looked at.
#[derive(Default)]
pub(super) struct Expected {
    md5: Option<(Md5, Vec<u8>)>,
    sha256: Option<(Sha256, Vec<Vec<u8>>)>,
}

/// Why the upload is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DigestError {
    #[error("{0} is not base64 of a digest")]
    Malformed(HeaderName),
    #[error("the bytes received do not have the digest that was sent along")]
    Mismatch,
}

impl Expected {
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, DigestError> {
        let mut expected = Self::default();
        if let Some(value) = headers.get(CONTENT_MD5) {
            expected.md5 = Some((Md5::new(), decode(&CONTENT_MD5, value.as_bytes(), 16)?));
        }
        let mut sha256 = Vec::new();
        if let Some(value) = headers.get(AMZ_SHA256) {
            sha256.push(decode(&AMZ_SHA256, value.as_bytes(), 32)?);
        }
        for name in &DICTIONARIES {
            for value in headers.get_all(name) {
                let value = value.to_str().map_err(|_| DigestError::Malformed(name.clone()))?;
                for entry in value.split(',').map(str::trim) {
                    let Some(item) = entry.strip_prefix("sha-256=") else { continue };
                    let item = item
                        .strip_prefix(':')
                        .and_then(|item| item.strip_suffix(':'))
                        .ok_or_else(|| DigestError::Malformed(name.clone()))?;
                    sha256.push(decode(name, item.as_bytes(), 32)?);
                }
            }
        }
        if !sha256.is_empty() {
            expected.sha256 = Some((Sha256::new(), sha256));
        }
        Ok(expected)
    }

    pub(super) fn update(&mut self, chunks: &[Bytes]) {
        for chunk in chunks {
            if let Some((hash, _)) = &mut self.md5 {
                hash.update(chunk);
            }
            if let Some((hash, _)) = &mut self.sha256 {
                hash.update(chunk);
            }
        }
    }

    pub(super) fn verify(self) -> Result<(), DigestError> {
        if let Some((hash, expected)) = self.md5
            && hash.finalize()[..] != expected[..]
        {
            return Err(DigestError::Mismatch);
        }
        if let Some((hash, expected)) = self.sha256 {
            let found = hash.finalize();
            if expected.iter().any(|expected| found[..] != expected[..]) {
                return Err(DigestError::Mismatch);
            }
        }
        Ok(())
    }
}

fn decode(name: &HeaderName, value: &[u8], len: usize) -> Result<Vec<u8>, DigestError> {
    BASE64
        .decode(value.trim_ascii())
        .ok()
        .filter(|bytes| bytes.len() == len)
        .ok_or_else(|| DigestError::Malformed(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(name: &HeaderName, value: &str, body: &'static [u8]) -> Result<(), DigestError> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::try_from(value).unwrap());
        let mut expected = Expected::from_headers(&headers)?;
        let (a, b) = body.split_at(body.len() / 2);
        expected.update(&[Bytes::from_static(a), Bytes::from_static(b)]);
        expected.verify()
    }

    #[test]
    fn known_digests_of_hello() {
        let md5 = "XUFAKrxLKna5cZ2REBfFkg==";
        let sha = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
        assert_eq!(check(&CONTENT_MD5, md5, b"hello"), Ok(()));
        assert_eq!(check(&CONTENT_MD5, md5, b"hellO"), Err(DigestError::Mismatch));
        assert_eq!(check(&AMZ_SHA256, sha, b"hello"), Ok(()));
        assert_eq!(check(&AMZ_SHA256, sha, b""), Err(DigestError::Mismatch));
        for name in &DICTIONARIES {
            let value = format!("md5=:AAAA:, sha-256=:{sha}:");
            assert_eq!(check(name, &value, b"hello"), Ok(()));
            assert_eq!(check(name, &value, b"hallo"), Err(DigestError::Mismatch));
        }
    }

    #[test]
    fn malformed_ones_are_refused() {
        assert_eq!(check(&CONTENT_MD5, "nope", b""), Err(DigestError::Malformed(CONTENT_MD5)));
        assert_eq!(check(&AMZ_SHA256, "AAAA", b""), Err(DigestError::Malformed(AMZ_SHA256)));
        assert!(matches!(check(&DICTIONARIES[0], "sha-256=AAAA", b""), Err(DigestError::Malformed(_))));
    }
}
