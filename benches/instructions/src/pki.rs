//! Certificates for one run.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use std::path::{Path, PathBuf};

/// An authority, and what it has signed, as files in a directory.
pub(crate) struct Pki {
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authority; its certificate is `ca.crt`.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(dir.join("ca.crt"), authority.pem()).context("writing ca.crt")?;
        Ok(Self { dir: dir.to_owned(), authority })
    }

    /// Makes `NAME.crt` and `NAME.key`, for both ends of a connection to 127.0.0.1, with a SPIFFE id.
    pub(crate) fn identity(&self, name: &str, spiffe_id: &str) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(spiffe_id.try_into()?));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        std::fs::write(self.dir.join(format!("{name}.crt")), certificate.pem())?;
        std::fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}
