//! Authorities, certificates, and connections over TLS.

use std::{net::SocketAddr, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use thingspace_gateway::proto::esim::esim_service_client::EsimServiceClient;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::harness::Client;

/// The years in which a certificate is valid.
pub type Years = (i32, i32);
pub const VALID: Years = (2000, 4096);
pub const EXPIRED: Years = (2000, 2001);

/// The name of the gateway in its certificate.
pub const GATEWAY: &str = "gateway.example";

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(["authority.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn write(&self, file: &Path) {
        std::fs::write(file, self.0.pem()).unwrap();
    }

    /// Issues a certificate for a URI, a DNS name or an address on loopback.
    pub fn issue(&self, name: &str, (from, to): Years) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![if name.contains("://") {
            SanType::URI(name.try_into().unwrap())
        } else if let Ok(address) = name.parse() {
            SanType::IpAddress(address)
        } else {
            SanType::DnsName(name.try_into().unwrap())
        }];
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    /// A client that trusts this authority, with or without a certificate of its own.
    pub fn client(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut trusted = RootCertStore::empty();
        trusted.add(self.0.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trusted);
        let mut client = match identity {
            None => client.with_no_client_auth(),
            Some(identity) => {
                client.with_client_auth_cert(identity.chain(), identity.key()).unwrap()
            }
        };
        client.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(client)
    }
}

impl Identity {
    /// Writes the certificate and the key into files.
    pub fn write(&self, certificate: &Path, key: &Path) {
        std::fs::write(key, self.key.serialize_pem()).unwrap();
        std::fs::write(certificate, self.certificate.pem()).unwrap();
    }

    /// A server with this certificate that speaks HTTP/1.1.
    pub fn acceptor(&self) -> TlsAcceptor {
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.key())
            .unwrap();
        TlsAcceptor::from(Arc::new(server))
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}

/// Performs a handshake with a gateway.
pub async fn handshake(
    address: SocketAddr,
    client: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(GATEWAY).unwrap();
    TlsConnector::from(Arc::clone(client)).connect(name, tcp).await
}

/// The first message of a client's handshake (RFC 8446 §4.1.2).
pub fn client_hello(client: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(GATEWAY).unwrap();
    let mut hello = Vec::new();
    let mut connection = ClientConnection::new(Arc::clone(client), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// A channel over TLS. It connects with the first call.
pub fn tls_channel(address: SocketAddr, client: Arc<ClientConfig>) -> Channel {
    let connect = move |_: Uri| {
        let client = Arc::clone(&client);
        async move { handshake(address, &client).await.map(TokioIo::new) }
    };
    let endpoint = Endpoint::from_shared(format!("https://{GATEWAY}")).unwrap();
    endpoint.connect_with_connector_lazy(service_fn(connect))
}

pub fn tls_client(address: SocketAddr, client: Arc<ClientConfig>) -> Client {
    EsimServiceClient::new(tls_channel(address, client))
}
