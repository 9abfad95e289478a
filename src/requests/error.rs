//! Why a call of the domain failed. The error is independent of the transport: `grpc/status`
//! decides what a caller reads.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    identity::{AccountName, RequestId},
    store::StoreError,
    thingspace::{self, Refusal},
};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("no credentials are configured for account {0}")]
    AccountNotConfigured(AccountName),
    #[error("the idempotency key names another order")]
    IdempotencyKeyReused,
    #[error("an earlier call with this key is still in progress")]
    OrderInProgress,
    #[error("the outcome of order {order_id} is unknown")]
    OrderOutcomeUnknown { order_id: String, sent_time: Timestamp, request_id: Option<RequestId> },
    #[error("no such request")]
    RequestNotFound,
    #[error("not a token of this request")]
    InvalidToken(TokenKind),
    #[error("polling was given up and the request is still pending")]
    StillPending,
    #[error("ThingSpace refused: {0}")]
    Refused(Refusal),
    #[error("ThingSpace rejects the credentials {name}")]
    CredentialsRejected { name: String },
    #[error("a file of the credentials {name} cannot be read")]
    CredentialsUnreadable { name: String },
    #[error("logins with the credentials {name} are stopped")]
    LoginBlocked { name: String },
    #[error("ThingSpace throttles")]
    Throttled { retry_after: Option<Duration> },
    /// An order was certainly not sent.
    #[error("ThingSpace is unavailable: {reason}")]
    UpstreamUnavailable { reason: String, retry_after: Option<Duration> },
    #[error("a limit of the gateway is reached: {limit}")]
    Overloaded { limit: &'static str },
    /// Too many calls wait for a permit. An order was certainly not sent.
    #[error("too many calls wait for a permit")]
    Busy { retry_after: Duration },
    /// An order was certainly not sent.
    #[error("{0}")]
    Store(StoreError),
    /// The snapshot that a watch was sending is no longer in memory.
    #[error("the reader of the watch was too slow")]
    SlowReader,
    #[error("shutting down")]
    Draining,
    #[error("the deadline has passed")]
    Deadline(Effect),
    /// A defect of the gateway.
    #[error("{0}")]
    Internal(String),
}

/// What a call may have done when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the call has no effects.
    None,
    /// Nothing: the order was not and will not be sent.
    NothingSent,
    /// The order was sent or may still be sent.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Resume,
    Page,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// For calls without effects. An unknown outcome is the same as a failure for them.
impl From<thingspace::Error> for Error {
    fn from(error: thingspace::Error) -> Self {
        match error {
            thingspace::Error::Refused(refusal) => Self::Refused(refusal),
            thingspace::Error::CredentialsRejected { name } => Self::CredentialsRejected { name },
            thingspace::Error::CredentialsUnreadable { name } => {
                Self::CredentialsUnreadable { name }
            }
            thingspace::Error::LoginBlocked { name } => Self::LoginBlocked { name },
            thingspace::Error::Store(error) => Self::Store(error),
            thingspace::Error::Throttled { retry_after } => Self::Throttled { retry_after },
            thingspace::Error::Busy { retry_after } => Self::Busy { retry_after },
            thingspace::Error::NoDescriptor => Self::Overloaded { limit: "open files" },
            thingspace::Error::Draining => Self::Draining,
            thingspace::Error::NotConnected { reason } => {
                Self::UpstreamUnavailable { reason, retry_after: None }
            }
            thingspace::Error::NotSent { reason, retry_after }
            | thingspace::Error::OutcomeUnknown { reason, retry_after } => {
                Self::UpstreamUnavailable { reason, retry_after }
            }
        }
    }
}
