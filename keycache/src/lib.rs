//! The keyring that a proxy serves from.
//!
//! One immutable [`Snapshot`] stands behind one pointer. One writer, the control task, publishes a new one with one
//! swap; every worker reads it through its own [`Reader`] without a lock. DEKs hang beside it in a [`KeyCache`]: fetched
//! on demand, one flight for all who wait, and gone when the KEK version that they came by leaves the accept set. A
//! body in flight keeps its own `Arc` of its DEK; the key is wiped when the last of them ends.
//!
//! - [`keyring`]: the rules. Pure: `now` comes in.
//! - [`cell`]: the pointer, its one writer and its readers.
//! - [`dek`]: a cached DEK, its use counters and limits.
//! - [`cache`]: the DEKs; look-ups, flights, negative answers, bounds.
//! - [`source`]: where DEKs come from (the bridge), as a trait.

pub mod cache;
pub mod cell;
pub mod dek;
pub mod keyring;
pub mod source;

pub use cache::{CacheLimits, KeyCache, OpenLookup, SealLookup};
pub use cell::{Publisher, Reader};
pub use dek::{CachedDek, DekLimits, UseCounters, UseTotals};
pub use keyring::{KeyError, Keyring, KeyringName, KeyringSlot, Lease, Millis, Snapshot};
pub use source::{DekSource, FetchedDek, IssueRequest, OpenRequest, SourceError};
