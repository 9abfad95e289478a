//! Reports the health of the gateway by `grpc.health.v1`. The command `health` asks a gateway for
//! it, for probes in an image that contains no other program.

use std::{
    convert::Infallible,
    error::Error as _,
    io::{self, Write},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::HealthReporter,
};
use tracing::{info, warn};

use crate::{
    cli::HealthArgs,
    config::url::{Url, WEB},
    control::GatewayParts,
    grpc,
    thingspace::Client,
    tls_client,
};

/// The limit of the command `health`, from the lookup of the name to the answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The time after which a gateway that is not ready logs why.
const UNREADY_LOG_DELAY: Duration = Duration::from_secs(3);

/// Reports whether calls can be answered. A gateway that has become ready stays ready while the
/// store is unavailable, because it can answer some calls without the store.
pub(super) async fn report(parts: &GatewayParts, health: &HealthReporter) -> Infallible {
    let GatewayParts { requests, callers, callbacks, .. } = parts;
    loop {
        let ready = async {
            requests.ready().await;
            callers.ready().await;
            if let Some(callbacks) = callbacks {
                callbacks.secrets().reload().await;
            }
        };
        let mut ready = pin!(ready);
        if timeout(UNREADY_LOG_DELAY, &mut ready).await.is_err() {
            let reason = parts.waits_for();
            let reason =
                reason.as_deref().unwrap_or("the secrets of callbacks have not been read yet");
            warn!(reason, "not ready yet");
            ready.await;
        }
        set(health, true).await;
        info!("ready");
        requests.unready().await;
        warn!(reason = requests.waits_for(), "no longer ready");
        set(health, false).await;
    }
}

/// Sets the health of the gateway as a whole and of its service.
pub(super) async fn set(health: &HealthReporter, healthy: bool) {
    for name in ["", grpc::SERVICE_NAME] {
        set_one(health, name, healthy).await;
    }
}

async fn set_one(health: &HealthReporter, name: &str, healthy: bool) {
    let status = if healthy { ServingStatus::Serving } else { ServingStatus::NotServing };
    health.set_service_status(name, status).await;
}

/// Reports for each set of credentials whether logins are possible, as `thingspace.login/NAME`.
/// Without logins, the gateway still answers from what it has stored.
pub(super) async fn report_logins(
    health: &HealthReporter,
    client: &Client,
    until: &CancellationToken,
) {
    for (name, mut login) in client.login_health() {
        let (name, health) = (format!("thingspace.login/{name}"), health.clone());
        let healthy = login.borrow_and_update().healthy;
        set_one(&health, &name, healthy).await;
        tokio::spawn(until.clone().run_until_cancelled_owned(async move {
            while login.changed().await.is_ok() {
                let healthy = login.borrow_and_update().healthy;
                set_one(&health, &name, healthy).await;
            }
        }));
    }
}

/// Fails unless the gateway can answer calls.
pub async fn health(args: &HealthArgs) -> anyhow::Result<()> {
    let address = &args.address;
    let status = timeout(CHECK_TIMEOUT, check(args))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", CHECK_TIMEOUT.as_secs())))
        .with_context(|| format!("cannot ask {address}"))?;
    ensure!(status == ServingStatus::Serving as i32, "{address} is not ready");
    writeln!(io::stdout(), "{address} is ready")?;
    Ok(())
}

async fn check(args: &HealthArgs) -> anyhow::Result<i32> {
    let HealthArgs { address, tls, ca_file, cert_file, key_file } = args;
    let channel = if *tls {
        let text = format!("https://{address}");
        let url = Url::parse(&text, WEB).map_err(anyhow::Error::msg)?;
        let identity = cert_file.as_deref().zip(key_file.as_deref());
        let connect = tls_client::connector(&url, ca_file.as_deref(), identity)?;
        Endpoint::from_shared(text)?.connect_with_connector(connect).await?
    } else {
        Endpoint::from_shared(format!("http://{address}"))?.connect().await?
    };
    let request = HealthCheckRequest { service: grpc::SERVICE_NAME.to_owned() };
    let advice = match (tls, cert_file) {
        (false, _) => "if the gateway uses TLS, pass --tls",
        (true, None) => "if the gateway requires a client certificate, pass --cert-file",
        (true, Some(_)) => "the gateway may not accept the client certificate; its log says why",
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        // The connection failed after TCP had been established.
        Err(error) if error.source().is_some() => bail!("{}; {advice}", error.message()),
        Err(error) => bail!("{:?}: {}", error.code(), error.message()),
    }
}
