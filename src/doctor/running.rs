//! What a running gateway says about itself. `doctor` never logs in: it reads the state of the
//! gateway's logins and registrations.

use std::{io, path::Path, time::Duration};

use super::report::Report;
use crate::{
    config::Config,
    control::{client, status::StatusResponse},
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
    state(report, &status);
    logins(report, &status);
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
    match (&status.waits_for, &status.limited) {
        (Some(why), _) => report.failure("gateway", "ready", format!("it is not ready: {why}"), ""),
        (None, Some(why)) => {
            report.failure("gateway", "ready", format!("it is ready, but {why}"), "");
        }
        (None, None) => report.ok("gateway", "ready", "it is ready"),
    }
    if let Some(why) = &status.store_memory.unprotected {
        report.warning("gateway", "store", why.as_str(), "");
    }
    for log in &status.unreadable_logs {
        let action = "Restore the store from a backup if you need this log.";
        report.failure("gateway", &log.log, format!("damaged: {}", log.why), action);
    }
    match status.unknown_orders {
        None => report.failure("gateway", "unknown orders", "the store cannot be read", ""),
        Some(0) => report.ok("gateway", "unknown orders", "none"),
        Some(count) => report.warning(
            "gateway",
            "unknown orders",
            format!("the outcome of {count} is unknown"),
            "See `orders unknown`, and settle them with `orders settle`.",
        ),
    }
    for host in &status.hosts {
        match host.left_alone_ms {
            None => report.ok("gateway", &host.host, "calls are sent"),
            Some(wait) => report.failure(
                "gateway",
                &host.host,
                format!("it does not answer; the next call is sent in {wait} ms at the earliest"),
                "",
            ),
        }
    }
}

fn logins(report: &mut Report, status: &StatusResponse) {
    for login in &status.logins {
        let (name, sentence) = (&login.credentials, login.standing.as_str());
        if login.healthy {
            report.ok("logins", name, sentence);
        } else {
            report.failure("logins", name, sentence, "");
        }
    }
}

fn registrations(report: &mut Report, config: &Config, status: &StatusResponse) {
    if !config.callbacks.enabled || config.callbacks.public_url.is_empty() {
        return;
    }
    for (account, standing) in &status.registrations {
        if standing == "registered" {
            report.ok("registration", account, "registered by this gateway");
        } else {
            report.warning(
                "registration",
                account,
                standing.as_str(),
                "Results come by polling. `callbacks list` shows who is registered.",
            );
        }
    }
}
