//! Path patterns, and the normal form that a path might take at the upstream.

use percent_encoding::percent_decode_str;

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

/// What upstreams may make of a path: `Ok` with every other reading of it, usually none.
///
/// Servers differ in whether they decode (and a server behind another proxy may decode twice), take a backslash for a
/// slash, merge slashes, or drop path parameters (`;a=b`) first. Each combination is one reading.
///
/// # Errors
/// If any reading has a dot segment: what it resolves to depends on the order of all the rest (RFC 3986, 5.2.4).
pub(super) fn readings(path: &str) -> Result<Vec<String>, DotSegment> {
    let plain = !path.contains(['%', '\\', ';']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut decoded = path.to_owned();
    for level in 0..3 {
        if level > 0 {
            decoded = percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
        }
        let slashed = decoded.replace('\\', "/");
        let has_dots = slashed.split('/').any(|part| matches!(part.split(';').next(), Some("." | "..")));
        if has_dots {
            return Err(DotSegment);
        }
        for text in [decoded.as_str(), slashed.as_str()] {
            for (merge, strip) in [(false, false), (false, true), (true, false), (true, true)] {
                let reading = read(text, merge, strip);
                if reading != path && !found.contains(&reading) {
                    found.push(reading);
                }
            }
        }
    }
    Ok(found)
}

/// A path with `.` or `..` in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DotSegment;

fn read(path: &str, merge_slashes: bool, strip_parameters: bool) -> String {
    let rest = path.strip_prefix('/').unwrap_or(path);
    let parts = rest
        .split('/')
        .map(|part| if strip_parameters { part.split(';').next().unwrap_or_default() } else { part });
    let last = rest.split('/').count() - 1;
    let mut reading = String::with_capacity(path.len());
    for (n, part) in parts.enumerate() {
        // The end of `/a/` is no empty segment in between.
        if merge_slashes && part.is_empty() && n != last {
            continue;
        }
        reading.push('/');
        reading.push_str(part);
    }
    reading
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
    fn every_reading_of_a_path_is_found() {
        for path in ["/objects/x", "/a.b/c", "/a/", "/.well-known/x"] {
            assert_eq!(readings(path), Ok(Vec::new()), "{path}");
        }
        for (path, reading) in [
            ("//objects/x", "/objects/x"),
            ("/%6fbjects/x", "/objects/x"),
            ("/%256fbjects/x", "/objects/x"),
            ("/objects\\x", "/objects/x"),
            ("/objects;v=1/x", "/objects/x"),
            ("/objects%3bv=1/x", "/objects/x"),
            ("/a%2Fb", "/a/b"),
            ("/a//b/", "/a/b/"),
        ] {
            let found = readings(path).unwrap();
            assert!(found.iter().any(|found| found == reading), "{path}: {found:?}");
        }
        for path in [
            "/x/../objects/y",
            "/x/%2e%2e/objects",
            "/x/%252e%252e/objects",
            "/x\\..\\objects",
            "/z/../objects//../pub/x",
            "/x/objects/..;/pub/y",
            "/x/./y",
            "/..",
        ] {
            assert_eq!(readings(path), Err(DotSegment), "{path}");
        }
    }
}
