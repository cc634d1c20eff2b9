//! What a zone does with its HSMs: new versions, new DEKs, wraps and the way back.

use crate::audit::AuditError;
use crate::backend::KekInfo;
use crate::catalog::{Catalog, CatalogError, DekRow, NewDek, NewVersion, NewWrap, Place, Purpose};
use crate::hsms::{Hsm, HsmError, Hsms};
use keyway_envelope::dek::DEK_LEN;
use keyway_envelope::{Dek, DekId, KekRef, KekVersion, KeyBlock, KeyringId, WrapMechanism, ZoneId};
use keyway_protocol::kat;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

/// A key operation of a zone failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Fewer backends answer than the policy asks for.
    #[error("{up} of the {required} key backends that the policy asks for answer")]
    Backends {
        /// How many answer.
        up: usize,
        /// How many the policy asks for.
        required: usize,
    },
    /// A backend failed.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// Something that has to be equal or stronger is not. Nothing was recorded.
    #[error("{0}")]
    Check(&'static str),
    /// The catalog refused or failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The audit record could not be written, so nothing was done.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// A zone's keys: its name is bound into every wrap.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) zone: String,
    pub(crate) hsms: Hsms,
}

impl Keys {
    /// The highest version of a keyring that any backend holds, 0 if none does. One that is away is asked again when the
    /// version is made.
    pub(crate) async fn highest_version(
        &self,
        zone: ZoneId,
        keyring: KeyringId,
    ) -> Result<KekVersion, KeyError> {
        let mut highest = KekVersion(0);
        for hsm in self.hsms.up() {
            let keks = match hsm.list().await {
                Err(HsmError { source, .. }) if source.is_transient() => continue,
                listed => listed?,
            };
            let ours = keks.iter().filter(|info| info.kek.zone == zone && info.kek.keyring == keyring);
            highest = ours.map(|info| info.kek.version).fold(highest, KekVersion::max);
        }
        Ok(highest)
    }

    /// A KEK that was there before anybody asked for it is an old one under a number that the catalog has forgotten: it
    /// must not become the new version.
    async fn generate(
        &self,
        hsm: &Hsm,
        kek: KekRef,
        label: &str,
        catalog: &Catalog,
    ) -> Result<KekInfo, KeyError> {
        if !catalog.was_attempted(kek, hsm.name()).await? {
            if hsm.find(kek).await?.is_some() {
                return Err(KeyError::Check(
                    "a key backend holds an older key under the new version's number; remove it, or restore the catalog",
                ));
            }
            catalog.record_attempt(kek, hsm.name()).await?;
        }
        Ok(hsm.generate(kek, label).await?)
    }

    /// Makes a version in every backend that answers and proves it in each: what one wraps, it opens again to the same
    /// DEK, and the known answer opens to what was sealed.
    pub(crate) async fn make_version(
        &self,
        kek: KekRef,
        keyring: &str,
        catalog: &Catalog,
    ) -> Result<NewVersion, KeyError> {
        let up = self.enough(self.hsms.up())?;
        let label = format!("keyway:{}/{keyring}:v{}", self.zone, kek.version);
        let dek = new_dek()?;
        let (mut places, mut wraps) = (Vec::new(), Vec::new());
        for hsm in &up {
            let info = self.generate(hsm, kek, &label, catalog).await?;
            places.push(Place {
                backend: hsm.name().to_owned(),
                kind: hsm.kind().to_owned(),
                mechanism: info.mechanism,
                extractable: info.extractable,
            });
            wraps.push(self.wrap_at(hsm, kek, &dek, "").await?);
        }
        let answer = random::<{ kat::ANSWER_LEN }>()?;
        let known_answer = kat::seal_known_answer(&dek, &wraps[0].block, random()?, &self.zone, &answer);
        for (hsm, wrap) in up.iter().zip(&wraps) {
            let opened = hsm.unwrap(&wrap.block, &self.zone, "").await?;
            if kat::open_known_answer(&known_answer, &opened, &self.zone).ok() != Some(answer) {
                return Err(KeyError::Check("a key backend gives another known answer"));
            }
        }
        let dek = NewDek {
            id: dek.id(),
            keyring: kek.keyring,
            version: kek.version,
            service: String::new(),
            tenant: String::new(),
            purpose: Purpose::KnownAnswer,
            wraps,
        };
        Ok(NewVersion { kek, places, dek, known_answer, answer })
    }

    /// Wraps a DEK in as many of `places` as the policy asks for, the first ones that answer.
    pub(crate) async fn wrap(
        &self,
        kek: KekRef,
        dek: &Dek,
        tenant: &str,
        places: &[Place],
    ) -> Result<Vec<NewWrap>, KeyError> {
        let holds = |hsm: &Arc<Hsm>| places.iter().any(|place| place.backend == hsm.name());
        let up: Vec<_> = self.hsms.up().into_iter().filter(holds).collect();
        let mut wraps = Vec::with_capacity(self.hsms.required);
        let mut failure = None;
        for hsm in &up {
            match self.wrap_at(hsm, kek, dek, tenant).await {
                Ok(wrap) => wraps.push(wrap),
                Err(error) => failure = Some(error),
            }
            if wraps.len() == self.hsms.required {
                return Ok(wraps);
            }
        }
        Err(failure.unwrap_or(KeyError::Backends { up: wraps.len(), required: self.hsms.required }))
    }

