//! Range requests (RFC 9110, 14) against the plaintext.

use http::header::{IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method};

/// What a client asked for: one byte range, not resolved yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedRange {
    /// `first-` or `first-last`
    From(u64, Option<u64>),
    /// `-suffix`
    Suffix(u64),
}

impl AskedRange {
    /// Takes Range out of the headers. `None` where it does not apply: another method, another unit, several ranges,
    /// or nonsense. A server may ignore Range (RFC 9110, 14.2), and then sends the whole.
    pub(super) fn take(method: &Method, headers: &mut HeaderMap) -> Option<Self> {
        let value = headers.remove(RANGE);
        let asked = if *method == Method::GET { value.as_ref().and_then(Self::parse) } else { None };
        if asked.is_none() {
            headers.remove(IF_RANGE);
        }
        asked
    }

    fn parse(value: &HeaderValue) -> Option<Self> {
        let (unit, set) = value.to_str().ok()?.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // Beyond 2^64 is beyond every object.
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        match (first.trim(), last.trim()) {
            ("", suffix) => number(suffix).map(Self::Suffix),
            (first, "") => number(first).map(|first| Self::From(first, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The range in an object of `len` bytes: first and last, inclusive. `None` if it is unsatisfiable.
    pub(super) fn resolve(self, len: u64) -> Option<(u64, u64)> {
        let end = len.checked_sub(1)?;
        match self {
            Self::From(first, last) => (first <= end).then(|| (first, last.unwrap_or(end).min(end))),
            Self::Suffix(0) => None,
            Self::Suffix(suffix) => Some((len.saturating_sub(suffix), end)),
        }
    }
}

/// Reads `bytes a-b/total` of a 206, or `bytes */total` of a 416.
pub(super) fn content_range(value: Option<&HeaderValue>) -> Option<(Option<(u64, u64)>, u64)> {
    let (range, total) = value?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let total = total.trim().parse().ok()?;
    if range.trim() == "*" {
        return Some((None, total));
    }
    let (first, last) = range.trim().split_once('-')?;
    Some((Some((first.parse().ok()?, last.parse().ok()?)), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, len: u64) -> Option<Option<(u64, u64)>> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, text.parse().unwrap());
        AskedRange::take(&Method::GET, &mut headers).map(|asked| asked.resolve(len))
    }

    #[test]
    fn ranges_of_rfc_9110() {
        for (text, expected) in [
            ("bytes=0-499", Some(Some((0, 499)))),
            ("bytes=500-999", Some(Some((500, 999)))),
            ("bytes=-500", Some(Some((9500, 9999)))),
            ("bytes=9500-", Some(Some((9500, 9999)))),
            ("bytes=0-0", Some(Some((0, 0)))),
            ("bytes=-1", Some(Some((9999, 9999)))),
            ("bytes=9999-20000", Some(Some((9999, 9999)))),
            ("bytes=-20000", Some(Some((0, 9999)))),
            ("bytes=10000-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=99999999999999999999-", Some(None)),
            ("bytes=5-4", None),
            ("bytes=0-1,5-6", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(resolve(text, 10_000), expected, "{text}");
        }
        assert_eq!(resolve("bytes=0-", 0), Some(None));
        assert_eq!(resolve("bytes=-5", 0), Some(None));
    }

    #[test]
    fn content_ranges() {
        let parse = |text: &str| content_range(Some(&text.parse().unwrap()));
        assert_eq!(parse("bytes 0-159/1000"), Some((Some((0, 159)), 1000)));
        assert_eq!(parse("bytes */0"), Some((None, 0)));
        assert_eq!(parse("bytes 0-159/*"), None);
    }
}
