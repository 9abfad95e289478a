//! The commands `dev` and `simulate`: a simulated ThingSpace, with or without a gateway in the same
//! process.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tracing::{info, warn};

use super::{App, listen};
use crate::{
    config::{Config, CredentialsConfig},
    identity::AccountName,
    shutdown::Stop,
    simulator::{self, Simulator},
};

/// Runs a simulator, with its control API if `control` is an address for it.
pub async fn simulate(
    address: SocketAddr,
    control: Option<SocketAddr>,
    stop: Stop,
) -> anyhow::Result<()> {
    let options = simulator::Options { listen: address, ..simulator::Options::default() };
    let simulator =
        Simulator::bind(options).await.with_context(|| format!("cannot listen on {address}"))?;
    if let Some(control) = control {
        let (listener, address) = listen(control).await?;
        info!(%address, "the simulator can be controlled");
        tokio::spawn(simulator::control::run(listener, simulator.handle(), stop.soft.clone()));
    }
    info!(base_url = simulator.base_url(), "simulating ThingSpace");
    simulator.run(stop.soft).await.context("the simulator failed")
}

/// Runs a gateway and a simulator on loopback, and changes `config` for this. The store is a
/// temporary file, unless `store` names another.
pub async fn dev(mut config: Config, store: Option<PathBuf>, stop: Stop) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("thingspace-gateway-")
        .tempdir()
        .context("cannot create a temporary folder")?;
    let mut options = simulator::Options::default();
    // The listener for callbacks gets any free port, also one to which ThingSpace does not send.
    options.callbacks.any_port = true;
    let account = options.accounts.first().cloned().context("the simulator has no account")?;
    config.credentials = vec![credentials(&scratch, &options)?];
    if let Some(folder) = store.as_deref().and_then(Path::parent)
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        bail!(
            "--store: the folder {} does not exist; make it, or name a file in another one",
            folder.display()
        );
    }
    config.store.path = store.unwrap_or_else(|| scratch.path().join("store.redb"));
    config.grpc.reflection = true;
    let callbacks = &mut config.callbacks;
    callbacks.enabled = true;
    callbacks.register = true;
    callbacks.listen = (Ipv4Addr::LOCALHOST, 0).into();
    "http://127.0.0.1:0".clone_into(&mut callbacks.public_url);
    (callbacks.tls_cert_file, callbacks.tls_key_file) = Default::default();
    (callbacks.username_file, callbacks.password_file) = Default::default();

    let simulator = Simulator::bind(options).await.context("cannot start the simulator")?;
    let base_url = simulator.base_url();
    config.thingspace.base_url.clone_from(&base_url);
    config.thingspace.token_url = String::new();
    let socket = config.control_socket();
    let app = App::bind(config).await?;
    print_tour(&mut io::stdout().lock(), app.address, &base_url, &account, &socket)?;

    // The drain may still finish an order, so the simulator ends after it.
    let upstream = stop.hard.child_token();
    let simulating = tokio::spawn(simulator.run(upstream.clone()));
    let served = app.run(stop).await;
    upstream.cancel();
    if let Err(error) = simulating.await? {
        warn!(%error, "the simulator failed");
    }
    served
}

fn credentials(
    scratch: &TempDir,
    options: &simulator::Options,
) -> anyhow::Result<CredentialsConfig> {
    use secrecy::ExposeSecret;
    let write = |name: &str, value: &str| -> io::Result<_> {
        let path = scratch.path().join(name);
        fs::write(&path, value)?;
        Ok(path)
    };
    Ok(CredentialsConfig {
        name: "simulator".to_owned(),
        accounts: options.accounts.clone(),
        key_file: write("key", &options.key)?,
        secret_file: write("secret", options.secret.expose_secret())?,
        username_file: write("username", &options.username)?,
        password_file: write("password", options.password.expose_secret())?,
    })
}

/// Prints the addresses, and grpcurl commands that work when they are run one after the other.
fn print_tour(
    out: &mut dyn Write,
    grpc: SocketAddr,
    base_url: &str,
    account: &AccountName,
    socket: &Path,
) -> io::Result<()> {
    let service = crate::grpc::SERVICE_NAME;
    let order = format!(
        r#"{{"account_name": "{account}", "idempotency_key": "tour-1", "devices": [
  {{"eid": "89049032007008882600086299134038", "iccid": "89148000004292933820"}},
  {{"eid": "89049032123451234512345678901235", "iccid": "89148000000842590078"}}]}}"#
    );
    let request =
        format!(r#"{{\"account_name\": \"{account}\", \"request_id\": \"$REQUEST_ID\"}}"#);
    writeln!(
        out,
        r#"
gRPC        {grpc}
ThingSpace  {base_url} (simulated; credentials are made up)
Operators   thingspace-gateway status --socket {socket}

# 1. Order a profile for two devices.
grpcurl -plaintext -d '{order}' {grpc} {service}/DownloadProfile

# 2. The same call again: the same key returns the same request. Keep its id.
REQUEST_ID=$(grpcurl -plaintext -d '{order}' {grpc} {service}/DownloadProfile |
  sed -n 's/.*"requestId": "\([^"]*\)".*/\1/p'); echo "$REQUEST_ID"

# 3. Get its status.
grpcurl -plaintext -d "{request}" {grpc} {service}/GetRequestStatus

# 4. Watch it until it is final: one device succeeds, one fails, and a callback says why.
grpcurl -plaintext -d "{request}" {grpc} {service}/WatchRequest
"#,
        socket = socket.display()
    )?;
    out.flush()
}
