//! Connections over TLS of gRPC clients, and of checks whether a URL leads somewhere.
//!
//! They use the same rustls as everything else. tonic's own TLS would add a second set of root
//! certificates and features to every gRPC client and server of the process.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{Service, service_fn};

use crate::{
    certificate::{self, Validity},
    config::url::Url,
};

/// Returns a connector to the host and port of a URL. `ca_file` names the authorities that sign the
/// server's certificate (PEM); `None`: those of the system. `identity` names the files of a client
/// certificate and its key.
pub(crate) fn connector(
    url: &Url,
    ca_file: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> anyhow::Result<
    impl Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + use<>,
> {
    let tls = TlsConnector::from(Arc::new(tls_config(ca_file, identity, b"h2")?));
    let (host, port) = (url.host.trim_matches(['[', ']']).to_owned(), url.port);
    let name = ServerName::try_from(host.clone())
        .context("the host is not a name that a certificate can have")?;
    Ok(service_fn(move |_: Uri| {
        let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
        async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            Ok(TokioIo::new(tls.connect(name, tcp).await?))
        }
    }))
}

/// The answer to [`get`].
#[derive(Debug)]
pub(crate) struct WebAnswer {
    pub(crate) status: StatusCode,
    /// How long the server's certificates are valid. `None` without TLS.
    pub(crate) certificate: Option<Validity>,
}

/// Sends a GET request without a body to the host of a URL. The server's certificate must be signed
/// by an authority of the system. The error says what failed, and never contains the path.
pub(crate) async fn get(url: &Url, path: &str) -> Result<WebAnswer, String> {
    let answer = timeout(ANSWER, get_in_time(url, path)).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// How long [`get`] waits.
const ANSWER: Duration = Duration::from_secs(10);

async fn get_in_time(url: &Url, path: &str) -> Result<WebAnswer, String> {
    let host = url.host.trim_matches(['[', ']']);
    let tcp = TcpStream::connect((host, url.port)).await;
    let tcp = tcp.map_err(|error| format!("no connection: {error}"))?;
    if url.scheme == "http" {
        let status = ask(tcp, url, path).await?;
        return Ok(WebAnswer { status, certificate: None });
    }
    let config = tls_config(None, None, b"http/1.1").map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let tls = tls.map_err(|error| format!("no TLS connection: {error}"))?;
    let certificate = tls.get_ref().1.peer_certificates().and_then(certificate::chain_validity);
    Ok(WebAnswer { status: ask(tls, url, path).await?, certificate })
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    path: &str,
) -> Result<StatusCode, String> {
    let broke = |error: hyper::Error| format!("the connection broke: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .uri(path)
        .header(header::HOST, format!("{}:{}", url.host, url.port))
        .body(Empty::<Bytes>::new())
        .map_err(|_| "the URL cannot be requested".to_owned())?;
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer.map_err(broke)?.status())
}

fn tls_config(
    ca_file: Option<&Path>,
    identity: Option<(&Path, &Path)>,
    protocol: &[u8],
) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(match ca_file {
        Some(file) => certificate::check_authorities(file).map_err(anyhow::Error::msg)?,
        None => rustls_native_certs::load_native_certs().certs,
    });
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut client = match identity {
        Some((cert_file, key_file)) => {
            let (chain, key) =
                certificate::identity(cert_file, key_file).map_err(anyhow::Error::msg)?;
            client
                .with_client_auth_cert(chain, key)
                .map_err(|error| anyhow!(certificate::unusable(cert_file, key_file, &error)))?
        }
        None => client.with_no_client_auth(),
    };
    client.alpn_protocols = vec![protocol.to_vec()];
    Ok(client)
}
