//! HTTP semantics of the store (RFC 9110): one function per method.

use super::body::{FileBody, ObjectBody, chunk_len, read_exact_at};
use super::conditions::{self, Selection, Verdict};
use super::digest::Expected;
use super::disk::{CommitError, Disk, Stored, Upload};
use super::meta::{Meta, kept_headers};
use super::path::ObjectPath;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    LAST_MODIFIED,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of an upload that are collected before they are written.
const BATCH: usize = 256 * 1024;
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");

type Reply = Response<ObjectBody>;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Bad(String),
    #[error("{0}")]
    TooLong(String),
    #[error("nothing is stored here")]
    NotFound,
    #[error("a precondition of the request does not hold")]
    Precondition,
    #[error("this store knows {}", METHODS.to_str().unwrap_or_default())]
    Method,
    #[error("the disk is full")]
    Full,
    #[error("the store failed")]
    Internal(#[source] io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::InvalidFilename => Self::TooLong("the path is too long to be stored".into()),
            _ => Self::Internal(error),
        }
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Digest(error) => Self::Bad(error.to_string()),
            CommitError::Precondition => Self::Precondition,
            CommitError::Io(error) => error.into(),
        }
    }
}

/// Answers one request.
pub(super) async fn handle(disk: Arc<Disk>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let reply = match route(disk, request).await {
        Ok(reply) => reply,
        Err(refusal) => refuse(&method, &refusal),
    };
    tracing::debug!(%method, path, status = reply.status().as_u16(), "request");
    Ok(reply)
}

async fn route(disk: Arc<Disk>, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let path = ObjectPath::parse(request.uri().path()).map_err(|error| match error {
        super::path::PathError::Encoding => Refusal::Bad(error.to_string()),
        super::path::PathError::TooLong => Refusal::TooLong(error.to_string()),
    })?;
    let method = request.method();
    if method == Method::PUT || method == Method::POST {
        put(disk, path, request).await
    } else if method == Method::DELETE {
        delete(disk, path, request.into_parts().0.headers).await
    } else if method == Method::GET && request.uri().query() == Some("list") {
        list(disk, path).await
    } else if method == Method::GET || method == Method::HEAD {
        let is_head = method == Method::HEAD;
        // One hop off the event loop: find, decide and read the first piece together.
        blocking(move || read(&disk, &path, request.headers(), is_head)).await?
    } else {
        Err(Refusal::Method)
    }
}

fn read(disk: &Disk, path: &ObjectPath, headers: &HeaderMap, is_head: bool) -> Result<Reply, Refusal> {
    let stored = disk.find(path)?.ok_or(Refusal::NotFound)?;
    let mut reply = Response::new(ObjectBody::empty());
    put_validators(reply.headers_mut(), &stored.meta);
    match conditions::evaluate(headers, Some(stored.validators()), true) {
        Verdict::Go => {}
        Verdict::Failed => return Err(Refusal::Precondition),
        Verdict::NotModified => {
            *reply.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(reply);
        }
    }
    stored.meta.write_headers(reply.headers_mut());
    reply.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let len = stored.len;
    // RFC 9110, 14.2: Range is defined for GET only.
    let selection =
        if is_head { Selection::Whole } else { conditions::select(headers, stored.validators(), len) };
    let (offset, take) = match selection {
        Selection::Whole => (0, len),
        Selection::Part { first, last } => {
            *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
            reply.headers_mut().insert(CONTENT_RANGE, header(&format!("bytes {first}-{last}/{len}")));
            (first, last - first + 1)
        }
        Selection::Unsatisfiable => {
            let mut reply = Response::new(ObjectBody::empty());
            *reply.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            put_validators(reply.headers_mut(), &stored.meta);
            reply.headers_mut().insert(CONTENT_RANGE, header(&format!("bytes */{len}")));
            reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            return Ok(reply);
        }
    };
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(take));
    if !is_head {
        *reply.body_mut() = body(stored, offset, take)?;
    }
    Ok(reply)
}

fn body(stored: Stored, offset: u64, take: u64) -> io::Result<ObjectBody> {
    let first = read_exact_at(&stored.file, offset, chunk_len(take))?;
    if first.len() as u64 == take {
        return Ok(ObjectBody::Bytes(first));
    }
    Ok(ObjectBody::File(FileBody::new(stored.file, offset, take, first)))
}

