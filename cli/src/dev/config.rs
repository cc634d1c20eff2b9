//! The configuration files that `keyway dev` writes into its data directory: real ones, to read and to copy from.

use crate::args::{DevArgs, Mode, Protocol, Role};
use crate::pki::Identity;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// The domain of every route of dev.
pub(super) const DOMAIN: &str = "objects";
/// Where Debian and its relatives keep the authorities of the web.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A sidecar's place in dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sidecar {
    /// The only one.
    Alone,
    /// The first of a pair.
    PairClient,
    /// The second of a pair.
    PairServer,
}

impl Sidecar {
    pub(super) const ALL: [Self; 3] = [Self::Alone, Self::PairClient, Self::PairServer];

    /// Its name in file names, and the last part of its SPIFFE id.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alone => "proxy",
            Self::PairClient => "proxy-client",
            Self::PairServer => "proxy-server",
        }
    }

    /// Its service identity in a zone.
    pub(super) fn spiffe_id(self, zone: &str) -> String {
        format!("spiffe://keyway.dev/{zone}/{}", self.name())
    }
}

/// The administrator's identity in a zone.
pub(super) fn operator_id(zone: &str) -> String {
    format!("spiffe://keyway.dev/{zone}/operator")
}

/// Where the KEKs of the zone are.
#[derive(Debug)]
pub(super) enum Backend<'a> {
    Software { path: &'a Path },
    Pkcs11 { module: &'a Path, token: &'a str, pin_file: &'a Path },
}

/// `bridge.yaml`.
pub(super) fn bridge(args: &DevArgs, data_dir: &Path, identity: &Identity, backend: &Backend<'_>) -> String {
    let quoted_zone = quoted(&args.zone);
    let backend = match backend {
        Backend::Software { path } => {
            format!("{{ name: software, software: {{ path: {} }} }}", quoted_path(path))
        }
        Backend::Pkcs11 { module, token, pin_file } => format!(
            "{{ name: softhsm, pkcs11: {{ module: {}, token: {}, pin_file: {} }} }}",
            quoted_path(module),
            quoted(token),
            quoted_path(pin_file)
        ),
    };
    // All that dev may start are named, so that what a pair has sealed opens without it, and the other way round.
    let services = Sidecar::ALL.map(|sidecar| {
        format!("          - {{ id: {}, ops: [seal, open] }}\n", quoted(&sidecar.spiffe_id(&args.zone)))
    });
    format!(
        "# Written by `keyway dev` at each start.\n\
         listen: {listen}\n\
         admin: {admin}\n\
         tls: {{ cert: {cert}, key: {key}, client_ca: {ca} }}\n\
         store: {store}\n\
         audit: {{ file: {audit} }}\n\
         zones:\n\
        \x20 - name: {quoted_zone}\n\
        \x20   backends:\n\
        \x20     - {backend}\n\
        \x20   admins: [ {operator} ]\n\
        \x20   keyrings:\n\
        \x20     - name: {keyring}\n\
        \x20       services:\n{services}",
        listen = args.bridge_listen,
        admin = args.bridge_admin,
        cert = quoted_path(&identity.cert),
        key = quoted_path(&identity.key),
        ca = quoted_path(&identity.ca),
        store = quoted(&format!("sqlite://{}", data_dir.join("bridge.db").display())),
        audit = quoted_path(&data_dir.join("audit.jsonl")),
        operator = quoted(&operator_id(&args.zone)),
        keyring = quoted(&args.keyring),
        services = services.concat(),
    )
}

/// What a sidecar of dev is told beside the arguments.
#[derive(Debug)]
pub(super) struct ProxyPlan<'a> {
    pub(super) sidecar: Sidecar,
    pub(super) bind: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) upstream: &'a str,
    pub(super) bridge: SocketAddr,
    pub(super) identity: &'a Identity,
    pub(super) state_dir: &'a Path,
}

