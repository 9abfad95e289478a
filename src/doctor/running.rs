//! What a running gateway says about itself. `doctor` never logs in: it reads the state of the
//! gateway's logins and registrations.
//!
//! Everything that `status` says is wrong is a finding, with the same words and the same action.

use std::{io, path::Path, time::Duration};

use super::report::{Level, Report};
use crate::{
    config::Config,
    control::{
        client,
        status::{
            StatusResponse,
            issues::{CALLBACKS_CERTIFICATE, GRPC_CERTIFICATE, IssueLevel},
        },
    },
};

/// How long the gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the checks that need a running gateway are not made.
const NO_GATEWAY: &str = "not checked, because no gateway answers on the control socket";

/// Returns the state of the running gateway.
pub(super) async fn check(report: &mut Report, config: &Config) -> Option<StatusResponse> {
    let socket = config.control_socket();
    let status = match tokio::time::timeout(ANSWER, client::status(&socket)).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            not_answered(report, &socket, &error);
            return None;
        }
        Err(_) => {
            let found = format!("no answer on {} in time", socket.display());
            report.failure(
                "gateway",
                "",
                found,
                "Read its log. Restart it if it does not recover.",
            );
            return None;
        }
    };
    issues(report, &status);
    state(report, &status);
    logins(report, &status);
    callers(report, &status);
    registrations(report, config, &status);
    Some(status)
}

fn not_answered(report: &mut Report, socket: &Path, error: &anyhow::Error) {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    if matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)) {
        report.skipped("gateway", "", format!("no gateway runs on {}", socket.display()));
    } else {
        report.failure("gateway", "", format!("{error:#}"), "");
    }
    for check in ["logins", "registration"] {
        report.skipped(check, "", NO_GATEWAY);
    }
}

/// Reports what is wrong. The other functions report the rest.
fn issues(report: &mut Report, status: &StatusResponse) {
    for issue in &status.issues {
        let level = match issue.level {
            IssueLevel::Failure => Level::Failure,
            IssueLevel::Warning => Level::Warning,
        };
        // A gateway of an earlier version does not name the check.
        let check = if issue.check.is_empty() { "gateway" } else { &issue.check };
        report.add(level, check.to_owned(), &issue.subject, &issue.what, &issue.action);
    }
}

fn state(report: &mut Report, status: &StatusResponse) {
    let version = env!("CARGO_PKG_VERSION");
    if status.version == version {
        report.ok("gateway", "version", version);
    } else {
        report.warning(
            "gateway",
            "version",
            format!("it runs {}, and this program is {version}", status.version),
            "Use the program of the running version, or restart the gateway.",
        );
    }
    if !report.has("gateway", "ready") {
        match (&status.waits_for, &status.limited) {
            (Some(why), _) => {
                report.failure("gateway", "ready", format!("it is not ready: {why}"), "");
            }
            (None, Some(why)) => {
                report.failure("gateway", "ready", format!("it is ready, but {why}"), "");
            }
            (None, None) => report.ok("gateway", "ready", "it is ready"),
        }
    }
    match status.unknown_orders {
        None => report.failure("gateway", "unknown orders", "the store cannot be read", ""),
        Some(0) => report.ok("gateway", "unknown orders", "none"),
        Some(_) => {}
    }
    for host in status.hosts.iter().filter(|host| host.is_well()) {
        report.ok("gateway", &host.host, "calls are sent");
    }
}

fn logins(report: &mut Report, status: &StatusResponse) {
    for login in status.logins.iter().filter(|login| login.healthy) {
        report.ok("logins", &login.credentials, login.standing.as_str());
    }
}

/// Reports which credentials of callers and which certificates are in use.
fn callers(report: &mut Report, status: &StatusResponse) {
    for (key, credentials) in &status.caller_credentials {
        if report.has("callers", key) {
            continue;
        }
        match credentials.since {
            Some(since) => report.ok("callers", key, format!("in use since {since:.0}")),
            None => report.skipped("callers", key, "it has not been fetched yet"),
        }
    }
    for (key, expires) in [
        (GRPC_CERTIFICATE, status.grpc_certificate_expires),
        (CALLBACKS_CERTIFICATE, status.callbacks_certificate_expires),
    ] {
        if let Some(expires) = expires.filter(|_| !report.has("certificate", key)) {
            report.ok("certificate", key, format!("it expires {expires:.0}"));
        }
    }
}

fn registrations(report: &mut Report, config: &Config, status: &StatusResponse) {
    if !config.callbacks.enabled || config.callbacks.public_url.is_empty() {
        return;
    }
    for (account, standing) in &status.registrations {
        match standing.as_str() {
            "registered" => report.ok("registration", account, "registered by this gateway"),
            _ if report.has("registration", account) => {}
            other => report.skipped("registration", account, other),
        }
    }
}
