//! The TLS connection to a collector of traces.
//!
//! It uses the same rustls as everything else. The exporter's own TLS would add a second set of
//! root certificates and features to every gRPC client and server of the process.

use std::{io, sync::Arc};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{
    certificate,
    config::{
        TelemetryConfig,
        url::{Url, WEB},
    },
};

/// Returns a channel that connects when there are spans to send, or `None` for `http://`, which the
/// exporter supports itself.
pub(super) fn over_tls(config: &TelemetryConfig) -> anyhow::Result<Option<Channel>> {
    let url = Url::parse(&config.otlp_endpoint, WEB).map_err(anyhow::Error::msg)?;
    if url.scheme != "https" {
        return Ok(None);
    }
    let tls = TlsConnector::from(Arc::new(tls_config(config)?));
    let host = url.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone())
        .context("the host is not a name that a certificate can have")?;
    let connect = service_fn(move |_: Uri| {
        let (tls, name, address) = (tls.clone(), name.clone(), (host.clone(), url.port));
        async move {
            let tcp = TcpStream::connect((address.0.as_str(), address.1)).await?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    let endpoint = Endpoint::from_shared(config.otlp_endpoint.clone())?;
    Ok(Some(endpoint.connect_with_connector_lazy(connect)))
}

fn tls_config(config: &TelemetryConfig) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if config.otlp_ca_file.as_os_str().is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let authorities =
            certificate::check_authorities(&config.otlp_ca_file).map_err(anyhow::Error::msg)?;
        roots.add_parsable_certificates(authorities);
    }
    let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(client)
}
