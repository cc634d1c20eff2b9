//! What came back over HTTP/1.1, read as far as it takes to judge it.

use super::chunked::Chunked;
use anyhow::{Context as _, bail, ensure};
use httparse::{Header, ParserConfig, Status};
use std::mem::MaybeUninit;

const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A response, fed with what the reads brought.
#[derive(Debug)]
pub(super) struct Response {
    at: At,
    /// A head that came in more than one read.
    head: Vec<u8>,
    status: u16,
    body: u64,
    keeps_alive: bool,
}

#[derive(Debug)]
enum At {
    Head,
    /// So much is missing.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

impl Response {
    pub(super) fn new() -> Self {
        Self { at: At::Head, head: Vec::new(), status: 0, body: 0, keeps_alive: true }
    }

    /// Whether it is whole.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    /// Whether any of it has come, but for 1xx.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.at, At::Head) || !self.head.is_empty()
    }

    /// Whether another request may follow on its connection.
    pub(super) fn keeps_alive(&self) -> bool {
        self.is_done() && self.keeps_alive
    }

    /// Takes what one read brought; nothing means that the connection was closed.
    ///
    /// Gives the bytes of the body of a good response among it.
    pub(super) fn feed(&mut self, mut input: &[u8]) -> anyhow::Result<u64> {
        if input.is_empty() {
            return self.end().map(|()| 0);
        }
        let before = self.body;
        while !input.is_empty() {
            match &mut self.at {
                At::Head => self.take_head(&mut input)?,
                At::Length(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    input = &input[length..];
                    *left -= length as u64;
                    self.body += length as u64;
                    if *left == 0 {
                        self.at = At::Done;
                    }
                }
                At::Chunked(chunked) => {
                    self.body += chunked.next(&mut input)?.len() as u64;
                    if chunked.is_done() {
                        self.at = At::Done;
                    }
                }
                At::UntilClose => self.body += std::mem::take(&mut input).len() as u64,
                At::Done => bail!("{} bytes behind the response", input.len()),
            }
        }
        Ok(if self.is_success() { self.body - before } else { 0 })
    }

    /// Whether it is what was asked for; `expected` is the length of the body if it matters.
    pub(super) fn verdict(&self, expected: Option<u64>) -> anyhow::Result<()> {
        ensure!(self.is_success(), "status {}", self.status);
        match expected {
            Some(expected) if expected != self.body => bail!("a body of {} bytes, not {expected}", self.body),
            _ => Ok(()),
        }
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        match &self.at {
            At::Head if self.head.is_empty() => bail!("the connection was closed instead of an answer"),
            At::Head => bail!("the connection was closed within a response's head"),
            At::UntilClose => {
                self.at = At::Done;
                Ok(())
            }
            At::Length(_) | At::Chunked(_) => bail!("the body was cut off after {} bytes", self.body),
            At::Done => Ok(()),
        }
    }

    fn take_head(&mut self, input: &mut &[u8]) -> anyhow::Result<()> {
        if self.head.is_empty() {
            match Head::parse(input)? {
                Some((length, head)) => {
                    *input = &input[length..];
                    self.enter(head);
                }
                None => self.head = std::mem::take(input).to_vec(),
            }
            return Ok(());
        }
        let known = self.head.len();
        self.head.extend_from_slice(input);
        ensure!(known <= HEAD_BYTES_MAX, "a response's head of more than {HEAD_BYTES_MAX} bytes");
        match Head::parse(&self.head)? {
            Some((length, head)) => {
                *input = &input[length - known..];
                self.head.clear();
                self.enter(head);
            }
            None => *input = &[],
        }
        Ok(())
    }

    fn enter(&mut self, head: Head) {
        if (100..200).contains(&head.status) {
            return;
        }
        self.status = head.status;
        self.at = match (head.status, head.is_chunked, head.length) {
            (204 | 304, ..) | (_, false, Some(0)) => At::Done,
            (_, true, _) => At::Chunked(Chunked::default()),
            (_, false, Some(length)) => At::Length(length),
            (_, false, None) => At::UntilClose,
        };
        self.keeps_alive = head.keeps_alive && !matches!(self.at, At::UntilClose);
    }
}

/// What matters of a head.
struct Head {
    status: u16,
    length: Option<u64>,
    is_chunked: bool,
    keeps_alive: bool,
}

impl Head {
    /// With its length, when it is whole.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<(usize, Self)>> {
        // Not zeroed: two KiB for each response would show.
        let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let config = ParserConfig::default();
        let status = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut headers);
        let Status::Complete(length) = status.context("no HTTP/1 response")? else { return Ok(None) };
        let mut head = Self {
            status: parsed.code.unwrap_or_default(),
            length: None,
            is_chunked: false,
            keeps_alive: parsed.version == Some(1),
        };
        for header in parsed.headers {
            head.take(header)?;
        }
        Ok(Some((length, head)))
    }

    fn take(&mut self, header: &Header<'_>) -> anyhow::Result<()> {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).context("Content-Length")?;
            self.length = Some(text.trim().parse().context("Content-Length")?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            self.is_chunked = header.value.eq_ignore_ascii_case(b"chunked");
            ensure!(self.is_chunked, "a transfer encoding that was not asked for");
        } else if header.name.eq_ignore_ascii_case("connection") {
            if header.value.eq_ignore_ascii_case(b"close") {
                self.keeps_alive = false;
            } else if header.value.eq_ignore_ascii_case(b"keep-alive") {
                self.keeps_alive = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Response;

    fn read(reads: &[&[u8]]) -> anyhow::Result<Response> {
        let mut response = Response::new();
        for read in reads {
            response.feed(read)?;
        }
        Ok(response)
    }

    #[test]
    fn responses_wherever_they_are_cut() {
        let texts: [&[u8]; 3] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 5\r\n\r\nhello",
        ];
        for text in texts {
            for cut in 1..text.len() {
                let (left, right) = text.split_at(cut);
                let response = read(&[left, right]).unwrap();
                assert!(response.keeps_alive(), "cut at {cut}");
                response.verdict(Some(5)).unwrap();
                assert!(response.verdict(Some(4)).is_err());
                assert!(!read(&[left]).unwrap().is_done());
                assert!(read(&[left, b""]).is_err());
            }
        }
    }

    #[test]
    fn what_ends_a_connection() {
        let closing = read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]).unwrap();
        assert!(closing.is_done() && !closing.keeps_alive());
        let old = read(&[b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo", b""]).unwrap();
        assert!(old.is_done() && !old.keeps_alive());
        old.verdict(Some(5)).unwrap();
    }

    #[test]
    fn what_is_no_answer() {
        assert!(read(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"]).is_err());
        assert!(read(&[b"SSH-2.0-OpenSSH\r\n"]).is_err());
        assert!(read(&[b""]).is_err());
        let refused = read(&[b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nsorry"]).unwrap();
        assert!(refused.keeps_alive());
        assert!(refused.verdict(None).is_err());
    }
}
