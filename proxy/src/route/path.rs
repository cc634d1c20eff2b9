//! Path patterns, and the normal form that a path might take at the upstream.

use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// `/objects/**`: segments to match one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    /// Ends in `**`: any number of segments may follow, none included.
    open_ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Any,
    Exact(String),
}

impl PathPattern {
    /// Reads a pattern: `/` and segments, `*` for any one segment, `**` at the end for any number of them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else { return Err(format!("{text:?} must begin with /")) };
        let mut parts: Vec<&str> = rest.split('/').collect();
        let open_ended = parts.last() == Some(&"**");
        if open_ended {
            parts.pop();
        }
        let segments = parts
            .into_iter()
            .map(|part| match part {
                "*" => Ok(Segment::Any),
                part if part.contains('*') => {
                    Err(format!("{text:?}: * stands for a whole segment, ** for the last ones"))
                }
                part => Ok(Segment::Exact(part.to_owned())),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { segments, open_ended })
    }

    /// Whether the path of a request (no query) matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let mut parts = rest.split('/');
        for segment in &self.segments {
            match (segment, parts.next()) {
                (_, None) => return false,
                (Segment::Any, Some("")) => return false,
                (Segment::Exact(exact), Some(part)) if exact != part => return false,
                _ => {}
            }
        }
        self.open_ended || parts.next().is_none()
    }
}

/// What an upstream may make of the path: percent-encodings decoded, backslashes and repeated slashes as one, dot
/// segments resolved (RFC 3986, 5.2.4 and 6.2.2). `None` if that is the path itself, as it nearly always is.
pub(super) fn normalised(path: &str) -> Option<String> {
    let plain = !path.contains(['%', '\\', ';']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return None;
    }
    let mut decoded: Cow<'_, str> = path.into();
    // Twice: an upstream behind another proxy may decode what that one has decoded.
    for _ in 0..2 {
        let next = percent_decode_str(&decoded).decode_utf8_lossy().replace('\\', "/");
        decoded = next.into();
    }
    let mut segments: Vec<&str> = Vec::new();
    for part in decoded.split('/') {
        // Path parameters (`;a=b`) are dropped by some servers before they look at the path.
        match part.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            part => segments.push(part),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if decoded.ends_with('/') || normal.is_empty() {
        normal.push('/');
    }
    (normal != path).then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, matches) in [
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/objects/**", "/objects/x/y", true),
            ("/objects/**", "/objects/", true),
            ("/objects/**", "/objects", true),
            ("/objects/**", "/objectsx", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a//c", false),
            ("/a/*/c", "/a/b/d", false),
            ("/a", "/a/b", false),
            ("/a", "*", false),
        ] {
            assert_eq!(PathPattern::parse(pattern).unwrap().matches(path), matches, "{pattern} {path}");
        }
        for bad in ["objects", "/a*b", "/**/x"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn normal_forms() {
        for (path, normal) in [
            ("/objects/x", None),
            ("/a.b/c", None),
            ("//objects/x", Some("/objects/x")),
            ("/x/../objects/y", Some("/objects/y")),
            ("/%6fbjects/x", Some("/objects/x")),
            ("/x/%2e%2e/objects", Some("/objects")),
            ("/x/%252e%252e/objects", Some("/objects")),
            ("/x\\..\\objects", Some("/objects")),
            ("/objects;v=1/x", Some("/objects/x")),
            ("/..", Some("/")),
            ("/a%2Fb", Some("/a/b")),
        ] {
            assert_eq!(normalised(path).as_deref(), normal, "{path}");
        }
    }
}
