//! `health`: what a caller of a gateway is told about its health, for probes from where there is
//! nothing but this binary.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, ensure};
use tonic::transport::Endpoint;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::grpc;

/// For everything, from the name's look-up to the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fails unless the gateway at `address`, `HOST:PORT`, answers calls.
pub async fn health(address: &str) -> anyhow::Result<()> {
    let status = tokio::time::timeout(TIMEOUT, check(address))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", TIMEOUT.as_secs())))
        .with_context(|| format!("cannot ask {address}"))?;
    ensure!(status == ServingStatus::Serving as i32, "{address} is not ready");
    writeln!(io::stdout(), "{address} is ready")?;
    Ok(())
}

async fn check(address: &str) -> anyhow::Result<i32> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let request = HealthCheckRequest { service: grpc::SERVICE_NAME.to_owned() };
    Ok(HealthClient::new(channel).check(request).await?.into_inner().status)
}
