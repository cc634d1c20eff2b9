//! What is done with keys on one session.

use super::failure::{Class, Failure, classify, is_refusal};
use super::token::{CachedKey, Link};
use crate::backend::{BackendError, KekInfo};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use keyway_envelope::dek::DEK_LEN;
use keyway_envelope::{Dek, DekId, KekRef, KeyBlock, LockedBox, WrapMechanism, wrap_aad};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const IV: usize = 12;
const TAG: usize = 16;
const TAG_BITS: u64 = 128;

/// A DEK on its way to a session's thread, and where its wrap is for.
pub(super) struct ToWrap {
    pub(super) kek: KekRef,
    dek_id: DekId,
    bytes: LockedBox<Zeroizing<[u8; DEK_LEN]>>,
    aad: Vec<u8>,
}

impl ToWrap {
    pub(super) fn new(kek: KekRef, dek: &Dek, zone: &str, tenant: &str) -> Self {
        let aad = wrap_aad(kek, dek.id(), WrapMechanism::AesGcm, zone, tenant);
        Self { kek, dek_id: dek.id(), bytes: LockedBox::new(Zeroizing::new(*dek.expose())), aad }
    }
}

impl Link {
    /// Wraps, with the token's last word on the IV, and opens the result again.
    pub(super) fn wrap(&mut self, job: &ToWrap) -> Result<KeyBlock, Failure> {
        let key = self.key(job.kek)?;
        if let Some(reason) = key.unfit {
            return Err(BackendError::Unfit { kek: job.kek, reason }.into());
        }
        let sealed = seal(&self.session, key.handle, &job.bytes[..], &job.aad)?;
        let opened = open(&self.session, key.handle, &sealed, &job.aad)?;
        if !bool::from(opened.as_slice().ct_eq(&job.bytes[..])) {
            return Err(BackendError::Unavailable("a fresh wrap did not open to its key".to_owned()).into());
        }
        KeyBlock::inline(job.kek, job.dek_id, WrapMechanism::AesGcm, &sealed).map_err(|error| {
            BackendError::Unavailable(format!("the token made a malformed wrap: {error}")).into()
        })
    }

    /// Opens. An error that is not clear goes to the canary.
    pub(super) fn unwrap(&mut self, block: &KeyBlock, aad: &[u8]) -> Result<Dek, Failure> {
        let kek = block.kek();
        let key = self.key(kek)?;
        let opened = open(&self.session, key.handle, block.wrapped(), aad).map_err(|error| {
            if is_refusal(&error) {
                Failure::Backend(BackendError::Refused)
            } else if matches!(classify(&error), Class::Ambiguous) {
                Failure::Suspect { kek, error }
            } else {
                Failure::Call(error)
            }
        })?;
        let mut dek = Zeroizing::new([0; DEK_LEN]);
        if opened.len() != DEK_LEN {
            return Err(BackendError::Refused.into());
        }
        dek.copy_from_slice(&opened);
        Ok(Dek::new(block.dek_id(), dek))
    }

    /// Looks a KEK up in the token, not in the cache.
    pub(super) fn find(&mut self, kek: KekRef) -> Result<Option<KekInfo>, Failure> {
        let found = self.find_handles(&[Attribute::Id(kek.to_bytes().to_vec())])?;
        let handle = match found.as_slice() {
            [] => return Ok(None),
            [handle] => *handle,
            _ => return Err(BackendError::Duplicate { kek }.into()),
        };
        let facts = Facts::read(&self.session, handle)?;
        // Makes the cache take note of keys destroyed so far, before it takes a handle found after that.
        self.cached(kek);
        self.cache(kek, CachedKey { handle, unfit: facts.unfit() });
        Ok(Some(facts.info(kek)))
    }

    /// All AES keys in the token whose identifier is a KEK reference.
    pub(super) fn list(&mut self) -> Result<Vec<KekInfo>, Failure> {
        let mut keks = Vec::new();
        for handle in self.find_handles(&[])? {
            let facts = Facts::read(&self.session, handle)?;
            if let Ok(id) = <[u8; KekRef::LEN]>::try_from(facts.id.as_slice()) {
                keks.push(facts.info(KekRef::from_bytes(id)));
            }
        }
        keks.sort_by_key(|info| info.kek);
        match keks.windows(2).find(|pair| pair[0].kek == pair[1].kek) {
            Some(pair) => Err(BackendError::Duplicate { kek: pair[0].kek }.into()),
            None => Ok(keks),
        }
    }

