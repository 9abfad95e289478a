//! What a failed upstream call means. The class is chosen here, where body and status are known.

use std::time::Duration;

use crate::store::StoreError;

/// Why an upstream call failed. A closed list: callers match it without a wildcard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// ThingSpace looked at the call and refused it; nothing was executed.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// ThingSpace rejects the application key or the UWS user, also after a renewal. Nothing was
    /// executed.
    #[error("ThingSpace rejects the credentials {name}")]
    CredentialsRejected { name: String },
    /// A file of these credentials cannot be read. Nothing was sent.
    #[error("a file of the credentials {name} cannot be read")]
    CredentialsUnreadable { name: String },
    /// We no longer try these credentials, so that ThingSpace does not lock their user. Nothing was
    /// sent.
    #[error("logins with the credentials {name} are stopped")]
    LoginBlocked { name: String },
    /// No token is held, and none is asked for without the store that counts the attempts. Nothing
    /// was sent.
    #[error("no token without the store: {0}")]
    Store(StoreError),
    /// Nothing was executed: ThingSpace throttles.
    #[error("throttled by ThingSpace")]
    Throttled { retry_after: Option<Duration> },
    /// Nothing was sent: more calls wait for the gateway's own rate than can be made in time.
    #[error("too many calls wait for their turn")]
    Busy { retry_after: Duration },
    /// Nothing was sent: the gateway can open no more files.
    #[error("the limit of open files is reached; raise it (ulimit -n)")]
    NoDescriptor,
    /// Nothing was sent: the gateway is about to end.
    #[error("shutting down")]
    Draining,
    /// Nothing was executed: no token to be had, a host that is left alone, or turned away.
    #[error("not sent: {reason}")]
    NotSent { reason: String, retry_after: Option<Duration> },
    /// Not a byte of the call was ever written: no connection. The only failure after which an
    /// order may be sent again at once.
    #[error("not sent: {reason}")]
    NotConnected { reason: String },
    /// The call may have been executed: time-out, reset, 5xx, unreadable answer. `reason` quotes no
    /// body.
    #[error("outcome unknown: {reason}")]
    Ambiguous { reason: String, retry_after: Option<Duration> },
}

/// Why a call was not sent to a host whose breaker is open.
pub(super) const LEFT_ALONE: &str = "ThingSpace does not answer, and is not called for a while";

/// A refusal, in ThingSpace's code and ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} (HTTP {status}): {}", super::http::code::meaning(*.kind, .code, *.status))]
pub struct Refusal {
    pub kind: RefusalKind,
    /// `errorCode` as it came, cut to 128 characters of `[A-Za-z0-9._-]`, with `_` for each word of
    /// 8 digits or more; never the message.
    pub code: String,
    pub status: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    InvalidInput,
    AccountNotFound,
    AccountForbidden,
    PlanNotFound,
    DeviceNotFound,
    DeviceState,
    RequestNotFound,
    /// The API manager did not let the call pass. ThingSpace proper never saw it.
    TurnedAway,
    Other,
}
