//! Where in a stream of HTTP/1.1 requests a connection stands. Pure: bytes in, faults out.

use super::Fault;
use std::mem::MaybeUninit;

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As many headers as hyper takes, and some more: past that hyper refuses by itself.
const HEADERS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Tracker {
    state: State,
    head: Vec<u8>,
    head_max: usize,
    /// Heads that have ended.
    heads: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A request, if the client has one more.
    BeforeHead,
    /// The rest of a head that has begun.
    InHead,
    /// Content, or what this does not follow.
    Elsewhere,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Body bytes still to come.
    Sized(u64),
    /// In a chunk's size line; digits so far, and whether they have ended.
    ChunkSize {
        size: u64,
        ended: bool,
    },
    /// Chunk bytes still to come, the CRLF behind them included.
    Chunk(u64),
    /// In the trailers; bytes in the current line.
    Trailers {
        line: usize,
    },
    /// A head that is refused, here or by hyper. Its connection ends; what else comes on it is not followed.
    Refused,
    /// HTTP/2.
    Off,
}

impl Tracker {
    pub(super) fn new(head_max: usize) -> Self {
        Self { state: State::Head, head: Vec::new(), head_max, heads: 0 }
    }

    pub(super) fn place(&self) -> Place {
        match self.state {
            State::Head if self.head.is_empty() => Place::BeforeHead,
            // One that is refused before its end may never get there.
            State::Head | State::Refused => Place::InHead,
            _ => Place::Elsewhere,
        }
    }

    /// Heads that have ended so far.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Follows the bytes; gives the first fault in them.
    pub(super) fn take_in(&mut self, mut bytes: &[u8]) -> Option<Fault> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Off | State::Refused => return None,
                State::Head => {
                    let (rest, fault) = self.take_head(bytes);
                    bytes = rest;
                    if fault.is_some() {
                        self.head = Vec::new();
                        self.state = State::Refused;
                        return fault;
                    }
                }
                State::Sized(left) | State::Chunk(left) => {
                    let skip = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= skip as u64;
                    bytes = &bytes[skip..];
                    if *left == 0 {
                        self.state = match self.state {
                            State::Chunk(_) => State::ChunkSize { size: 0, ended: false },
                            _ => State::Head,
                        };
                    }
                }
                State::ChunkSize { .. } | State::Trailers { .. } => {
                    self.take_framing_byte(bytes[0]);
                    bytes = &bytes[1..];
                }
            }
        }
        None
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], Option<Fault>) {
        // Empty lines in front of a request are skipped (RFC 9112, 2.2).
        let bytes = if self.head.is_empty() {
            let skip = bytes.iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count();
            &bytes[skip..]
        } else {
            bytes
        };
        // Nearly every head comes in one piece, and is looked at where it stands.
        if self.head.is_empty()
            && !bytes.starts_with(&H2_PREFACE[..3])
            && let Some(end) = head_end(bytes, 0)
        {
            let fault =
                if end > self.head_max { Some(Fault::TooLarge) } else { self.enter_body(&bytes[..end]) };
            return (&bytes[end..], fault);
        }
        let seen = self.head.len();
        self.head.extend_from_slice(bytes);
        let same = self.head.len().min(H2_PREFACE.len());
        if self.head[..same] == H2_PREFACE[..same] && same >= 3 {
            if same == H2_PREFACE.len() {
                self.head = Vec::new();
                self.state = State::Off;
            }
            return (&[], None);
        }
        let Some(end) = head_end(&self.head, seen) else {
            let fault = (self.head.len() > self.head_max).then_some(Fault::TooLarge);
            return (&[], fault);
        };
        let head = std::mem::take(&mut self.head);
        let fault = if end > self.head_max { Some(Fault::TooLarge) } else { self.enter_body(&head[..end]) };
        (&bytes[end - seen..], fault)
    }

    fn enter_body(&mut self, head: &[u8]) -> Option<Fault> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(head, &mut headers);
        self.heads += 1;
        if !matches!(parsed, Ok(httparse::Status::Complete(_))) {
            self.state = State::Refused;
            return None;
        }
        let mut length = None;
        let mut chunked = false;
        for header in request.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).unwrap_or_default();
                length = Some(text.trim().parse::<u64>().unwrap_or(0));
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = true;
            }
        }
        if chunked && length.is_some() {
            return Some(Fault::Ambiguous);
        }
        self.state = match length {
            _ if chunked => State::ChunkSize { size: 0, ended: false },
            Some(length) if length > 0 => State::Sized(length),
            _ => State::Head,
        };
        None
    }

    fn take_framing_byte(&mut self, byte: u8) {
        self.state = match (&self.state, byte) {
            (State::ChunkSize { size: 0, .. }, b'\n') => State::Trailers { line: 0 },
            (State::ChunkSize { size, .. }, b'\n') => State::Chunk(size.saturating_add(2)),
            (State::ChunkSize { size, ended }, byte) => {
                let digit = char::from(byte).to_digit(16).filter(|_| !ended);
                match digit {
                    Some(digit) => State::ChunkSize {
                        size: size.saturating_mul(16).saturating_add(u64::from(digit)),
                        ended: false,
                    },
                    None => State::ChunkSize { size: *size, ended: true },
                }
            }
            (State::Trailers { line: 0 }, b'\n') => State::Head,
            (State::Trailers { .. }, b'\n') => State::Trailers { line: 0 },
            (State::Trailers { line }, b'\r') => State::Trailers { line: *line },
            (State::Trailers { line }, _) => State::Trailers { line: line + 1 },
            _ => State::Refused,
        };
    }
}

