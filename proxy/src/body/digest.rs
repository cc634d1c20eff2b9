//! Digests that a client declares about its plaintext: verified while it is sealed, never forwarded.
//!
//! Content-MD5 (RFC 1864), Digest (RFC 3230), Content-Digest and Repr-Digest (RFC 9530), and S3's
//! `x-amz-checksum-*`. The store sees other bytes, so the headers would be wrong for it.

use crate::error::ProxyError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest as CrcDigest};
use http::HeaderMap;
use sha2::Digest;

/// Algorithms behind the headers. SHA-1 and MD5 are here as checksums only.
enum Running {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
    /// The CRC and its length in bytes.
    Crc(Box<CrcDigest>, usize),
}

impl Running {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hash) => hash.update(bytes),
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
            Self::Crc(hash, _) => hash.update(bytes),
        }
    }

    fn matches(&self, expected: &[u8]) -> bool {
        match self {
            Self::Md5(hash) => hash.clone().finalize()[..] == *expected,
            Self::Sha1(hash) => hash.clone().finalize()[..] == *expected,
            Self::Sha256(hash) => hash.clone().finalize()[..] == *expected,
            Self::Sha512(hash) => hash.clone().finalize()[..] == *expected,
            Self::Crc(hash, len) => hash.finalize().to_be_bytes()[8 - len..] == *expected,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Md5(_) => 16,
            Self::Sha1(_) => 20,
            Self::Sha256(_) => 32,
            Self::Sha512(_) => 64,
            Self::Crc(_, len) => *len,
        }
    }

    fn crc(algorithm: CrcAlgorithm, len: usize) -> Self {
        Self::Crc(Box::new(CrcDigest::new(algorithm)), len)
    }

    /// By the names of RFC 3230 and RFC 9530.
    fn by_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "md5" => Self::Md5(md5::Md5::new()),
            "sha" => Self::Sha1(sha1::Sha1::new()),
            "sha-256" => Self::Sha256(sha2::Sha256::new()),
            "sha-512" => Self::Sha512(Box::default()),
            _ => return None,
        })
    }
}

struct Check {
    header: &'static str,
    running: Running,
    expected: Vec<u8>,
}

/// Everything that a client has declared about its body. Usually nothing, which costs nothing.
#[derive(Default)]
pub(crate) struct Declared(Vec<Check>);

impl Declared {
    /// Reads the headers. Algorithms that nobody knows are left out, as RFC 9530 (section 2) lets a recipient do.
    ///
    /// # Errors
    /// [`ProxyError::DigestMalformed`] for a value that is no base64 of the right length.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ProxyError> {
        let mut checks = Vec::new();
        if let Some(value) = headers.get("content-md5") {
            let text = value.to_str().map_err(|_| ProxyError::DigestMalformed("Content-MD5"))?;
            push(&mut checks, "Content-MD5", Running::Md5(md5::Md5::new()), text)?;
        }
        for (name, running) in amz_checksums() {
            if let Some(value) = headers.get(name) {
                let text = value.to_str().map_err(|_| ProxyError::DigestMalformed(name))?;
                // A checksum of parts ends in -N; it is not one of the bytes.
                push(&mut checks, name, running(), text)?;
            }
        }
        for (name, wrapped) in [("Digest", false), ("Content-Digest", true), ("Repr-Digest", true)] {
            for value in headers.get_all(name) {
                let text = value.to_str().map_err(|_| ProxyError::DigestMalformed(name))?;
                for item in text.split(',') {
                    let (algorithm, value) =
                        item.trim().split_once('=').ok_or(ProxyError::DigestMalformed(name))?;
                    let Some(running) = Running::by_name(algorithm) else { continue };
                    let value = if wrapped {
                        // A structured field byte sequence (RFC 9651, 3.3.5), parameters ignored.
                        value
                            .split(';')
                            .next()
                            .and_then(|value| value.trim().strip_prefix(':')?.strip_suffix(':'))
                            .ok_or(ProxyError::DigestMalformed(name))?
                    } else {
                        value
                    };
                    push(&mut checks, name, running, value)?;
                }
            }
        }
        Ok(Self(checks))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for check in &mut self.0 {
            check.running.update(bytes);
        }
    }

    /// # Errors
    /// The header that does not match.
    pub(crate) fn verify(&self) -> Result<(), &'static str> {
        match self.0.iter().find(|check| !check.running.matches(&check.expected)) {
            Some(check) => Err(check.header),
            None => Ok(()),
        }
    }
}

type Make = fn() -> Running;

fn amz_checksums() -> [(&'static str, Make); 5] {
    [
        ("x-amz-checksum-crc32", || Running::crc(CrcAlgorithm::Crc32IsoHdlc, 4)),
        ("x-amz-checksum-crc32c", || Running::crc(CrcAlgorithm::Crc32Iscsi, 4)),
        ("x-amz-checksum-crc64nvme", || Running::crc(CrcAlgorithm::Crc64Nvme, 8)),
        ("x-amz-checksum-sha1", || Running::Sha1(sha1::Sha1::new())),
        ("x-amz-checksum-sha256", || Running::Sha256(sha2::Sha256::new())),
    ]
}

fn push(
    checks: &mut Vec<Check>,
    header: &'static str,
    running: Running,
    base64: &str,
) -> Result<(), ProxyError> {
    let expected = BASE64.decode(base64.trim()).map_err(|_| ProxyError::DigestMalformed(header))?;
    if expected.len() != running.len() {
        return Err(ProxyError::DigestMalformed(header));
    }
    checks.push(Check { header, running, expected });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, value: &str, body: &[u8]) -> Result<Result<(), &'static str>, ProxyError> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let mut declared = Declared::of(&headers)?;
        body.chunks(3).for_each(|chunk| declared.update(chunk));
        Ok(declared.verify())
    }

    /// Values from `openssl dgst`, Python's `zlib.crc32`, and the check values of the CRC catalogue for "123456789".
    #[test]
    fn every_algorithm_knows_its_check_value() {
        let body = b"123456789";
        let cases = [
            ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
            ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
            ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
            ("digest", "SHA-256=FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=,unixsum=1"),
            ("repr-digest", "sha-256=:FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=:"),
            ("content-digest", "sha-256=:FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=:;q=1"),
        ];
        for (name, value) in cases {
            assert_eq!(check(name, value, body).unwrap(), Ok(()), "{name}");
            assert!(check(name, value, b"12345678").unwrap().is_err(), "{name} takes other bytes");
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for (name, value) in [
            ("content-md5", "nonsense!"),
            ("content-md5", "AAAA"),
            ("digest", "sha-256"),
            ("repr-digest", "sha-256=FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ] {
            assert!(
                matches!(check(name, value, b""), Err(ProxyError::DigestMalformed(_))),
                "{name}: {value}"
            );
        }
    }
}
