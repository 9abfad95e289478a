//! The TLS connection to a collector of traces.

use tonic::transport::{Channel, Endpoint};

use crate::{
    config::{
        self, TelemetryConfig,
        url::{Url, WEB},
    },
    tls_client,
};

/// Returns a channel that connects when there are spans to send, or `None` for `http://`, which the
/// exporter supports itself.
pub(super) fn over_tls(config: &TelemetryConfig) -> anyhow::Result<Option<Channel>> {
    let url = Url::parse(&config.otlp_endpoint, WEB).map_err(anyhow::Error::msg)?;
    if url.scheme != "https" {
        return Ok(None);
    }
    let connect = tls_client::connector(&url, config::set(&config.otlp_ca_file).as_deref(), None)?;
    let endpoint = Endpoint::from_shared(config.otlp_endpoint.clone())?;
    Ok(Some(endpoint.connect_with_connector_lazy(connect)))
}
