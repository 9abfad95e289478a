//! Why a call to ThingSpace failed.

use std::time::Duration;

use crate::store::StoreError;

/// Why a call failed. A closed list, which callers match without a wildcard. `name` is that of the
/// credentials; `retry_after` is how long to wait, if that is known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are documented at the type")]
pub enum Error {
    /// ThingSpace refused the call. Nothing was executed.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// ThingSpace rejects the application or the user, also after a renewal. Nothing was executed.
    #[error("ThingSpace rejects the credentials {name}")]
    CredentialsRejected { name: String },
    /// A file of the credentials cannot be read. Nothing was sent.
    #[error("a file of the credentials {name} cannot be read")]
    CredentialsUnreadable { name: String },
    /// The login guard has stopped logins, so that ThingSpace does not lock the user. Nothing was
    /// sent.
    #[error("logins with the credentials {name} are stopped")]
    LoginBlocked { name: String },
    /// There is no token, and without the store none is requested, because the store counts logins.
    /// Nothing was sent.
    #[error("no token can be requested without the store: {0}")]
    Store(StoreError),
    /// ThingSpace throttles. Nothing was executed.
    #[error("throttled by ThingSpace")]
    Throttled { retry_after: Option<Duration> },
    /// More calls wait for a permit than can be sent in time. Nothing was sent.
    #[error("too many calls wait for a permit")]
    Busy { retry_after: Duration },
    /// The gateway can open no more files. Nothing was sent.
    #[error("the limit of open files is reached; raise it (ulimit -n)")]
    NoDescriptor,
    /// The gateway stops. Nothing was sent.
    #[error("shutting down")]
    Draining,
    /// The call was not sent, or ThingSpace refused it because of a token. Nothing was executed.
    #[error("not sent: {reason}")]
    NotSent { reason: String, retry_after: Option<Duration> },
    /// There was no connection, and no byte was written. This is the only error after which an
    /// order may be sent again at once.
    #[error("not sent: {reason}")]
    NotConnected { reason: String },
    /// The call may have been executed: a time-out, a reset, a 5xx, an unreadable reply. `reason`
    /// quotes nothing of the reply.
    #[error("no usable answer: {reason}")]
    OutcomeUnknown { reason: String, retry_after: Option<Duration> },
}

/// The reason of [`Error::NotSent`] if the host's breaker is open.
pub(super) const BREAKER_OPEN: &str = "calls to ThingSpace failed, and none is sent for a while";

/// A refusal by ThingSpace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} (HTTP {status}): {}", super::http::code::meaning(*.kind, .code, *.status))]
pub struct Refusal {
    /// The meaning of the code.
    pub kind: RefusalKind,
    /// The error code, cut to 128 characters of `[A-Za-z0-9._-]`, with `_` for each word with 8
    /// digits or more. It never contains the message.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
}

/// What a refusal is about; see the table in `docs/errors.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum RefusalKind {
    InvalidInput,
    AccountNotFound,
    AccountForbidden,
    PlanNotFound,
    DeviceNotFound,
    DeviceState,
    RequestNotFound,
    /// The API manager did not pass the call on to ThingSpace.
    NotForwarded,
    Other,
}