/// The end of a head: behind the empty line. Looks only where a new end could be.
fn head_end(head: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    // A line that ends where the one before it ended; hyper's parser takes bare line feeds as well.
    memchr::memchr_iter(b'\n', &head[from..]).map(|at| from + at).find_map(|at| match head.get(at + 1)? {
        b'\n' => Some(at + 2),
        b'\r' if head.get(at + 2) == Some(&b'\n') => Some(at + 3),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All splits of the stream into two, and byte by byte, come to the same.
    fn faults(stream: &[u8]) -> Option<Fault> {
        let mut whole = Tracker::new(1024);
        let expected = whole.take_in(stream);
        for at in 0..stream.len() {
            let mut split = Tracker::new(1024);
            let found = split.take_in(&stream[..at]).or_else(|| split.take_in(&stream[at..]));
            assert_eq!(found, expected, "split at {at}");
        }
        let mut bytewise = Tracker::new(1024);
        assert_eq!(stream.iter().find_map(|byte| bytewise.take_in(&[*byte])), expected);
        expected
    }

    #[test]
    fn ambiguous_framing_is_found_wherever_it_stands() {
        let bad =
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let swapped = "POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n";
        let sized = "PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        let chunked = "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
        let get = "GET / HTTP/1.1\r\n\r\n";
        for stream in [
            bad.to_owned(),
            swapped.to_owned(),
            format!("{get}{bad}"),
            format!("{sized}{bad}"),
            format!("{chunked}{swapped}"),
            format!("\r\n{chunked}{get}{sized}{bad}"),
        ] {
            assert_eq!(faults(stream.as_bytes()), Some(Fault::Ambiguous), "{stream:?}");
        }
        assert_eq!(faults(format!("{get}{sized}{chunked}{get}").as_bytes()), None);
    }

    #[test]
    fn a_body_that_looks_like_a_request_is_a_body() {
        let inner = "POST /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sized = format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
        assert_eq!(faults(sized.as_bytes()), None);
        let chunked = format!(
            "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
            inner.len()
        );
        assert_eq!(faults(chunked.as_bytes()), None);
    }

    /// What a client's time runs on: it must not be wound up by bytes that lead to no request.
    #[test]
    fn places_and_heads() {
        let mut tracker = Tracker::new(1024);
        let mut after = |bytes: &[u8]| {
            tracker.take_in(bytes);
            (tracker.place(), tracker.heads())
        };
        assert_eq!(after(b"\r\n\r\n"), (Place::BeforeHead, 0));
        assert_eq!(after(b"GET / HT"), (Place::InHead, 0));
        assert_eq!(after(b"TP/1.1\r\n\r\nGET /"), (Place::InHead, 1));
        assert_eq!(after(b" HTTP/1.1\r\nContent-Length: 3\r\n\r\na"), (Place::Elsewhere, 2));
        assert_eq!(after(b"bc"), (Place::BeforeHead, 2));
        assert_eq!(after(format!("GET /{}", "x".repeat(2000)).as_bytes()), (Place::InHead, 2));
        assert_eq!(after(b"and more of it"), (Place::InHead, 2));
        let mut http2 = Tracker::new(1024);
        http2.take_in(H2_PREFACE);
        assert_eq!(http2.place(), Place::Elsewhere);
    }

    #[test]
    fn large_heads_and_http2() {
        let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(2000));
        assert_eq!(faults(large.as_bytes()), Some(Fault::TooLarge));
        let mut preface = H2_PREFACE.to_vec();
        preface.extend_from_slice(&[0; 5000]);
        assert_eq!(faults(&preface), None);
    }
}
