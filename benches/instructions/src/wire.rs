//! As much of HTTP/1.1 as the client and the upstream of this harness need: heads, and bodies with a Content-Length.

use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing takes longer, even under valgrind.
const TIMEOUT: Duration = Duration::from_secs(60);
const HEADERS_MAX: usize = 32;

/// A connection, and what was read beyond the last message.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What was received.
pub(crate) struct Message {
    /// `GET` and the target, or the status and nothing.
    pub(crate) start: (String, String),
    pub(crate) body: Vec<u8>,
}

/// Which kind of message is expected.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Request,
    Response,
}

impl Connection {
    /// Over a stream that is connected.
    pub(crate) fn over(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// To a server.
    pub(crate) fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self::over(stream)?)
    }

    /// Sends a whole message with one write, so that the other side wakes up once.
    pub(crate) fn send(&mut self, message: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(message)
    }

    /// Sends a request and gives status and body of the response.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        self.send(request).context("sending a request")?;
        let response =
            self.receive(Kind::Response)?.context("the connection was closed instead of an answer")?;
        Ok((response.start.0.parse().context("a status")?, response.body))
    }

    /// The next message; `None` if the other side has closed in between.
    pub(crate) fn receive(&mut self, kind: Kind) -> anyhow::Result<Option<Message>> {
        loop {
            if let Some((start, head_len, body_len)) = head(&self.read, kind)? {
                while self.read.len() < head_len + body_len {
                    ensure!(self.fill()? > 0, "the connection was closed within a body");
                }
                let body = self.read[head_len..head_len + body_len].to_vec();
                self.read.drain(..head_len + body_len);
                return Ok(Some(Message { start, body }));
            }
            if self.fill()? == 0 {
                ensure!(self.read.is_empty(), "the connection was closed within a head");
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> anyhow::Result<usize> {
        let mut chunk = [0; 64 * 1024];
        let n = self.stream.read(&mut chunk).context("reading from a connection")?;
        self.read.extend_from_slice(&chunk[..n]);
        Ok(n)
    }
}

/// Start line, length of the head, length of the body; `None` if the head is not whole yet.
type Head = ((String, String), usize, usize);

fn head(bytes: &[u8], kind: Kind) -> anyhow::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let (start, status, headers) = match kind {
        Kind::Request => {
            let mut request = httparse::Request::new(&mut headers);
            let status = request.parse(bytes).context("reading a request")?;
            let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
            ((text(request.method), text(request.path)), status, request.headers)
        }
        Kind::Response => {
            let mut response = httparse::Response::new(&mut headers);
            let status = response.parse(bytes).context("reading a response")?;
            ((response.code.unwrap_or_default().to_string(), String::new()), status, response.headers)
        }
    };
    let httparse::Status::Complete(head_len) = status else { return Ok(None) };
    let mut body_len = 0;
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            body_len = std::str::from_utf8(header.value)?.parse().context("Content-Length")?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("a chunked body, though its length was known");
        }
    }
    Ok(Some((start, head_len, body_len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let request = b"PUT /a HTTP/1.1\r\nhost: x\r\nContent-Length: 3\r\n\r\nabc";
        let (start, head_len, body_len) = head(request, Kind::Request).unwrap().unwrap();
        assert_eq!((start.0.as_str(), start.1.as_str()), ("PUT", "/a"));
        assert_eq!((&request[head_len..], body_len), (&b"abc"[..], 3));
        assert!(head(&request[..20], Kind::Request).unwrap().is_none());
        let response = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(head(response, Kind::Response).is_err());
    }
}
