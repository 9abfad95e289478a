//! What an operator should know first: everything that is wrong, the worst first, with what to do.
//!
//! Computed from the rest of the status, so that `status`, the page and JSON never contradict it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::StatusResponse;

/// A certificate that expires within this time should have been replaced.
const CERTIFICATE_NOTICE: SignedDuration = SignedDuration::from_hours(24 * 14);

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
    /// A sentence, such as "The gateway is stopping."
    pub(crate) what: String,
    /// What to do; sentences.
    pub(crate) action: String,
}

/// Returns everything that is wrong, the worst first.
pub(super) fn issues(status: &StatusResponse, now: Timestamp) -> Vec<Issue> {
    let mut issues = Vec::new();
    let mut add = |level, what: String, action: &str| {
        issues.push(Issue { level, what: sentence(&what), action: action.to_owned() });
    };
    availability(status, &mut add);
    logins(status, &mut add);
    for host in status.hosts.iter().filter(|host| host.left_alone_ms.is_some()) {
        add(
            IssueLevel::Failure,
            format!("ThingSpace does not answer on {}", host.host),
            "Usually there is nothing to do, because the gateway tries again by itself. If it \
             lasts, run `doctor` to see whether this network reaches ThingSpace, and ask Verizon.",
        );
    }
    match status.unknown_orders {
        Some(0) | None => {}
        Some(1) => add(IssueLevel::Warning, "One order has an unknown outcome".into(), SETTLE),
        Some(count) => {
            add(IssueLevel::Warning, format!("{count} orders have an unknown outcome"), SETTLE);
        }
    }
    for log in &status.unreadable_logs {
        add(
            IssueLevel::Warning,
            format!("The log {} is damaged and is skipped: {}", log.log, log.why),
            "Restore the store from a backup if its request or order matters.",
        );
    }
    if let Some(why) = &status.store_memory.unprotected {
        add(IssueLevel::Warning, format!("The store is not protected: {why}"), "");
    }
    callers(status, now, &mut add);
    callbacks(status, now, &mut add);
    issues.sort_by_key(|issue| issue.level);
    issues
}

const SETTLE: &str = "Find out in ThingSpace's portal whether it was placed, then run `orders \
                      settle`. Until then its key places nothing.";

fn availability(status: &StatusResponse, add: &mut impl FnMut(IssueLevel, String, &str)) {
    if status.draining {
        add(
            IssueLevel::Failure,
            "The gateway is stopping".into(),
            "If you stopped it, there is nothing to do. Calls and orders in progress finish, and \
             callers go on with another replica or after the restart.",
        );
        return;
    }
    if let Some(lost) = &status.store_memory.lost {
        add(
            IssueLevel::Failure,
            format!("The store lost something, so nothing is done: {}", lost.what),
            "Read \"The store lost something\" in docs/operations.md, then run `store \
             accept-loss`.",
        );
    } else if let Some(why) = &status.waits_for {
        add(
            IssueLevel::Failure,
            format!("The gateway answers no calls yet: {why}"),
            "Wait a minute after a start. If it lasts, look at the store.",
        );
    } else if let Some(shortage) = &status.store_memory.shortage {
        add(
            IssueLevel::Failure,
            format!("The store is nearly full, so new orders are refused: {shortage}"),
            "Free space or enlarge the volume. The gateway goes on by itself, and known orders go \
             on meanwhile.",
        );
    } else if let Some(trouble) = &status.store_trouble {
        add(
            IssueLevel::Failure,
            format!("The store cannot be used, so orders are refused: {trouble}"),
            "Repair the disk or NATS. The gateway goes on by itself.",
        );
    }
}

fn logins(status: &StatusResponse, add: &mut impl FnMut(IssueLevel, String, &str)) {
    for login in status.logins.iter().filter(|login| !login.healthy) {
        let what = format!("There are no working logins with credentials {}", login.credentials);
        add(IssueLevel::Failure, what, &sentence(&capitalised(&login.standing)));
    }
}

fn callers(
    status: &StatusResponse,
    now: Timestamp,
    add: &mut impl FnMut(IssueLevel, String, &str),
) {
    for (key, credentials) in &status.caller_credentials {
        if let Some(problem) = &credentials.problem {
            add(
                IssueLevel::Warning,
                format!("The newest content of {key} is not in use: {problem}"),
                "Correct it. The gateway reads it again by itself.",
            );
        }
    }
    if status.lacks_tokens {
        add(
            IssueLevel::Warning,
            "The file of auth.tokens_file has no tokens, so nobody can call with one".into(),
            "Add the token of a caller. The gateway reads the file again by itself.",
        );
    }
    if let Some(expires) = status.grpc_certificate_expires
        && expires.duration_since(now) < CERTIFICATE_NOTICE
    {
        add(
            IssueLevel::Warning,
            format!("The certificate of the API expires {expires:.0}"),
            "Replace it. The gateway reads the files again by itself.",
        );
    }
}

fn callbacks(
    status: &StatusResponse,
    now: Timestamp,
    add: &mut impl FnMut(IssueLevel, String, &str),
) {
    if let Some(expires) = status.callbacks_certificate_expires
        && expires.duration_since(now) < CERTIFICATE_NOTICE
    {
        add(
            IssueLevel::Warning,
            format!("The certificate of the callbacks' listener expires {expires:.0}"),
            "Replace it. The gateway reads the files again by itself.",
        );
    }
    for (account, standing) in &status.registrations {
        if !["registered", "not checked yet"].contains(&standing.as_str()) {
            add(
                IssueLevel::Warning,
                format!("No callbacks arrive for account {account}: {standing}"),
                "Results come later, by polling. See `callbacks list`, then `callbacks register`.",
            );
        }
    }
    if status.quarantine_evicted > 0 {
        add(
            IssueLevel::Warning,
            "The quarantine of callbacks is full, and old ones are removed".into(),
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
