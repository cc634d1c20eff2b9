//! The store, byte by byte.

use super::Upstream;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

fn start() -> SocketAddr {
    let upstream = Upstream::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let address = upstream.address().unwrap();
    std::thread::spawn(move || upstream.run(None));
    address
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        // A test that waits for what never comes should say so.
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed: {head}");
        }
        head
    }

    /// Head and body of the response to `request`.
    fn ask(&mut self, request: impl AsRef<[u8]>) -> (String, Vec<u8>) {
        self.send(request.as_ref());
        let head = self.head();
        let length = field(&head, "Content-Length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; if request.as_ref().starts_with(b"HEAD") { 0 } else { length }];
        self.0.read_exact(&mut body).unwrap();
        (head, body)
    }

    /// Whether nothing comes but the end.
    fn ends(mut self) -> bool {
        self.0.read_to_end(&mut Vec::new()).unwrap() == 0
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[track_caller]
fn assert_status(answer: &(String, Vec<u8>), status: &str) {
    assert!(answer.0.starts_with(&format!("HTTP/1.1 {status} ")), "{}", answer.0);
}

#[test]
fn objects_are_kept_and_forgotten() {
    let mut client = Client::connect(start());
    assert_status(&client.ask("GET /objects/a HTTP/1.1\r\n\r\n"), "404");
    assert_status(&client.ask("PUT /objects/a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), "201");
    let first = client.ask("GET /objects/a HTTP/1.1\r\n\r\n");
    assert_status(&first, "200");
    assert_eq!(first.1, b"hello");
    assert_status(&client.ask("PUT /objects/a HTTP/1.1\r\nContent-Length: 6\r\n\r\nworld!"), "200");
    let second = client.ask("GET /objects/a?version=1 HTTP/1.1\r\n\r\n");
    assert_eq!(second.1, b"world!");
    assert_ne!(field(&first.0, "ETag"), field(&second.0, "ETag"));
    let head = client.ask("HEAD /objects/a HTTP/1.1\r\n\r\n");
    assert_eq!((field(&head.0, "Content-Length"), head.1.len()), (Some("6"), 0));
    assert_status(&client.ask("DELETE /objects/a HTTP/1.1\r\n\r\n"), "204");
    assert_status(&client.ask("GET /objects/a HTTP/1.1\r\n\r\n"), "404");
    assert_status(&client.ask("PUT /elsewhere HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"), "404");
    assert_status(&client.ask("BREW / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"), "405");
}

#[test]
fn large_objects_come_back_whole_and_in_parts() {
    let mut client = Client::connect(start());
    let body: Vec<u8> = (0_u32..300_000).flat_map(u32::to_le_bytes).collect();
    client.send(format!("PUT /objects/a HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    assert_status(&client.ask(&body), "201");
    let (head, whole) = client.ask("GET /objects/a HTTP/1.1\r\n\r\n");
    assert!(whole == body);
    let etag = field(&head, "ETag").unwrap();
    for (first, last) in [(0, 0), (0, 99), (262_000, 262_500), (1, 1_199_999), (262_144, 900_000)] {
        let part = client.ask(format!("GET /objects/a HTTP/1.1\r\nRange: bytes={first}-{last}\r\n\r\n"));
        assert_status(&part, "206");
        assert_eq!(field(&part.0, "Content-Range").unwrap(), format!("bytes {first}-{last}/1200000"));
        assert!(part.1 == body[first..=last], "{first} to {last}");
    }
    let ask = |condition: &str| {
        format!("GET /objects/a HTTP/1.1\r\nIf-Range: {condition}\r\nRange: bytes=-10\r\n\r\n")
    };
    assert_eq!(client.ask(ask(etag)).1, body[1_199_990..]);
    assert_eq!(client.ask(ask("\"other\"")).1.len(), body.len());
    let beyond = client.ask("GET /objects/a HTTP/1.1\r\nRange: bytes=1200000-\r\n\r\n");
    assert_status(&beyond, "416");
    assert_eq!(field(&beyond.0, "Content-Range"), Some("bytes */1200000"));
}

#[test]
fn chunked_and_expected_uploads() {
    let mut client = Client::connect(start());
    client.send(b"PUT /objects/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    // The next request comes with the same write.
    let last = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nGET /objects/a HTTP/1.1\r\n\r\n";
    assert_status(&client.ask(last), "201");
    assert_eq!(client.ask("").1, b"hello world");
}

#[test]
fn a_head_byte_by_byte() {
    let mut client = Client::connect(start());
    for byte in b"PUT /sink/a HTTP/1.1\r\nContent-Length: 1\r\n\r\n" {
        client.send(&[*byte]);
    }
    assert_status(&client.ask("x"), "200");
}

#[test]
fn plain_bytes() {
    let mut client = Client::connect(start());
    for size in [0, 1, 1024, 16_385, 1_000_000] {
        assert_eq!(client.ask(format!("GET /plain/{size} HTTP/1.1\r\n\r\n")).1, vec![0; size]);
    }
    assert_status(&client.ask("GET /plain/many HTTP/1.1\r\n\r\n"), "404");
}

#[test]
fn how_connections_end() {
    let address = start();
    for request in [
        "GET /plain/10 HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /plain/10 HTTP/1.0\r\n\r\n",
        "GET /plain/10 HTTP/1.0\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = Client::connect(address);
        let answer = client.ask(request);
        assert_eq!((field(&answer.0, "Connection"), answer.1.len()), (Some("close"), 10));
        assert!(client.ends());
    }
    let mut client = Client::connect(address);
    let old = "GET /plain/10 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(field(&client.ask(old).0, "Connection"), Some("keep-alive"));
    assert_eq!(client.ask(old).1.len(), 10);
}

#[test]
fn what_is_refused() {
    let address = start();
    for (request, status) in [
        ("nonsense\r\n\r\n", "400"),
        ("PUT /sink/a HTTP/1.1\r\nContent-Length: many\r\n\r\n", "400"),
        ("PUT /sink/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense", "400"),
        ("PUT /objects/a HTTP/1.1\r\nContent-Length: 2147483649\r\n\r\n", "413"),
    ] {
        let mut client = Client::connect(address);
        assert_status(&client.ask(request), status);
        client.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.ends());
    }
}

#[test]
fn webdav_finds_files() {
    let mut client = Client::connect(start());
    assert_status(&client.ask("MKCOL /objects/dir HTTP/1.1\r\n\r\n"), "201");
    assert_status(&client.ask("PUT /objects/dir/a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), "201");
    assert!(client.ask("OPTIONS /objects HTTP/1.1\r\n\r\n").0.contains("DAV: 1\r\n"));
    let mut properties = |path: &str, depth: &str| {
        let answer = client.ask(format!("PROPFIND {path} HTTP/1.1\r\nDepth: {depth}\r\n\r\n"));
        (answer.0[9..12].to_owned(), String::from_utf8(answer.1).unwrap())
    };
    let (status, file) = properties("/objects/dir/a", "0");
    assert_eq!(status, "207");
    assert!(file.contains("<D:getcontentlength>5</D:getcontentlength>"));
    assert_eq!(properties("/objects/dir/b", "0").0, "404");
    assert!(properties("/objects", "1").1.contains("<D:href>/objects/dir/</D:href>"));
    assert!(properties("/objects/dir", "1").1.contains("<D:href>/objects/dir/a</D:href>"));
    assert!(!properties("/objects/dir", "0").1.contains("/objects/dir/a"));
}