/// `proxy.yaml`.
pub(super) fn proxy(args: &DevArgs, plan: &ProxyPlan<'_>) -> String {
    let role = match plan.sidecar {
        Sidecar::PairServer => Role::Server,
        Sidecar::PairClient => Role::Client,
        Sidecar::Alone => args.role,
    };
    let mut out = format!(
        "# Written by `keyway dev` at each start.\n\
         identity: {{ cert: {cert}, key: {key}, ca: {ca} }}\n\
         bridge: {{ endpoints: [ {bridge} ], state_dir: {state}, instance: {instance} }}\n\
         admin: {admin}\n",
        cert = quoted_path(&plan.identity.cert),
        key = quoted_path(&plan.identity.key),
        ca = quoted_path(&plan.identity.ca),
        bridge = quoted(&format!("https://{}", reachable(plan.bridge))),
        state = quoted_path(plan.state_dir),
        instance = quoted(plan.sidecar.name()),
        admin = plan.admin,
    );
    if let Some(workers) = args.workers {
        put(&mut out, &format!("workers: {workers}\n"));
    }
    put(
        &mut out,
        &format!(
            "listeners:\n\
            \x20 - name: dev\n\
            \x20   bind: {bind}\n\
            \x20   protocol: {protocol}\n\
            \x20   role: {role}\n\
            \x20   upstream: {upstream}\n",
            bind = plan.bind,
            protocol = if args.protocol == Protocol::Tcp { "tcp" } else { "http" },
            role = match role {
                Role::Client => "client",
                Role::Server => "server",
            },
            upstream = quoted(plan.upstream),
        ),
    );
    if plan.upstream.starts_with("https://") {
        put(&mut out, &format!("    upstream_tls: {{ ca: {} }}\n", quoted(SYSTEM_AUTHORITIES)));
    }
    put(&mut out, "    routes:\n");
    // The store keeps objects; an upstream that was named gets everything.
    let path = if args.upstream.is_some() { "/**" } else { "/objects/**" };
    let keyring = quoted(&format!("{}/{}", args.zone, args.keyring));
    let route = match args.mode {
        _ if args.protocol == Protocol::Tcp => {
            format!("      - {{ keyring: {keyring}, domain: {DOMAIN}, mode: body }}\n")
        }
        Mode::Pass => format!("      - {{ match: {{ path: \"{path}\" }}, mode: pass }}\n"),
        mode => format!(
            "      - {{ match: {{ path: \"{path}\" }}, keyring: {keyring}, domain: {DOMAIN}, {} }}\n",
            if mode == Mode::Json { fields(&args.field) } else { "mode: body".to_owned() }
        ),
    };
    put(&mut out, &route);
    out
}

fn fields(selectors: &[String]) -> String {
    let fields: Vec<String> =
        selectors.iter().map(|select| format!("{{ select: {} }}", quoted(select))).collect();
    format!("mode: json, fields: [ {} ]", fields.join(", "))
}

