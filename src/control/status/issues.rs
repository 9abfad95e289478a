//! What an operator should know first: everything that is wrong, the worst first, with what to do.
//!
//! Computed from the rest of the status, so that `status`, the page and JSON never contradict it.

use serde::{Deserialize, Serialize};

use super::{CallerCredentials, StatusResponse};
use crate::thingspace::LoginState;

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
pub(super) fn issues(status: &StatusResponse) -> Vec<Issue> {
    let mut issues = Issues::default();
    availability(status, &mut issues);
    logins(status, &mut issues);
    hosts(status, &mut issues);
    match status.unknown_orders {
        None | Some(0) => {}
        Some(1) => issues.warning(
            ("gateway", "unknown orders"),
            "One order has an unknown outcome",
            "Find out in ThingSpace's portal whether it was placed, then run `orders settle`. \
             Until then its key places nothing.",
        ),
        Some(count) => issues.warning(
            ("gateway", "unknown orders"),
            format!("{count} orders have an unknown outcome"),
            "Find out in ThingSpace's portal whether they were placed, then run `orders settle` \
             for each. Until then their keys place nothing.",
        ),
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
        if let Some(expires) =
            expires.filter(|_| status.overdue_certificates.iter().any(|it| it == key))
        {
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

/// Reports hosts of ThingSpace to which calls fail, or failed a short while ago.
fn hosts(status: &StatusResponse, issues: &mut Issues) {
    for host in status.hosts.iter().filter(|host| !host.is_well()) {
        let about = ("gateway", host.host.as_str());
        let answered = host.failure.as_ref().is_some_and(|failure| failure.answered);
        let action = if answered {
            "This network reaches ThingSpace, so the cause is there. The gateway tries again by \
             itself. If it lasts, ask Verizon."
        } else {
            "The gateway tries again by itself. If it lasts, run `doctor` to see whether this \
             network reaches ThingSpace, and ask Verizon."
        };
        let name = &host.host;
        if host.left_alone_ms.is_some() {
            let what = format!("Calls to ThingSpace fail on {name}: {}", host.problem());
            issues.failure(about, what, action);
        } else {
            let what = format!("Some calls to ThingSpace fail on {name}: {}", host.state());
            issues.warning(about, what, action);
        }
    }
}

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
            format!("The store is full, so new orders are refused: {shortage}"),
            "Free space on the disk or enlarge it, or with NATS raise store.nats.max_bytes. Known \
             orders continue meanwhile in the room that is kept for them, and new orders as soon \
             as there is enough room.",
        );
    } else if let Some(trouble) = &status.store_trouble {
        issues.failure(
            ("store", "in use"),
            format!("The store cannot be used, so orders are refused: {trouble}"),
            if status.shared_store {
                "Bring the servers of NATS back, or the network to them. The gateway goes on by \
                 itself, and answers from memory meanwhile."
            } else {
                "Repair the disk of the store. The gateway goes on by itself, and answers from \
                 memory meanwhile."
            },
        );
    }
}

fn logins(status: &StatusResponse, issues: &mut Issues) {
    for login in status.logins.iter().filter(|login| !login.healthy) {
        let name = &login.credentials;
        let problem = match login.state {
            LoginState::Stopped => format!("Logins with credentials {name} are stopped"),
            LoginState::Rejected => format!("ThingSpace rejects credentials {name}"),
            LoginState::FilesUnusable => {
                format!("The files of credentials {name} cannot be used")
            }
            LoginState::LoggedIn
            | LoginState::Idle
            | LoginState::Elsewhere
            | LoginState::Unknown
            | LoginState::Failing => {
                format!("It is not known whether logins with credentials {name} are permitted")
            }
        };
        let what = if login.has_tokens {
            format!("{problem}, so calls to ThingSpace fail when the current session ends")
        } else {
            format!("{problem}, so calls to ThingSpace fail")
        };
        let action = sentence(&capitalised(&login.standing));
        issues.failure(("logins", name), what, &action);
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
        let about = ("registration", account.as_str());
        match status.registration_states.get(account).map(String::as_str) {
            Some("failing" | "deregistered") => issues.warning(
                about,
                format!("The callbacks of account {account} do not come here: {standing}"),
                "Results come later, by polling. `callbacks list` shows what is registered.",
            ),
            Some("check_failing") => issues.warning(
                about,
                format!(
                    "It is not known whether the callbacks of account {account} come here: \
                     {standing}"
                ),
                "They may well arrive. The gateway checks again by itself; look at what else is \
                 wrong.",
            ),
            _ => {}
        }
    }
    if let Some(problem) = &status.callback_pair_problem {
        issues.warning(
            ("callbacks", "pair"),
            format!(
                "The newest user name and password of callbacks are not in use, and the former \
                 ones stay in use: {problem}"
            ),
            "Correct the files. The gateway reads them again by itself.",
        );
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
