//! One token: its slot, its login, its sessions.

use super::failure::{Class, Failure, classify, describe};
use super::module::{Context, Module, TokenState};
use crate::backend::software::read_first_line;
use crate::backend::{BackendError, Pkcs11Config};
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::RawAuthPin;
use keyway_envelope::KekRef;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

/// Where a token is and how to log in; nothing is open yet.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) module: PathBuf,
    pub(super) label: String,
    pin_file: PathBuf,
}

/// A session that is logged in, and the handles found through it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) slot: Slot,
    pub(super) module: Arc<Module>,
    pkcs11: Pkcs11,
    pub(super) state: Arc<TokenState>,
    generation: u64,
    /// `TokenState::destroyed` as of when `handles` was last empty.
    destroyed_seen: u64,
    handles: HashMap<KekRef, CachedKey>,
}

/// A key that was found and looked at.
#[derive(Clone, Debug)]
pub(super) struct CachedKey {
    pub(super) handle: ObjectHandle,
    /// Why nothing new may be wrapped under it, if so.
    pub(super) unfit: Option<String>,
}

impl Token {
    pub(super) fn new(config: &Pkcs11Config) -> Self {
        Self { module: config.module.clone(), label: config.token.clone(), pin_file: config.pin_file.clone() }
    }

    /// Opens a session and logs in, unless this process has.
    pub(super) fn connect(&self, module: &Arc<Module>, context: &Context) -> Result<Link, Failure> {
        let slot = self.find_slot(context)?;
        // Not closed by being dropped: see `Context::generation`.
        let session = context.pkcs11.open_rw_session_no_drop(slot)?;
        let state = module.token(&self.label);
        if let Err(failure) = self.log_in(&session, &state) {
            if let Err(error) = session.close() {
                tracing::debug!(error = describe(&error), "closing a session failed");
            }
            return Err(failure);
        }
        let destroyed_seen = state.destroyed();
        Ok(Link {
            session,
            slot,
            module: Arc::clone(module),
            pkcs11: context.pkcs11.clone(),
            state,
            generation: context.generation,
            destroyed_seen,
            handles: HashMap::new(),
        })
    }

    /// By label: slot numbers change between initialisations.
    fn find_slot(&self, context: &Context) -> Result<Slot, Failure> {
        let mut found = Vec::new();
        let mut others = Vec::new();
        let mut unreadable = false;
        for slot in context.pkcs11.get_slots_with_token()? {
            // A broken reader next to ours is not our concern, unless ours is not found.
            let Ok(info) = context.pkcs11.get_token_info(slot) else {
                unreadable = true;
                continue;
            };
            if !info.token_initialized() {
                continue;
            }
            if info.label() == self.label {
                found.push(slot);
            } else {
                others.push(info.label().to_owned());
            }
        }
        match found.as_slice() {
            [slot] => Ok(*slot),
            [] => {
                let (module, label) = (self.module.display(), &self.label);
                let text = format!("{module} has no token labelled {label:?}; it has {others:?}");
                Err(Failure::Absent { text, unreadable })
            }
            _ => Err(Failure::Backend(BackendError::Config(format!(
                "{} has {} tokens labelled {:?}; labels have to be unique",
                self.module.display(),
                found.len(),
                self.label
            )))),
        }
    }

    fn log_in(&self, session: &Session, state: &TokenState) -> Result<(), Failure> {
        // One at a time: with a wrong PIN, several sessions must not use up the tries.
        let mut refused = state.refused_pins.lock().unwrap_or_else(PoisonError::into_inner);
        if is_logged_in(session)? {
            return Ok(());
        }
        let pin = read_first_line(&self.pin_file, "PIN")?;
        let digest = Sha256::digest(&*pin).into();
        if refused.contains(&digest) {
            return Err(Failure::Backend(BackendError::Pin));
        }
        let error = match session.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(pin.to_vec()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(()),
            Err(error) => error,
        };
        if classify(&error) == Class::Pin {
            tracing::error!(token = self.label, error = describe(&error), "the token refused the PIN");
            refused.insert(digest);
            return Err(Failure::Backend(BackendError::Pin));
        }
        if matches!(error, Error::Pkcs11(RvError::UserPinNotInitialized, _)) {
            let hint =
                format!("the token {:?} has no user PIN yet; set one with the HSM's own tool", self.label);
            return Err(Failure::Backend(BackendError::Config(hint)));
        }
        Err(error.into())
    }
}

impl Link {
    /// Whether the session belongs to the module as it is initialised now.
    pub(super) fn is_current(&self, context: &Context) -> bool {
        self.generation == context.generation
    }

    /// Whether the session may see private objects. A token that was logged out seems empty.
    pub(super) fn is_logged_in(&self) -> Result<bool, Error> {
        is_logged_in(&self.session)
    }

    /// The key's handle, if it is known and no key was destroyed since.
    pub(super) fn cached(&mut self, kek: KekRef) -> Option<CachedKey> {
        let destroyed = self.state.destroyed();
        if destroyed != self.destroyed_seen {
            self.handles.clear();
            self.destroyed_seen = destroyed;
        }
        self.handles.get(&kek).cloned()
    }

    /// Keeps a handle, unless a key was destroyed since the last look at the cache.
    pub(super) fn cache(&mut self, kek: KekRef, key: CachedKey) {
        if self.state.destroyed() == self.destroyed_seen {
            self.handles.insert(kek, key);
        }
    }

    pub(super) fn forget_handles(&mut self) {
        self.handles.clear();
    }

    /// What module and token say about themselves.
    pub(super) fn describe(&self) -> Result<Vec<(String, String)>, Failure> {
        let library = self.pkcs11.get_library_info()?;
        let token = self.pkcs11.get_token_info(self.slot)?;
        let fact = |name: &str, value: String| (name.to_owned(), value.trim().to_owned());
        Ok(vec![
            fact("library", format!("{} {}", library.library_description(), library.library_version())),
            fact("interface", format!("PKCS#11 {}", library.cryptoki_version())),
            fact("manufacturer", token.manufacturer_id().to_owned()),
            fact("model", token.model().to_owned()),
        ])
    }

    /// Closes the session if it is still ours to close.
    pub(super) fn close(self, context: &Context) {
        if self.is_current(context)
            && let Err(error) = self.session.close()
        {
            tracing::debug!(error = describe(&error), "closing a session failed");
        }
    }
}

fn is_logged_in(session: &Session) -> Result<bool, Error> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RwUser | SessionState::RoUser))
}
