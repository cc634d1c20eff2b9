//! What a well-formed configuration may still have wrong.

use super::{Config, Listener, Mode, OnPlaintext, Protocol, RouteConfig};
use crate::context::TenantSource;
use crate::json::Fields;
use crate::route::PathPattern;
use crate::tcp::TcpAddress;
use crate::upstream::UpstreamAddress;
use keyway_keycache::KeyringName;
use std::collections::BTreeSet;

impl Config {
    /// Everything that can't work, each with its key and what to do.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.listeners.is_empty() {
            problems.push("listeners: there is none; add at least one".to_owned());
        }
        if self.workers == Some(0) {
            problems.push("workers: 0 would serve nobody; leave it out for one per core".to_owned());
        }
        let mut names = BTreeSet::new();
        let mut binds = BTreeSet::new();
        for listener in &self.listeners {
            if !names.insert(&listener.name) {
                problems.push(format!("listeners: the name {:?} is there twice", listener.name));
            }
            if listener.bind.port() != 0 && !binds.insert(listener.bind) {
                problems.push(format!("listeners: {} is bound twice", listener.bind));
            }
            listener_problems(listener, &mut problems);
        }
        if self.keyrings().next().is_some() {
            if self.identity.is_none() {
                problems.push("identity: missing; routes with a keyring need cert, key and ca".to_owned());
            }
            match &self.bridge {
                None => problems.push("bridge: missing; routes with a keyring need its endpoints".to_owned()),
                Some(bridge) => {
                    if bridge.endpoints.is_empty() {
                        problems.push("bridge.endpoints: there is none".to_owned());
                    }
                    for endpoint in &bridge.endpoints {
                        if !endpoint.starts_with("https://") {
                            problems
                                .push(format!("bridge.endpoints: {endpoint:?} must be https://host:port"));
                        }
                    }
                }
            }
        }
        problems
    }

    /// The keyrings that routes name (only those that can be read).
    pub fn keyrings(&self) -> impl Iterator<Item = KeyringName> + '_ {
        self.listeners
            .iter()
            .flat_map(|listener| &listener.routes)
            .filter_map(|route| KeyringName::parse(route.keyring.as_deref()?))
    }
}

fn listener_problems(listener: &Listener, problems: &mut Vec<String>) {
    let at = format!("listeners[{}]", listener.name);
    if listener.protocol == Protocol::Tcp {
        return tcp_problems(&at, listener, problems);
    }
    if let Err(error) = UpstreamAddress::parse(&listener.upstream) {
        problems.push(format!("{at}.upstream: {error}"));
    }
    if listener.upstream.starts_with("https://") && listener.upstream_tls.is_none() {
        problems.push(format!("{at}.upstream_tls: missing; an https upstream needs `ca` to verify it with"));
    }
    if let Some(tls) = &listener.upstream_tls
        && tls.cert.is_some() != tls.key.is_some()
    {
        problems.push(format!("{at}.upstream_tls: `cert` and `key` come together"));
    }
    if listener.protocol != Protocol::Http {
        problems.push(format!("{at}.protocol: only http and tcp are available in this version"));
    }
    if listener.original_dst {
        problems.push(format!("{at}.original_dst: not available in this version; leave it false"));
    }
    if listener.routes.is_empty() {
        problems.push(format!("{at}.routes: there is none, so every request would be 404"));
    }
    for (n, route) in listener.routes.iter().enumerate() {
        route_problems(&format!("{at}.routes[{n}]"), route, problems);
    }
}

