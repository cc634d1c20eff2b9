//! Points at which a test may stop the bridge as a crash would.

use std::fmt;
use std::sync::Arc;

/// Asked between an audit record and its effect; true: the process "dies" here.
type Crash = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Empty outside tests.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    crash_before: Option<Crash>,
}

impl Hooks {
    /// Dies before the effect of an action for which `crash` says so.
    #[cfg(test)]
    pub(crate) fn crash_before(crash: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { crash_before: Some(Arc::new(crash)) }
    }

    pub(crate) fn dies_before(&self, action: &str) -> bool {
        self.crash_before.as_ref().is_some_and(|crash| crash(action))
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}
