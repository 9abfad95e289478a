use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client, server};

use super::*;

const NAME: &str = "gateway.example";
const VALID: (i32, i32) = (2000, 4096);

/// A key that is too short for rustls.
const RSA_1024: &str = "\
-----BEGIN PRIVATE KEY-----
MIICdQIBADANBgkqhkiG9w0BAQEFAASCAl8wggJbAgEAAoGBAMI02CihJKLjPviB
chnPDghlpVLywOjKRg6dtf4IIN8zndq3zC4Onng+YFi3O3rR+Yrab3qzSE+H4dSK
OFZJMiaC2rNEMflhCA4rcynI4gR/AqteIMvTs8mwKrQw1Y2i0E5TVaMlUuc/DlBb
wiwRfe5S20dHHtJtvQPf+YMrbcuxAgMBAAECgYATjgyh8q/ksusZTLd3f9DS6aE+
+/COwCdTu2+i16CvuNvRNSabEJ/GTcmXxUN494GgCKSm/zxtvanwo8ZOcepZp3VK
pTUKRW46zDyH1rrEd7vNmBOlgSUGT0OQuMV7EGt6Pv3br5gOHmOfsedt7f9wYBEZ
G9DpBucCIqOS9rVoAQJBAOGvbP2b/dqyYRjF9CUa70Pq80gIZ+CHU7uiM968zEuG
5pBcPNd22yNYAnXMaP2o0KVik2kttfk2IQbvTKZ9DzECQQDcSvcKHlzg+euDSDn5
fQSbj+2gWM3nXB7kDPuEP8nDWFqXozZgVd7vYX90yzYzZXP5X10Mw+I7p2TSEXuZ
mmSBAkBovrO2LT0v0JSSG+YJhqu/+P760rPrmMN7FXg/i57B+xVtsPGoCwkAKWvS
4pFkEYLtD4hdS5Lm3IGNp2kK6IYxAkB04KUvTiqzBoYo0iJIN0dBjdxijZs5HAwb
rLOpV/qhVPhDqcmI1SaB1TW9bq+kFziv3yPMSQV35vk75yCvv1WBAkAe7ZYpTsy/
VNBjv3dRmroH6gbRsbsH+pLLkeGEMzs5BD+LpIOdAJh8CKnmWCMkptCvD/RO9svV
KvGKZxKIXe5p
-----END PRIVATE KEY-----
";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = params("authority.example", VALID);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn params(name: &str, (from, to): (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params
}

/// The files of a listener, and the authority of its certificate.
struct Files {
    _folder: TempDir,
    options: TlsOptions,
    authority: Authority,
}

impl Files {
    /// `clients`: the authority of clients, and whether a certificate is required.
    fn new(clients: Option<(&Authority, bool)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let clients = clients.map(|(authority, required)| {
            fs::write(file("clients.pem"), authority.pem()).unwrap();
            ClientCertificates { ca_file: file("clients.pem"), required }
        });
        let (cert_file, key_file) = (file("cert.pem"), file("key.pem"));
        let options =
            TlsOptions { listener: "test", cert_file, key_file, clients, protocol: b"h2" };
        let files = Self { _folder: folder, options, authority: authority() };
        files.issue(VALID);
        files
    }

    /// Writes a new certificate and its key.
    fn issue(&self, years: (i32, i32)) {
        let key = KeyPair::generate().unwrap();
        let issued = params(NAME, years).signed_by(&key, &self.authority).unwrap();
        fs::write(&self.options.cert_file, issued.pem()).unwrap();
        fs::write(self.key(), key.serialize_pem()).unwrap();
    }

    fn key(&self) -> &Path {
        &self.options.key_file
    }

    async fn load(&self) -> Result<Tls, String> {
        Tls::load(self.options.clone()).await
    }

    /// A client that trusts the listener.
    fn client(&self, identity: Option<(&Authority, (i32, i32))>) -> ClientConfig {
        self.client_of(&TLS13, identity)
    }

