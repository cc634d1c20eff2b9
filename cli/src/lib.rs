//! What the `keyway` command is made of, as a library, so that tests can use the parts.
//!
//! - [`dev`]: everything in one process.
//! - [`operator`]: what an operator asks a bridge.
//! - [`inspect`] and [`open`]: an envelope without a key, and with the HSM's.
//! - [`store`]: the object store of dev.
//! - [`pki`]: certificates on the fly.

pub mod args;
pub mod dev;
mod error;
mod harden;
pub mod inspect;
pub mod open;
pub mod operator;
pub mod output;
pub mod pki;
pub mod private_file;
mod serve;
pub mod store;

pub use error::Failure;

use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Runs the command line and gives the exit code: 0 done, 1 failed, 2 wrong arguments, 64 bad configuration.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(&cli.command);
    harden::process();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Told) {
                // Nothing is left to be done if that can't be written either.
                let _ = writeln!(io::stderr(), "keyway: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => dev::run(&args),
        Command::Rotate(command) => operator::rotate(&command),
        Command::Keys(args) => operator::keys(&args),
        Command::Members(args) => operator::members(&args),
        Command::Inspect { file, json } => inspect::run(&file, json),
        Command::Open(args) => open::run(&args),
        Command::Pki(args) => pki::run(&args),
        Command::Store(args) => serve::store(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyway", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// `KEYWAY_LOG` chooses what is logged, as in `debug` or `keyway_proxy=trace`.
fn log_to_stderr(command: &Command) {
    // cryptoki calls each mechanism that it has no name for an error.
    let default = match command {
        Command::Dev(_) | Command::Store(_) => "info,cryptoki::mechanism=off",
        _ => "warn,cryptoki::mechanism=off",
    };
    let filter = EnvFilter::try_from_env("KEYWAY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    subscriber.with_ansi(io::stderr().is_terminal()).init();
}
