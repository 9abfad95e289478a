//! The health of a set of credentials, for `status`, gRPC health and the log.
//!
//! It says whether logins may be sent, even while a session token still works, so that an operator
//! can act before the session ends.

use std::{fmt, sync::Mutex};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    error::Problem,
    files::FILES,
    guard::{COUNT_LIMIT, LOCK, Stopped},
    secrets::{Fingerprint, Half},
};
use crate::{
    lock::lock,
    reload::{REFUSED, WatchedFiles, count_reload},
};

/// The health of the logins of a set of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoginHealth {
    /// False if an operator has to act, even while a session still works. False also while it is
    /// not known whether logins may be sent.
    pub(crate) healthy: bool,
    /// The state, for people.
    pub(crate) sentence: String,
    /// The state, for programs.
    pub(crate) state: LoginState,
    /// Whether calls have both tokens. They work until they expire, or ThingSpace ends the session.
    pub(crate) has_tokens: bool,
}

/// The state of the logins of a set of credentials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoginState {
    LoggedIn,
    /// Nothing has needed a login yet.
    Idle,
    /// Another replica's login has had no answer yet.
    Elsewhere,
    /// It is not known yet whether logins are permitted.
    #[default]
    Unknown,
    /// No token, and the gateway tries again.
    Failing,
    Rejected,
    /// The guard allows no login until an operator acts.
    Stopped,
    FilesUnusable,
}

