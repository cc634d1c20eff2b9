//! One clock for the whole bridge.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch that never run backwards or jump while the bridge runs.
///
/// Read once from the wall clock and carried on by the monotonic one: leases are promises, and an administrator who
/// sets the time must not end them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    wall_ms: u64,
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_ms: millis(wall), started: Instant::now() }
    }

    /// A process that was started when the wall clock said this.
    #[cfg(test)]
    pub(crate) fn started_at(wall_ms: u64) -> Self {
        Self { wall_ms, started: Instant::now() }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.wall_ms + millis(self.started.elapsed())
    }
}

/// A duration in whole milliseconds; one that does not fit is as good as for ever.
pub(crate) fn millis(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
