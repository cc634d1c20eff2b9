//! One's own service, asked by two or more ways in turns: without and with a sidecar, say.

use crate::load::{self, Connecting, Exchange, Http, Plan};
use crate::machine::Noise;
use crate::pairs::{Rules, Turns, interleave};
use crate::section::{Section, Table};
use crate::table::figures::{Relation, table};
use crate::table::{Group, Part, Row, Tls, Unit, turn};
use anyhow::{Context, ensure};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names of the ways, in their order.
pub const NAMES: [&str; 6] = ["A", "B", "C", "D", "E", "F"];

/// Where Debian, and many others, keep the authorities that everybody trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is asked of a service.
#[derive(Clone, Debug)]
pub struct Ask {
    /// PUT rather than GET.
    pub is_upload: bool,
    /// Length of the bodies that are sent (PUT) or expected (GET), in bytes.
    pub body: u64,
    /// Which HTTP.
    pub http: Http,
    /// Connections.
    pub connections: usize,
    /// Requests under way on each.
    pub streams: usize,
    /// Whether they are kept.
    pub connecting: Connecting,
    /// Whom to trust; else everybody that the machine trusts.
    pub ca: Option<PathBuf>,
    /// Before the clock starts.
    pub warm_up: Duration,
    /// How long it runs.
    pub measure: Duration,
    /// The core of the generator.
    pub core: Option<usize>,
}

/// A way to a service.
#[derive(Clone, Debug)]
pub struct Way {
    /// `http://` or `https://`; `{n}` in its path stands for the connection's number.
    pub url: String,
    /// Processes whose CPU time is counted; may be none.
    pub pids: Vec<u32>,
}

/// Bodies of this and more are measured in MB/s.
const BULK_FROM: u64 = 1024 * 1024;

impl Ask {
    /// As a part of a row.
    #[must_use]
    pub fn part(&self) -> Part {
        Part {
            label: "",
            http: self.http,
            connections: self.connections,
            streams: self.streams,
            connecting: self.connecting,
            is_upload: self.is_upload,
            body: self.body,
            unit: if self.body < BULK_FROM { Unit::Requests } else { Unit::Megabytes },
        }
    }

    /// What to do at `url`.
    ///
    /// # Errors
    /// It is no URL, its host is not found, or there is nobody to trust.
    pub fn plan(&self, url: &str) -> anyhow::Result<Plan> {
        let (is_tls, rest) = if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else {
            let rest = url.strip_prefix("https://");
            (true, rest.with_context(|| format!("{url:?} starts with neither http:// nor https://"))?)
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        ensure!(!authority.is_empty(), "{url:?} names no host");
        let ca = is_tls.then(|| self.ca.clone().unwrap_or_else(|| PathBuf::from(AUTHORITIES)));
        if let Some(ca) = &ca {
            ensure!(Path::new(ca).exists(), "{} is not there: name the authority with --ca", ca.display());
        }
        let (path, body) = (path.to_owned(), self.body);
        Ok(Plan {
            address: resolve(authority, is_tls)?,
            host: authority.to_owned(),
            ca,
            http: self.http,
            connections: self.connections,
            streams: self.streams,
            connecting: self.connecting,
            exchange: if self.is_upload {
                Exchange::Put { path, body }
            } else {
                Exchange::Get { path, body }
            },
            warm_up: self.warm_up,
            measure: self.measure,
            core: self.core,
        })
    }
}

fn resolve(authority: &str, is_tls: bool) -> anyhow::Result<SocketAddr> {
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let full = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{}", if is_tls { 443 } else { 80 })
    };
    let mut found = full.to_socket_addrs().with_context(|| format!("looking up {full}"))?;
    found.next().with_context(|| format!("{full} has no address"))
}

/// Loads `url` once.
///
/// # Errors
/// It can't be connected to, or is no URL.
pub fn once(ask: &Ask, url: &str) -> anyhow::Result<load::Sample> {
    load::run(&ask.plan(url)?)
}

/// Asks by each of `ways` in turns. What each says is in relation to the first.
///
/// # Errors
/// Fewer than two ways, or a URL that is none. A way that fails is left out, and the section says why.
pub fn measure(ask: &Ask, ways: &[Way], rounds: usize) -> anyhow::Result<(Section, Turns)> {
    ensure!(ways.len() >= 2 && ways.len() <= NAMES.len(), "compares two to {} URLs", NAMES.len());
    let names = &NAMES[..ways.len()];
    let plans: Vec<Plan> = ways.iter().map(|way| ask.plan(&way.url)).collect::<anyhow::Result<_>>()?;
    let part = ask.part();
    let mut noise = Noise::watch(&ask.core.into_iter().collect::<Vec<_>>());
    let turns = interleave(
        names,
        Rules::rounds(rounds),
        || noise.calibrate().iter().map(|one| one.nanos).fold(0.0, f64::max),
        |way| {
            turn::take(std::slice::from_ref(&part), std::slice::from_ref(&plans[way]), ways[way].pids.clone())
        },
    );
    let method = if ask.is_upload { "PUT" } else { "GET" };
    let what = format!(
        "{method} of {} bytes, {} connections, {} streams on each",
        ask.body, ask.connections, ask.streams
    );
    let row = Row {
        name: "compare",
        what: "",
        group: Group::Small,
        tls: Tls { client: false, upstream: false },
        parts: vec![part],
        systems: names.to_vec(),
        is_smoke: false,
    };
    let list: Vec<String> =
        names.iter().zip(ways).map(|(name, way)| format!("{name} is {}", way.url)).collect();
    let mut reading = vec![format!("{}.", list.join(", "))];
    reading
        .extend(turns.too_noisy().map(|why| format!("**{why}: only conclude what all rounds agree on.**")));
    let section = Section {
        title: "Comparison".to_owned(),
        method: reading.join(" "),
        tables: vec![Table { title: what, ..table(&row, &turns, Relation::ToThis(NAMES[0])) }],
        ..Section::default()
    };
    Ok((section, turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        Ask {
            is_upload: false,
            body: 1024,
            http: Http::One,
            connections: 2,
            streams: 1,
            connecting: Connecting::Once,
            ca: None,
            warm_up: Duration::from_millis(10),
            measure: Duration::from_millis(80),
            core: None,
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let plan = ask().plan("http://127.0.0.1:8080/plain/1024?x=1").unwrap();
        assert_eq!(plan.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(plan.host, "127.0.0.1:8080");
        assert!(matches!(plan.exchange, Exchange::Get { path, body: 1024 } if path == "/plain/1024?x=1"));
        assert_eq!(ask().plan("http://127.0.0.1").unwrap().address.port(), 80);
        for bad in ["127.0.0.1/x", "ftp://127.0.0.1/", "http:///x"] {
            assert!(ask().plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_ways_to_one_service_are_compared() {
        let upstream = crate::upstream::Upstream::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = upstream.address().unwrap();
        std::thread::spawn(move || upstream.run(None));
        let way = || Way { url: format!("http://{address}/plain/1024"), pids: vec![std::process::id()] };
        let (section, turns) = measure(&ask(), &[way(), way()], 3).unwrap();
        assert!(turns.failed.is_empty(), "{:?}", turns.failed);
        // How fast is the machine's affair.
        assert!(turns.ratio("B", "A", "requests_per_s").is_some());
        assert_eq!(section.tables[0].rows.len(), 2);
        assert!(turns.figure("A", "cpu_us_per_request").is_some());
    }
}
