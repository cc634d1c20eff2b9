//! Certificates for the measurement: one authority, one server.

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory with `ca.crt`, `server.crt`, `server.key`, and `server.pem`, which has both of the server's.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes them anew in `dir`: ECDSA P-256, for `localhost` and 127.0.0.1.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "keyway-bench");
        let key = KeyPair::generate()?;
        let ca = authority.self_signed(&key)?;
        let issuer = Issuer::new(authority, key);

        let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        server.distinguished_name.push(DnType::CommonName, "localhost");
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &issuer)?;

        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let both = certificate.pem() + &key.serialize_pem();
        let files = [
            ("ca.crt", ca.pem()),
            ("server.crt", certificate.pem()),
            ("server.key", key.serialize_pem()),
            ("server.pem", both),
        ];
        for (name, text) in files {
            fs::write(dir.join(name), text)
                .with_context(|| format!("writing {name} in {}", dir.display()))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The server's certificate chain.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    /// The server's private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("server.key")
    }
}
