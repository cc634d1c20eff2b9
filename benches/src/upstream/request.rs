//! The heads of requests.

use anyhow::{Context as _, ensure};
use httparse::{Header, ParserConfig, Status};
use std::mem::MaybeUninit;

const HEADERS_MAX: usize = 96;

/// The largest head that is read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What matters of a request's head.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) framing: Framing,
    pub(super) keeps_alive: bool,
    /// HTTP/1.0: has to be told that the connection stays.
    pub(super) is_old: bool,
    pub(super) expects_continue: bool,
    pub(super) range: Option<Range>,
    pub(super) if_range: Option<String>,
    /// WebDAV's `Depth: 0`.
    pub(super) is_shallow: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Put,
    Delete,
    Options,
    Propfind,
    Mkcol,
    Other,
}

/// How the body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// One range of bytes, as it is asked for (RFC 9110, section 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// From the first up to and with the second, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl Request {
    /// With its length, when it is whole.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Option<(usize, Self)>> {
        let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        let config = ParserConfig::default();
        let Status::Complete(length) = config
            .parse_request_with_uninit_headers(&mut parsed, bytes, &mut headers)
            .context("no HTTP/1 request")?
        else {
            ensure!(bytes.len() <= HEAD_BYTES_MAX, "a head of more than {HEAD_BYTES_MAX} bytes");
            return Ok(None);
        };
        let is_old = parsed.version == Some(0);
        let mut request = Self {
            method: Method::of(parsed.method.unwrap_or_default()),
            path: path(parsed.path.unwrap_or_default()),
            framing: Framing::Length(0),
            keeps_alive: !is_old,
            is_old,
            expects_continue: false,
            range: None,
            if_range: None,
            is_shallow: false,
        };
        for header in parsed.headers {
            request.take(header)?;
        }
        Ok(Some((length, request)))
    }

    fn take(&mut self, header: &Header<'_>) -> anyhow::Result<()> {
        let (name, value) = (header.name, header.value.trim_ascii());
        // By length first: most headers that a proxy adds are none of these.
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") && self.framing != Framing::Chunked => {
                self.framing =
                    Framing::Length(std::str::from_utf8(value)?.parse().context("Content-Length")?);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                ensure!(value.eq_ignore_ascii_case(b"chunked"), "a transfer encoding that is not known");
                self.framing = Framing::Chunked;
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                let mut options = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
                let closes = options.clone().any(|option| option.eq_ignore_ascii_case(b"close"));
                let stays = options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
                self.keeps_alive = !closes && (self.keeps_alive || stays);
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                self.expects_continue = value.eq_ignore_ascii_case(b"100-continue") && !self.is_old;
            }
            5 if name.eq_ignore_ascii_case("range") => self.range = Range::parse(value),
            8 if name.eq_ignore_ascii_case("if-range") => {
                self.if_range = Some(String::from_utf8_lossy(value).into_owned());
            }
            5 if name.eq_ignore_ascii_case("depth") => self.is_shallow = value == b"0",
            _ => {}
        }
        Ok(())
    }
}

/// Of a target in either form that proxies send, without the query.
fn path(target: &str) -> String {
    let target =
        target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    target.split('?').next().unwrap_or_default().to_owned()
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "PROPFIND" => Self::Propfind,
            "MKCOL" => Self::Mkcol,
            _ => Self::Other,
        }
    }
}

impl Range {
    /// A single range; several, or what is none, are as if not asked for.
    fn parse(value: &[u8]) -> Option<Self> {
        let (first, last) = std::str::from_utf8(value).ok()?.strip_prefix("bytes=")?.split_once('-')?;
        match (first, last) {
            ("", last) => Some(Self::Last(last.parse().ok()?)),
            (first, "") => Some(Self::From(first.parse().ok()?, None)),
            (first, last) => {
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The first byte and the one behind the last, of a body of `length` bytes; nothing if none of it is there.
    pub(super) fn resolve(self, length: u64) -> Option<(u64, u64)> {
        let (from, to) = match self {
            Self::From(first, last) => {
                (first, last.map_or(length, |last| last.saturating_add(1).min(length)))
            }
            Self::Last(count) => (length.saturating_sub(count), length),
        };
        (from < to).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::{Framing, Method, Range, Request, path};

    #[test]
    fn heads_of_proxies() {
        let text =
            b"PUT /objects/a?b HTTP/1.0\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
        let (length, request) = Request::parse(text).unwrap().unwrap();
        assert_eq!(length, text.len() - 5);
        assert_eq!((request.method, request.path.as_str()), (Method::Put, "/objects/a"));
        assert_eq!((request.framing, request.keeps_alive, request.is_old), (Framing::Length(5), false, true));
        assert!(Request::parse(&text[..length - 1]).unwrap().is_none());
        let chunked = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
        let (_, request) = Request::parse(chunked).unwrap().unwrap();
        assert!(request.expects_continue && request.keeps_alive);
        assert_eq!(request.framing, Framing::Chunked);
        assert_eq!(path("http://localhost:80/plain/1"), "/plain/1");
    }

    #[test]
    fn ranges() {
        let resolve = |text: &str| Range::parse(text.as_bytes()).map(|range| range.resolve(10));
        assert_eq!(resolve("bytes=0-3"), Some(Some((0, 4))));
        assert_eq!(resolve("bytes=8-99"), Some(Some((8, 10))));
        assert_eq!(resolve("bytes=4-"), Some(Some((4, 10))));
        assert_eq!(resolve("bytes=-3"), Some(Some((7, 10))));
        assert_eq!(resolve("bytes=10-"), Some(None));
        assert_eq!(resolve("bytes=-0"), Some(None));
        assert_eq!(resolve("bytes=3-2"), None);
        assert_eq!(resolve("bytes=0-1,3-4"), None);
        assert_eq!(resolve("lines=0-1"), None);
    }
}
