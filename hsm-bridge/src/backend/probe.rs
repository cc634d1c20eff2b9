//! What a backend can do, found out by doing it: the report of `keyway-bridge hsm probe`.

use super::software::{Keystore, Secret};
use super::{BackendConfig, BackendError, BackendKind, SoftwareConfig, mechanism_name, pkcs11};
use core::fmt;
use keyway_envelope::{Implementation, WrapMechanism};
use serde::Serialize;

/// What was found, what was tried, and what follows from it.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// The backend's name in the configuration.
    pub backend: String,
    /// `software` or `pkcs11`.
    pub kind: &'static str,
    /// The module's or keystore's path, the token's label, versions: name and value.
    pub facts: Vec<(String, String)>,
    /// Each mechanism that the token advertises: its number, and its name if it has a known one. None is left out.
    pub advertised: Vec<Advertised>,
    /// What was tried, in order.
    pub trials: Vec<Trial>,
    /// The wrap mechanism that serves; none if none does.
    pub choice: Option<&'static str>,
    /// Why that one, or why none.
    pub why: String,
}

/// A mechanism in a token's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advertised {
    /// `CK_MECHANISM_TYPE`.
    pub number: u64,
    /// Its name, if it has a known one.
    pub name: Option<String>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// What was tried.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What the token said, or what this means.
    pub detail: String,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should; the mechanism is not used.
    Failed,
    /// Could not be tried here, which is no reason against the mechanism.
    Skipped,
}

/// Finds out what a backend can do. Makes no keystore, key file or stored key; may block for seconds.
///
/// # Errors
/// What keeps the backend from being tried at all. A backend that fails its trials is a report, not an error.
pub fn probe(config: &BackendConfig) -> Result<ProbeReport, BackendError> {
    match &config.kind {
        BackendKind::Software(software) => probe_software(&config.name, software),
        BackendKind::Pkcs11(pkcs11) => pkcs11::probe(&config.name, pkcs11),
    }
}

fn probe_software(name: &str, config: &SoftwareConfig) -> Result<ProbeReport, BackendError> {
    let mut facts = vec![("keystore".to_owned(), config.path.display().to_string())];
    if config.path.exists() {
        let keystore = Keystore::open(&config.path, &Secret::for_reading(config)?)?;
        facts.push(("keks".to_owned(), keystore.list().len().to_string()));
    } else {
        facts.push(("keks".to_owned(), "none: the keystore is made at the first start".to_owned()));
    }
    let passes = Implementation::AwsLc.passes_known_answers();
    let trial = Trial {
        name: "AES-256-GCM: known answers, tampering refused",
        outcome: if passes { Outcome::Passed } else { Outcome::Failed },
        detail: Implementation::AwsLc.name().to_owned(),
    };
    let choice = passes.then(|| mechanism_name(WrapMechanism::AesGcm));
    let why = if passes {
        "AES-256-GCM with associated data works; note that a software keystore protects keys only as well as its file and secret are kept"
    } else {
        "AES-256-GCM gives wrong answers on this machine"
    };
    Ok(ProbeReport {
        backend: name.to_owned(),
        kind: "software",
        facts,
        advertised: Vec::new(),
        trials: vec![trial],
        choice,
        why: why.to_owned(),
    })
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "backend {} ({})", self.backend, self.kind)?;
        for (name, value) in &self.facts {
            writeln!(f, "  {name}: {value}")?;
        }
        if !self.advertised.is_empty() {
            writeln!(f, "  advertised mechanisms: {}", self.advertised.len())?;
        }
        for mechanism in &self.advertised {
            let name = mechanism.name.as_deref().unwrap_or("(no known name)");
            writeln!(f, "    {:#010x} {name}", mechanism.number)?;
        }
        writeln!(f, "  trials:")?;
        for Trial { name, outcome, detail } in &self.trials {
            let outcome = match outcome {
                Outcome::Passed => "passed ",
                Outcome::Failed => "FAILED ",
                Outcome::Skipped => "skipped",
            };
            writeln!(f, "    {outcome} {name}: {detail}")?;
        }
        writeln!(f, "  wraps with: {}", self.choice.unwrap_or("nothing"))?;
        write!(f, "  why: {}", self.why)
    }
}
