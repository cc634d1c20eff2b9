//! Whether a certificate and key that are already there can be used again.

use super::{PkiError, RENEW_BEFORE, in_file};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PublicKeyData as _, SanType};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use time::OffsetDateTime;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// What a certificate has to be.
pub(super) struct Wanted<'a> {
    pub(super) is_authority: bool,
    /// Subject alternative names: these, in any order, and no others.
    pub(super) names: Vec<SanType>,
    /// PEM of the authority that has to have issued it; `None` for one that signs itself.
    pub(super) issuer: Option<&'a str>,
    pub(super) key_usage: Option<ExtendedKeyUsagePurpose>,
}

/// Reads certificate and key. `None` if one is missing or they are not what is wanted; an error if a file is there
/// but can't be read, since overwriting it would hide that.
pub(super) fn load(
    cert_path: &Path,
    key_path: &Path,
    wanted: &Wanted<'_>,
    now: OffsetDateTime,
) -> Result<Option<(String, KeyPair)>, PkiError> {
    let (Some(cert), Some(key)) = (read(cert_path)?, read(key_path)?) else { return Ok(None) };
    let key = Zeroizing::new(key);
    let Ok(key) = KeyPair::from_pem(&key) else { return Ok(None) };
    Ok(is_usable(&cert, &key, wanted, now).then_some((cert, key)))
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not text: damaged, and replaced.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(in_file(path)(error)),
    }
}

fn is_usable(pem: &str, key: &KeyPair, wanted: &Wanted<'_>, now: OffsetDateTime) -> bool {
    let Ok((_, block)) = parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok(certificate) = block.parse_x509() else { return false };
    let validity = certificate.validity();
    certificate.is_ca() == wanted.is_authority
        && validity.not_before.to_datetime() <= now
        && validity.not_after.to_datetime() - RENEW_BEFORE > now
        && certificate.public_key().raw == key.subject_public_key_info()
        && has_names(&certificate, &wanted.names)
        && has_usage(&certificate, wanted.key_usage.as_ref())
        && is_issued_by(&certificate, wanted.issuer)
}

fn is_issued_by(certificate: &X509Certificate<'_>, issuer: Option<&str>) -> bool {
    let Some(issuer) = issuer else { return certificate.verify_signature(None).is_ok() };
    let Ok((_, block)) = parse_x509_pem(issuer.as_bytes()) else { return false };
    let Ok(issuer) = block.parse_x509() else { return false };
    certificate.issuer() == issuer.subject()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn has_names(certificate: &X509Certificate<'_>, wanted: &[SanType]) -> bool {
    let Ok(extension) = certificate.subject_alternative_name() else { return false };
    let found = extension.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    found.len() == wanted.len()
        && wanted.iter().all(|wanted| found.iter().any(|found| is_same(wanted, found)))
}

fn is_same(wanted: &SanType, found: &GeneralName<'_>) -> bool {
    match (wanted, found) {
        (SanType::DnsName(wanted), GeneralName::DNSName(found)) => wanted.as_str() == *found,
        (SanType::URI(wanted), GeneralName::URI(found)) => wanted.as_str() == *found,
        (SanType::IpAddress(IpAddr::V4(wanted)), GeneralName::IPAddress(found)) => {
            wanted.octets()[..] == **found
        }
        (SanType::IpAddress(IpAddr::V6(wanted)), GeneralName::IPAddress(found)) => {
            wanted.octets()[..] == **found
        }
        _ => false,
    }
}

fn has_usage(certificate: &X509Certificate<'_>, wanted: Option<&ExtendedKeyUsagePurpose>) -> bool {
    let Ok(found) = certificate.extended_key_usage() else { return false };
    match (wanted, found.map(|found| found.value)) {
        (None, None) => true,
        (Some(ExtendedKeyUsagePurpose::ServerAuth), Some(found)) => found.server_auth && !found.client_auth,
        (Some(ExtendedKeyUsagePurpose::ClientAuth), Some(found)) => found.client_auth && !found.server_auth,
        _ => false,
    }
}
