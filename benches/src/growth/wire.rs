//! Single requests of the harness's own, beside the load: to store what is read later, to fill a cache, to ask an admin
//! port. Blocking, HTTP/1.1, one connection.

use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing that is asked here takes longer without a byte.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// What an upload consists of, over and over.
static BLOCK: [u8; 64 * 1024] = [0x5a; 64 * 1024];

/// A connection that is asked one thing after the other.
#[derive(Debug)]
pub(super) struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_MAX)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// GET; the status and the body.
    pub(super) fn get(&mut self, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"), 0)
            .and_then(|()| self.answer())
            .with_context(|| format!("GET {path}"))
    }

    /// PUT of `length` bytes, for a tenant if there is one.
    pub(super) fn put(&mut self, path: &str, length: u64, tenant: Option<&str>) -> anyhow::Result<()> {
        let tenant = tenant.map(|tenant| format!("x-tenant: {tenant}\r\n")).unwrap_or_default();
        let head =
            format!("PUT {path} HTTP/1.1\r\nhost: localhost\r\n{tenant}content-length: {length}\r\n\r\n");
        let (status, body) =
            self.send(&head, length).and_then(|()| self.answer()).with_context(|| format!("PUT {path}"))?;
        ensure!(
            (200..300).contains(&status),
            "PUT {path}: status {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }

    fn send(&mut self, head: &str, mut body: u64) -> anyhow::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        while body > 0 {
            let length = usize::try_from(body).unwrap_or(usize::MAX).min(BLOCK.len());
            stream.write_all(&BLOCK[..length])?;
            body -= length as u64;
        }
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<(u16, Vec<u8>)> {
        let status = self.line()?;
        let status: u16 =
            status.split(' ').nth(1).context("no status line")?.parse().context("no status in it")?;
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("content-length")?;
            }
            is_chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        if status == 204 {
            return Ok((status, Vec::new()));
        }
        if is_chunked {
            return Ok((status, self.chunks()?));
        }
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body)?;
        ensure!(body.len() as u64 == length, "the body was cut off after {} bytes", body.len());
        Ok((status, body))
    }

    fn chunks(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = u64::from_str_radix(self.line()?.trim(), 16).context("a chunk's size")?;
            (&mut self.stream).take(size).read_to_end(&mut body)?;
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed instead of an answer");
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::Wire;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn answered(answer: &'static str) -> anyhow::Result<(u16, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let answer = Wire::connect(address).unwrap().get("/");
        server.join().unwrap();
        answer
    }

    #[test]
    fn whole_answers() {
        let length = answered("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready").unwrap();
        assert_eq!(length, (200, b"ready".to_vec()));
        let chunked = answered("HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n");
        assert_eq!(chunked.unwrap(), (503, b"ready".to_vec()));
    }

    #[test]
    fn cut_off_answers() {
        assert!(answered("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready").is_err());
        assert!(answered("").is_err());
    }
}