    fn client_of(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<(&Authority, (i32, i32))>,
    ) -> ClientConfig {
        let mut trusted = RootCertStore::empty();
        trusted.add(self.authority.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(trusted);
        let mut client = match identity {
            None => client.with_no_client_auth(),
            Some((authority, years)) => {
                let key = KeyPair::generate().unwrap();
                let issued = params("client.example", years).signed_by(&key, authority).unwrap();
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                client.with_client_auth_cert(vec![issued.der().clone()], key).unwrap()
            }
        };
        client.alpn_protocols = vec![b"h2".to_vec()];
        client
    }
}

/// Both ends of a connection.
struct Connection {
    client: client::TlsStream<TcpStream>,
    server: server::TlsStream<TcpStream>,
}

impl Connection {
    /// Connects. An error is the server's.
    async fn open(tls: &Tls, client: &Arc<ClientConfig>) -> Result<Self, String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let connect = async {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let name = ServerName::try_from(NAME).unwrap();
            TlsConnector::from(Arc::clone(client)).connect(name, tcp).await
        };
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls.acceptor().accept(tcp).await
        };
        let (client, server) = tokio::join!(connect, accept);
        let server = server.map_err(|error| error.to_string())?;
        Ok(Self { client: client.unwrap(), server })
    }

    async fn assert_alive(&mut self) {
        self.server.write_all(b"ping").await.unwrap();
        self.server.flush().await.unwrap();
        let mut received = [0; 4];
        self.client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ping");
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
    let files = Files::new(None);
    let tls = files.load().await.unwrap();
    let client = Arc::new(files.client(None));
    let mut old = Connection::open(&tls, &client).await.unwrap();
    let first = old.certificate();
    let reload = async || tls.0.loaded.refresh().await;
    assert_eq!(reload().await, Ok(false));

    let old_key = fs::read(files.key()).unwrap();
    files.issue(VALID);
    let new_key = fs::read(files.key()).unwrap();
    fs::write(files.key(), &old_key).unwrap();
    assert!(reload().await.unwrap_err().contains("does not belong to"));
    fs::write(files.key(), RSA_1024).unwrap();
    let refused = reload().await.unwrap_err();
    assert!(refused.contains("key.pem holds a private key that TLS does not accept"), "{refused}");
    fs::write(files.key(), "nothing").unwrap();
    assert!(reload().await.unwrap_err().contains("holds no private key"));
    fs::remove_file(files.key()).unwrap();
    assert!(reload().await.unwrap_err().contains("cannot be read"));
    assert_eq!(Connection::open(&tls, &client).await.unwrap().certificate(), first);

    fs::write(files.key(), new_key).unwrap();
    assert_eq!(reload().await, Ok(true));
    assert_ne!(Connection::open(&tls, &client).await.unwrap().certificate(), first);
    assert_eq!(reload().await, Ok(false));
    old.assert_alive().await;
}

/// An expired certificate was once accepted, at start and as the replacement of a valid one.
#[tokio::test]
async fn a_certificate_that_is_not_valid_now_is_refused() {
    let files = Files::new(None);
    for (years, why) in
        [((2000, 2001), "expired at 2001-01-01"), ((4000, 4001), "not valid before 4000")]
    {
        files.issue(years);
        let refused = files.load().await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    files.issue(VALID);
    let tls = files.load().await.unwrap();
    let expires = tls.validity().expires;
    files.issue((2000, 2001));
    assert!(tls.0.loaded.refresh().await.unwrap_err().contains("expired"));
    assert_eq!(tls.validity().expires, expires);
}

/// The error of rustls would say that the key does not fit.
#[tokio::test]
async fn a_certificate_of_version_1_is_refused_for_that_reason() {
    let files = Files::new(None);
    fs::write(&files.options.cert_file, include_str!("version-1.pem")).unwrap();
    let refused = files.load().await.unwrap_err();
    assert!(refused.contains("version 1"), "{refused}");
}

#[tokio::test]
async fn a_client_certificate_is_verified_and_may_be_required() {
    let (ours, other) = (authority(), authority());
    for required in [false, true] {
        let files = Files::new(Some((&ours, required)));
        let tls = files.load().await.unwrap();
        let connect =
            async |identity| Connection::open(&tls, &Arc::new(files.client(identity))).await;
        let trusted = connect(Some((&ours, VALID))).await.unwrap();
        assert_eq!(trusted.server.get_ref().1.peer_certificates().unwrap().len(), 1);
        assert_eq!(connect(None).await.is_err(), required);
        for refused in [(&other, VALID), (&ours, (2000, 2001)), (&ours, (4000, 4001))] {
            connect(Some(refused)).await.map(drop).unwrap_err();
        }
    }
}

/// A resumed session keeps the certificate of its client and does not verify it again.
#[tokio::test]
async fn no_session_with_a_client_certificate_is_resumed() {
    let (old, new) = (authority(), authority());
    for version in [&TLS12, &TLS13] {
        let files = Files::new(Some((&old, false)));
        let tls = files.load().await.unwrap();
        let client = |authority| Arc::new(files.client_of(version, Some((authority, VALID))));
        let trusted = client(&old);
        for _ in 0..3 {
            let mut connection = Connection::open(&tls, &trusted).await.unwrap();
            // The client reads tickets with the first bytes.
            connection.assert_alive().await;
            let kind = connection.client.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full));
        }
        let ca_file = &files.options.clients.as_ref().unwrap().ca_file;
        fs::write(ca_file, new.pem()).unwrap();
        assert_eq!(tls.0.loaded.refresh().await, Ok(true));
        Connection::open(&tls, &trusted).await.map(drop).unwrap_err();
        Connection::open(&tls, &client(&new)).await.unwrap();
    }
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let files = Files::new(None);
    let tls = files.load().await.unwrap();
    let mut client = files.client(None);
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Connection::open(&tls, &Arc::new(client)).await.map(drop).unwrap_err();
}
