//! DEKs for members: issued to seal with, opened to read with.

mod quota;

pub(crate) use quota::Quota;

use crate::catalog::{CatalogError, DekRow, NewDek, NewWrap, Purpose};
use crate::keys::{self, KeyError, same};
use crate::zone::{Zone, ZoneKeyring};
use keyway_envelope::{Dek, KekRef, KekVersion, KeyBlock, KeyBlockKind};
use keyway_protocol::dek_transport::{parse_key_block, seal_dek};
use keyway_protocol::v1;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
use tracing::{info, warn};

/// The longest tenant name, in bytes.
const TENANT_MAX: usize = 256;

/// A DEK is not given out.
#[derive(Debug, Error)]
pub(crate) enum DekError {
    /// One text for all of these: a caller learns nothing about what it may not see.
    #[error("{0} may not do this here")]
    NotAllowed(String),
    #[error("{0}")]
    Argument(&'static str),
    #[error("no such DEK")]
    Unknown,
    #[error("version {0} is not one to seal under; wait for the current keyring set")]
    NotPrimary(u32),
    #[error("too many unknown key blocks; try again later")]
    Quota,
    #[error(transparent)]
    Keys(#[from] KeyError),
}

impl From<CatalogError> for DekError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::NotIssuable { version } => Self::NotPrimary(version.into()),
            error => Self::Keys(error.into()),
        }
    }
}

impl Zone {
    /// A new DEK for a service to seal with. Each start of a member gets its own, so its use counters are its own.
    pub(crate) async fn issue(
        &self,
        service: &str,
        request: &v1::IssueDekRequest,
    ) -> Result<v1::DekResponse, DekError> {
        let keyring = self.keyring_named(&request.keyring).ok_or_else(|| not_allowed(service))?;
        let rights = keyring.config.rights(service).ok_or_else(|| not_allowed(service))?;
        if !rights.seal {
            return Err(not_allowed(service));
        }
        if request.tenant.len() > TENANT_MAX {
            return Err(DekError::Argument("the tenant's name is longer than 256 bytes"));
        }
        let version = u16::try_from(request.kek_version)
            .map(KekVersion)
            .map_err(|_| DekError::NotPrimary(request.kek_version))?;
        // Asked before the HSM is troubled, and once more where it is recorded.
        if !self.catalog().is_issuable(keyring.id, version).await? {
            return Err(DekError::NotPrimary(request.kek_version));
        }
        let view = self.view.borrow().clone();
        let places = view
            .keyring(keyring.id)
            .and_then(|keyring| keyring.version(version))
            .map(|version| version.places.clone())
            .ok_or(DekError::NotPrimary(request.kek_version))?;
        let kek = KekRef { zone: self.id, keyring: keyring.id, version };
        let dek = keys::new_dek()?;
        let wraps = self.keys.wrap(kek, &dek, &request.tenant, &places).await?;
        let block = wraps[0].block;
        let response =
            self.respond(&dek, &block, version, keyring, &request.tenant, &request.recipient_key)?;
        let record = NewDek {
            id: dek.id(),
            keyring: keyring.id,
            version,
            service: service.to_owned(),
            tenant: request.tenant.clone(),
            purpose: Purpose::Data,
            wraps,
        };
        let asked = Instant::now();
        self.catalog().record_dek(&record, None).await?;
        self.shared.metrics.catalog_commit(asked.elapsed());
        // It may come back soon: a reader asks for it.
        self.deks.insert(dek);
        Ok(response)
    }

    /// The DEK behind a key block that a member has found in an envelope.
    pub(crate) async fn open_dek(
        &self,
        service: &str,
        request: &v1::OpenDekRequest,
        quota: &Quota,
    ) -> Result<v1::DekResponse, DekError> {
        let block = parse_key_block(&request.key_block)
            .map_err(|_| DekError::Argument("the key block is not one that any zone makes"))?;
        let kek = block.kek();
        if kek.zone != self.id {
            return Err(not_allowed(service));
        }
        let keyring = self.keyring(kek.keyring).ok_or_else(|| not_allowed(service))?;
        let rights = keyring.config.rights(service).ok_or_else(|| not_allowed(service))?;
        let row = self.catalog().dek(block.dek_id()).await?;
        // A known answer is for whoever holds the keyring: also who only seals has to prove that the version works.
        let proof = row.as_ref().is_some_and(|row| row.purpose == Purpose::KnownAnswer);
        if !rights.open && !proof {
            return Err(not_allowed(service));
        }
        let (dek, version, tenant) = match row {
            Some(row) => self.open_known(keyring, &block, row, service, quota).await?,
            None => self.adopt_unknown(keyring, &block, service, quota).await?,
        };
        self.respond(&dek, &block, version, keyring, &tenant, &request.recipient_key)
    }

