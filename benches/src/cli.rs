//! What `keyway-bench` is asked, and who does it.

mod output;
mod own;
mod parts;

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures Keyway, and other programs, under load: in turns, on this machine.
#[derive(Debug, Parser)]
#[command(name = "keyway-bench", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything: table, growth, bridge, in one report
    Full(TableArguments),
    /// The table of workloads
    Table(TableArguments),
    /// The most telling rows, in two minutes
    Smoke(SmokeArguments),
    /// Memory, start, rotation under load, and how cost grows
    Growth(PartArguments),
    /// The bridge: DEKs, key backends, rotations, rewrap
    Bridge(PartArguments),
    /// Writes one report from those of several runs; later ones count
    Report(ReportArguments),
    /// Your own service, by two or more URLs in turns
    Compare(own::CompareArguments),
    /// Loads one URL, once
    Load(own::LoadArguments),
    /// Serves the in-memory store that the table's systems forward to
    Upstream(own::UpstreamArguments),
    /// Lists what can be measured here, and what is missing
    Systems(JsonArguments),
    /// Lists the rows of the table
    Rows(JsonArguments),
}

/// Where a report goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct OutArguments {
    /// The report's directory
    #[arg(long, value_name = "DIR", default_value = "target/bench-report")]
    out: PathBuf,
    /// Prints the report's data as JSON rather than its targets
    #[arg(long)]
    json: bool,
    /// Fails if a target is not met
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TableArguments {
    /// Rows whose name contains this; may be given several times, or with commas
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Systems to compare [default: all of each row]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    systems: Vec<String>,
    /// Rounds of each row, in each of which every system has a turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of a turn, in seconds
    #[arg(long, value_name = "S", default_value = "1.5", value_parser = seconds)]
    seconds: Duration,
    #[command(flatten)]
    out: OutArguments,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SmokeArguments {
    #[command(flatten)]
    out: OutArguments,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PartArguments {
    /// Parts to measure [default: all]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of each figure
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Fewer points and shorter windows: for a look, not for a conclusion
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    out: OutArguments,
}

#[derive(Debug, Args)]
struct ReportArguments {
    /// Directories of reports, in order of time
    #[arg(required = true, value_name = "DIR")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    out: OutArguments,
}

#[derive(Clone, Copy, Debug, Args)]
struct JsonArguments {
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// A length of time in seconds, as `1.5`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    // Shorter than this, a turn is all start and end.
    const SHORTEST: f64 = 0.05;
    if !(SHORTEST..=3600.0).contains(&number) {
        return Err(format!("must be between {SHORTEST} and 3600 seconds"));
    }
    Ok(Duration::from_secs_f64(number))
}

/// An address, or a port of the loopback.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let full = if text.contains(':') { text.to_owned() } else { format!("127.0.0.1:{text}") };
    full.parse().map_err(|_| format!("{text:?} is no address: ADDRESS:PORT, or PORT"))
}

/// Does what was asked.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Full(arguments) => parts::full(&arguments),
        Command::Table(arguments) => parts::table(&arguments),
        Command::Smoke(arguments) => parts::smoke(&arguments),
        Command::Growth(arguments) => parts::growth(&arguments),
        Command::Bridge(arguments) => parts::bridge(&arguments),
        Command::Report(arguments) => parts::merge(&arguments.runs, &arguments.out),
        Command::Compare(arguments) => own::compare(&arguments),
        Command::Load(arguments) => own::load(&arguments),
        Command::Upstream(arguments) => own::upstream(&arguments),
        Command::Systems(arguments) => output::systems(arguments.json),
        Command::Rows(arguments) => output::rows(arguments.json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_make_sense() {
        Arguments::command().debug_assert();
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("NaN").is_err());
        assert_eq!(listen("8080").unwrap(), "127.0.0.1:8080".parse().unwrap());
        assert!(listen("host").is_err());
    }

    #[test]
    fn rows_may_be_named_with_commas() {
        let arguments =
            Arguments::parse_from(["keyway-bench", "table", "--only", "get-1k,up", "--rounds", "3"]);
        let Command::Table(table) = arguments.command else { panic!("another command") };
        assert_eq!(table.only, ["get-1k", "up"]);
        assert_eq!(table.rounds, 3);
    }
}