    /// Makes a KEK that never leaves the token, and reads back that it is one; or returns the one that there is.
    pub(super) fn generate(&mut self, kek: KekRef, label: &str) -> Result<KekInfo, Failure> {
        let state = std::sync::Arc::clone(&self.state);
        let _alone = state.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.find(kek)? {
            let unfit = self.cached(kek).and_then(|key| key.unfit);
            return unfit.map_or(Ok(found), |reason| Err(BackendError::Unfit { kek, reason }.into()));
        }
        let handle = self.session.generate_key(&Mechanism::AesKeyGen, &kek_template(kek, label))?;
        if let Some(reason) = Facts::read(&self.session, handle)?.unfit() {
            self.remove(handle)?;
            return Err(BackendError::Unfit { kek, reason }.into());
        }
        match self.find(kek) {
            Ok(Some(info)) => Ok(info),
            Ok(None) => Err(BackendError::Unavailable("the token lost a fresh key".to_owned()).into()),
            // Another process has made it at the same time. Ours has wrapped nothing yet, so it may go.
            Err(Failure::Backend(BackendError::Duplicate { .. })) => {
                self.remove(handle)?;
                let message = "another process made the same KEK at the same time; ask again";
                Err(BackendError::Unavailable(message.to_owned()).into())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Destroys a KEK.
    pub(super) fn destroy(&mut self, kek: KekRef) -> Result<(), Failure> {
        let found = self.find_handles(&[Attribute::Id(kek.to_bytes().to_vec())])?;
        match found.as_slice() {
            [] => Err(BackendError::NotFound { kek }.into()),
            [handle] => self.remove(*handle),
            _ => Err(BackendError::Duplicate { kek }.into()),
        }
    }

    /// A round trip under a KEK in the token, found anew; `None` takes the first, or, in an empty token, makes a key for it.
    pub(super) fn canary(&mut self, kek: Option<KekRef>) -> Result<(), Failure> {
        self.forget_handles();
        let narrow: Vec<_> = kek.iter().map(|kek| Attribute::Id(kek.to_bytes().to_vec())).collect();
        if let Some(&handle) = self.find_handles(&narrow)?.first() {
            return round_trip(&self.session, handle);
        }
        // Stored, not just in the session: a session key lives on when the token's storage is gone.
        let handle = self.session.generate_key(&Mechanism::AesKeyGen, &canary_template(true))?;
        let outcome = round_trip(&self.session, handle);
        self.remove(handle)?;
        outcome
    }

    /// The key, from the cache or the token.
    fn key(&mut self, kek: KekRef) -> Result<CachedKey, Failure> {
        if let Some(key) = self.cached(kek) {
            return Ok(key);
        }
        self.find(kek)?;
        self.cached(kek).ok_or_else(|| BackendError::NotFound { kek }.into())
    }

    fn remove(&mut self, handle: ObjectHandle) -> Result<(), Failure> {
        let outcome = self.session.destroy_object(handle);
        // Also if it failed: nobody knows how far it came.
        self.state.destroyed.fetch_add(1, Ordering::AcqRel);
        Ok(outcome?)
    }

    fn find_handles(&self, narrow: &[Attribute]) -> Result<Vec<ObjectHandle>, Error> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
        ];
        template.extend_from_slice(narrow);
        let found = self.session.find_objects(&template)?;
        if found.is_empty() && !self.is_logged_in()? {
            // Private objects can't be seen: that they seem absent says nothing.
            return Err(Error::Pkcs11(RvError::UserNotLoggedIn, cryptoki::context::Function::FindObjects));
        }
        Ok(found)
    }
}

/// `IV ‖ ciphertext ‖ tag`.
pub(super) fn seal(
    session: &Session,
    key: ObjectHandle,
    plain: &[u8],
    aad: &[u8],
) -> Result<Vec<u8>, Failure> {
    let mut iv = [0; IV];
    getrandom::fill(&mut iv).map_err(|error| BackendError::Unavailable(format!("no randomness: {error}")))?;
    let params = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
    let sealed = session.encrypt(&Mechanism::AesGcm(params), key, plain)?;
    if sealed.len() != plain.len() + TAG {
        return Err(BackendError::Unavailable("the token made a wrap of another length".to_owned()).into());
    }
    // Some HSMs insist on an IV of their own and write it into the parameters: what counts is what stands there now.
    Ok([iv.as_slice(), &sealed].concat())
}

/// The way back.
pub(super) fn open(
    session: &Session,
    key: ObjectHandle,
    sealed: &[u8],
    aad: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let Some((iv, sealed)) = sealed.split_first_chunk::<IV>() else { return Err(Error::InvalidValue) };
    let mut iv = *iv;
    let params = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
    session.decrypt(&Mechanism::AesGcm(params), key, sealed).map(Zeroizing::new)
}

fn round_trip(session: &Session, key: ObjectHandle) -> Result<(), Failure> {
    let canary = [0xC5; DEK_LEN];
    let sealed = seal(session, key, &canary, b"keyway canary")?;
    if open(session, key, &sealed, b"keyway canary")?.as_slice() == canary {
        Ok(())
    } else {
        Err(BackendError::Unavailable("the canary did not come back".to_owned()).into())
    }
}

fn kek_template(kek: KekRef, label: &str) -> Vec<Attribute> {
    let mut template = aes_template(true);
    template.extend([
        Attribute::Id(kek.to_bytes().to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
        // One job only: a KEK is not used with the token's own wrap functions.
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ]);
    template
}

/// Its identifier is no KEK reference: should a crash leave it behind, nobody takes it for a KEK.
pub(super) fn canary_template(stored: bool) -> Vec<Attribute> {
    let mut template = aes_template(stored);
    template.push(Attribute::Label(b"keyway canary".to_vec()));
    template
}

fn aes_template(stored: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32u64.into()),
        Attribute::Token(stored),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// What the token says about a key. An attribute that it does not tell counts against the key.
#[derive(Debug, Default)]
struct Facts {
    id: Vec<u8>,
    label: String,
    length: Option<usize>,
    extractable: Option<bool>,
    /// Those that have to be true: token, private, sensitive, always sensitive, never extractable, encrypt, decrypt.
    told_true: Vec<AttributeType>,
}

const HAVE_TO_BE_TRUE: [AttributeType; 7] = [
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
];

impl Facts {
    fn read(session: &Session, handle: ObjectHandle) -> Result<Self, Error> {
        let mut wanted = vec![
            AttributeType::Id,
            AttributeType::Label,
            AttributeType::ValueLen,
            AttributeType::Extractable,
        ];
        wanted.extend(HAVE_TO_BE_TRUE);
        let mut facts = Self::default();
        for attribute in session.get_attributes(handle, &wanted)? {
            let kind = attribute.attribute_type();
            match attribute {
                Attribute::Id(id) => facts.id = id,
                Attribute::Label(label) => facts.label = String::from_utf8_lossy(&label).into_owned(),
                Attribute::ValueLen(length) => facts.length = Some(length.into()),
                Attribute::Extractable(extractable) => facts.extractable = Some(extractable),
                Attribute::Token(true)
                | Attribute::Private(true)
                | Attribute::Sensitive(true)
                | Attribute::AlwaysSensitive(true)
                | Attribute::NeverExtractable(true)
                | Attribute::Encrypt(true)
                | Attribute::Decrypt(true) => facts.told_true.push(kind),
                _ => {}
            }
        }
        Ok(facts)
    }

    fn unfit(&self) -> Option<String> {
        if self.extractable != Some(false) {
            return Some("it may be extracted (CKA_EXTRACTABLE)".to_owned());
        }
        if self.length != Some(32) {
            return Some("it is not AES-256 (CKA_VALUE_LEN)".to_owned());
        }
        let missing = HAVE_TO_BE_TRUE.iter().find(|attribute| !self.told_true.contains(attribute))?;
        Some(format!("the token does not say that it is {missing:?}"))
    }

    fn info(&self, kek: KekRef) -> KekInfo {
        KekInfo {
            kek,
            label: self.label.clone(),
            extractable: self.extractable != Some(false),
            mechanism: WrapMechanism::AesGcm,
        }
    }
}