    /// A DEK that the catalog lists. Its live wrap leads to it, whatever KEK the envelope was sealed under: that is how an
    /// envelope opens whose KEK is retired.
    async fn open_known(
        &self,
        keyring: &ZoneKeyring,
        block: &KeyBlock,
        row: DekRow,
        service: &str,
        quota: &Quota,
    ) -> Result<(Arc<Dek>, KekVersion, String), DekError> {
        if row.keyring != keyring.id {
            return Err(DekError::Argument("the key block names a DEK of another keyring"));
        }
        if !row.live {
            return Err(DekError::Unknown);
        }
        let recorded = block.kind() == KeyBlockKind::Catalog || self.catalog().knows_block(block).await?;
        if !recorded {
            // The catalog may be younger than the envelope (restored from a copy), the HSM is the judge then.
            let (dek, backend) = self.authenticate(keyring, block, &row.tenant, service, quota).await?;
            if !same(&dek, &*self.known_dek(&row).await?) {
                return Err(DekError::Argument("the key block holds another key than its DEK"));
            }
            info!(dek = %row.id, kek = %block.kek(), "recorded a key block that the catalog did not know");
            self.catalog().record_block(row.id, &NewWrap { backend, block: *block }).await?;
        }
        let dek = self.known_dek(&row).await?;
        Ok((dek, row.live_version, row.tenant))
    }

    /// A DEK that the catalog does not list, in a block that authenticates under a KEK of the accept set: it is taken
    /// in, wrapped by the primary, so that the inventory is whole again.
    async fn adopt_unknown(
        &self,
        keyring: &ZoneKeyring,
        block: &KeyBlock,
        service: &str,
        quota: &Quota,
    ) -> Result<(Arc<Dek>, KekVersion, String), DekError> {
        if block.kind() == KeyBlockKind::Catalog {
            return Err(DekError::Unknown);
        }
        // The block does not say its tenant, and it authenticates for the right one only: known is the empty one.
        let (dek, backend) = self.authenticate(keyring, block, "", service, quota).await?;
        let view = self.view.borrow().clone();
        let current = view.keyring(keyring.id).ok_or(DekError::Unknown)?;
        let kek = KekRef { zone: self.id, keyring: keyring.id, version: current.primary };
        let record = NewDek {
            id: dek.id(),
            keyring: keyring.id,
            version: current.primary,
            service: service.to_owned(),
            tenant: String::new(),
            purpose: Purpose::Data,
            wraps: self.keys.wrap(kek, &dek, "", &current.primary_places).await?,
        };
        let subject = format!("{}/{} DEK {}", self.name(), keyring.config.name, dek.id());
        self.audit(service, "dek.adopt", &subject, json!({ "kek": block.kek().to_string() }))
            .await
            .map_err(KeyError::from)?;
        self.catalog().record_dek(&record, Some(&NewWrap { backend, block: *block })).await?;
        Ok((self.deks.insert(dek), current.primary, String::new()))
    }

    /// Has the HSM judge a block, within the caller's quota, and only under a KEK that members hold.
    async fn authenticate(
        &self,
        keyring: &ZoneKeyring,
        block: &KeyBlock,
        tenant: &str,
        service: &str,
        quota: &Quota,
    ) -> Result<(Dek, String), DekError> {
        let view = self.view.borrow().clone();
        let Some(version) = view.keyring(keyring.id).and_then(|view| view.version(block.kek().version))
        else {
            return Err(DekError::Unknown);
        };
        quota.admit(service, block, self.shared.clock.now_ms())?;
        let outcome = self.keys.unwrap_block(block, tenant, &version.places).await;
        if matches!(&outcome, Err(KeyError::Hsm(error)) if error.source.is_refusal()) {
            warn!(service, kek = %block.kek(), dek = %block.dek_id(), "a key block does not authenticate");
            quota.refused(block);
            return Err(DekError::Argument("the key block is not one that this zone made"));
        }
        Ok(outcome?)
    }

    async fn known_dek(&self, row: &DekRow) -> Result<Arc<Dek>, KeyError> {
        if let Some(dek) = self.deks.get(row.id) {
            return Ok(dek);
        }
        Ok(self.deks.insert(self.keys.unwrap(row).await?))
    }

    fn respond(
        &self,
        dek: &Dek,
        block: &KeyBlock,
        version: KekVersion,
        keyring: &ZoneKeyring,
        tenant: &str,
        recipient_key: &[u8],
    ) -> Result<v1::DekResponse, DekError> {
        let name = &keyring.config.name;
        let (encapsulated_key, sealed_dek) =
            seal_dek(recipient_key, dek, block, self.name(), name, tenant)
                .map_err(|_| DekError::Argument("the recipient's key is not an X25519 public key"))?;
        Ok(v1::DekResponse {
            key_block: block.to_bytes().to_vec(),
            keyring: name.clone(),
            tenant: tenant.to_owned(),
            kek_version: version.0.into(),
            encapsulated_key,
            sealed_dek,
        })
    }
}

fn not_allowed(service: &str) -> DekError {
    DekError::NotAllowed(service.to_owned())
}
