//! `keyway-proxy`: parses its arguments, starts the proxy, follows signals.

use anyhow::Context;
use clap::Parser;
use keyway_proxy::{Config, ConfigError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Ahead of glibc's by a few per cent on small requests and more in bulk, and it gives memory back (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A sidecar that seals what a service sends and stores, and opens what comes back.
#[derive(Debug, Parser)]
#[command(name = "keyway-proxy", version)]
struct Arguments {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE", required_unless_present = "print_schema", env = "KEYWAY_CONFIG")]
    config: Option<PathBuf>,
    /// Parses and checks the configuration, prints what is in force, and exits: 0 if it is good, 64 if not.
    #[arg(long)]
    check: bool,
    /// Writes the addresses as JSON once all is listening: `{"listeners": {NAME: …}, "proxy_admin": …}`.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Prints the JSON Schema of the configuration and exits.
    #[arg(long)]
    print_schema: bool,
}

/// Exit code of a bad configuration (EX_USAGE).
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_schema {
        return print(&Config::schema());
    }
    let path = arguments.config.unwrap_or_default();
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => return bad_config(&error),
    };
    if arguments.check {
        return print(&serde_json::to_value(&config).unwrap_or_default());
    }
    keyway_proxy::init_process();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(serve(path, config, arguments.ready_file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// To standard output. A reader that has gone away (`| head`) is no failure.
fn print(value: &serde_json::Value) -> ExitCode {
    let written = writeln!(std::io::stdout(), "{value:#}");
    let gone = written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
    if written.is_ok() || gone { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn serve(path: PathBuf, config: Config, ready_file: Option<PathBuf>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = keyway_proxy::start(config).await?;
    for (name, address) in running.listener_addrs() {
        tracing::info!(listener = name, %address, "listening");
    }
    tracing::info!(address = %running.admin_addr(), "admin port");
    if let Some(file) = ready_file {
        write_ready(&file, &running).with_context(|| format!("writing {}", file.display()))?;
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = running.drain_requested() => break,
            _ = hangup.recv() => reload(&path, &running),
        }
    }
    tracing::info!("draining");
    running.drain().await;
    tracing::info!("drained");
    Ok(())
}

/// Written whole, so that whoever waits for the file never reads half of it.
fn write_ready(path: &Path, running: &keyway_proxy::Running) -> anyhow::Result<()> {
    let addresses =
        serde_json::json!({ "listeners": running.listener_addrs(), "proxy_admin": running.admin_addr() });
    let partial = path.with_extension("partial");
    std::fs::write(&partial, addresses.to_string())?;
    Ok(std::fs::rename(partial, path)?)
}

fn reload(path: &Path, running: &keyway_proxy::Running) {
    let reloaded =
        Config::load(path).map_err(anyhow::Error::from).and_then(|config| Ok(running.reload(config)?));
    match reloaded {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(error) => tracing::error!(%error, "configuration not reloaded; the old one stays in force"),
    }
}

#[expect(clippy::print_stderr, reason = "logging is not set up yet, and people read this")]
fn bad_config(error: &ConfigError) -> ExitCode {
    eprintln!("keyway-proxy: {error}");
    ExitCode::from(EXIT_CONFIG)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!("cannot go on: {error:#}");
    ExitCode::FAILURE
}
