//! What an operator should know first: everything that is wrong, the worst first, with what to do.
//!
//! Computed from the rest of the status, so that `status`, the page and JSON never contradict it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CallerCredentials, StatusResponse};
use crate::certificate::expires_soon;

/// The configuration keys of the certificates of the listeners, which are the subjects of issues.
pub(crate) const GRPC_CERTIFICATE: &str = "grpc.tls_cert_file";
pub(crate) const CALLBACKS_CERTIFICATE: &str = "callbacks.tls_cert_file";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IssueLevel {
    /// Calls fail or will soon fail.
    Failure,
    /// Calls succeed, and somebody has to act.
    Warning,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issue {
    pub(crate) level: IssueLevel,
    /// The check of `doctor` that it belongs to, for example `logins`.
    #[serde(default)]
    pub(crate) check: String,
    /// Which one of several, for example the name of a set of credentials.
    #[serde(default)]
    pub(crate) subject: String,
    /// A sentence, such as "The gateway is stopping."
    pub(crate) what: String,
    /// What to do; sentences.
    pub(crate) action: String,
}

/// The check and the subject of an issue.
type About<'a> = (&'a str, &'a str);

#[derive(Debug, Default)]
struct Issues(Vec<Issue>);

impl Issues {
    fn failure(&mut self, about: About<'_>, what: impl AsRef<str>, action: &str) {
        self.add(IssueLevel::Failure, about, what.as_ref(), action);
    }

    fn warning(&mut self, about: About<'_>, what: impl AsRef<str>, action: &str) {
        self.add(IssueLevel::Warning, about, what.as_ref(), action);
    }

    fn add(&mut self, level: IssueLevel, (check, subject): About<'_>, what: &str, action: &str) {
        let [check, subject, action] = [check, subject, action].map(str::to_owned);
        self.0.push(Issue { level, check, subject, what: sentence(what), action });
    }
}

/// Returns everything that is wrong, the worst first.
pub(super) fn issues(status: &StatusResponse, now: Timestamp) -> Vec<Issue> {
    let mut issues = Issues::default();
    availability(status, &mut issues);
    logins(status, &mut issues);
    for host in status.hosts.iter().filter(|host| host.left_alone_ms.is_some()) {
        issues.failure(
            ("gateway", &host.host),
            format!("ThingSpace does not answer on {}", host.host),
            "Usually there is nothing to do, because the gateway tries again by itself. If it \
             lasts, run `doctor` to see whether this network reaches ThingSpace, and ask Verizon.",
        );
    }
    if let Some(count @ 1..) = status.unknown_orders {
        let what = match count {
            1 => "One order has an unknown outcome".to_owned(),
            _ => format!("{count} orders have an unknown outcome"),
        };
        issues.warning(("gateway", "unknown orders"), what, SETTLE);
    }
    for log in &status.unreadable_logs {
        issues.warning(
            ("gateway", &log.log),
            format!("The log {} is damaged and is skipped: {}", log.log, log.why),
            "Restore the store from a backup if its request or order matters.",
        );
    }
    if let Some(why) = &status.store_memory.unprotected {
        issues.warning(("gateway", "store"), format!("The store is not protected: {why}"), "");
    }
    callers(status, &mut issues);
    let certificates = [
        (GRPC_CERTIFICATE, "API", status.grpc_certificate_expires),
        (CALLBACKS_CERTIFICATE, "callbacks' listener", status.callbacks_certificate_expires),
    ];
    for (key, of, expires) in certificates {
        if let Some(expires) = expires.filter(|expires| expires_soon(*expires, now)) {
            issues.warning(
                ("certificate", key),
                format!("The certificate of the {of} expires {expires:.0}"),
                "Replace it. The gateway reads the files again by itself.",
            );
        }
    }
    callbacks(status, &mut issues);
    let Issues(mut issues) = issues;
    issues.sort_by_key(|issue| issue.level);
    issues
}

const SETTLE: &str = "Find out in ThingSpace's portal whether it was placed, then run `orders \
                      settle`. Until then its key places nothing.";

fn availability(status: &StatusResponse, issues: &mut Issues) {
    if status.draining {
        issues.failure(
            ("gateway", "ready"),
            "The gateway is stopping",
            "If you stopped it, there is nothing to do. Calls and orders in progress finish, and \
             callers go on with another replica or after the restart.",
        );
        return;
    }
    if let Some(lost) = &status.store_memory.lost {
        issues.failure(
            ("store", "loss"),
            format!("The store lost something, so nothing is done: {}", lost.what),
            "Read \"The store lost something\" in docs/operations.md, then run `store \
             accept-loss`.",
        );
    } else if let Some(why) = &status.waits_for {
        let (about, action) = if status.waits_for_key_set {
            (
                ("callers", "auth.jwt.jwks_url"),
                "Wait a minute after a start. If it lasts, check auth.jwt.jwks_url: this network \
                 must reach it, and it must answer with the keys of the issuer. The gateway \
                 fetches them again by itself.",
            )
        } else {
            (("gateway", "ready"), "Wait a minute after a start. If it lasts, look at the store.")
        };
        let what = format!("The gateway answers no calls yet: {why}");
        issues.failure(about, what, action);
    } else if let Some(shortage) = &status.store_memory.shortage {
        issues.failure(
            ("store", "room"),
            format!("The store is nearly full, so new orders are refused: {shortage}"),
            "Free space or enlarge the volume. The gateway goes on by itself, and known orders go \
             on meanwhile.",
        );
    } else if let Some(trouble) = &status.store_trouble {
        issues.failure(
            ("store", "in use"),
            format!("The store cannot be used, so orders are refused: {trouble}"),
            "Repair the disk or NATS. The gateway goes on by itself.",
        );
    }
}

fn logins(status: &StatusResponse, issues: &mut Issues) {
    for login in status.logins.iter().filter(|login| !login.healthy) {
        let what = format!("There are no working logins with credentials {}", login.credentials);
        let action = sentence(&capitalised(&login.standing));
        issues.failure(("logins", &login.credentials), what, &action);
    }
}

fn callers(status: &StatusResponse, issues: &mut Issues) {
    for (key, CallerCredentials { since, problem }) in &status.caller_credentials {
        let Some(problem) = problem else { continue };
        let about = ("callers", key.as_str());
        if since.is_some() {
            issues.warning(
                about,
                format!("The newest content of {key} is not in use: {problem}"),
                "Correct it. The gateway reads it again by itself.",
            );
        } else if !status.waits_for_key_set {
            issues.failure(
                about,
                format!("{key} has given no keys yet, so calls with its tokens fail: {problem}"),
                "Correct it. The gateway reads it again by itself.",
            );
        }
    }
    if status.lacks_tokens {
        issues.warning(
            ("callers", "auth.tokens_file"),
            "The file of auth.tokens_file has no tokens, so nobody can call with one",
            "Add the token of a caller. The gateway reads the file again by itself.",
        );
    }
}

fn callbacks(status: &StatusResponse, issues: &mut Issues) {
    for (account, standing) in &status.registrations {
        if !["registered", "not checked yet"].contains(&standing.as_str()) {
            issues.warning(
                ("registration", account),
                format!("No callbacks arrive for account {account}: {standing}"),
                "Results come later, by polling. See `callbacks list`, then `callbacks register`.",
            );
        }
    }
    if status.quarantine_evicted > 0 {
        issues.warning(
            ("callbacks", "quarantine"),
            "The quarantine of callbacks is full, and old ones are removed",
            "Look at them with `quarantine list` and `quarantine show`.",
        );
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Ends a text with a full stop.
fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}
