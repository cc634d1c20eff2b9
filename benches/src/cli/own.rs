//! The commands for one's own service.

use super::output::{self, tell};
use super::{listen, seconds};
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use keyway_benches::compare::{self, Ask, Way};
use keyway_benches::{load, upstream};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A method that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    #[value(name = "GET", alias = "get")]
    Get,
    #[value(name = "PUT", alias = "put")]
    Put,
}

/// How each request gets a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reconnect {
    Full,
    Resumed,
}

/// What is asked of a service.
#[derive(Debug, Args)]
struct AskArguments {
    /// GET or PUT
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: Method,
    /// Length of the body in bytes: of each response to GET, which is checked, or of what PUT sends
    /// (`curl -so /dev/null -w '%{size_download}' URL` tells that of a response)
    #[arg(long, value_name = "BYTES")]
    size: u64,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Speaks HTTP/2, with so many requests under way on each connection
    #[arg(long, value_name = "STREAMS", value_parser = clap::value_parser!(u16).range(1..))]
    http2: Option<u16>,
    /// A connection for each request, with a whole TLS handshake or a resumed session
    #[arg(long, value_name = "HOW", conflicts_with = "http2")]
    reconnect: Option<Reconnect>,
    /// The authority to trust for https, PEM [default: those that the machine trusts]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Before each measurement, in seconds
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds)]
    warm_up: Duration,
    /// Length of a measurement, in seconds
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Keeps the generator, one thread, on this core
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArguments {
    /// What the others are compared with: the service without a sidecar, say
    #[arg(long, value_name = "URL")]
    a: String,
    /// Another way to it; may be given several times
    #[arg(long, value_name = "URL", required = true)]
    b: Vec<String>,
    /// Rounds, in each of which every URL has a turn
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Counts the CPU time of a process on this machine, as B=1234; may be given several times
    #[arg(long, value_name = "WAY=PID", value_parser = way_and_pid)]
    pid: Vec<(String, u32)>,
    /// Prints all rounds as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: AskArguments,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// `http://` or `https://`; `{n}` in its path stands for the connection's number
    url: String,
    /// Asks so many times a second, by the clock, rather than as fast as it is answered
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: AskArguments,
}

#[derive(Debug, Args)]
pub(crate) struct UpstreamArguments {
    /// Where to listen: ADDRESS:PORT, or a port of the loopback
    #[arg(long, value_name = "ADDRESS", default_value = "9000", value_parser = listen)]
    listen: SocketAddr,
    /// The certificate chain, PEM: speaks TLS
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Keeps it, one thread, on this core
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
    /// Writes the address as JSON once it listens
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

fn way_and_pid(text: &str) -> Result<(String, u32), String> {
    let parse = || {
        let (way, pid) = text.split_once('=')?;
        let way = way.to_ascii_uppercase();
        compare::NAMES.contains(&way.as_str()).then_some((way, pid.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{text:?} is not like B=1234"))
}

impl AskArguments {
    fn ask(&self) -> Ask {
        Ask {
            is_upload: self.method == Method::Put,
            body: self.size,
            http: if self.http2.is_some() { load::Http::Two } else { load::Http::One },
            connections: usize::from(self.connections),
            streams: usize::from(self.http2.unwrap_or(1)),
            connecting: match self.reconnect {
                None => load::Connecting::Once,
                Some(Reconnect::Full) => load::Connecting::Anew,
                Some(Reconnect::Resumed) => load::Connecting::Resumed,
            },
            ca: self.ca.clone(),
            warm_up: self.warm_up,
            measure: self.seconds,
            core: self.core,
        }
    }
}

pub(super) fn compare(arguments: &CompareArguments) -> anyhow::Result<ExitCode> {
    let urls = std::iter::once(&arguments.a).chain(&arguments.b);
    let ways: Vec<Way> = urls
        .zip(compare::NAMES)
        .map(|(url, name)| {
            let pids = arguments.pid.iter().filter(|(way, _)| way == name).map(|&(_, pid)| pid).collect();
            Way { url: url.clone(), pids }
        })
        .collect();
    ensure!(ways.len() == arguments.b.len() + 1, "compares {} URLs at most", compare::NAMES.len());
    let (section, turns) = compare::measure(&arguments.ask.ask(), &ways, usize::from(arguments.rounds))?;
    if arguments.json {
        output::json(&serde_json::json!({ "section": section, "rounds": turns }))?;
    } else {
        output::section(&section)?;
    }
    for (way, why) in &turns.failed {
        tell(&format!("{way} is left out: {why}"));
    }
    Ok(if turns.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn load(arguments: &LoadArguments) -> anyhow::Result<ExitCode> {
    let ask = arguments.ask.ask();
    let plan = ask.plan(&arguments.url)?;
    let sample = match arguments.rate {
        Some(rate) => {
            ensure!(rate.is_finite() && rate > 0.0, "--rate takes a number above 0");
            load::pace(&plan, rate)?
        }
        None => load::run(&plan)?,
    };
    output::sample(&sample, arguments.json)?;
    Ok(if sample.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn upstream(arguments: &UpstreamArguments) -> anyhow::Result<ExitCode> {
    tell(&format!("serving on {}", arguments.listen));
    let tls = arguments.cert.as_deref().zip(arguments.key.as_deref());
    upstream::serve(arguments.listen, tls, arguments.core, arguments.ready_file.as_deref())
        .context("serving the store")?;
    Ok(ExitCode::SUCCESS)
}
