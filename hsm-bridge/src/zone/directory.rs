//! Which members hold a stream.

use crate::catalog::MemberKey;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// The streams of a zone, one per member.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    streams: Mutex<Streams>,
    /// Held while a lease end is written for an arriving or leaving stream: the one of the newer stream has to stand.
    pub(crate) leases: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    by_member: HashMap<MemberKey, Connection>,
}

/// One stream.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    id: u64,
    /// Ends the stream from outside: a newer one of the same member has come.
    pub(crate) replaced: CancellationToken,
}

impl Directory {
    /// Enters a stream. An older one of the same member is ended: its network path is most likely dead.
    pub(crate) fn enter(&self, member: &MemberKey) -> Connection {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.next += 1;
        let connection = Connection { id: streams.next, replaced: CancellationToken::new() };
        if let Some(older) = streams.by_member.insert(member.clone(), connection.clone()) {
            tracing::warn!(%member, "a newer stream of this member ends its older one; instance names have to be unique");
            older.replaced.cancel();
        }
        connection
    }

    /// Takes a stream out, unless a newer one has replaced it; says which.
    pub(crate) fn leave(&self, member: &MemberKey, connection: &Connection) -> bool {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let current = streams.by_member.get(member).is_some_and(|now| now.id == connection.id);
        if current {
            streams.by_member.remove(member);
        }
        current
    }

    pub(crate) fn is_connected(&self, member: &MemberKey) -> bool {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).by_member.contains_key(member)
    }
}
