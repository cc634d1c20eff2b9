//! KEKs in a token behind a PKCS#11 module (PKCS#11 2.40 and later).
//!
//! A KEK is a 32-byte AES key made in the token: stored, private, sensitive, never extractable, with its
//! reference as `CKA_ID`. DEKs are wrapped by encrypting their bytes with AES-GCM (`C_Encrypt`), which binds zone and
//! tenant; the wrap functions of PKCS#11 can't do that.
//!
//! Give Keyway a token of its own: each AES key with an 8-byte `CKA_ID` counts as a KEK.
//!
//! # When a call fails
//! | class | what is done |
//! |---|---|
//! | session gone or logged out | new session, one retry |
//! | handle stale | key found again, one retry |
//! | module finalised | initialised again, one retry |
//! | PIN refused | stop; the same PIN is not tried again in this process |
//! | unclear (`CKR_GENERAL_ERROR`, `CKR_DEVICE_ERROR` …) | a canary decides: does it pass, the operation was at fault; else new session, then module, then `Unavailable` |
//! | caller's fault | told |
//!
//! A module that hangs can't be ended from inside its process: its threads hang with it, callers get a timeout.

mod failure;
mod keys;
mod module;
mod raw;
mod token;
mod trials;
mod worker;

use super::probe::ProbeReport;
use super::{BackendError, KekInfo, KeyBackend, Pkcs11Config, mechanism_name};
use async_trait::async_trait;
use core::time::Duration;
use keys::ToWrap;
use keyway_envelope::{Dek, KekRef, KeyBlock, WrapMechanism, wrap_aad};
use std::ops::RangeInclusive;
use token::Token;
use trials::{Discovery, discover};
use worker::Crew;

const SESSIONS: RangeInclusive<usize> = 1..=64;
/// Loading, initialising, logging in and the trials; a network HSM takes its time.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A token as a [`KeyBackend`].
#[derive(Debug)]
pub struct Pkcs11Backend {
    name: String,
    mechanism: WrapMechanism,
    crew: Crew,
}

impl Pkcs11Backend {
    /// Loads the module, logs in, and tries out what the token can do.
    ///
    /// # Errors
    /// [`BackendError::Config`] with what to do, [`BackendError::Pin`] if the token refuses the PIN,
    /// [`BackendError::Timeout`] after 30 seconds.
    pub fn open(name: String, config: &Pkcs11Config) -> Result<Self, BackendError> {
        let (crew, discovery) = start(&name, config)?;
        let Some(mechanism) = discovery.choice else {
            return Err(BackendError::Config(format!(
                "backend {name}: {}; see `keyway-bridge hsm probe`",
                discovery.why
            )));
        };
        tracing::info!(
            backend = name,
            mechanism = mechanism_name(mechanism),
            why = discovery.why,
            "opened the token"
        );
        Ok(Self { name, mechanism, crew })
    }
}

fn start(name: &str, config: &Pkcs11Config) -> Result<(Crew, Discovery), BackendError> {
    if !SESSIONS.contains(&config.sessions) {
        return Err(BackendError::Config(format!(
            "backend {name}: sessions is {}, but has to be {} to {}",
            config.sessions,
            SESSIONS.start(),
            SESSIONS.end()
        )));
    }
    let crew = Crew::start(name, &Token::new(config), config.sessions, config.timeout)?;
    let discovery = crew.run_blocking(OPEN_TIMEOUT, |link| discover(link))?;
    Ok((crew, discovery))
}

/// As [`crate::backend::probe()`].
pub(super) fn probe(name: &str, config: &Pkcs11Config) -> Result<ProbeReport, BackendError> {
    let config = Pkcs11Config { sessions: 1, ..config.clone() };
    let (crew, discovery) = start(name, &config)?;
    let mut facts = vec![
        ("module".to_owned(), config.module.display().to_string()),
        ("token".to_owned(), config.token.clone()),
    ];
    facts.extend(crew.run_blocking(OPEN_TIMEOUT, |link| link.describe())?);
    Ok(ProbeReport {
        backend: name.to_owned(),
        kind: "pkcs11",
        facts,
        advertised: discovery.advertised,
        trials: discovery.trials,
        choice: discovery.choice.map(mechanism_name),
        why: discovery.why,
    })
}

#[async_trait]
impl KeyBackend for Pkcs11Backend {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "pkcs11"
    }

    fn mechanism(&self) -> WrapMechanism {
        self.mechanism
    }

    async fn generate_kek(&self, kek: KekRef, label: &str) -> Result<KekInfo, BackendError> {
        let label = label.to_owned();
        self.crew.run(move |link| link.generate(kek, &label)).await
    }

    async fn find_kek(&self, kek: KekRef) -> Result<Option<KekInfo>, BackendError> {
        self.crew.run(move |link| link.find(kek)).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, BackendError> {
        self.crew.run(|link| link.list()).await
    }

    async fn wrap(&self, kek: KekRef, dek: &Dek, zone: &str, tenant: &str) -> Result<KeyBlock, BackendError> {
        let job = ToWrap::new(kek, dek, zone, tenant);
        self.crew.run(move |link| link.wrap(&job)).await
    }

    async fn unwrap(&self, block: &KeyBlock, zone: &str, tenant: &str) -> Result<Dek, BackendError> {
        // The mechanism is what the block says, never what would work.
        if block.mechanism() != WrapMechanism::AesGcm {
            return Err(BackendError::Refused);
        }
        let aad = wrap_aad(block.kek(), block.dek_id(), block.mechanism(), zone, tenant);
        let block = *block;
        self.crew.run(move |link| link.unwrap(&block, &aad)).await
    }

    async fn destroy_kek(&self, kek: KekRef) -> Result<(), BackendError> {
        self.crew.run(move |link| link.destroy(kek)).await
    }

    async fn health(&self) -> Result<(), BackendError> {
        self.crew.run(|link| link.canary(None)).await
    }
}
