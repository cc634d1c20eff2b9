//! Keeps key memory out of core dumps and debuggers.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::warn;

/// No core dumps, and no attaching by other processes of the same user. A system that refuses is told of, not fatal.
pub(crate) fn process() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "the process can be dumped");
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "core dumps are not switched off");
    }
    if !keyway_envelope::memory_is_locked() {
        warn!("key memory is not locked (RLIMIT_MEMLOCK); keys may be written to swap");
    }
}
