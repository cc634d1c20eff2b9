//! A PKCS#11 module: loaded once per process, initialised once at a time.
//!
//! PKCS#11 counts a process as one application: initialisation, login and object handles belong to all of it.
//! So modules are shared by path, and what has to happen once per token sits here too.

use super::failure::{Failure, describe};
use crate::backend::BackendError;
use core::time::Duration;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::Instant;

/// Pause between finalising a sick module twice; doubled each time that it did not help.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(32);

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// A loaded module.
#[derive(Debug)]
pub(super) struct Module {
    path: PathBuf,
    context: RwLock<Context>,
    /// Finalised since the module last recovered from that.
    in_vain: AtomicU32,
    tokens: Mutex<HashMap<String, Arc<TokenState>>>,
}

/// The module as it is initialised now. Calls are made while a read guard is held, so that nobody finalises
/// the module under them (PKCS#11 leaves undefined what happens then).
#[derive(Debug)]
pub(super) struct Context {
    pub(super) pkcs11: Pkcs11,
    /// Counts initialisations. After another one, an old session's number may be a new session's: sessions and
    /// handles of another generation are forgotten, never used or closed.
    pub(super) generation: u64,
    reinitialised: Option<Instant>,
}

/// What this process has to do once per token, however many backends use it.
#[derive(Debug, Default)]
pub(super) struct TokenState {
    /// SHA-256 of PINs that the token has refused: none of them is tried again. Held during a login.
    pub(super) refused_pins: Mutex<HashSet<[u8; 32]>>,
    /// Held while a KEK is made, so that two callers don't make it twice.
    pub(super) making: Mutex<()>,
    /// Counts destroyed keys: a module may give a dead handle's number to another key.
    pub(super) destroyed: AtomicU64,
}

impl TokenState {
    pub(super) fn destroyed(&self) -> u64 {
        self.destroyed.load(Ordering::Acquire)
    }
}

impl Module {
    /// The module at this path; loads and initialises it the first time.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, BackendError> {
        let failed = |error: &dyn core::fmt::Display| {
            BackendError::Config(format!("can't load the PKCS#11 module {}: {error}", path.display()))
        };
        let path = path.canonicalize().map_err(|error| failed(&error))?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&path) {
            return Ok(Arc::clone(module));
        }
        let pkcs11 = Pkcs11::new(&path).map_err(|error| failed(&error))?;
        initialise(&pkcs11).map_err(|error| failed(&describe(&error)))?;
        let context = RwLock::new(Context { pkcs11, generation: 0, reinitialised: None });
        let module = Arc::new(Self {
            path: path.clone(),
            context,
            in_vain: AtomicU32::new(0),
            tokens: Mutex::default(),
        });
        modules.insert(path, Arc::clone(&module));
        Ok(module)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For calls: keeps the module initialised for as long as the guard lives.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, Context> {
        self.context.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// It works after it was initialised again.
    pub(super) fn recovered(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
    }

    /// The process-wide state of a token.
    pub(super) fn token(&self, label: &str) -> Arc<TokenState> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tokens.entry(label.to_owned()).or_default())
    }

    /// Initialises the module again, unless somebody has done so since `seen`.
    ///
    /// `finalise` for one that is initialised but sick. That waits for nobody: while other calls run in the
    /// module, it is not so sick that they should lose their sessions.
    pub(super) fn reinitialise(&self, seen: u64, finalise: bool) -> Result<(), Failure> {
        let mut context = match self.context.try_write() {
            Ok(context) => context,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if finalise => {
                return Err(
                    BackendError::Unavailable("other calls are running in the module".to_owned()).into()
                );
            }
            // It has been finalised by somebody else, so every call in it ends at once.
            Err(TryLockError::WouldBlock) => self.context.write().unwrap_or_else(PoisonError::into_inner),
        };
        if context.generation != seen {
            return Ok(());
        }
        if finalise {
            let in_vain = self.in_vain.load(Ordering::Relaxed);
            let pause = PAUSE_MAX.min(PAUSE_MIN * 2u32.saturating_pow(in_vain.min(16)));
            if context.reinitialised.is_some_and(|at| at.elapsed() < pause) {
                return Err(
                    BackendError::Unavailable("the module was initialised a moment ago".to_owned()).into()
                );
            }
            context.reinitialised = Some(Instant::now());
            self.in_vain.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = context.pkcs11.clone().finalize() {
                tracing::debug!(module = %self.path.display(), error = describe(&error), "finalising failed");
            }
        }
        tracing::warn!(module = %self.path.display(), "initialising the PKCS#11 module again");
        context.generation += 1;
        initialise(&context.pkcs11)?;
        Ok(())
    }
}

fn initialise(pkcs11: &Pkcs11) -> Result<(), Error> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // Another user of the module in this process was first; that serves as well.
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    }
}
