//! Failures of a command, by exit code.

use core::fmt;

/// Why a command ends with another code than 0. Wrong arguments (2) are clap's.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1: it was tried and did not work.
    Failed(anyhow::Error),
    /// Exit code 2: the arguments contradict each other, or ask for what does not exist.
    Usage(String),
    /// Exit code 64: a configuration file is wrong.
    Config(anyhow::Error),
    /// Exit code 1: the output says why already.
    Told,
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::Config(_) => 64,
        }
    }

    /// Marks an error as one of configuration.
    pub fn config(error: impl Into<anyhow::Error>) -> Self {
        Self::Config(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `#` gives the whole chain of causes on one line.
            Self::Failed(error) | Self::Config(error) => write!(f, "{error:#}"),
            Self::Usage(text) => f.write_str(text),
            Self::Told => Ok(()),
        }
    }
}

// Not an `std::error::Error` itself: that would forbid taking every error over with `?`.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
