//! `keyway-bridge`: parses arguments, calls the library.

mod harden;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use keyway_bridge::{Config, ConfigError, Error, backend};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Exit codes, as in the documentation: 0 done, 1 failed, 2 wrong arguments (clap's own), 64 bad configuration.
const FAILED: u8 = 1;
const BAD_CONFIGURATION: u8 = 64;

/// The key side of Keyway: KEKs in HSMs, DEKs in a catalog, keyrings pushed to the fleet, rotations that resume.
#[derive(Debug, Parser)]
#[command(name = "keyway-bridge", version, max_term_width = 100)]
struct Arguments {
    /// How logs are written.
    #[arg(long, global = true, env = "KEYWAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: `info`, `keyway_bridge=debug`, … (cryptoki names every mechanism that it does not know)
    #[arg(long, global = true, env = "KEYWAY_LOG", default_value = "info,cryptoki=off")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve members and operators until SIGTERM.
    Serve {
        #[arg(long, env = "KEYWAY_BRIDGE_CONFIG")]
        config: PathBuf,
        /// Write the addresses as JSON once all is serving: `{"bridge": …, "bridge_admin": …}`.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Say whether a configuration can be used, and what it means.
    Check {
        #[arg(long, env = "KEYWAY_BRIDGE_CONFIG")]
        config: PathBuf,
    },
    /// Print the JSON Schema of the configuration.
    Schema,
    /// About key backends.
    #[command(subcommand)]
    Hsm(HsmCommand),
}

#[derive(Debug, Subcommand)]
enum HsmCommand {
    /// Try out what each backend of the configuration can do, and say which wrap mechanism follows.
    Probe {
        #[arg(long, env = "KEYWAY_BRIDGE_CONFIG")]
        config: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            // The logger may not be up, and people look at stderr.
            let _ = writeln!(std::io::stderr(), "keyway-bridge: {error:#}");
            let configuration = error.downcast_ref::<ConfigError>().is_some()
                || error.downcast_ref::<Error>().is_some_and(Error::is_configuration);
            ExitCode::from(if configuration { BAD_CONFIGURATION } else { FAILED })
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Serve { config, ready_file } => {
            start_logs(arguments.log_format, &arguments.log)?;
            harden::process();
            serve(Config::load(&config)?, ready_file.as_deref())
        }
        Command::Check { config } => check(&Config::load(&config)?),
        Command::Schema => {
            print(&serde_json::to_string_pretty(&Config::schema())?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hsm(HsmCommand::Probe { config, json }) => probe(&Config::load(&config)?, json),
    }
}

fn serve(config: Config, ready_file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let running = keyway_bridge::start(config).await?;
        if let Some(path) = ready_file {
            write_ready(path, &running).with_context(|| format!("writing {}", path.display()))?;
        }
        let stopped = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            stopped = running.stopped() => stopped,
        };
        running.shutdown().await;
        stopped?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Written whole, so that whoever waits for the file never reads half of it.
fn write_ready(path: &Path, running: &keyway_bridge::Running) -> anyhow::Result<()> {
    let addresses =
        serde_json::json!({ "bridge": running.grpc_addr(), "bridge_admin": running.admin_addr() });
    let partial = path.with_extension("partial");
    std::fs::write(&partial, addresses.to_string())?;
    Ok(std::fs::rename(partial, path)?)
}

/// The effective configuration: with it, defaults can be seen.
fn check(config: &Config) -> anyhow::Result<ExitCode> {
    for warning in config.warnings() {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    print(&serde_saphyr::to_string(config).context("writing the configuration")?)?;
    Ok(ExitCode::SUCCESS)
}

fn probe(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let (mut reports, mut healthy) = (Vec::new(), true);
    for zone in &config.zones {
        for backend in &zone.backends {
            match backend::probe(backend) {
                Ok(report) => {
                    healthy &= report.choice.is_some();
                    if json {
                        reports.push(serde_json::json!({ "zone": zone.name, "report": report }));
                    } else {
                        print(&format!("zone {}\n{report}", zone.name))?;
                    }
                }
                Err(error) => {
                    healthy = false;
                    if json {
                        let error = error.to_string();
                        reports.push(
                            serde_json::json!({ "zone": zone.name, "backend": backend.name, "error": error }),
                        );
                    } else {
                        print(&format!("zone {}\nbackend {}: {error}", zone.name, backend.name))?;
                    }
                }
            }
        }
    }
    if json {
        print(&serde_json::to_string_pretty(&reports)?)?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn start_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log")?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// To stdout; a reader that has gone away is no failure of ours to panic about.
fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to stdout")
}
