//! The gateway that is measured: the real binary on a processor of its own, with limits that no
//! bench reaches.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use test_support::{
    bench::{Core, on_core},
    harness::{Client, Process, device, get_status},
};
use thingspace_gateway::{
    config::{Config, CredentialsConfig},
    identity::{AccountName, RequestId},
    proto::esim::{DownloadProfileRequest, GetRequestStatusRequest},
};

use crate::load::{Calls, Target};

/// Sets of credentials, each with an account. The rate of one set is limited to 10,000 calls per
/// second.
pub(crate) const CREDENTIALS: usize = 4;

/// The service of the gateway and of the floor.
pub(crate) const SERVICE: &str = "thingspace.esim.v1.EsimService";

/// Returns the `n`th account. There are as many as sets of credentials.
pub(crate) fn account(n: usize) -> String {
    format!("0000123456-0000{}", n % CREDENTIALS + 1)
}

/// A gateway in a process of its own.
pub(crate) struct Gateway {
    pub(crate) process: Process,
}

impl Gateway {
    /// Starts one with an empty store in a folder, which must be empty.
    pub(crate) fn start(folder: &Path, upstream: &str) -> Self {
        Self::start_with(&config(folder, upstream), folder)
    }

    pub(crate) fn start_with(config: &Config, folder: &Path) -> Self {
        let process = on_core(Core::Server, || Process::serve(config, folder));
        Self { process }
    }

    pub(crate) fn target(&self) -> Target {
        Target { address: self.process.address, pid: self.process.pid(), service: SERVICE }
    }

    /// Stops the process, so that the next start of its store has nothing to repair.
    pub(crate) async fn stop(self) {
        self.process.terminate();
        assert!(self.process.wait().await.0.success());
    }
}

/// Returns an empty folder below the build's, which is on a disk, unlike some `/tmp`.
pub(crate) fn folder() -> TempDir {
    let parent = output();
    fs::create_dir_all(&parent).unwrap();
    tempfile::tempdir_in(parent).unwrap()
}

/// Returns the folder of the report.
pub(crate) fn output() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("bench")
}

/// Returns a configuration without polls, in which each status call asks ThingSpace.
pub(crate) fn config(folder: &Path, upstream: &str) -> Config {
    let mut config = Config::defaults();
    let (any, never) = (SocketAddr::from(([127, 0, 0, 1], 0)), Duration::from_hours(1));
    config.grpc.listen = any;
    config.admin.listen = any;
    upstream.clone_into(&mut config.thingspace.base_url);
    config.thingspace.calls_per_second = 10_000;
    config.thingspace.max_connections = 4_000;
    config.polling.min_age = Duration::ZERO;
    (config.polling.first, config.polling.max_watched, config.polling.max) = (never, never, never);
    config.limits.caller_calls_per_second = 1_000_000;
    config.limits.open_devices = 10_000_000;
    config.limits.caller_open_devices = 10_000_000;
    config.limits.caller_watches = 1_000_000;
    config.store.path = folder.join("store.redb");
    let secret = folder.join("bench-secret");
    fs::write(&secret, "secret").unwrap();
    let credentials = (0..CREDENTIALS).map(|n| CredentialsConfig {
        name: format!("set-{n}"),
        accounts: vec![AccountName::parse(&account(n)).unwrap()],
        key_file: secret.clone(),
        secret_file: secret.clone(),
        username_file: folder.join(format!("bench-user-{n}")),
        password_file: secret.clone(),
    });
    config.credentials = credentials.collect();
    // No two sets may have the same user.
    for credentials in &config.credentials {
        fs::write(&credentials.username_file, &credentials.name).unwrap();
    }
    config
}

/// Places orders with these numbers, for one device each. Returns status calls about the requests.
pub(crate) async fn place(
    client: &mut Client,
    numbers: impl IntoIterator<Item = usize>,
    service_plan: &str,
) -> Calls {
    let mut requests = Vec::new();
    for n in numbers {
        let order = DownloadProfileRequest {
            account_name: account(n),
            devices: vec![device(0)],
            service_plan: service_plan.to_owned(),
            idempotency_key: format!("{service_plan}-{n}"),
            validate_only: false,
        };
        let answer = client.download_profile(order).await.unwrap().into_inner();
        requests.push((n, answer.request_id));
    }
    Calls::Status(requests)
}

/// Asks about each request once.
pub(crate) async fn ask(client: &mut Client, calls: &Calls) {
    let Calls::Status(requests) = calls else { return };
    for (n, id) in requests {
        let call = GetRequestStatusRequest {
            account_name: account(*n),
            request_id: id.clone(),
            ..GetRequestStatusRequest::default()
        };
        get_status(client, call).await.unwrap();
    }
}

/// Returns the id of the first request.
pub(crate) fn first(calls: &Calls) -> RequestId {
    let Calls::Status(requests) = calls else { panic!("not status calls") };
    RequestId::parse(&requests[0].1).unwrap()
}
