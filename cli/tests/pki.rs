//! Certificates: what is made, kept and made anew.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use keyway_cli::pki::{Identity, Pki, PkiError};
use keyway_protocol::tls::{self, TlsFiles};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use x509_parser::pem::parse_x509_pem;

const ORDERS: &str = "spiffe://keyway.dev/orders";

fn bytes(identity: &Identity) -> (Vec<u8>, Vec<u8>) {
    (fs::read(&identity.cert).unwrap(), fs::read(&identity.key).unwrap())
}

fn files(identity: &Identity) -> TlsFiles {
    TlsFiles { cert: identity.cert.clone(), key: identity.key.clone(), ca: identity.ca.clone() }
}

fn der(path: &Path) -> Vec<u8> {
    parse_x509_pem(&fs::read(path).unwrap()).unwrap().1.contents
}

#[test]
fn identities_are_what_tls_wants() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&dir.path().join("pki")).unwrap();
    let bridge =
        pki.bridge("bridge", &["bridge.example".into(), "10.0.0.7".into(), "localhost".into()]).unwrap();
    let member = pki.client("orders", ORDERS).unwrap();
    tls::server_config(&files(&bridge)).unwrap();
    tls::client_config(&files(&member)).unwrap();
    assert_eq!(tls::spiffe_id(&der(&member.cert)).as_deref(), Some(ORDERS));
    assert_eq!(tls::spiffe_id(&der(&bridge.cert)), None);

    let der = der(&bridge.cert);
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value.general_names);
    for name in ["DNSName(\"localhost\")", "DNSName(\"bridge.example\")"] {
        assert_eq!(names.matches(name).count(), 1, "{names}");
    }
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);

    for key in ["ca.key", "bridge.key", "orders.key"] {
        let mode = fs::metadata(dir.path().join("pki").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[tokio::test]
async fn a_member_reaches_the_bridge_and_a_stranger_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&dir.path().join("ours")).unwrap();
    let strangers = Pki::open(&dir.path().join("theirs")).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = tls::server_config(&files(&pki.bridge("bridge", &[]).unwrap())).unwrap();
    let mut incoming = tls::Incoming::new(listener, config);
    let accepting = tokio::spawn(async move {
        use futures_util::StreamExt as _;
        let connection = incoming.next().await.unwrap().unwrap();
        connection.peer().spiffe_id.clone()
    });
    let endpoint = format!("https://{addr}");
    let stranger = tls::client_config(&files(&strangers.client("orders", ORDERS).unwrap())).unwrap();
    assert!(tls::connect(&endpoint, stranger).await.is_err());
    let member = tls::client_config(&files(&pki.client("orders", ORDERS).unwrap())).unwrap();
    let _channel = tls::connect(&endpoint, member).await.unwrap();
    assert_eq!(accepting.await.unwrap(), ORDERS);
}

#[test]
fn what_is_good_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(dir.path()).unwrap();
    let before =
        (bytes(&first.bridge("bridge", &["b".into()]).unwrap()), bytes(&first.client("m", ORDERS).unwrap()));
    let second = Pki::open(dir.path()).unwrap();
    let after = (
        bytes(&second.bridge("bridge", &["b".into()]).unwrap()),
        bytes(&second.client("m", ORDERS).unwrap()),
    );
    assert!(before == after);
}

#[test]
fn what_is_not_wanted_any_more_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let before = bytes(&pki.client("m", ORDERS).unwrap());
    let other = bytes(&pki.client("m", "spiffe://keyway.dev/other").unwrap());
    assert!(before.0 != other.0);
    // A key that is not the certificate's.
    let member = pki.client("m", ORDERS).unwrap();
    let bridge = pki.bridge("bridge", &[]).unwrap();
    fs::copy(&bridge.key, &member.key).unwrap();
    let again = bytes(&pki.client("m", ORDERS).unwrap());
    assert!(again.1 != fs::read(&bridge.key).unwrap());
    // Damage.
    fs::write(&member.cert, "-----BEGIN").unwrap();
    tls::client_config(&files(&pki.client("m", ORDERS).unwrap())).unwrap();
}

#[test]
fn a_new_authority_makes_everything_new() {
    let dir = tempfile::tempdir().unwrap();
    let before = bytes(&Pki::open(dir.path()).unwrap().client("m", ORDERS).unwrap());
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    let after = bytes(&Pki::open(dir.path()).unwrap().client("m", ORDERS).unwrap());
    assert!(before.0 != after.0);
}

#[test]
fn a_name_that_is_no_spiffe_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    assert!(matches!(pki.client("m", "orders"), Err(PkiError::SpiffeId(_))));
    assert!(!dir.path().join("m.crt").exists());
}
