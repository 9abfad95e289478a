//! Connections of gRPC clients over TLS.
//!
//! They use the same rustls as everything else. tonic's own TLS would add a second set of root
//! certificates and features to every gRPC client and server of the process.

use std::{io, path::Path, sync::Arc};

use anyhow::{Context, anyhow};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{Service, service_fn};

use crate::{certificate, config::url::Url};

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
    let tls = TlsConnector::from(Arc::new(tls_config(ca_file, identity)?));
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

fn tls_config(
    ca_file: Option<&Path>,
    identity: Option<(&Path, &Path)>,
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
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(client)
}
