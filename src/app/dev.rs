//! `dev`: a gateway and a simulated ThingSpace in one process, on loopback, with nothing to set up.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
};

use anyhow::Context;
use tempfile::TempDir;
use tracing::warn;

use super::App;
use crate::{
    config::{Config, Credentials},
    identity::AccountName,
    shutdown::Stop,
    simulator::{self, Simulator},
};

/// Runs a gateway and a simulator; what `config` lacks for that it fills in. What it stores is gone when it ends.
pub async fn dev(mut config: Config, stop: Stop) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("thingspace-gateway-")
        .tempdir()
        .context("cannot make a scratch folder")?;
    let options = simulator::Options::default();
    let account = options.accounts.first().cloned().context("the simulator has no account")?;
    config.credentials = vec![credentials(&scratch, &options)?];
    config.store.path = scratch.path().join("store.redb");

    let simulator = Simulator::bind(options).await.context("cannot start the simulator")?;
    config.thingspace.base_url = simulator.base_url();
    config.thingspace.token_url = String::new();
    let base_url = simulator.base_url();
    let app = App::bind(config).await?;
    print_tour(&mut io::stdout().lock(), app.address(), &base_url, &account)?;

    // The simulator outlives the drain, which may still have an order to finish.
    let upstream = stop.hard.child_token();
    let simulating = tokio::spawn(simulator.run(upstream.clone()));
    let served = app.run(stop).await;
    upstream.cancel();
    if let Err(error) = simulating.await? {
        warn!(%error, "the simulator failed");
    }
    served
}

fn credentials(scratch: &TempDir, options: &simulator::Options) -> anyhow::Result<Credentials> {
    use secrecy::ExposeSecret;
    let write = |name: &str, value: &str| -> io::Result<_> {
        let path = scratch.path().join(name);
        fs::write(&path, value)?;
        Ok(path)
    };
    Ok(Credentials {
        name: "simulator".to_owned(),
        accounts: options.accounts.clone(),
        key_file: write("key", &options.key)?,
        secret_file: write("secret", options.secret.expose_secret())?,
        username_file: write("username", &options.username)?,
        password_file: write("password", options.password.expose_secret())?,
    })
}

/// The addresses, and grpcurl lines that work when pasted one after the other.
fn print_tour(
    out: &mut dyn Write,
    grpc: SocketAddr,
    base_url: &str,
    account: &AccountName,
) -> io::Result<()> {
    let service = crate::grpc::SERVICE_NAME;
    let order = format!(
        r#"{{"account_name": "{account}", "idempotency_key": "tour-1", "devices": [
  {{"eid": "89049032007008882600086299134038", "iccid": "89148000004292933820"}},
  {{"eid": "89049032123451234512345678901235", "iccid": "89148000000842590078"}}]}}"#
    );
    let request = format!(r#"{{\"account_name\": \"{account}\", \"request_id\": \"$REQUEST_ID\"}}"#);
    writeln!(
        out,
        r#"
gRPC        {grpc}
ThingSpace  {base_url} (simulated; credentials are made up)

# 1. Order a profile for two devices.
grpcurl -plaintext -d '{order}' {grpc} {service}/DownloadProfile

# 2. The same call again: the same key returns the same request. Keep its id.
REQUEST_ID=$(grpcurl -plaintext -d '{order}' {grpc} {service}/DownloadProfile | sed -n 's/.*"requestId": "\([^"]*\)".*/\1/p'); echo "$REQUEST_ID"

# 3. Ask where it stands.
grpcurl -plaintext -d "{request}" {grpc} {service}/GetRequestStatus

# 4. Watch it until it is done: one device succeeds, one fails.
grpcurl -plaintext -d "{request}" {grpc} {service}/WatchRequest
"#
    )?;
    out.flush()
}
