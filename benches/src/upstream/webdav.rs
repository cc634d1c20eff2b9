//! As much of WebDAV (RFC 4918) as a client needs to find files, and to store them.

use super::answer::{Answer, Body};
use super::request::Request;
use super::store::{Object, Store};
use std::fmt::Write as _;

/// No file has a time of its own: nobody who measures asks for it.
const MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// What can be done here.
pub(super) fn options() -> Answer {
    let mut answer = Answer::status("200 OK");
    answer.field("DAV", "1");
    answer.field("Allow", "OPTIONS, GET, HEAD, PUT, DELETE, PROPFIND, MKCOL");
    answer
}

/// The properties of a file; or of a directory, and of what is in it.
pub(super) fn propfind(request: &Request, store: &Store) -> Answer {
    let mut text =
        String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\">\n");
    if let Some(object) = store.object(&request.path) {
        push(&mut text, &request.path, Some(&object));
    } else {
        let directory = format!("{}/", request.path.trim_end_matches('/'));
        let below = store.below(&directory);
        // A directory is there if anything is in it; the root of the store always is.
        if below.is_empty() && directory != "/objects/" {
            return Answer::status("404 Not Found");
        }
        push(&mut text, &directory, None);
        for (name, object) in below.iter().filter(|_| !request.is_shallow) {
            let slash = if object.is_some() { "" } else { "/" };
            push(&mut text, &format!("{directory}{name}{slash}"), object.as_deref());
        }
    }
    text.push_str("</D:multistatus>\n");
    let mut answer = Answer::status("207 Multi-Status");
    answer.field("Content-Type", "application/xml; charset=utf-8");
    answer.body = Body::Text(text.into_bytes());
    answer
}

fn push(text: &mut String, path: &str, object: Option<&Object>) {
    let path = escape(path);
    let properties = match object {
        Some(object) => format!(
            "<D:resourcetype/><D:getcontentlength>{}</D:getcontentlength><D:getetag>{}</D:getetag>",
            object.length(),
            escape(object.etag())
        ),
        None => "<D:resourcetype><D:collection/></D:resourcetype>".to_owned(),
    };
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "<D:response><D:href>{path}</D:href><D:propstat><D:prop>{properties}\
         <D:getlastmodified>{MODIFIED}</D:getlastmodified></D:prop>\
         <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
