//! From a request's path to a place under the data directory, and back.
//!
//! Each segment of the URL becomes one file system name out of a small alphabet; everything else is percent-encoded,
//! a leading dot too. So no name can be `.`, `..` or hidden, none holds a slash, and a path can't leave the directory.
//! Names of objects end in `@data` and `@meta`; `@` never appears in an encoded segment, so the object `a` and the
//! directory of the object `a/b` don't collide.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Longest encoded segment, in bytes: with its suffix below the 255 of common file systems.
const SEGMENT_MAX: usize = 240;
/// Longest path, in encoded bytes.
const PATH_MAX: usize = 2048;
/// The name of an empty segment (`//`, or a path that ends with a slash).
const EMPTY: &str = "@";
const DATA: &str = "@data";
const META: &str = "@meta";

/// An object's name on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ObjectPath {
    directories: PathBuf,
    name: String,
}

/// Why a request's path can't name an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathError {
    #[error("the path has a malformed percent-encoding")]
    Encoding,
    #[error("the path is too long to be stored")]
    TooLong,
}

impl ObjectPath {
    /// Takes the path of a request's URI (RFC 3986, 3.3). Equivalent percent-encodings name the same object.
    pub(super) fn parse(uri_path: &str) -> Result<Self, PathError> {
        let path = uri_path.strip_prefix('/').unwrap_or(uri_path);
        if path.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        let mut directories = PathBuf::new();
        let mut segments = path.split('/').map(encode_segment);
        let mut name = segments.next().unwrap_or_else(|| Ok(String::new()))?;
        for next in segments {
            directories.push(if name.is_empty() { EMPTY } else { &name });
            name = next?;
        }
        if directories.as_os_str().len() + name.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        Ok(Self { directories, name })
    }

    /// The directory that holds it, relative to the root.
    pub(super) fn directory(&self) -> &Path {
        &self.directories
    }

    /// The bytes as they were sent.
    pub(super) fn data(&self) -> PathBuf {
        self.directories.join(format!("{}{DATA}", self.name))
    }

    /// What HTTP has to know beside them.
    pub(super) fn meta(&self) -> PathBuf {
        self.directories.join(format!("{}{META}", self.name))
    }

    /// The directory of the objects whose paths begin with this one and a slash.
    pub(super) fn children(&self) -> PathBuf {
        if self.name.is_empty() { self.directories.clone() } else { self.directories.join(&self.name) }
    }
}

/// The URL path (still percent-encoded) of a data file, or `None` for any other file.
pub(super) fn url_path_of(relative: &Path) -> Option<String> {
    let mut url = String::new();
    for part in relative.iter() {
        let part = part.to_str()?;
        url.push('/');
        url.push_str(if part == EMPTY { "" } else { part });
    }
    url.strip_suffix(DATA).map(str::to_owned)
}

fn encode_segment(segment: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let high = bytes.next().and_then(hex_digit).ok_or(PathError::Encoding)?;
            let low = bytes.next().and_then(hex_digit).ok_or(PathError::Encoding)?;
            high << 4 | low
        } else {
            byte
        };
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'+' | b'=' | b',');
        if plain || (byte == b'.' && !out.is_empty()) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String can't fail");
        }
    }
    if out.len() > SEGMENT_MAX { Err(PathError::TooLong) } else { Ok(out) }
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Component;

    fn data(path: &str) -> String {
        ObjectPath::parse(path).unwrap().data().to_str().unwrap().to_owned()
    }

    #[test]
    fn names_are_readable() {
        assert_eq!(data("/objects/x.bin"), "objects/x.bin@data");
        assert_eq!(data("/"), "@data");
        assert_eq!(data("/a/"), "a/@data");
        assert_eq!(data("//a"), "@/a@data");
    }

    #[test]
    fn no_path_leaves_the_directory() {
        for path in [
            "/../x",
            "/..",
            "/a/../../x",
            "/%2e%2e/x",
            "/a%2f..%2fb",
            "/.hidden",
            "/a%00b",
            "/..%2f..",
            "/a\\b",
        ] {
            let place = ObjectPath::parse(path).unwrap();
            for file in [place.data(), place.meta(), place.children()] {
                assert!(
                    file.components().all(|part| matches!(part, Component::Normal(_))),
                    "{path} became {}",
                    file.display()
                );
                assert!(!file.to_str().unwrap().contains("/."), "{path} became {}", file.display());
            }
        }
    }

    #[test]
    fn equivalent_encodings_are_one_object_and_a_slash_is_not_its_encoding() {
        assert_eq!(data("/%41"), data("/A"));
        assert_eq!(data("/%c3%a9"), data("/%C3%A9"));
        assert_ne!(data("/a%2Fb"), data("/a/b"));
    }

    #[test]
    fn an_object_and_its_children_do_not_collide() {
        let parent = ObjectPath::parse("/a").unwrap();
        let child = ObjectPath::parse("/a/b").unwrap();
        assert_ne!(parent.data(), child.directory());
        assert_eq!(parent.children(), child.directory());
        assert_ne!(ObjectPath::parse("/a@data/b").unwrap().directory(), parent.data());
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        assert_eq!(ObjectPath::parse("/%4"), Err(PathError::Encoding));
        assert_eq!(ObjectPath::parse("/%zz"), Err(PathError::Encoding));
        assert_eq!(ObjectPath::parse(&format!("/{}", "a".repeat(241))), Err(PathError::TooLong));
        assert_eq!(ObjectPath::parse(&"/a".repeat(1025)), Err(PathError::TooLong));
    }

    #[test]
    fn the_way_back_gives_the_url_path() {
        for path in ["/objects/x", "/", "/a/", "//a", "/a%2Fb/c%20d", "/%2E./x"] {
            assert_eq!(url_path_of(&ObjectPath::parse(path).unwrap().data()).as_deref(), Some(path));
            assert_eq!(url_path_of(&ObjectPath::parse(path).unwrap().meta()), None);
        }
    }
}
