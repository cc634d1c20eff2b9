use super::*;
use crate::v1::fleet_client::FleetClient;
use crate::v1::fleet_server::{Fleet, FleetServer};
use crate::v1::{BridgeMessage, DekResponse, IssueDekRequest, MemberMessage, OpenDekRequest};
use core::result::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use std::net::SocketAddr;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::{Pending, StreamExt, pending};
use tonic::{Request, Response, Status, Streaming};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate with these URIs, for 127.0.0.1 and both uses, trusting `trusted`; in `dir` under `name`.
fn issue(dir: &TempDir, name: &str, issuer: &Authority, trusted: &Authority, uris: &[&str]) -> TlsFiles {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let write = |kind: &str, pem: String| {
        let path = dir.path().join(format!("{name}.{kind}"));
        std::fs::write(&path, pem).unwrap();
        path
    };
    TlsFiles {
        cert: write("crt", certificate.pem()),
        key: write("key", key.serialize_pem()),
        ca: write("ca", trusted.pem()),
    }
}

struct Bed {
    dir: TempDir,
    authority: Authority,
    server: TlsFiles,
}

impl Bed {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = authority();
        let server = issue(&dir, "bridge", &authority, &authority, &["spiffe://example.org/bridge"]);
        Self { dir, authority, server }
    }

    fn member(&self, uris: &[&str]) -> TlsFiles {
        issue(&self.dir, "member", &self.authority, &self.authority, uris)
    }

    async fn listen(&self) -> (Incoming, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = Incoming::new(listener, server_config(&self.server).unwrap());
        let addr = incoming.local_addr().unwrap();
        (incoming, addr)
    }
}

/// Answers IssueDek with who the caller is, as far as the connection says.
struct WhoAmI;

#[tonic::async_trait]
impl Fleet for WhoAmI {
    type AttachStream = Pending<Result<BridgeMessage, Status>>;

    async fn attach(
        &self,
        _: Request<Streaming<MemberMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Ok(Response::new(pending()))
    }

    async fn issue_dek(&self, request: Request<IssueDekRequest>) -> Result<Response<DekResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().expect("set for every connection").clone();
        Ok(Response::new(DekResponse {
            keyring: peer.spiffe_id,
            tenant: peer.key_exchange,
            ..DekResponse::default()
        }))
    }

    async fn open_dek(&self, _: Request<OpenDekRequest>) -> Result<Response<DekResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

async fn serve(bed: &Bed) -> SocketAddr {
    let (incoming, addr) = bed.listen().await;
    let server = tonic::transport::Server::builder().add_service(FleetServer::new(WhoAmI));
    tokio::spawn(server.serve_with_incoming(incoming));
    addr
}

