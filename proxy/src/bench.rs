//! For the instruction counts in `benches/instructions`: parts of a request's way that do no I/O. Not for other uses.

use crate::config::Config;
use crate::route::RouteTable;
use crate::telemetry::Telemetry;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use keyway_keycache::{CacheLimits, KeyCache, Millis};
use std::collections::BTreeSet;

/// The routes of a configuration's first listener, as a worker has them.
#[derive(Debug)]
pub struct Routes(RouteTable);

impl Routes {
    /// Builds the table.
    ///
    /// # Errors
    /// What is wrong, or that there is no listener.
    pub fn build(config: &Config) -> Result<Self, String> {
        let names: BTreeSet<_> = config.keyrings().collect();
        let cache = KeyCache::new(names.into_iter().collect(), CacheLimits::default(), || Millis(0));
        let listener = config.listeners.first().ok_or("no listener")?;
        RouteTable::build(listener, &cache, &Telemetry::new()).map(Self)
    }

    /// Whether a route takes the request, under every reading of its path.
    #[must_use]
    pub fn finds(&self, method: &Method, host: &str, path: &str) -> bool {
        self.0.find(method, host, path).is_ok()
    }
}

/// Makes a request's head fit for the upstream.
pub fn prepare_request(headers: &mut HeaderMap, uri: &Uri, version: Version, upstream_host: &HeaderValue) {
    crate::headers::prepare_request(headers, uri, version, upstream_host);
}
