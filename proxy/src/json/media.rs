//! Which bodies are JSON (RFC 8259, 6839; NDJSON).

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

/// What a message says that its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    /// One document.
    Document,
    /// Documents, one on each line.
    Lines,
    /// Something else, or encoded so that it can't be looked into.
    Other,
}

impl Media {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let encoded = headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let (Some(Ok(text)), None, false) =
            (types.next().map(http::HeaderValue::to_str), types.next(), encoded)
        else {
            return Self::Other;
        };
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = parts.all(|parameter| {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            !key.trim().eq_ignore_ascii_case("charset")
                || matches!(
                    value.trim().trim_matches('"').to_ascii_lowercase().as_str(),
                    "utf-8" | "utf8" | "us-ascii"
                )
        });
        match name.as_str() {
            _ if !is_utf8 => Self::Other,
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/jsonlines" => Self::Lines,
            "application/json" | "text/json" => Self::Document,
            // Its values stand at other places than the document's: selectors would not find them.
            "application/json-patch+json" => Self::Other,
            name if name.starts_with("application/") && name.ends_with("+json") => Self::Document,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(headers: &[(&'static str, &'static str)]) -> Media {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        Media::of(&map)
    }

    #[test]
    fn json_by_its_names() {
        for name in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/problem+json",
            "application/vnd.api+json;version=1",
            "text/json",
        ] {
            assert_eq!(media(&[("content-type", name)]), Media::Document, "{name}");
        }
        for name in ["application/x-ndjson", "application/jsonl; charset=utf-8"] {
            assert_eq!(media(&[("content-type", name)]), Media::Lines, "{name}");
        }
        for name in [
            "text/html",
            "application/json; charset=utf-16",
            "application/jsonp",
            "application/json-patch+json",
            "",
        ] {
            assert_eq!(media(&[("content-type", name)]), Media::Other, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_something_else() {
        assert_eq!(media(&[]), Media::Other);
        let json = ("content-type", "application/json");
        assert_eq!(media(&[json, ("content-encoding", "gzip")]), Media::Other);
        assert_eq!(media(&[json, ("content-encoding", "identity")]), Media::Document);
        assert_eq!(media(&[json, ("content-type", "text/plain")]), Media::Other);
    }
}
