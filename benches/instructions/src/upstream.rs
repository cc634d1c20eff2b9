//! The upstream: keeps what is put, and gives it back. A thread per connection, blocking; it is not counted.

use crate::wire::{Connection, Kind, Message};
use anyhow::Context;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// It serves as long as this program runs.
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    objects: Objects,
}

impl Upstream {
    /// Listens and serves.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("binding the upstream")?;
        let address = listener.local_addr()?;
        let objects = Objects::default();
        let shared = Arc::clone(&objects);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = Arc::clone(&shared);
                thread::spawn(move || {
                    // An error here is an error of the proxy's, which its client sees.
                    let _ = Connection::over(stream).map(|connection| serve(connection, &objects));
                });
            }
        });
        Ok(Self { address, objects })
    }

    /// What is stored under a path, as it is stored.
    pub(crate) fn stored(&self, path: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }
}

fn serve(mut connection: Connection, objects: &Objects) -> anyhow::Result<()> {
    while let Some(request) = connection.receive(Kind::Request)? {
        connection.send(&answer(request, objects))?;
    }
    Ok(())
}

fn answer(request: Message, objects: &Objects) -> Vec<u8> {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    let (method, path) = request.start;
    let (status, body) = match (method.as_str(), objects.get(&path)) {
        ("PUT", _) => {
            objects.insert(path, request.body);
            ("201 Created", &[][..])
        }
        ("GET", Some(object)) => ("200 OK", object.as_slice()),
        _ => ("404 Not Found", &[][..]),
    };
    let mut response = format!(
        "HTTP/1.1 {status}\r\ndate: Tue, 24 Nov 2026 08:00:00 GMT\r\nserver: bench\r\n\
         content-type: application/octet-stream\r\netag: \"9a0364b9e99bb480dd25e1f0284c8555\"\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    response.extend_from_slice(body);
    response
}
