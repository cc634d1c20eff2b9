//! What a request is answered.

use super::body::Sink;
use super::request::{Framing, Method, Request};
use super::store::{Builder, OBJECT_BYTES_MAX, Object, Store};
use super::webdav;
use std::io::Write as _;
use std::rc::Rc;

/// A response, but for how the connection goes on.
pub(super) struct Answer {
    /// Status and reason.
    pub(super) status: &'static str,
    /// Lines of the head, each with its end.
    pub(super) fields: Vec<u8>,
    pub(super) body: Body,
}

/// The body of a response.
pub(super) enum Body {
    /// These bytes; also none.
    Text(Vec<u8>),
    /// A part of an object.
    Object(Rc<Object>, u64, u64),
    /// None, but the head says how long it would be.
    Head(u64),
}

/// Where the body of `request` goes; an answer if it is not wanted.
pub(super) fn sink(request: &Request) -> Result<Sink, Answer> {
    match (request.method, request.framing) {
        (Method::Put, Framing::Length(length)) if is_object(request) && length > OBJECT_BYTES_MAX => {
            Err(Answer::status("413 Content Too Large"))
        }
        (Method::Put, _) if is_object(request) => Ok(Sink::Object(Builder::default())),
        _ => Ok(Sink::Nothing),
    }
}

/// Answers `request`, whose body is in `sink`.
pub(super) fn answer(request: &Request, sink: Sink, store: &Store) -> Answer {
    match (request.method, sink) {
        (Method::Get | Method::Head, _) => match find(request, store) {
            Some(object) => get(request, object),
            None => Answer::status("404 Not Found"),
        },
        (Method::Put, Sink::Object(builder)) => {
            let (object, is_new) = store.put(&request.path, builder);
            let mut answer = Answer::status(if is_new { "201 Created" } else { "200 OK" });
            answer.field("ETag", object.etag());
            answer
        }
        (Method::Put, Sink::Nothing) if request.path.starts_with("/sink/") => Answer::status("200 OK"),
        (Method::Delete, _) if store.delete(&request.path) => Answer::status("204 No Content"),
        (Method::Delete | Method::Put, _) => Answer::status("404 Not Found"),
        (Method::Options, _) => webdav::options(),
        (Method::Propfind, _) => webdav::propfind(request, store),
        (Method::Mkcol, _) => Answer::status("201 Created"),
        (Method::Other, _) => Answer::status("405 Method Not Allowed"),
    }
}

fn is_object(request: &Request) -> bool {
    request.path.starts_with("/objects/")
}

fn find(request: &Request, store: &Store) -> Option<Rc<Object>> {
    match request.path.strip_prefix("/plain/") {
        Some(size) => Some(Rc::new(Object::zeros(size.parse().ok()?))),
        None => store.object(&request.path),
    }
}

fn get(request: &Request, object: Rc<Object>) -> Answer {
    let length = object.length();
    // RFC 9110, section 13.1.5: a range of another version is not what was asked for, so all of this one is.
    let is_same = request.if_range.as_ref().is_none_or(|etag| etag == object.etag());
    let range = request.range.filter(|_| is_same && request.method == Method::Get);
    let (status, (from, to)) = match range.map(|range| range.resolve(length)) {
        None => ("200 OK", (0, length)),
        Some(Some(part)) => ("206 Partial Content", part),
        Some(None) => {
            let mut answer = Answer::status("416 Range Not Satisfiable");
            answer.field("Content-Range", &format!("bytes */{length}"));
            return answer;
        }
    };
    let mut answer = Answer::status(status);
    answer.field("ETag", object.etag());
    answer.field("Accept-Ranges", "bytes");
    if range.is_some() {
        answer.field("Content-Range", &format!("bytes {from}-{}/{length}", to - 1));
    }
    answer.body =
        if request.method == Method::Head { Body::Head(length) } else { Body::Object(object, from, to) };
    answer
}

impl Answer {
    /// Without a body.
    pub(super) fn status(status: &'static str) -> Self {
        Self { status, fields: Vec::new(), body: Body::Text(Vec::new()) }
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        for part in [name, ": ", value, "\r\n"] {
            self.fields.extend_from_slice(part.as_bytes());
        }
    }

    /// The head, with the length of the body and what becomes of the connection.
    pub(super) fn write_head(&self, request: Option<&Request>, out: &mut Vec<u8>) {
        out.clear();
        for part in [b"HTTP/1.1 ", self.status.as_bytes(), b"\r\n", &self.fields] {
            out.extend_from_slice(part);
        }
        let length = match &self.body {
            Body::Text(text) => text.len() as u64,
            Body::Object(_, from, to) => to - from,
            Body::Head(length) => *length,
        };
        if !self.status.starts_with("204") {
            // Writing to a Vec does not fail.
            let _ = write!(out, "Content-Length: {length}\r\n");
        }
        let connection: &[u8] = match request {
            Some(request) if request.keeps_alive && request.is_old => b"Connection: keep-alive\r\n",
            Some(request) if request.keeps_alive => b"",
            _ => b"Connection: close\r\n",
        };
        out.extend_from_slice(connection);
        out.extend_from_slice(b"\r\n");
    }
}