    /// Opens a recorded DEK through any of its live wraps.
    pub(crate) async fn unwrap(&self, dek: &DekRow) -> Result<Dek, KeyError> {
        let mut failure = KeyError::Check("the DEK has no live wrap in a configured backend");
        // Those that answer first; one that seems to be away is still better than none.
        for up in [true, false] {
            for wrap in &dek.wraps {
                let Some(hsm) = self.hsms.named(&wrap.backend).filter(|hsm| hsm.is_up() == up) else {
                    continue;
                };
                match hsm.unwrap(&wrap.block, &self.zone, &dek.tenant).await {
                    Ok(dek) => return Ok(dek),
                    Err(error) => failure = error.into(),
                }
            }
        }
        Err(failure)
    }

    /// Opens a block that the catalog does not know, in whichever backend authenticates it. Refused only if all refuse.
    pub(crate) async fn unwrap_block(
        &self,
        block: &KeyBlock,
        tenant: &str,
        places: &[Place],
    ) -> Result<(Dek, String), KeyError> {
        let (mut refusal, mut failure) = (None, None);
        for up in [true, false] {
            for hsm in places.iter().filter_map(|place| self.hsms.named(&place.backend)) {
                if hsm.is_up() != up {
                    continue;
                }
                match hsm.unwrap(block, &self.zone, tenant).await {
                    Ok(dek) => return Ok((dek, hsm.name().to_owned())),
                    Err(error) if error.source.is_refusal() => refusal = Some(error),
                    Err(error) => failure = Some(error),
                }
            }
        }
        // The one that did not answer may be the one that made it.
        Err(failure.or(refusal).map_or(KeyError::Backends { up: 0, required: 1 }, KeyError::from))
    }

    /// New wraps for a recorded DEK, opened again and compared before anybody relies on them; never weaker than the old.
    pub(crate) async fn rewrap(
        &self,
        dek: &DekRow,
        to: KekRef,
        places: &[Place],
    ) -> Result<Vec<NewWrap>, KeyError> {
        let key = self.unwrap(dek).await?;
        let wraps = self.wrap(to, &key, &dek.tenant, places).await?;
        let weakest_old = dek.wraps.iter().map(|wrap| strength(wrap.block.mechanism())).min().unwrap_or(0);
        for wrap in &wraps {
            if strength(wrap.block.mechanism()) < weakest_old {
                return Err(KeyError::Check("the new wrap's mechanism is weaker than the old one's"));
            }
            let hsm =
                self.hsms.named(&wrap.backend).ok_or(KeyError::Check("a key backend has disappeared"))?;
            let again = hsm.unwrap(&wrap.block, &self.zone, &dek.tenant).await?;
            if !same(&again, &key) {
                return Err(KeyError::Check("the new wrap opens to another key"));
            }
        }
        Ok(wraps)
    }

    async fn wrap_at(&self, hsm: &Hsm, kek: KekRef, dek: &Dek, tenant: &str) -> Result<NewWrap, KeyError> {
        let block = hsm.wrap(kek, dek, &self.zone, tenant).await?;
        Ok(NewWrap { backend: hsm.name().to_owned(), block })
    }

    fn enough(&self, up: Vec<Arc<Hsm>>) -> Result<Vec<Arc<Hsm>>, KeyError> {
        let required = self.hsms.required;
        if up.len() < required { Err(KeyError::Backends { up: up.len(), required }) } else { Ok(up) }
    }
}

/// 32 bytes and a name, from the operating system.
pub(crate) fn new_dek() -> Result<Dek, KeyError> {
    let mut bytes = Zeroizing::new([0; DEK_LEN]);
    getrandom::fill(&mut bytes[..])?;
    Ok(Dek::new(DekId(random()?), bytes))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Whether two DEKs are the same key, in constant time.
pub(crate) fn same(one: &Dek, other: &Dek) -> bool {
    one.id() == other.id() && bool::from(one.expose()[..].ct_eq(&other.expose()[..]))
}

/// How strong a mechanism is; a rewrap never goes down.
fn strength(mechanism: WrapMechanism) -> u8 {
    match mechanism {
        WrapMechanism::None => 0,
        WrapMechanism::AesKwp => 1,
        WrapMechanism::AesGcm => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendConfig, BackendKind, SoftwareConfig};
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_block_is_refused_only_when_every_backend_has_refused_it() {
        let dir = tempfile::tempdir().unwrap();
        let configs = ["a", "b"].map(|name| BackendConfig {
            name: name.to_owned(),
            kind: BackendKind::Software(SoftwareConfig::new(dir.path().join(name))),
        });
        let kek = KekRef { zone: ZoneId(1), keyring: KeyringId(1), version: KekVersion(1) };
        let places = ["a", "b"].map(|name| Place {
            backend: name.to_owned(),
            kind: "software".to_owned(),
            mechanism: WrapMechanism::AesGcm,
            extractable: false,
        });
        let hsms = Hsms::open("payments", &configs, 1, Metrics::new()).await.unwrap();
        let keys = Keys { zone: "payments".to_owned(), hsms };
        for hsm in keys.hsms.all() {
            hsm.generate(kek, "a label").await.unwrap();
        }
        let made = keys.wrap_at(&keys.hsms.all()[1], kek, &new_dek().unwrap(), "").await.unwrap();
        let block = made.block;
        // `b` counts as away: its file is gone.
        std::fs::remove_file(dir.path().join("b")).unwrap();
        keys.hsms.check().await;
        assert!(!keys.hsms.all()[1].is_up());
        assert_eq!(keys.unwrap_block(&block, "", &places).await.unwrap().1, "b");
        let refused = keys.unwrap_block(&block, "another tenant", &places).await;
        assert!(matches!(&refused, Err(KeyError::Hsm(error)) if error.source.is_refusal()), "{refused:?}");
    }
}
