//! Header rules: what is of one hop only, what would be stale behind a seal, and how ETags are kept apart.

use crate::error::ProxyError;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, ETAG, EXPECT, HOST, IF_MATCH, IF_NONE_MATCH, IF_RANGE,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

/// Put inside the ETag of every opened object: the tag names the sealed bytes, so it is never mistaken for an MD5 of
/// the plaintext, and still strong: one tag, one sequence of bytes.
const ETAG_SUFFIX: &str = "-kwy";

/// Digests of the bytes as they stand, wrong for any others, and what announces them.
const DIGESTS: [&str; 14] = [
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-type",
    "x-amz-sdk-checksum-algorithm",
    "x-goog-hash",
    "x-ms-blob-content-md5",
    "x-amz-trailer",
];

/// Takes out what is meant for this hop only (RFC 9110, 7.6.1), and whatever Connection names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        // What nearly every Connection header says names no header that is left below.
        .filter(|name| !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close"))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // A peer must not be able to have end-to-end framing or routing removed (RFC 9110, 7.6.1).
        .filter(|name| name != HOST && name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    remove_where(headers, is_hop_by_hop);
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, TE, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION].contains(name)
        || matches!(name.as_str(), "close" | "keep-alive" | "proxy-connection")
}

/// Takes out every header whose name is `doomed`. A message has fewer headers than there are names to look for, and it
/// seldom has one of those: looking at each of its own costs less than looking each of ours up.
fn remove_where(headers: &mut HeaderMap, doomed: impl Fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| doomed(name)).cloned() {
        headers.remove(name);
    }
}

/// Makes a client's request head fit for the upstream: hop headers out, Host and Via in.
///
/// Expect goes too: this proxy answers it itself, by reading the body when the upstream takes it (RFC 9110, 10.1.1).
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    uri: &Uri,
    version: Version,
    upstream_host: &HeaderValue,
) {
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    // An authority in the target (HTTP/2, absolute-form) goes before Host and replaces it (RFC 9112, 3.2.2): what was
    // routed by is what the upstream sees.
    let authority =
        uri.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    if let Some(host) = authority.and_then(|authority| HeaderValue::from_str(authority).ok()) {
        headers.insert(HOST, host);
    } else if !headers.contains_key(HOST) {
        headers.insert(HOST, upstream_host.clone());
    }
    join_cookies(headers, version);
    let via = match version {
        Version::HTTP_2 => HeaderValue::from_static("2 keyway"),
        Version::HTTP_10 => HeaderValue::from_static("1.0 keyway"),
        _ => HeaderValue::from_static("1.1 keyway"),
    };
    headers.append(VIA, via);
}

/// HTTP/2 may split Cookie into several fields; HTTP/1.1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap, version: Version) {
    if version != Version::HTTP_2 || headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Takes out digests of other bytes.
pub(crate) fn drop_digests(headers: &mut HeaderMap) {
    remove_where(headers, |name| {
        let name = name.as_str();
        // By their first letters, since nearly no header is one.
        matches!(name.as_bytes()[0], b'c' | b'd' | b'r' | b'x') && DIGESTS.contains(&name)
    });
}

/// The body's length by its header. HTTP/1.1 has checked it already; HTTP/2 may still carry nonsense.
///
/// # Errors
/// [`ProxyError::AmbiguousFraming`] for two different values or one that is no number.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ProxyError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let parsed = value
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or(ProxyError::AmbiguousFraming)?;
        if length.is_some_and(|before| before != parsed) {
            return Err(ProxyError::AmbiguousFraming);
        }
        length = Some(parsed);
    }
    Ok(length)
}

/// Sets the length, or takes it out where it is not known.
pub(crate) fn set_content_length(headers: &mut HeaderMap, length: Option<u64>) {
    match length {
        Some(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        None => drop(headers.remove(CONTENT_LENGTH)),
    }
}

/// Upstream → client: `"abc"` becomes `"abc-kwy"`.
pub(crate) fn mark_etag(headers: &mut HeaderMap) {
    let Some(marked) = headers.get(ETAG).map(|value| mark(value.to_str().ok())) else { return };
    match marked {
        Some(value) => drop(headers.insert(ETAG, value)),
        // Not a tag by RFC 9110, 8.8.3: better none than one that looks like a digest of the plaintext.
        None => drop(headers.remove(ETAG)),
    }
}

fn mark(tag: Option<&str>) -> Option<HeaderValue> {
    let inner = tag?.strip_suffix('"')?;
    HeaderValue::from_str(&format!("{inner}{ETAG_SUFFIX}\"")).ok()
}

/// Client → upstream: tags of ours in conditions become the upstream's again. Others stay: they match nothing.
pub(crate) fn unmark_conditions(headers: &mut HeaderMap) {
    for name in [IF_MATCH, IF_NONE_MATCH, IF_RANGE] {
        if !headers.contains_key(&name) {
            continue;
        }
        let suffix = format!("{ETAG_SUFFIX}\"");
        let unmarked: Vec<HeaderValue> = headers
            .get_all(&name)
            .iter()
            .filter_map(|value| HeaderValue::from_str(&value.to_str().ok()?.replace(&suffix, "\"")).ok())
            .collect();
        if let Some((first, rest)) = unmarked.split_first() {
            headers.insert(name.clone(), first.clone());
            for value in rest {
                headers.append(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn hop_by_hop_headers_go_and_framing_stays() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-secret-hop, content-length, host"),
            ("keep-alive", "timeout=5"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic AAAA"),
            ("content-length", "3"),
            ("host", "a"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-kept"]);
    }

    #[test]
    fn etags_go_there_and_back() {
        for (theirs, ours) in [("\"abc\"", "\"abc-kwy\""), ("W/\"x\"", "W/\"x-kwy\"")] {
            let mut headers = map(&[("etag", theirs)]);
            mark_etag(&mut headers);
            assert_eq!(headers[ETAG], ours);
            let mut conditions = map(&[("if-none-match", &format!("\"other\", {ours}")), ("if-match", "*")]);
            unmark_conditions(&mut conditions);
            assert_eq!(conditions[IF_NONE_MATCH], format!("\"other\", {theirs}"));
            assert_eq!(conditions[IF_MATCH], "*");
        }
        let mut bare = map(&[("etag", "0123456789abcdef")]);
        mark_etag(&mut bare);
        assert!(!bare.contains_key(ETAG));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        assert_eq!(
            content_length(&map(&[("content-length", "5"), ("content-length", "5")])).unwrap(),
            Some(5)
        );
        for bad in [&[("content-length", "5"), ("content-length", "6")][..], &[("content-length", "+5")]] {
            assert!(content_length(&map(bad)).is_err());
        }
    }
}
