//! Certificates on the fly, for `keyway dev`, tests and the compose file: one authority, and the identities of a
//! bridge, of members and of administrators under it.
//!
//! ECDSA P-256 throughout. What exists and is still good is kept, so that a second start has the same identities;
//! what is not (expires soon, has other names, was issued by another authority) is made anew.

mod check;

use crate::args::PkiArgs;
use crate::error::Failure;
use crate::output;
use crate::private_file;
use check::Wanted;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// How long a certificate is good for, in days.
const LEAF_DAYS: i64 = 365;
const AUTHORITY_DAYS: i64 = 5 * 365;
/// Clocks of two machines may differ by this much.
const SKEW: Duration = Duration::hours(1);
/// A certificate that has less than this left is made anew.
const RENEW_BEFORE: Duration = Duration::days(30);

/// The certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate can't be made.
    #[error("making the certificate {name}: {source}")]
    Make {
        /// File name without its ending.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Members and administrators are named by SPIFFE ids.
    #[error("{0:?} is not a SPIFFE id (spiffe://trust-domain/path)")]
    SpiffeId(String),
}

/// Where an identity is stored, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key (PKCS#8), mode 0600.
    pub key: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
}

/// An authority in a directory, and what it has issued.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    authority: String,
}

impl core::fmt::Debug for Pki {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pki {
    /// Opens the authority in `dir` (`ca.crt`, `ca.key`), or makes one.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        private_file::make_directory(dir).map_err(in_file(dir))?;
        let wanted = Wanted { is_authority: true, names: Vec::new(), issuer: None, key_usage: None };
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if let Some((authority, key)) =
            check::load(&cert_path, &key_path, &wanted, OffsetDateTime::now_utc())?
        {
            let issuer = Issuer::from_ca_cert_pem(&authority, key).map_err(making("ca"))?;
            return Ok(Self { dir: dir.to_owned(), issuer, authority });
        }
        let key = KeyPair::generate().map_err(making("ca"))?;
        let mut params = params("Keyway local authority", AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = params.self_signed(&key).map_err(making("ca"))?.pem();
        write_pair(&cert_path, &authority, &key_path, &key)?;
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(params, key), authority })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A bridge's identity (`NAME.crt`, `NAME.key`): a server for `localhost`, the loopback addresses, and the extra
    /// host names and addresses in `names`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn bridge(&self, name: &str, names: &[String]) -> Result<Identity, PkiError> {
        let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
        let sans = all.iter().map(|name| host(name)).collect::<Result<_, _>>().map_err(making(name))?;
        self.issue(name, sans, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// The identity of a member or an administrator: a client named by its SPIFFE id.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn client(&self, name: &str, spiffe_id: &str) -> Result<Identity, PkiError> {
        if !is_spiffe_id(spiffe_id) {
            return Err(PkiError::SpiffeId(spiffe_id.to_owned()));
        }
        let uri = Ia5String::try_from(spiffe_id.to_owned()).map_err(making(name))?;
        self.issue(name, vec![SanType::URI(uri)], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        name: &str,
        sans: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, PkiError> {
        let identity = Identity {
            cert: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
            ca: self.authority(),
        };
        let wanted = Wanted {
            is_authority: false,
            names: sans.clone(),
            issuer: Some(&self.authority),
            key_usage: Some(usage.clone()),
        };
        if check::load(&identity.cert, &identity.key, &wanted, OffsetDateTime::now_utc())?.is_some() {
            return Ok(identity);
        }
        let key = KeyPair::generate().map_err(making(name))?;
        let mut params = params(name, LEAF_DAYS);
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(making(name))?.pem();
        write_pair(&identity.cert, &certificate, &identity.key, &key)?;
        Ok(identity)
    }
}

/// Runs the command.
///
/// # Errors
/// A certificate can't be made, or an argument names none.
pub fn run(args: &PkiArgs) -> Result<(), Failure> {
    let wants_bridge = args.bridge.is_some() || !args.host.is_empty();
    if !wants_bridge && args.client.is_empty() {
        return Err(Failure::Usage("nothing to make: name a --bridge or a --client".into()));
    }
    let clients = args.client.iter().map(|client| client_name(client)).collect::<Result<Vec<_>, _>>()?;
    let pki = Pki::open(&args.dir)?;
    if wants_bridge {
        let name = args.bridge.as_deref().unwrap_or("bridge");
        check_file_name(name)?;
        told(&pki.bridge(name, &args.host)?)?;
    }
    for (name, spiffe_id) in clients {
        told(&pki.client(name, spiffe_id)?)?;
    }
    Ok(())
}

/// `NAME=SPIFFE`, or the id alone, whose last part is the name then.
fn client_name(argument: &str) -> Result<(&str, &str), Failure> {
    let (name, id) = match argument.split_once('=') {
        Some((name, id)) => (name, id),
        None => (argument.rsplit('/').next().unwrap_or_default(), argument),
    };
    if !is_spiffe_id(id) {
        return Err(Failure::Usage(PkiError::SpiffeId(id.to_owned()).to_string()));
    }
    check_file_name(name)?;
    Ok((name, id))
}

fn check_file_name(name: &str) -> Result<(), Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name == "ca" || !name.chars().all(is_plain) {
        return Err(Failure::Usage(format!("{name:?} can't be the name of a certificate's files")));
    }
    Ok(())
}

fn told(identity: &Identity) -> Result<(), Failure> {
    output::line(&format!("{} {}", identity.cert.display(), identity.key.display()))
}

/// `spiffe://trust-domain/path`, as the SPIFFE ID standard has it (section 2).
#[must_use]
pub fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let in_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    let in_path = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(in_path);
    let has_path = rest.contains('/');
    text.len() <= 2048
        && !domain.is_empty()
        && domain.chars().all(in_domain)
        && (!has_path || path.split('/').all(segment))
}

fn params(common_name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(days);
    params
}

fn host(name: &str) -> Result<SanType, rcgen::Error> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(Ia5String::try_from(name.to_owned())?)),
    }
}

/// The key first: a certificate without its key would be taken for damage, a key alone is just replaced.
fn write_pair(cert_path: &Path, cert: &str, key_path: &Path, key: &KeyPair) -> Result<(), PkiError> {
    let pem = zeroize::Zeroizing::new(key.serialize_pem());
    private_file::write(key_path, pem.as_bytes()).map_err(in_file(key_path))?;
    private_file::write_public(cert_path, cert.as_bytes()).map_err(in_file(cert_path))
}

fn in_file(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    move |source| PkiError::File { path: path.to_owned(), source }
}

fn making(name: &str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Make { name: name.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids() {
        for good in ["spiffe://keyway.dev", "spiffe://keyway.dev/proxy", "spiffe://a_b-c.d/Ops/x.y"] {
            assert!(is_spiffe_id(good), "{good}");
        }
        for bad in [
            "",
            "spiffe://",
            "https://keyway.dev/x",
            "spiffe://Keyway.dev/x",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a/b c",
            "spiffe://a:1/b",
            "spiffe:///x",
        ] {
            assert!(!is_spiffe_id(bad), "{bad}");
        }
    }
}
