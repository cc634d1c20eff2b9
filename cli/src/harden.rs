//! What the process gives up before it touches a key.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// No core dumps, no debugger of another process of the same user: memory holds keys.
///
/// As many open files as the system allows: each connection of a proxy is two of them.
pub(crate) fn process() {
    let core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = core.and(dumpable) {
        tracing::warn!(%error, "could not switch core dumps off; a crash may write keys to disk");
    }
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, limit = ?files.current, "could not raise the limit of open files");
    }
}
