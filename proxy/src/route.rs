//! Routes: which requests are protected, and how.

mod path;

pub use path::PathPattern;

use crate::config::{self, Mode, OnPlaintext, RouteConfig};
use crate::context::{RouteContext, TenantSource};
use crate::error::ProxyError;
use crate::json::Fields;
use crate::telemetry::{PlaintextAction, RouteMetrics, Telemetry};
use http::Method;
use keyway_keycache::{KeyCache, KeyringName, KeyringSlot};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What is done with the bodies of a route.
#[derive(Debug)]
pub(crate) enum RouteMode {
    Pass,
    Body(Protection),
    Json(Protection, Fields),
}

impl RouteMode {
    /// What a route of mode json seals, and how.
    pub(crate) fn json(&self) -> Option<(&Protection, &Fields)> {
        match self {
            Self::Json(protection, fields) => Some((protection, fields)),
            _ => None,
        }
    }
}

/// How a protected route seals and opens.
#[derive(Debug)]
pub(crate) struct Protection {
    pub(crate) slot: KeyringSlot,
    pub(crate) context: RouteContext,
    on_plaintext: OnPlaintext,
    migrate_until: Option<SystemTime>,
}

impl Protection {
    /// What becomes of plaintext where an envelope is expected. `is_own`: a message of the upstream's own (an error, a
    /// receipt), which is no stored data.
    pub(crate) fn plaintext(&self, is_own: bool) -> PlaintextAction {
        if is_own {
            PlaintextAction::Passed
        } else if self.migrates() {
            PlaintextAction::Migrated
        } else {
            PlaintextAction::Refused
        }
    }

    /// Whether plaintext passes now.
    pub(crate) fn migrates(&self) -> bool {
        self.on_plaintext == OnPlaintext::Migrate
            && self.migrate_until.is_some_and(|end| SystemTime::now() < end)
    }
}

/// One route, ready to serve.
#[derive(Debug)]
pub(crate) struct Route {
    path: PathPattern,
    methods: Vec<Method>,
    host: String,
    pub(crate) mode: RouteMode,
    pub(crate) metrics: RouteMetrics,
}

/// The routes of a listener, in order.
#[derive(Debug)]
pub(crate) struct RouteTable {
    routes: Vec<Arc<Route>>,
    /// Whether any of them seals: only then is there something to get around.
    protects: bool,
    /// Counts requests that no route takes.
    pub(crate) unrouted: RouteMetrics,
}

impl RouteTable {
    /// Builds the table; the configuration has been checked.
    pub(crate) fn build(
        listener: &config::Listener,
        cache: &KeyCache,
        telemetry: &Telemetry,
    ) -> Result<Self, String> {
        let routes = listener
            .routes
            .iter()
            .map(|config| Route::build(listener, config, cache, telemetry).map(Arc::new))
            .collect::<Result<Vec<Arc<Route>>, _>>()?;
        let protects = routes.iter().any(|route| !matches!(route.mode, RouteMode::Pass));
        Ok(Self { routes, protects, unrouted: telemetry.route(&listener.name, "none") })
    }

    /// Its only route.
    pub(crate) fn only(self) -> Option<Arc<Route>> {
        let mut routes = self.routes.into_iter();
        routes.next().filter(|_| routes.next().is_none())
    }

    /// The first route that takes the request.
    ///
    /// # Errors
    /// [`ProxyError::NoRoute`]; [`ProxyError::AmbiguousPath`] if the upstream, after normalising the path, could
    /// see a request that belongs to another route: that would be a way around a protected one.
    pub(crate) fn find(&self, method: &Method, host: &str, path: &str) -> Result<&Arc<Route>, ProxyError> {
        let find = |path: &str| self.routes.iter().position(|route| route.takes(method, host, path));
        let found = find(path);
        if self.protects {
            let readings = path::readings(path).map_err(|_| ProxyError::AmbiguousPath)?;
            if readings.iter().any(|reading| find(reading) != found) {
                return Err(ProxyError::AmbiguousPath);
            }
        }
        found.map(|n| &self.routes[n]).ok_or(ProxyError::NoRoute)
    }
}

impl Route {
    fn build(
        listener: &config::Listener,
        config: &RouteConfig,
        cache: &KeyCache,
        telemetry: &Telemetry,
    ) -> Result<Self, String> {
        let mode = match config.mode {
            Mode::Pass => RouteMode::Pass,
            Mode::Json => {
                let fields = Fields::parse(&config.fields)?;
                RouteMode::Json(Protection::build(config, cache)?, fields)
            }
            _ => RouteMode::Body(Protection::build(config, cache)?),
        };
        Ok(Self {
            path: PathPattern::parse(&config.matches.path)?,
            methods: config.matches.methods.iter().filter_map(|name| name.parse().ok()).collect(),
            host: config.matches.host.to_ascii_lowercase(),
            mode,
            metrics: telemetry.route(&listener.name, &config.matches.path),
        })
    }

    fn takes(&self, method: &Method, host: &str, path: &str) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && self.takes_host(host)
            && self.path.matches(path)
    }

    fn takes_host(&self, host: &str) -> bool {
        if self.host == "*" {
            return true;
        }
        match self.host.strip_prefix('*') {
            // `*.example.org` takes names below it, not itself.
            Some(suffix) => host.len() > suffix.len() && host.to_ascii_lowercase().ends_with(suffix),
            None => host.eq_ignore_ascii_case(&self.host),
        }
    }
}

impl Protection {
    fn build(config: &RouteConfig, cache: &KeyCache) -> Result<Self, String> {
        let keyring = config.keyring.as_deref().unwrap_or_default();
        let name = KeyringName::parse(keyring).ok_or_else(|| format!("{keyring:?} is not zone/keyring"))?;
        let slot = cache
            .slot(&name)
            .ok_or_else(|| format!("keyring {name} was not configured at start; restart to add a keyring"))?;
        let tenant = config.context.tenant.as_deref().map(TenantSource::parse).transpose()?;
        let domain = config.domain.as_deref().unwrap_or_default();
        Ok(Self {
            slot,
            context: RouteContext::new(&name.zone, domain, tenant),
            on_plaintext: config.on_plaintext,
            migrate_until: config.migrate_until.as_deref().and_then(parse_day),
        })
    }
}

/// `2027-03-31` as the moment when that day begins (UTC).
pub(crate) fn parse_day(text: &str) -> Option<SystemTime> {
    let shaped = text.len() == 10 && text.bytes().filter(|&byte| byte == b'-').count() == 2;
    shaped.then(|| humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).ok())?.filter(|day| {
        // humantime takes years back to the epoch; a migration that ended then is a typing error.
        day.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since > Duration::from_secs(86_400))
    })
}