/// Whether a call comes through. In TLS 1.3 a client learns that its certificate was refused only after its own
/// handshake has ended, so connecting alone proves nothing.
async fn call(addr: SocketAddr, files: &TlsFiles) -> Result<DekResponse, String> {
    let channel = connect(&format!("https://{addr}"), client_config(files).unwrap()).await;
    let mut client = FleetClient::new(channel.map_err(|error| error.to_string())?);
    let answer = client.issue_dek(IssueDekRequest::default()).await;
    answer.map(Response::into_inner).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn a_call_shows_identity_and_the_hybrid_key_exchange() {
    let bed = Bed::new();
    let addr = serve(&bed).await;
    let answer = call(addr, &bed.member(&["spiffe://example.org/orders"])).await.unwrap();
    assert_eq!(answer.keyring, "spiffe://example.org/orders");
    assert_eq!(answer.tenant, "X25519MLKEM768");
}

#[tokio::test]
async fn a_classical_client_still_gets_x25519() {
    let bed = Bed::new();
    let addr = serve(&bed).await;
    let files = bed.member(&["spiffe://example.org/orders"]);
    let classical = CryptoProvider { kx_groups: vec![kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(files.authorities().unwrap())
        .with_client_auth_cert(certificates(&files.cert).unwrap(), files.private_key().unwrap())
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let channel = connect(&format!("https://{addr}"), Arc::new(config)).await.unwrap();
    let answer = FleetClient::new(channel).issue_dek(IssueDekRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().tenant, "X25519");
}

#[tokio::test]
async fn who_has_no_right_certificate_is_refused_and_the_others_are_served() {
    let bed = Bed::new();
    let addr = serve(&bed).await;
    let stranger =
        issue(&bed.dir, "stranger", &authority(), &bed.authority, &["spiffe://example.org/orders"]);
    call(addr, &stranger).await.expect_err("a certificate of another authority");
    for uris in [&[][..], &["https://example.org"], &["spiffe://a.org/x", "spiffe://a.org/y"]] {
        call(addr, &bed.member(uris)).await.expect_err("no single spiffe:// name");
    }
    call(addr, &bed.member(&["spiffe://example.org/orders"])).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let bed = Bed::new();
    let addr = serve(&bed).await;
    let trusts_others = issue(&bed.dir, "m", &bed.authority, &authority(), &["spiffe://example.org/orders"]);
    let refused = call(addr, &trusts_others).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}

/// What the server says to a bare TLS client with this configuration: an alert, or the HTTP/2 preface.
async fn bare(addr: SocketAddr, config: ClientConfig) -> std::io::Result<Vec<u8>> {
    let tcp = TcpStream::connect(addr).await?;
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let mut first = vec![0; 16];
    let n = tls.read(&mut first).await?;
    first.truncate(n);
    Ok(first)
}

#[tokio::test]
async fn no_certificate_tls_1_2_and_other_protocols_are_refused() {
    let bed = Bed::new();
    let addr = serve(&bed).await;
    let files = bed.member(&["spiffe://example.org/orders"]);
    let build =
        |versions: &[&'static rustls::SupportedProtocolVersion], with_certificate: bool, alpn: &[&str]| {
            let builder = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(files.authorities().unwrap());
            let mut config = if with_certificate {
                let chain = certificates(&files.cert).unwrap();
                builder.with_client_auth_cert(chain, files.private_key().unwrap()).unwrap()
            } else {
                builder.with_no_client_auth()
            };
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            config
        };
    const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

    let refused = bare(addr, build(TLS13, false, &["h2"])).await.unwrap_err();
    assert!(refused.to_string().contains("CertificateRequired"), "{refused}");
    let refused = bare(addr, build(TLS12, true, &["h2"])).await.unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    let refused = bare(addr, build(TLS13, true, &["http/1.1"])).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    // No ALPN at all is not an error of TLS; the connection is dropped without a byte of HTTP.
    let silent = bare(addr, build(TLS13, true, &[])).await;
    assert!(!matches!(&silent, Ok(bytes) if !bytes.is_empty()), "{silent:?}");
    // The same client, as it should be, is served: the refusals above are not for another reason.
    assert!(!bare(addr, build(TLS13, true, &["h2"])).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_silent_client_does_not_hold_up_the_others() {
    let bed = Bed::new();
    let (mut incoming, addr) = bed.listen().await;
    let _silent = TcpStream::connect(addr).await.unwrap();
    let config = client_config(&bed.member(&["spiffe://example.org/orders"])).unwrap();
    let client = tokio::spawn(async move { connect(&format!("https://{addr}"), config).await });
    let connection = incoming.next().await.unwrap().unwrap();
    assert_eq!(connection.peer().spiffe_id, "spiffe://example.org/orders");
    assert_eq!(connection.peer().key_exchange, "X25519MLKEM768");
    client.abort();
}

#[tokio::test]
async fn endpoints_are_https_with_a_host() {
    let bed = Bed::new();
    let config = client_config(&bed.member(&["spiffe://example.org/orders"])).unwrap();
    for bad in ["http://127.0.0.1:1", "127.0.0.1:7200", "https://", "not an address", ""] {
        let refused = connect(bad, config.clone()).await;
        assert!(matches!(refused, Err(Error::Endpoint(_))), "{bad:?}: {refused:?}");
    }
}

#[test]
fn files_that_are_no_identity_are_named() {
    let bed = Bed::new();
    let missing = TlsFiles { cert: bed.dir.path().join("none"), ..bed.server.clone() };
    assert!(matches!(server_config(&missing), Err(Error::Pem { path, .. }) if path == missing.cert));
    let no_certificate = TlsFiles { ca: bed.server.key.clone(), ..bed.server.clone() };
    assert!(
        matches!(client_config(&no_certificate), Err(Error::NoCertificate(path)) if path == bed.server.key)
    );
    let other_key = bed.member(&["spiffe://example.org/orders"]).key;
    let mismatch = TlsFiles { key: other_key, ..bed.server.clone() };
    assert!(matches!(server_config(&mismatch), Err(Error::Tls(_))));
    assert!(!bed.server.private_key_der().unwrap().is_empty());
}
