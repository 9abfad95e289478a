//! Checks of the configuration, without the network: its problems, files, policy and limits.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rustix::process::{Resource, getrlimit};

use super::report::Report;
use crate::{
    app::DESCRIPTORS_PART,
    auth::{ANY, Method},
    config::{Config, Problems, is_set, show_duration},
    grpc::CALL_BYTES,
};

/// What an open device may take in memory, in bytes; see docs/scaling.md. The chart counts the
/// same.
const OPEN_DEVICE_BYTES: u64 = 4 << 10;

/// What the gateway takes besides its limits, in bytes; see docs/scaling.md. The chart counts the
/// same, with the default of `limits.closed_bytes`.
const BASE_BYTES: u64 = 160 << 20;

/// The memory limit of the control group of this process.
const MEMORY_LIMIT: &str = "/sys/fs/cgroup/memory.max";

/// The permissions of users that are neither the owner nor in the group of a file.
const OTHERS: u32 = 0o007;

pub(super) fn problems(report: &mut Report, config: &Config, problems: &Problems) {
    for problem in problems.iter() {
        report.failure("configuration", "", problem, "");
    }
    for warning in config.warnings().iter() {
        report.warning("configuration", "", warning, "");
    }
    if !report.has_problem("configuration") {
        report.ok("configuration", "", "the keys and the files that they name can be used");
    }
}

pub(super) fn check(report: &mut Report, config: &Config) {
    files(report, config);
    policy(report, config);
    limits(report, config);
}

/// Checks that no other user can use the files that hold secrets.
fn files(report: &mut Report, config: &Config) {
    let Config { grpc, callbacks, store, credentials, .. } = config;
    let credentials =
        credentials.iter().flat_map(|set| set.files().into_iter().map(|(_, path)| path));
    let nats = &store.nats;
    let others = [
        &grpc.tls_key_file,
        &callbacks.tls_key_file,
        &callbacks.username_file,
        &callbacks.password_file,
        &nats.creds_file,
        &nats.password_file,
        &nats.key_file,
    ];
    let files = credentials.chain(others.into_iter().map(std::path::PathBuf::as_path));
    let mut checked = 0;
    for path in files.filter(|path| is_set(path)) {
        // A file that cannot be read is a problem of the configuration.
        let Ok(found) = fs::metadata(path) else { continue };
        checked += 1;
        if found.permissions().mode() & OTHERS != 0 {
            let shown = path.display();
            report.warning(
                "secrets",
                &shown.to_string(),
                "every user of this machine can read or change it",
                format!("Run `chmod o= {shown}`; in Kubernetes, set defaultMode: 0440."),
            );
        }
    }
    if !report.has_problem("secrets") {
        report.ok("secrets", "", format!("{checked} files, and none is open to all users"));
    }
}

fn policy(report: &mut Report, config: &Config) {
    let (listen, allow) = (config.grpc.listen, &config.auth.allow);
    let is_local = listen.ip().is_loopback();
    if !is_local && config.grpc.tls().is_none() {
        report.warning(
            "policy",
            "plaintext",
            format!("{listen} is plaintext: tokens and devices can be read on the way"),
            "Set grpc.tls_cert_file and grpc.tls_key_file, unless a mesh or a proxy encrypts.",
        );
    }
    if !config.asks_callers() {
        let found = "callers are not authenticated: everybody who reaches the port may order";
        if is_local {
            report.ok("policy", "callers", format!("{found}, and only this machine reaches it"));
        } else {
            let action = "Set auth.tokens_file, auth.jwt or grpc.client_ca_file.";
            report.warning("policy", "callers", found, action);
        }
    }
    let any = |list: &[String]| list.iter().any(|item| item == ANY);
    for (number, entry) in (1..).zip(allow) {
        if any(&entry.callers) && any(&entry.accounts) && config.asks_callers() {
            report.warning(
                "policy",
                &format!("auth.allow #{number}"),
                "it allows every authenticated caller on every account",
                "Name the callers or the accounts.",
            );
        }
    }
    let may_order = |account: &str| {
        allow.is_empty()
            || allow.iter().any(|entry| {
                let of_account =
                    any(&entry.accounts) || entry.accounts.iter().any(|item| item == account);
                let order = Method::DownloadProfile.name();
                let orders = any(&entry.methods) || entry.methods.iter().any(|item| item == order);
                of_account && orders
            })
    };
    for account in config.credentials.iter().flat_map(|set| &set.accounts) {
        if !may_order(account.as_str()) {
            report.warning(
                "policy",
                account.as_str(),
                "no caller may order on this account",
                "Add an [[auth.allow]] entry, or remove the account from [[credentials]].",
            );
        }
    }
    if config.asks_callers() && !report.has_problem("policy") {
        report.ok("policy", "", format!("{} entries", allow.len()));
    }
}

/// Checks limits that can be set and do not fit each other.
fn limits(report: &mut Report, config: &Config) {
    let Config { grpc, limits, thingspace, .. } = config;
    let longest_order = thingspace.connect_timeout + thingspace.order_timeout;
    if grpc.max_deadline < longest_order {
        report.warning(
            "limits",
            "grpc.max_deadline",
            format!(
                "{} is shorter than an order may take ({}), so a caller may not learn the outcome \
                 of its order from the first call",
                show_duration(grpc.max_deadline),
                show_duration(longest_order)
            ),
            "Set it above thingspace.connect_timeout + thingspace.order_timeout.",
        );
    }
    if limits.caller_open_devices > limits.open_devices {
        report.warning(
            "limits",
            "limits.caller_open_devices",
            "it is larger than limits.open_devices, so one caller can take all of it",
            "Set it below limits.open_devices.",
        );
    }
    if thingspace.max_devices_per_order > limits.caller_open_devices {
        report.warning(
            "limits",
            "limits.caller_open_devices",
            "an order of thingspace.max_devices_per_order devices never fits into it",
            "Set it to at least thingspace.max_devices_per_order.",
        );
    }
    if let Some(files) = getrlimit(Resource::Nofile).maximum
        && (files / DESCRIPTORS_PART as u64) < grpc.max_connections as u64
    {
        report.warning(
            "limits",
            "grpc.max_connections",
            format!(
                "it is {}, and a process of this user may open {files} files, of which the API \
                 uses a third",
                grpc.max_connections
            ),
            "Raise the limit of open files (`ulimit -Hn`, LimitNOFILE=), or set a lower number.",
        );
    }
    memory(report, config);
    if !report.has_problem("limits") {
        report.ok("limits", "", "they fit each other and this machine");
    }
}

fn memory(report: &mut Report, config: &Config) {
    let Config { grpc, limits, .. } = config;
    let Ok(text) = fs::read_to_string(Path::new(MEMORY_LIMIT)) else { return };
    // The text is "max" without a limit.
    let Ok(limit) = text.trim().parse::<u64>() else { return };
    let needed = BASE_BYTES
        + CALL_BYTES as u64
        + limits.open_devices as u64 * OPEN_DEVICE_BYTES
        + limits.closed_bytes as u64
        + grpc.max_request_bytes as u64;
    if needed > limit {
        let mib = |bytes: u64| bytes >> 20;
        report.warning(
            "limits",
            "memory",
            format!(
                "up to {} MiB may be needed with this configuration, and the control group of this \
                 process allows {} MiB",
                mib(needed),
                mib(limit)
            ),
            "Raise the memory limit, or lower limits.open_devices.",
        );
    }
}