async fn put(disk: Arc<Disk>, path: ObjectPath, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let kept = kept_headers(&head.headers).map_err(|error| Refusal::Bad(error.to_string()))?;
    let expected = Expected::from_headers(&head.headers).map_err(|error| Refusal::Bad(error.to_string()))?;
    // Asked again when the object gets its name; here so that a body which can't be kept is not even sent.
    let precheck = {
        let (disk, path, headers) = (Arc::clone(&disk), path.clone(), head.headers.clone());
        blocking(move || -> io::Result<Verdict> {
            let current = disk.find(&path)?;
            Ok(conditions::evaluate(&headers, current.as_ref().map(Stored::validators), false))
        })
    };
    if has_preconditions(&head.headers) && precheck.await?? != Verdict::Go {
        return Err(Refusal::Precondition);
    }
    let upload = Box::new(disk.begin(expected));
    let (mut upload, rest) = receive(&disk, upload, body).await?;
    let (meta, is_new) = blocking(move || -> Result<_, CommitError> {
        disk.write(&mut upload, &rest)?;
        tracing::debug!(bytes = upload.written(), "upload complete");
        disk.commit(&path, *upload, kept, |current| conditions::evaluate(&head.headers, current, false))
    })
    .await??;
    let mut reply = Response::new(ObjectBody::empty());
    *reply.status_mut() = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    put_validators(reply.headers_mut(), &meta);
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(reply)
}

/// Takes a body in. One batch is written while the next one is collected; what is left over at the end is given
/// back, so that a small object needs one hop off the event loop in all.
async fn receive(
    disk: &Arc<Disk>,
    upload: Box<Upload>,
    mut body: Incoming,
) -> Result<(Box<Upload>, Vec<Bytes>), Refusal> {
    enum Writer {
        Idle(Box<Upload>),
        Busy(JoinHandle<io::Result<Box<Upload>>>),
    }
    async fn idle(writer: Writer) -> Result<Box<Upload>, Refusal> {
        match writer {
            Writer::Idle(upload) => Ok(upload),
            Writer::Busy(handle) => Ok(handle.await.map_err(io::Error::other)??),
        }
    }

    let mut writer = Writer::Idle(upload);
    let mut batch = Vec::new();
    let mut batch_len = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::Bad(format!("the body ended early: {error}")))?;
        // Trailers are not kept.
        let Ok(data) = frame.into_data() else { continue };
        batch_len += data.len();
        batch.push(data);
        if batch_len >= BATCH {
            let mut upload = idle(writer).await?;
            let (disk, chunks) = (Arc::clone(disk), std::mem::take(&mut batch));
            batch_len = 0;
            writer = Writer::Busy(spawn_blocking(move || {
                disk.write(&mut upload, &chunks)?;
                Ok(upload)
            }));
        }
    }
    Ok((idle(writer).await?, batch))
}

async fn delete(disk: Arc<Disk>, path: ObjectPath, headers: HeaderMap) -> Result<Reply, Refusal> {
    let existed =
        blocking(move || disk.delete(&path, |current| conditions::evaluate(&headers, current, false)))
            .await??;
    if !existed {
        return Err(Refusal::NotFound);
    }
    let mut reply = Response::new(ObjectBody::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    Ok(reply)
}

async fn list(disk: Arc<Disk>, path: ObjectPath) -> Result<Reply, Refusal> {
    let listed = blocking(move || disk.list(&path)).await??;
    let json = serde_json::to_vec(&listed).map_err(io::Error::other)?;
    let mut reply = Response::new(ObjectBody::Bytes(Bytes::from(json)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(reply)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    spawn_blocking(work).await.map_err(|error| Refusal::Internal(io::Error::other(error)))
}

fn has_preconditions(headers: &HeaderMap) -> bool {
    use http::header::{IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
    [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE].iter().any(|name| headers.contains_key(name))
}

fn put_validators(headers: &mut HeaderMap, meta: &Meta) {
    headers.insert(ETAG, header(&meta.etag));
    headers.insert(LAST_MODIFIED, header(&httpdate::fmt_http_date(meta.modified())));
}

fn header(text: &str) -> HeaderValue {
    // A side file edited by hand may hold anything; the rest is made here of digits and hex.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

fn refuse(method: &Method, refusal: &Refusal) -> Reply {
    let status = match refusal {
        Refusal::Bad(_) => StatusCode::BAD_REQUEST,
        Refusal::TooLong(_) => StatusCode::URI_TOO_LONG,
        Refusal::NotFound => StatusCode::NOT_FOUND,
        Refusal::Precondition => StatusCode::PRECONDITION_FAILED,
        Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
        Refusal::Full => StatusCode::INSUFFICIENT_STORAGE,
        Refusal::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if let Refusal::Internal(error) = refusal {
        tracing::error!(%error, "the store failed");
    }
    let text = Bytes::from(format!("{refusal}\n"));
    let mut reply = Response::new(ObjectBody::empty());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        reply.headers_mut().insert(ALLOW, METHODS);
    }
    if method != Method::HEAD {
        *reply.body_mut() = ObjectBody::Bytes(text);
    }
    reply
}
