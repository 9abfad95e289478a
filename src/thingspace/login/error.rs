//! Why there is no token: one error for everything from the credential files to ThingSpace's
//! answer.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::guard::{Delay, Stopped};
use crate::{
    store::StoreError,
    thingspace::{Error, error::BREAKER_OPEN},
};

/// How long a caller waits for the next renewal, at most.
const NEXT_RENEWAL_MAX: Duration = Duration::from_secs(10);
/// Added to that wait, so that it does not end just before the renewal is possible.
const NEXT_RENEWAL_SLACK: Duration = Duration::from_millis(100);

/// Why a renewal returned no token.
#[derive(Debug, Clone)]
pub(super) struct LoginError {
    pub(super) problem: Problem,
    /// The time before which no renewal is possible.
    pub(super) not_before: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// ThingSpace rejected the user or the application.
    Rejected,
    /// One token request was rejected, which may be an error of ThingSpace.
    RejectedOnce,
    /// The guard allows no more logins.
    Stopped(Stopped),
    /// The guard in the store cannot be read, for this reason, and must not be replaced.
    GuardUnreadable(String),
    /// Which credential file cannot be used, and why.
    FileUnusable(String),
    Throttled,
    /// Nothing was sent: the host does not answer.
    HostUnavailable,
    /// Another replica's renewal is in progress.
    Elsewhere,
    /// The guard delays the next renewal, for this reason.
    Delayed(String),
    /// The renewal failed or was not possible, for this reason.
    Unavailable(String),
    Store(StoreError),
}

impl LoginError {
    pub(super) fn new(problem: Problem, wait: Duration) -> Self {
        Self { problem, not_before: Instant::now() + wait }
    }

    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Problem::Unavailable(reason.into()).into()
    }

    pub(super) fn delayed(wait: Duration, why: Delay) -> Self {
        let problem = match why {
            Delay::Rejected => Problem::Rejected,
            Delay::RejectedOnce => Problem::RejectedOnce,
            Delay::Unanswered => Problem::Delayed("the last login had no answer".to_owned()),
            Delay::Superseded => {
                Problem::Delayed("other replicas log in with newer credentials".to_owned())
            }
        };
        Self::new(problem, wait)
    }

    pub(super) fn wait(&self) -> Duration {
        self.not_before.saturating_duration_since(Instant::now())
    }

    /// Returns how long a caller waits for the next renewal. Returns `None` if the caller gets the
    /// error at once.
    pub(super) fn worth_waiting(&self) -> Option<Duration> {
        let wait = self.wait() + NEXT_RENEWAL_SLACK;
        Some(wait).filter(|wait| self.problem.is_temporary() && *wait <= NEXT_RENEWAL_MAX)
    }

    /// Returns the error of a call that needs a token of the credentials with this name.
    pub(super) fn into_call_error(self, credentials: &str) -> Error {
        let (name, retry_after) = (credentials.to_owned(), Some(self.wait()));
        match self.problem {
            Problem::Rejected => Error::CredentialsRejected { name },
            Problem::Stopped(_) | Problem::GuardUnreadable(_) => Error::LoginBlocked { name },
            Problem::FileUnusable(_) => Error::CredentialsUnreadable { name },
            Problem::Throttled => Error::Throttled { retry_after },
            Problem::Store(error) => Error::Store(error),
            Problem::HostUnavailable => {
                Error::NotSent { reason: BREAKER_OPEN.to_owned(), retry_after }
            }
            problem => Error::NotSent { reason: format!("no token: {problem}"), retry_after },
        }
    }
}

impl Problem {
    /// Returns the name of the problem in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RejectedOnce => "rejected_once",
            Self::Stopped(_) => "stopped",
            Self::GuardUnreadable(_) => "guard_unreadable",
            Self::FileUnusable(_) => "file_unusable",
            Self::Throttled => "throttled",
            Self::HostUnavailable => "host_unavailable",
            Self::Elsewhere => "elsewhere",
            Self::Delayed(_) => "delayed",
            Self::Unavailable(_) => "unavailable",
            Self::Store(_) => "store",
        }
    }

    /// Returns whether the problem may end soon without an operator.
    fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::RejectedOnce | Self::Elsewhere | Self::Delayed(_) | Self::Unavailable(_)
        )
    }

    pub(super) fn is_delay(&self) -> bool {
        matches!(self, Self::Rejected | Self::RejectedOnce | Self::Delayed(_))
    }

    pub(super) fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::Rejected | Self::Stopped(_) | Self::GuardUnreadable(_) | Self::FileUnusable(_)
        )
    }
}

impl From<Problem> for LoginError {
    fn from(problem: Problem) -> Self {
        Self::new(problem, Duration::ZERO)
    }
}

impl From<StoreError> for LoginError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(why) => Problem::GuardUnreadable(why).into(),
            error => Problem::Store(error).into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected => "ThingSpace rejects the credentials",
            Self::RejectedOnce => "ThingSpace rejected the application once; it is tried again",
            Self::Stopped(_) | Self::GuardUnreadable(_) => "logins are stopped",
            Self::FileUnusable(_) => "a credential file cannot be used",
            Self::Throttled => "throttled by ThingSpace",
            Self::HostUnavailable => BREAKER_OPEN,
            Self::Elsewhere => "another gateway's login or token request has had no answer yet",
            Self::Delayed(reason) | Self::Unavailable(reason) => reason,
            Self::Store(error) => return error.fmt(f),
        })
    }
}
