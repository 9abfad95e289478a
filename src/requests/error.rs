//! The errors of the domain. They are independent of the transport: `grpc::status` converts them.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    identity::{AccountName, RequestId},
    store::StoreError,
    thingspace::{self, Refusal},
};

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Its text does not quote the account, which may be the identity of a device.
    #[error("no credentials are configured for the account")]
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
    Store(#[from] StoreError),
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

/// Converts an error of a call without effects. Its unknown outcome is a failure.
impl From<thingspace::Error> for Error {
    fn from(error: thingspace::Error) -> Self {
        use thingspace::Error as Upstream;
        match error {
            Upstream::Refused(refusal) => Self::Refused(refusal),
            Upstream::CredentialsRejected { name } => Self::CredentialsRejected { name },
            Upstream::CredentialsUnreadable { name } => Self::CredentialsUnreadable { name },
            Upstream::LoginBlocked { name } => Self::LoginBlocked { name },
            Upstream::Store(error) => Self::Store(error),
            Upstream::Throttled { retry_after } => Self::Throttled { retry_after },
            Upstream::Busy { retry_after } => Self::Busy { retry_after },
            Upstream::NoDescriptor => Self::Overloaded { limit: "open files" },
            Upstream::Draining => Self::Draining,
            Upstream::NotConnected { reason } => {
                Self::UpstreamUnavailable { reason, retry_after: None }
            }
            Upstream::NotSent { reason, retry_after }
            | Upstream::OutcomeUnknown { reason, retry_after } => {
                Self::UpstreamUnavailable { reason, retry_after }
            }
        }
    }
}