/// An address that a client can connect to: one that listens everywhere is reached over loopback.
pub(super) fn reachable(addr: SocketAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

fn put(out: &mut String, text: &str) {
    out.write_str(text).expect("writing to a String can't fail");
}

/// A double-quoted YAML scalar. JSON strings are a subset of those (YAML 1.2, 1.3).
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;
    use std::collections::BTreeMap;

    fn dev(args: &[&str]) -> DevArgs {
        let all = ["keyway", "dev"].iter().chain(args);
        let Command::Dev(args) = Cli::try_parse_from(all).unwrap().command else { panic!("not dev") };
        args
    }

    fn identity() -> Identity {
        Identity { cert: "/p/a b.crt".into(), key: "/p/\"k\".key".into(), ca: "/p/ca.crt".into() }
    }

    fn plan<'a>(sidecar: Sidecar, upstream: &'a str, identity: &'a Identity) -> ProxyPlan<'a> {
        ProxyPlan {
            sidecar,
            bind: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            upstream,
            bridge: "0.0.0.0:7200".parse().unwrap(),
            identity,
            state_dir: Path::new("/s"),
        }
    }

    fn parsed(args: &DevArgs, plan: &ProxyPlan<'_>) -> keyway_proxy::Config {
        let text = proxy(args, plan);
        keyway_proxy::Config::parse(Path::new("proxy.yaml"), &text, &BTreeMap::new())
            .unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn the_bridge_takes_what_is_written() {
        let args = dev(&["--zone", "z", "--keyring", "k"]);
        for backend in [
            Backend::Software { path: Path::new("/d/keystore") },
            Backend::Pkcs11 { module: Path::new("/m.so"), token: "t", pin_file: Path::new("/pin") },
        ] {
            let text = bridge(&args, Path::new("/d"), &identity(), &backend);
            let config = keyway_bridge::config::Config::parse(&text, "bridge.yaml")
                .unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(config.tls.cert, Path::new("/p/a b.crt"));
            assert_eq!(config.tls.key, Path::new("/p/\"k\".key"));
            assert_eq!(config.store, "sqlite:///d/bridge.db");
            assert_eq!(config.zones[0].name, "z");
            assert_eq!(config.zones[0].admins, ["spiffe://keyway.dev/z/operator"]);
            let rights = config.zones[0].keyrings[0].rights("spiffe://keyway.dev/z/proxy").unwrap();
            assert!(rights.seal && rights.open);
        }
    }

    #[test]
    fn without_an_upstream_only_objects_are_routed() {
        let identity = identity();
        let config =
            parsed(&dev(&["--workers", "3"]), &plan(Sidecar::Alone, "http://127.0.0.1:7400", &identity));
        assert_eq!(config.workers, Some(3));
        let routes = &config.listeners[0].routes;
        assert_eq!((routes.len(), routes[0].matches.path.as_str()), (1, "/objects/**"));
        assert_eq!(routes[0].keyring.as_deref(), Some("dev/default"));
        assert_eq!(config.bridge.unwrap().endpoints, ["https://127.0.0.1:7200"]);
    }

    #[test]
    fn a_named_upstream_gets_everything() {
        let identity = identity();
        let args = dev(&["--upstream", "https://example.org", "--mode", "pass", "--role", "server"]);
        let config = parsed(&args, &plan(Sidecar::Alone, "https://example.org", &identity));
        assert_eq!(config.listeners[0].routes[0].matches.path, "/**");
        assert_eq!(config.listeners[0].routes[0].mode, keyway_proxy::config::Mode::Pass);
        assert_eq!(config.listeners[0].role, keyway_proxy::config::Role::Server);
        assert!(config.listeners[0].upstream_tls.is_some());
    }

    #[test]
    fn fields_are_quoted_selectors() {
        let identity = identity();
        let args = dev(&["--mode", "json", "--field", "$.card.number", "--field", "$['a: \"b\"']"]);
        let config = parsed(&args, &plan(Sidecar::Alone, "http://127.0.0.1:7400", &identity));
        let route = &config.listeners[0].routes[0];
        assert_eq!(route.mode, keyway_proxy::config::Mode::Json);
        let selectors: Vec<&str> = route.fields.iter().map(|field| field.select.as_str()).collect();
        assert_eq!(selectors, ["$.card.number", "$['a: \"b\"']"]);
    }

    #[test]
    fn tcp_has_one_route_that_says_the_keys() {
        let identity = identity();
        let args = dev(&["--upstream", "tcp://127.0.0.1:5432", "--pair", "--protocol", "tcp"]);
        let config = parsed(&args, &plan(Sidecar::PairServer, "tcp://127.0.0.1:5432", &identity));
        let listener = &config.listeners[0];
        assert_eq!(listener.protocol, keyway_proxy::config::Protocol::Tcp);
        assert_eq!((listener.routes.len(), listener.routes[0].keyring.as_deref()), (1, Some("dev/default")));
    }

    #[test]
    fn a_pair_has_both_roles() {
        let identity = identity();
        let args = dev(&["--upstream", "http://127.0.0.1:9", "--pair"]);
        let role = |sidecar| parsed(&args, &plan(sidecar, "http://127.0.0.1:9", &identity)).listeners[0].role;
        assert_eq!(role(Sidecar::PairClient), keyway_proxy::config::Role::Client);
        assert_eq!(role(Sidecar::PairServer), keyway_proxy::config::Role::Server);
    }
}
