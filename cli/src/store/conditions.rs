//! Preconditions and ranges (RFC 9110, 13 and 14), as pure functions of headers and the stored object.

use http::HeaderMap;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use std::time::SystemTime;

/// What a precondition looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validators<'a> {
    /// Strong entity tag, with quotes.
    pub(super) etag: &'a str,
    /// Whole seconds.
    pub(super) modified: SystemTime,
}

/// What preconditions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    NotModified,
    Failed,
}

/// Evaluates the preconditions in the order of RFC 9110, 13.2.2. `current` is `None` where nothing is stored.
pub(super) fn evaluate(headers: &HeaderMap, current: Option<Validators<'_>>, is_read: bool) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        if !current.is_some_and(|current| matches_any(headers, &IF_MATCH, current.etag, Comparison::Strong)) {
            return Verdict::Failed;
        }
    } else if let (Some(date), Some(current)) = (date_of(headers, &IF_UNMODIFIED_SINCE), current)
        && current.modified > date
    {
        return Verdict::Failed;
    }
    let Some(current) = current else { return Verdict::Go };
    if headers.contains_key(IF_NONE_MATCH) {
        if matches_any(headers, &IF_NONE_MATCH, current.etag, Comparison::Weak) {
            return if is_read { Verdict::NotModified } else { Verdict::Failed };
        }
    } else if is_read
        && let Some(date) = date_of(headers, &IF_MODIFIED_SINCE)
        && current.modified <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// Which bytes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of them, 200.
    Whole,
    /// `first..=last`, 206.
    Part { first: u64, last: u64 },
    /// 416.
    Unsatisfiable,
}

/// Reads `Range` and `If-Range`. A list of several ranges, another unit or a malformed header is ignored, as
/// RFC 9110, 14.2 allows: the whole object answers it.
pub(super) fn select(headers: &HeaderMap, current: Validators<'_>, len: u64) -> Selection {
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else {
        return Selection::Whole;
    };
    if !if_range_holds(headers, current) {
        return Selection::Whole;
    }
    let Some(spec) = range.strip_prefix("bytes=").map(str::trim) else { return Selection::Whole };
    if spec.contains(',') {
        return Selection::Whole;
    }
    let Some((first, last)) = spec.split_once('-') else { return Selection::Whole };
    match (first, last) {
        ("", suffix) => match digits(suffix) {
            Some(0) => Selection::Unsatisfiable,
            Some(_) if len == 0 => Selection::Unsatisfiable,
            Some(suffix) => Selection::Part { first: len - suffix.min(len), last: len - 1 },
            None => Selection::Whole,
        },
        (first, last) => {
            let Some(first) = digits(first) else { return Selection::Whole };
            let last = if last.is_empty() { Some(u64::MAX) } else { digits(last) };
            let Some(last) = last.filter(|&last| last >= first) else { return Selection::Whole };
            if first >= len {
                return Selection::Unsatisfiable;
            }
            Selection::Part { first, last: last.min(len - 1) }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

fn matches_any(headers: &HeaderMap, name: &HeaderName, etag: &str, comparison: Comparison) -> bool {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',').map(str::trim).any(|candidate| {
            candidate == "*"
                || candidate == etag
                || (comparison == Comparison::Weak && candidate.strip_prefix("W/") == Some(etag))
        })
    })
}

fn if_range_holds(headers: &HeaderMap, current: Validators<'_>) -> bool {
    let Some(value) = headers.get(IF_RANGE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    if value.starts_with('"') || value.starts_with("W/") {
        // Strong comparison: a weak tag never matches (RFC 9110, 13.1.5).
        return value == current.etag;
    }
    httpdate::parse_http_date(value).is_ok_and(|date| date == current.modified)
}

fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    headers.get(name)?.to_str().ok().and_then(|value| httpdate::parse_http_date(value).ok())
}

