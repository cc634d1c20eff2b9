//! What a table is measured on: upstreams, certificates, and systems that run.

use super::{Part, Row, Tls, turn};
use crate::load::{self, Exchange, Plan};
use crate::machine::available_cores;
use crate::pairs::Reading;
use crate::systems::{self, Pki, Running, Setting};
use crate::upstream::Upstream;
use anyhow::{Context, anyhow, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The name in the certificates, and the Host of every request.
const HOST: &str = "localhost";

/// How long writing one object may take: the first try, and the factor of each further one.
const SEED_FIRST: Duration = Duration::from_millis(100);
const SEED_FACTOR: u32 = 4;
const SEED_TRIES: u32 = 5;

/// Upstreams, certificates and cores, and what has been started so far.
pub struct Bed {
    dir: PathBuf,
    pki: Pki,
    system_cores: Vec<usize>,
    load_core: Option<usize>,
    /// Without and with TLS.
    upstreams: [SocketAddr; 2],
    tls: Tls,
    running: BTreeMap<String, Started>,
    /// Objects that are there: at which upstream, whose, and how long.
    seeded: Vec<(SocketAddr, String, u64)>,
}

/// A system that runs.
struct Started {
    version: String,
    seals: bool,
    handle: Box<dyn Running>,
}

impl Bed {
    /// Starts upstreams on the last core; systems will have the first.
    ///
    /// # Errors
    /// `dir` can't be written to, or there are no cores.
    pub fn new(dir: PathBuf) -> anyhow::Result<Self> {
        let cores = available_cores();
        let (system_cores, load_core) = match cores.as_slice() {
            [first, .., last] => (vec![*first], Some(*last)),
            _ => (cores, None),
        };
        let pki = Pki::make(&dir.join("pki"))?;
        let upstreams = [serve_upstream(None, load_core)?, serve_upstream(Some(&pki), load_core)?];
        Ok(Self {
            dir,
            pki,
            system_cores,
            load_core,
            upstreams,
            tls: Tls { client: false, upstream: false },
            running: BTreeMap::new(),
            seeded: Vec::new(),
        })
    }

    /// The cores of the systems.
    #[must_use]
    pub fn system_cores(&self) -> &[usize] {
        &self.system_cores
    }

    /// The core of generator and upstream; `None` if there is only one.
    #[must_use]
    pub fn load_core(&self) -> Option<usize> {
        self.load_core
    }

    /// All cores that matter.
    #[must_use]
    pub fn cores(&self) -> Vec<usize> {
        self.system_cores.iter().copied().chain(self.load_core).collect()
    }

    /// From now on systems run on `cores`; those that run are stopped.
    pub(super) fn move_to(&mut self, cores: Vec<usize>) {
        self.running.clear();
        self.system_cores = cores;
    }

    /// Starts `system` if it does not run yet; tells its version.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(&mut self, system: &str, tls: Tls) -> anyhow::Result<String> {
        if self.tls != tls {
            // Nothing of another kind is needed again.
            self.running.clear();
            self.tls = tls;
        }
        if let Some(started) = self.running.get(system) {
            return Ok(started.version.clone());
        }
        let kind = systems::by_name(system)?;
        let version = kind.version()?;
        let tls_here = if system == DIRECT { direct(tls) } else { tls };
        let dir = self.dir.join(format!("{system}-{}{}", u8::from(tls.client), u8::from(tls.upstream)));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let setting = Setting {
            dir,
            upstream: self.upstream(tls_here),
            client_tls: tls_here.client,
            upstream_tls: tls_here.upstream,
            pki: self.pki.dir().to_owned(),
            cores: self.system_cores.clone(),
        };
        let handle = kind.start(&setting)?;
        let seals = kind.seals();
        // What it has sealed before, it may have sealed with other keys.
        self.seeded.retain(|(_, owner, _)| owner != system);
        self.running.insert(system.to_owned(), Started { version: version.clone(), seals, handle });
        Ok(version)
    }

    fn upstream(&self, tls: Tls) -> SocketAddr {
        self.upstreams[usize::from(tls.upstream)]
    }

    fn running(&self, system: &str) -> anyhow::Result<&Started> {
        self.running.get(system).with_context(|| format!("{system} does not run"))
    }

    /// Puts there what the row will get, through `system` itself if it encrypts. What does not encrypt shares objects.
    ///
    /// # Errors
    /// It can't be written; with what the system logged.
    pub fn seed(&mut self, system: &str, row: &Row) -> anyhow::Result<()> {
        for part in row.parts.iter().filter(|part| !part.is_upload) {
            let tls = if system == DIRECT { direct(row.tls) } else { row.tls };
            let object = (self.upstream(tls), self.owner(system)?.to_owned(), part.body);
            if self.seeded.contains(&object) {
                continue;
            }
            let writer = Part {
                is_upload: true,
                http: load::Http::One,
                connections: 1,
                streams: 1,
                connecting: load::Connecting::Once,
                ..part.clone()
            };
            let exchange = Exchange::Put { path: self.path(system, part)?, body: part.body };
            let mut measure = SEED_FIRST;
            let mut written = Err(anyhow::anyhow!("writing {} bytes was not tried", part.body));
            for _ in 0..SEED_TRIES {
                let plan = Plan {
                    exchange: exchange.clone(),
                    ..self.plan(system, &writer, row.tls, Duration::ZERO, measure)?
                };
                let sample = self.explain(system, load::run(&plan))?;
                // A try that was cut off may keep its object locked for a while (rclone: 423), so the next one may fail, too.
                written = turn::check(&sample).and_then(|()| {
                    ensure!(sample.requests > 0, "writing {} bytes took more than {measure:?}", part.body);
                    Ok(())
                });
                if written.is_ok() {
                    break;
                }
                measure *= SEED_FACTOR;
            }
            written?;
            self.seeded.push(object);
        }
        Ok(())
    }

    /// One turn of `system`.
    ///
    /// # Errors
    /// A request failed: figures that come with failures are none.
    pub fn turn(
        &self,
        system: &str,
        row: &Row,
        warm_up: Duration,
        measure: Duration,
    ) -> anyhow::Result<Reading> {
        let plans: Vec<Plan> = row
            .parts
            .iter()
            .map(|part| self.plan(system, part, row.tls, warm_up, measure))
            .collect::<anyhow::Result<_>>()?;
        // Direct has no process of its own to watch.
        let pids = self.running(system)?.handle.pids();
        self.explain(system, turn::take(&row.parts, &plans, pids))
    }

    fn plan(
        &self,
        system: &str,
        part: &Part,
        tls: Tls,
        warm_up: Duration,
        measure: Duration,
    ) -> anyhow::Result<Plan> {
        let path = self.path(system, part)?;
        let body = part.body;
        let speaks_tls = if system == DIRECT { direct(tls).client } else { tls.client };
        let address = self.running(system)?.handle.address();
        Ok(Plan {
            address,
            host: format!("{HOST}:{}", address.port()),
            ca: speaks_tls.then(|| self.pki.ca()),
            http: part.http,
            connections: part.connections,
            streams: part.streams,
            connecting: part.connecting,
            exchange: if part.is_upload {
                Exchange::Put { path, body }
            } else {
                Exchange::Get { path, body }
            },
            warm_up,
            measure,
            core: self.load_core,
        })
    }

    fn path(&self, system: &str, part: &Part) -> anyhow::Result<String> {
        if part.is_upload {
            // rclone reads back what it has stored; the others don't miss what is thrown away.
            let place = if system == "rclone-crypt" { "objects" } else { "sink" };
            return Ok(format!("/{place}/{system}-{}-{{n}}", part.body));
        }
        Ok(format!("/objects/{}-{}", self.owner(system)?, part.body))
    }

    /// Whose objects `system` reads: its own if it encrypts.
    fn owner<'a>(&self, system: &'a str) -> anyhow::Result<&'a str> {
        Ok(if self.running(system)?.seals { system } else { "plain" })
    }

    /// Adds what the system has logged to an error.
    fn explain<T>(&self, system: &str, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        outcome.map_err(|error| {
            let log = self.running.get(system).map(|started| started.handle.log()).unwrap_or_default();
            let log = log.trim();
            if log.is_empty() { error } else { anyhow!("{error:#}; {system} logged: {}", tail(log)) }
        })
    }
}

/// No system at all.
const DIRECT: &str = "direct";

/// Without a system there is one side only: TLS there if there is any.
fn direct(tls: Tls) -> Tls {
    let any = tls.client || tls.upstream;
    Tls { client: any, upstream: any }
}

/// The end of a log, where the error is.
fn tail(log: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

/// Serves on a thread that lives as long as this process.
fn serve_upstream(pki: Option<&Pki>, core: Option<usize>) -> anyhow::Result<SocketAddr> {
    let files = pki.map(|pki| (pki.certificate(), pki.key()));
    let tls = files.as_ref().map(|(chain, key)| (chain.as_path(), key.as_path()));
    let upstream = Upstream::bind(SocketAddr::from(([127, 0, 0, 1], 0)), tls)?;
    let address = upstream.address()?;
    std::thread::Builder::new().name("upstream".to_owned()).spawn(move || upstream.run(core))?;
    Ok(address)
}