/// A connection has no requests: one route says all.
fn tcp_problems(at: &str, listener: &Listener, problems: &mut Vec<String>) {
    if let Err(error) = TcpAddress::parse(&listener.upstream) {
        problems.push(format!("{at}.upstream: {error}"));
    }
    if listener.tls.is_some() || listener.upstream_tls.is_some() {
        problems.push(format!("{at}: TLS is not available with protocol tcp in this version"));
    }
    if listener.original_dst {
        problems.push(format!("{at}.original_dst: not available in this version; leave it false"));
    }
    let [route] = listener.routes.as_slice() else {
        problems.push(format!("{at}.routes: protocol tcp takes exactly one, which says keyring and domain"));
        return;
    };
    route_problems(&format!("{at}.routes[0]"), route, problems);
    let matches = &route.matches;
    if matches.path != "/**" || !matches.methods.is_empty() || matches.host != "*" {
        problems
            .push(format!("{at}.routes[0].match: a connection has no path, method or host; leave it out"));
    }
    if route.mode != Mode::Body {
        problems.push(format!("{at}.routes[0].mode: protocol tcp seals all: mode body"));
    }
    if route.context.tenant.as_deref().is_some_and(|tenant| tenant.starts_with("header:")) {
        problems.push(format!("{at}.routes[0].context.tenant: a connection has no headers; use value:NAME"));
    }
    if route.on_plaintext == OnPlaintext::Migrate {
        problems.push(format!("{at}.routes[0].on_plaintext: protocol tcp takes sealed streams only: refuse"));
    }
}

fn field_problems(at: &str, route: &RouteConfig, problems: &mut Vec<String>) {
    match (route.mode, route.fields.is_empty()) {
        (Mode::Json, true) => problems.push(format!(
            "{at}.fields: missing; mode json seals what they select, such as {{ select: \"$.card.number\" }}"
        )),
        (Mode::Json, false) | (_, true) => {}
        (_, false) => problems.push(format!("{at}.fields: only with mode json")),
    }
    for (n, field) in route.fields.iter().enumerate() {
        if let Err(error) = Fields::parse(std::slice::from_ref(field)) {
            problems.push(format!("{at}.fields[{n}].select: {error}"));
        }
        if field.searchable || field.deterministic {
            problems.push(format!(
                "{at}.fields[{n}]: searchable and deterministic are not available in this version"
            ));
        }
    }
}

fn route_problems(at: &str, route: &RouteConfig, problems: &mut Vec<String>) {
    if let Err(error) = PathPattern::parse(&route.matches.path) {
        problems.push(format!("{at}.match.path: {error}"));
    }
    for method in &route.matches.methods {
        if http::Method::from_bytes(method.as_bytes()).is_err() || method.to_uppercase() != *method {
            problems.push(format!("{at}.match.methods: {method:?} is no method (they are in capitals)"));
        }
    }
    if let Some(tenant) = &route.context.tenant
        && let Err(error) = TenantSource::parse(tenant)
    {
        problems.push(format!("{at}.context.tenant: {error}"));
    }
    match route.mode {
        Mode::Pass => {
            if route.keyring.is_some() || route.domain.is_some() {
                problems.push(format!(
                    "{at}: mode pass seals nothing; take out keyring and domain, or set mode body"
                ));
            }
        }
        Mode::Body | Mode::Json => {
            match route.keyring.as_deref().map(KeyringName::parse) {
                None => problems.push(format!("{at}.keyring: missing; it is zone/keyring")),
                Some(None) => problems.push(format!("{at}.keyring: must be zone/keyring")),
                Some(Some(_)) => {}
            }
            if route.domain.as_deref().unwrap_or_default().is_empty() {
                problems
                    .push(format!("{at}.domain: missing; it is the stable name bound into every envelope"));
            }
        }
        Mode::Grpc | Mode::Websocket => {
            problems.push(format!("{at}.mode: only body, json and pass are available in this version"));
        }
    }
    field_problems(at, route, problems);
    match (route.on_plaintext, &route.migrate_until) {
        (OnPlaintext::Migrate, None) => {
            problems.push(format!("{at}.migrate_until: missing; a migration ends on a day (YYYY-MM-DD)"));
        }
        (OnPlaintext::Migrate, Some(day)) if crate::route::parse_day(day).is_none() => {
            problems.push(format!("{at}.migrate_until: {day:?} is not a day like 2027-03-31"));
        }
        (OnPlaintext::Refuse, Some(_)) => {
            problems.push(format!("{at}.migrate_until: only with on_plaintext: migrate"));
        }
        _ => {}
    }
}