/// Strictly digits: `parse` alone would take "+5".
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than a u64 has is a position past any end.
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::{Duration, UNIX_EPOCH};

    const ETAG: &str = "\"abc\"";

    fn current() -> Validators<'static> {
        Validators { etag: ETAG, modified: UNIX_EPOCH + Duration::from_secs(1_000_000_000) }
    }

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn selected(range: &'static str, len: u64) -> Selection {
        select(&headers(&[(RANGE, range)]), current(), len)
    }

    #[test]
    fn ranges() {
        assert_eq!(selected("bytes=0-0", 10), Selection::Part { first: 0, last: 0 });
        assert_eq!(selected("bytes=3-", 10), Selection::Part { first: 3, last: 9 });
        assert_eq!(selected("bytes=3-99999999999999999999999", 10), Selection::Part { first: 3, last: 9 });
        assert_eq!(selected("bytes=-4", 10), Selection::Part { first: 6, last: 9 });
        assert_eq!(selected("bytes=-40", 10), Selection::Part { first: 0, last: 9 });
        assert_eq!(selected("bytes=10-", 10), Selection::Unsatisfiable);
        assert_eq!(selected("bytes=-0", 10), Selection::Unsatisfiable);
        assert_eq!(selected("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(selected("bytes=-1", 0), Selection::Unsatisfiable);
        for ignored in
            ["bytes=5-3", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-2", "bytes=a-b", "bytes=", "bytes=-"]
        {
            assert_eq!(selected(ignored, 10), Selection::Whole, "{ignored}");
        }
    }

    #[test]
    fn if_range_takes_strong_tags_and_exact_dates_only() {
        for (value, holds) in [
            (ETAG, true),
            ("\"other\"", false),
            ("W/\"abc\"", false),
            ("Sun, 09 Sep 2001 01:46:40 GMT", true),
            ("Sun, 09 Sep 2001 01:46:41 GMT", false),
            ("nonsense", false),
        ] {
            let selection = select(&headers(&[(RANGE, "bytes=0-1"), (IF_RANGE, value)]), current(), 10);
            assert_eq!(selection != Selection::Whole, holds, "{value}");
        }
    }

    #[test]
    fn preconditions_of_reads_and_writes() {
        let earlier = "Sun, 09 Sep 2001 01:46:39 GMT";
        let same = "Sun, 09 Sep 2001 01:46:40 GMT";
        for (name, value, read, write, absent) in [
            (IF_MATCH, ETAG, Verdict::Go, Verdict::Go, Verdict::Failed),
            (IF_MATCH, "W/\"abc\"", Verdict::Failed, Verdict::Failed, Verdict::Failed),
            (IF_MATCH, "*", Verdict::Go, Verdict::Go, Verdict::Failed),
            (IF_MATCH, "\"x\", \"abc\"", Verdict::Go, Verdict::Go, Verdict::Failed),
            (IF_NONE_MATCH, ETAG, Verdict::NotModified, Verdict::Failed, Verdict::Go),
            (IF_NONE_MATCH, "W/\"abc\"", Verdict::NotModified, Verdict::Failed, Verdict::Go),
            (IF_NONE_MATCH, "*", Verdict::NotModified, Verdict::Failed, Verdict::Go),
            (IF_NONE_MATCH, "\"x\"", Verdict::Go, Verdict::Go, Verdict::Go),
            (IF_UNMODIFIED_SINCE, earlier, Verdict::Failed, Verdict::Failed, Verdict::Go),
            (IF_UNMODIFIED_SINCE, same, Verdict::Go, Verdict::Go, Verdict::Go),
            (IF_MODIFIED_SINCE, same, Verdict::NotModified, Verdict::Go, Verdict::Go),
            (IF_MODIFIED_SINCE, earlier, Verdict::Go, Verdict::Go, Verdict::Go),
        ] {
            let headers = headers(&[(name.clone(), value)]);
            assert_eq!(evaluate(&headers, Some(current()), true), read, "read {name}: {value}");
            assert_eq!(evaluate(&headers, Some(current()), false), write, "write {name}: {value}");
            assert_eq!(evaluate(&headers, None, false), absent, "absent {name}: {value}");
        }
    }

    #[test]
    fn if_none_match_has_precedence_over_a_date() {
        let headers =
            headers(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:40 GMT")]);
        assert_eq!(evaluate(&headers, Some(current()), true), Verdict::Go);
    }
}