impl LoginState {
    /// Returns all states, each with its name in metrics.
    pub(crate) fn all() -> [(Self, &'static str); 8] {
        [
            (Self::LoggedIn, "logged_in"),
            (Self::Idle, "idle"),
            (Self::Elsewhere, "elsewhere"),
            (Self::Unknown, "unknown"),
            (Self::Failing, "failing"),
            (Self::Rejected, "rejected"),
            (Self::Stopped, "stopped"),
            (Self::FilesUnusable, "files_unusable"),
        ]
    }

    fn of(problem: &Problem) -> Self {
        match problem {
            Problem::Rejected => Self::Rejected,
            Problem::Stopped(_) | Problem::GuardUnreadable(_) => Self::Stopped,
            Problem::FileUnusable(_) => Self::FilesUnusable,
            Problem::RejectedOnce
            | Problem::Throttled
            | Problem::HostUnavailable
            | Problem::Elsewhere
            | Problem::Delayed(_)
            | Problem::Unavailable(_)
            | Problem::Store(_) => Self::Failing,
        }
    }
}

#[derive(Debug)]
pub(super) struct HealthTracker {
    name: String,
    state: Mutex<HealthTrackerState>,
    published: watch::Sender<LoginHealth>,
    watched: WatchedFiles,
}

#[derive(Debug)]
pub(super) struct HealthTrackerState {
    /// Why the guard could not be read; `None`: it was read.
    pub(super) unread: Option<String>,
    /// This process holds a session token.
    pub(super) session: bool,
    /// Until when another replica's login may be in progress.
    pub(super) elsewhere: Option<Timestamp>,
    /// Which credential file cannot be used, and why.
    files: Option<String>,
    application: Option<(Problem, Fingerprint)>,
    user: Option<(Problem, Fingerprint)>,
}

impl HealthTracker {
    pub(super) fn new(name: &str) -> Self {
        let state = HealthTrackerState {
            unread: Some("the store has not been read yet".to_owned()),
            session: false,
            elsewhere: None,
            files: None,
            application: None,
            user: None,
        };
        let published = watch::Sender::new(state.health(name));
        let (name, state) = (name.to_owned(), Mutex::new(state));
        Self { name, state, published, watched: WatchedFiles::new(FILES) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<LoginHealth> {
        self.published.subscribe()
    }

    /// Sets the problem of one half. Logs a new problem if an operator has to act.
    pub(super) fn set(&self, half: Half, problem: Option<Problem>, fingerprint: Fingerprint) {
        self.update(|state| {
            let now = problem.map(|problem| (problem, fingerprint));
            let before = state.half(half);
            if let Some((problem, _)) = &now
                && problem.needs_operator()
                && *before != now
            {
                tracing::error!(credentials = self.name, "{}", sentence(&self.name, half, problem));
            }
            *before = now;
        });
    }

    /// Sets which credential file cannot be used, and why; `None`: all can be used.
    pub(super) fn set_files(&self, unusable: Option<String>) {
        self.update(|state| {
            match &unusable {
                Some(reason) if state.files != unusable => {
                    count_reload(FILES, REFUSED);
                    let sentence = unusable_sentence(&self.name, reason);
                    tracing::error!(credentials = self.name, "{sentence}");
                }
                None if state.files.is_some() => tracing::info!(
                    credentials = self.name,
                    "the credential files can be read again"
                ),
                _ => {}
            }
            self.watched.set_refused(unusable.is_some());
            state.files = unusable;
        });
    }

    /// Returns the problem of one half, and the credentials that have it.
    pub(super) fn problem(&self, half: Half) -> Option<(Problem, Fingerprint)> {
        lock(&self.state).half(half).clone()
    }

    /// Changes the state, and publishes the health if it has changed.
    pub(super) fn update(&self, change: impl FnOnce(&mut HealthTrackerState)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let health = state.health(&self.name);
        self.published.send_if_modified(|published| {
            let changed = *published != health;
            *published = health;
            changed
        });
    }
}

impl HealthTrackerState {
    fn half(&mut self, half: Half) -> &mut Option<(Problem, Fingerprint)> {
        match half {
            Half::Application => &mut self.application,
            Half::User => &mut self.user,
        }
    }

    fn health(&self, name: &str) -> LoginHealth {
        let problems = [(Half::Application, &self.application), (Half::User, &self.user)];
        let problems =
            || problems.iter().filter_map(|(half, problem)| Some((*half, &problem.as_ref()?.0)));
        let worst =
            problems().find(|(_, problem)| problem.needs_operator()).or_else(|| problems().next());
        let (healthy, mut sentence, state) = match (&self.files, worst) {
            (Some(reason), _) => {
                (false, unusable_sentence(name, reason), LoginState::FilesUnusable)
            }
            (None, Some((half, problem))) => {
                let known = self.session || self.unread.is_none();
                let healthy = known && !problem.needs_operator();
                (healthy, sentence(name, half, problem), LoginState::of(problem))
            }
            (None, None) if self.session => (true, "logged in".to_owned(), LoginState::LoggedIn),
            (None, None) if let Some(why) = &self.unread => (
                false,
                format!("not logged in, and it is not known yet whether that is permitted: {why}"),
                LoginState::Unknown,
            ),
            (None, None) if let Some(until) = self.elsewhere => (
                true,
                format!(
                    "not logged in: another gateway's login is unanswered so far; waiting until \
                     {until} at most"
                ),
                LoginState::Elsewhere,
            ),
            (None, None) => {
                (true, "not logged in: nothing has needed it yet".to_owned(), LoginState::Idle)
            }
        };
        let failing = self.files.is_some() || worst.is_some();
        // Calls need a bearer token as well.
        let has_tokens = self.session && self.application.is_none();
        if failing && has_tokens {
            sentence += ". Calls succeed until the current session ends";
        }
        LoginHealth { healthy, sentence, state, has_tokens }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Application => "application key or secret",
            Self::User => "user name or password",
        })
    }
}

fn unusable_sentence(name: &str, reason: &str) -> String {
    format!(
        "the files of credentials {name} cannot be used: {reason}. Restore or correct the file; \
         the gateway reads it again by itself"
    )
}

fn sentence(name: &str, half: Half, problem: &Problem) -> String {
    let stopped = match problem {
        Problem::Rejected => {
            let again = match half {
                Half::Application => "until then they are tried again at growing intervals",
                Half::User => "they are tried once more at most",
            };
            return format!(
                "ThingSpace rejected the {half} of credentials {name}. Correct the files; {again}"
            );
        }
        Problem::RejectedOnce => {
            return format!(
                "ThingSpace rejected the {half} of credentials {name} once. It is tried again soon"
            );
        }
        Problem::GuardUnreadable(why) => {
            return format!(
                "no token is requested with credentials {name}: their guard in the store cannot be \
                 read ({why}). Run the newest release that has used this store; if that one cannot \
                 read it either, restore a backup"
            );
        }
        Problem::Stopped(stopped) => stopped,
        problem => return format!("no token for credentials {name}: {problem}"),
    };
    let unblock = format!("thingspace-gateway unblock {name}");
    let log_in = "log in once elsewhere with the right password, then run";
    let reason = match stopped {
        Stopped::Rejected => format!(
            "it rejected this user name or password, or did not answer, and no attempt with them \
             is left. Correct the files; if they are right, run `{unblock}`"
        ),
        Stopped::Unanswered => format!(
            "several logins in a row had no usable answer and may have been rejected. Once \
             ThingSpace answers again, and if the password is right, run `{unblock}`"
        ),
        Stopped::CountLimit => format!(
            "it may have counted {COUNT_LIMIT} or more rejected logins in a row and locks the user \
             at {LOCK}. Correct the files, {log_in} `{unblock} --force`"
        ),
        Stopped::ForceUsed => format!(
            "no login was accepted after the last `unblock --force`, and it locks the user at \
             {LOCK} rejected logins in a row. Correct the files, {log_in} `{unblock} --force \
             --risk-lock`"
        ),
        Stopped::CountLost => format!(
            "the store has lost the number of rejected logins. Check the files, {log_in} \
             `{unblock} --force`"
        ),
    };
    format!(
        "logins with credentials {name} are stopped, so that ThingSpace does not lock the user: \
         {reason}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Fingerprint = Fingerprint([1; 32]);

    #[test]
    fn it_is_healthy_while_no_operator_has_to_act_whether_or_not_there_is_a_session() {
        let tracker = HealthTracker::new("main");
        let published = tracker.subscribe();
        let health = || (published.borrow().healthy, published.borrow().sentence.clone());
        let unavailable = |reason: &str| Some(Problem::Unavailable(reason.to_owned()));
        assert!(!health().0 && health().1.contains("not known yet"));
        tracker.update(|state| state.unread = None);
        assert_eq!(health(), (true, "not logged in: nothing has needed it yet".to_owned()));
        tracker.update(|state| state.unread = Some("it is away".to_owned()));
        tracker.set(Half::User, unavailable("it is away"), FIRST);
        assert!(!health().0, "a failed call does not show whether logins are permitted");
        tracker.set(Half::User, None, FIRST);
        tracker.update(|state| state.unread = None);
        tracker.update(|state| state.session = true);
        assert_eq!(health(), (true, "logged in".to_owned()));
        tracker.set(Half::User, Some(Problem::Rejected), FIRST);
        assert!(!health().0 && health().1.contains("user name or password of credentials main"));
        assert!(health().1.ends_with("Calls succeed until the current session ends"));
        assert!(published.borrow().has_tokens);
        tracker.update(|state| state.session = false);
        assert!(!health().0 && !health().1.contains("succeed"));
        assert!(!published.borrow().has_tokens);
        tracker.set(Half::User, Some(Problem::Stopped(Stopped::Rejected)), FIRST);
        tracker.set(Half::Application, unavailable("down"), FIRST);
        assert!(
            !health().0 && health().1.contains("unblock main"),
            "what needs an operator comes first"
        );
        assert!(
            health().1.contains("no attempt with them is left"),
            "a new store permits only one attempt"
        );
        tracker.set_files(Some("cannot read password".into()));
        assert!(!health().0 && health().1.contains("cannot read password"));
        tracker.set_files(None);
        tracker.set(Half::User, None, FIRST);
        assert_eq!(health(), (true, "no token for credentials main: down".to_owned()));
    }

    #[test]
    fn only_changes_are_published() {
        let tracker = HealthTracker::new("main");
        let mut published = tracker.subscribe();
        for _ in 0..3 {
            tracker.set(Half::Application, Some(Problem::Rejected), FIRST);
        }
        assert!(published.has_changed().unwrap());
        published.mark_unchanged();
        tracker.set(Half::Application, Some(Problem::Rejected), Fingerprint([2; 32]));
        assert!(!published.has_changed().unwrap());
    }
}
