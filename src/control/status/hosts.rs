//! What `status` says about a host of ThingSpace.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::thingspace::HostHealth;

/// A host of ThingSpace.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostStatus {
    pub(crate) host: String,
    /// The time until the breaker allows a call. `None`: the breaker is closed.
    pub(crate) left_alone_ms: Option<u64>,
    /// The last failure that opened the breaker or kept it open. `None`: calls have succeeded for a
    /// while.
    #[serde(default)]
    pub(crate) failure: Option<FailureStatus>,
}

/// How calls to a host failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FailureStatus {
    /// The call, and why it failed.
    pub(crate) what: String,
    /// Whether the host answered, with a server error.
    pub(crate) answered: bool,
    pub(crate) seconds_ago: u64,
}

impl From<HostHealth> for HostStatus {
    fn from(HostHealth { host, open_for, failure }: HostHealth) -> Self {
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let failure = failure.map(|(failure, ago)| FailureStatus {
            what: failure.what,
            answered: failure.answered,
            seconds_ago: ago.as_secs(),
        });
        Self { host, left_alone_ms: open_for.map(millis), failure }
    }
}

impl HostStatus {
    pub(crate) fn is_well(&self) -> bool {
        self.left_alone_ms.is_none() && self.failure.is_none()
    }

    /// Returns whether calls succeed, and when the next one is sent if they do not.
    pub(crate) fn state(&self) -> String {
        match (self.left_alone_ms, &self.failure) {
            (None, None) => "calls are sent".to_owned(),
            (None, Some(failure)) => format!(
                "calls are sent; {} s ago several in a row failed ({})",
                failure.seconds_ago, failure.what
            ),
            (Some(wait), _) => format!("{}; {}", self.problem(), next_call(wait)),
        }
    }

    /// Returns what is wrong with a host whose calls fail.
    pub(crate) fn problem(&self) -> String {
        match &self.failure {
            Some(FailureStatus { what, answered: true, .. }) => {
                format!("it answers with server errors ({what})")
            }
            Some(FailureStatus { what, answered: false, .. }) => {
                format!("it does not answer ({what})")
            }
            None => "calls to it fail".to_owned(),
        }
    }
}

fn next_call(wait_ms: u64) -> String {
    match wait_ms.div_ceil(1_000) {
        0 => "the next call is sent now".to_owned(),
        seconds => format!("the next call is sent in {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(left_alone_ms: Option<u64>, answered: bool) -> HostStatus {
        let what = "GET /x: HTTP 500".to_owned();
        let failure = Some(FailureStatus { what, answered, seconds_ago: 7 });
        HostStatus { host: "h:443".to_owned(), left_alone_ms, failure }
    }

    #[test]
    fn it_says_whether_a_host_answers_and_when_the_next_call_is_sent() {
        assert_eq!(
            status(Some(900), true).state(),
            "it answers with server errors (GET /x: HTTP 500); the next call is sent in 1 s"
        );
        assert_eq!(
            status(Some(0), false).state(),
            "it does not answer (GET /x: HTTP 500); the next call is sent now"
        );
        let closed = status(None, true);
        assert!(!closed.is_well() && closed.state().starts_with("calls are sent; 7 s ago"));
        let well = HostHealth { host: String::new(), open_for: None, failure: None };
        assert!(HostStatus::from(well).is_well());
    }
}
