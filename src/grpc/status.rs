//! Errors, as callers read them. The only place that names a gRPC code.
//!
//! Every status carries an `ErrorInfo`; UNAVAILABLE is used only where repeating the very call is
//! safe. Texts are constant per reason, apart from our own field names and upstream's error code;
//! the cause of an INTERNAL error is logged here, once, and not sent.
//!
//! Where UNAVAILABLE comes from, and why the very call may be repeated:
//!
//! | reason | from | safe because |
//! |---|---|---|
//! | `ORDER_IN_PROGRESS` | a key whose turn did not come in time, or that another replica claimed | nothing was begun for this call; its repetition joins the first |
//! | `UPSTREAM_UNAVAILABLE` | an order: `NotConnected`, before its first byte, and `NotSent`, or turned away; `Ambiguous` becomes `ORDER_OUTCOME_UNKNOWN` in `requests::orders` | nothing was executed, and the key was released |
//! | | a question or a registration's listing, however it failed | it has no effect |
//! | `STORE_UNAVAILABLE` | before an order is claimed, or while it is | nothing left; a claim that may have been stored is found under the key, and its order's log says that it was not sent |
//! | | a question, a watch | it has no effect |
//! | `SLOW_READER` | a watch whose snapshot was not read to its end | it has no effect |
//! | `DRAINING` | a call that was not admitted or waited for its turn, a watch that is told to go on elsewhere | nothing was sent; the token says where to go on |
//!
//! Once an order's first byte may have left, a failing store is `ORDER_OUTCOME_UNKNOWN`, and
//! whatever is `UNAVAILABLE` to an order carries its key: were it placed after all, the repetition
//! finds it.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tracing::error;
use uuid::Uuid;

use crate::{
    requests::{Effect, Error, TokenKind},
    store::StoreError,
    thingspace::{Refusal, RefusalKind},
};

const DOMAIN: &str = "thingspace-gateway";

/// When to repeat a call that met a hiccup.
const SOON: Duration = Duration::from_secs(1);

/// When to repeat a call that met a limit.
const LATER: Duration = Duration::from_secs(5);

/// When to repeat a call for which the store has no space: an operator has to make some.
const ROOM: Duration = Duration::from_secs(30);

/// Bytes of violations that a status carries. With everything else in them its details stay below
/// 2,000 bytes, so that the trailers, which carry them in base64, fit into the 4 KiB that nginx
/// takes.
const MAX_VIOLATION_BYTES: usize = 1_600;

struct Answer {
    code: Code,
    reason: &'static str,
    message: String,
    retry: Option<Duration>,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
}

fn answer(code: Code, reason: &'static str, message: impl Into<String>) -> Answer {
    Answer {
        code,
        reason,
        message: message.into(),
        retry: None,
        metadata: HashMap::new(),
        violations: Vec::new(),
    }
}

impl Answer {
    fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    fn with(mut self, key: &str, value: &dyn ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, self.metadata);
        if let Some(after) = self.retry {
            details.set_retry_info(Some(after));
        }
        if !self.violations.is_empty() {
            details.set_bad_request(self.violations);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

/// The status of a failed call.
pub(crate) fn of(error: &Error) -> Status {
    match error {
        Error::Internal(cause) => internal(cause),
        Error::Store(error @ (StoreError::Corrupt(_) | StoreError::TooLarge(_))) => {
            internal(&error.to_string())
        }
        error => describe(error).into_status(),
    }
}

/// The status that ends a watch, with the token to resume it.
pub(super) fn of_watch(error: &Error, resume_token: &str) -> Status {
    match error {
        Error::Internal(_) | Error::Store(StoreError::Corrupt(_) | StoreError::TooLarge(_)) => {
            of(error)
        }
        error if resume_token.is_empty() => describe(error).into_status(),
        error => describe(error).with("resumeToken", &resume_token).into_status(),
    }
}

/// The status of a call with wrong fields.
pub(super) fn invalid(violations: Vec<FieldViolation>) -> Status {
    violated(violations).into_status()
}

/// Every violation of a call at once, as far as a status can carry them.
fn violated(violations: Vec<FieldViolation>) -> Answer {
    let total = violations.len();
    let mut bytes = 0;
    let mut told: Vec<_> = violations
        .into_iter()
        .take_while(|violation| {
            bytes += violation.field.len() + violation.description.len() + 8;
            bytes <= MAX_VIOLATION_BYTES
        })
        .collect();
    let first = told.first().map(|first| format!("{}: {}", first.field, first.description));
    let summary = match (first, total - 1) {
        (Some(first), 0) => first,
        (Some(first), more) => format!("{first}; and {more} more"),
        (None, _) => format!("{total} fields are wrong"),
    };
    if told.len() < total {
        let more = total - told.len();
        told.push(FieldViolation::new("", format!("and {more} more violations")));
    }
    Answer { violations: told, ..answer(Code::InvalidArgument, "INVALID_FIELD", summary) }
}

/// An error that the gRPC library made, or its health and reflection services, with its own code
/// and words.
pub(super) fn of_library(bare: &Status) -> Status {
    let (reason, message) = match bare.code() {
        Code::Unimplemented | Code::NotFound => ("UNKNOWN_METHOD", "no such method"),
        Code::OutOfRange | Code::ResourceExhausted => {
            ("MESSAGE_TOO_LARGE", "the message is too large")
        }
        _ => ("MALFORMED_CALL", "the call cannot be read"),
    };
    let message = if bare.message().is_empty() { message } else { bare.message() };
    answer(bare.code(), reason, message).into_status()
}

fn internal(cause: &str) -> Status {
    let id = Uuid::now_v7().to_string();
    error!(error.id = id, cause, "a call failed by a defect of the gateway");
    let mut details = ErrorDetails::with_error_info("INTERNAL", DOMAIN, HashMap::new());
    details.set_request_info(id, "");
    Status::with_error_details(Code::Internal, "internal error", details)
}

fn describe(error: &Error) -> Answer {
    match error {
        Error::AccountNotConfigured(account) => answer(
            Code::NotFound,
            "ACCOUNT_NOT_CONFIGURED",
            "the gateway has no credentials for this account",
        )
        .with("account", account),
        Error::IdempotencyKeyReused => answer(
            Code::InvalidArgument,
            "IDEMPOTENCY_KEY_REUSED",
            "idempotency_key already names another order of this account",
        ),
        Error::OrderInProgress => answer(
            Code::Unavailable,
            "ORDER_IN_PROGRESS",
            "an earlier call with this key is still being carried out; repeat the call",
        )
        .retry(SOON),
        Error::OrderOutcomeUnknown { order_id, sent_time, request_id } => {
            let message = match request_id {
                Some(_) => "ThingSpace accepted the order, which cannot be stored yet; it is not sent again",
                None => "the order was sent and its fate is unknown; it is not sent again",
            };
            let answer = answer(Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN", message)
                .with("orderId", order_id)
                .with("sentTime", sent_time);
            match request_id {
                Some(request_id) => answer.with("requestId", request_id),
                None => answer,
            }
        }
        Error::RequestNotFound => {
            answer(Code::NotFound, "REQUEST_NOT_FOUND", "the account has no such request")
        }
        Error::InvalidToken(TokenKind::Resume) => answer(
            Code::InvalidArgument,
            "INVALID_RESUME_TOKEN",
            "resume_token is not a token of this request; start without it",
        ),
        Error::InvalidToken(TokenKind::Page) => {
            violated(vec![FieldViolation::new("page_token", "is not a token of this request")])
        }
        Error::StillPending => answer(
            Code::FailedPrecondition,
            "STILL_PENDING",
            "the gateway has given up polling and the request is still pending",
        ),
        Error::Refused(refusal) => refused(refusal),
        Error::CredentialsRejected { name } => answer(
            Code::FailedPrecondition,
            "UPSTREAM_CREDENTIALS_REJECTED",
            "ThingSpace rejects the gateway's credentials; an operator has to act",
        )
        .with("credentials", name),
        Error::CredentialsUnreadable { name } => answer(
            Code::FailedPrecondition,
            "UPSTREAM_CREDENTIALS_UNAVAILABLE",
            "the gateway cannot read its credentials; an operator has to act",
        )
        .with("credentials", name),
        Error::LoginBlocked { name } => answer(
            Code::FailedPrecondition,
            "UPSTREAM_LOGIN_BLOCKED",
            "logins to ThingSpace are stopped so that its user is not locked; an operator has to act",
        )
        .with("credentials", name),
        Error::Throttled { retry_after } => {
            answer(Code::ResourceExhausted, "UPSTREAM_THROTTLED", "ThingSpace throttles")
                .retry(retry_after.unwrap_or(LATER))
        }
        Error::UpstreamUnavailable { retry_after, .. } => {
            answer(Code::Unavailable, "UPSTREAM_UNAVAILABLE", "ThingSpace cannot be reached; repeat the call")
                .retry(retry_after.unwrap_or(SOON))
        }
        Error::Overloaded { limit } => {
            answer(Code::ResourceExhausted, "OVERLOADED", "a limit of the gateway is reached")
                .with("limit", limit)
                .retry(LATER)
        }
        Error::Busy { retry_after } => answer(
            Code::ResourceExhausted,
            "OVERLOADED",
            "more calls wait for ThingSpace's rate than can be made in time; nothing was sent",
        )
        .with("limit", &"thingspace.calls_per_second")
        .retry(*retry_after),
        Error::Store(error) => store(error),
        Error::SlowReader => {
            at_once("SLOW_READER", "the watch was not read and the request has changed; resume the watch")
        }
        Error::Draining => at_once("DRAINING", "this replica is shutting down; repeat the call"),
        Error::Deadline(effect) => late(*effect),
        Error::Internal(_) => answer(Code::Internal, "INTERNAL", "internal error"),
    }
}

/// A call that may be repeated without waiting.
fn at_once(reason: &'static str, message: &str) -> Answer {
    answer(Code::Unavailable, reason, message).retry(Duration::ZERO)
}

fn late(effect: Effect) -> Answer {
    let (message, nothing_sent) = match effect {
        Effect::None => ("the deadline has passed", None),
        Effect::NothingSent => ("the deadline has passed and nothing was sent", Some(true)),
        Effect::Unknown => (
            "the deadline has passed; an order may still be placed: repeat the call with the same key",
            Some(false),
        ),
    };
    let answer = answer(Code::DeadlineExceeded, "DEADLINE", message);
    match nothing_sent {
        Some(nothing_sent) => answer.with("nothingSent", &nothing_sent),
        None => answer,
    }
}

fn store(error: &StoreError) -> Answer {
    if let StoreError::Full(_) = error {
        return answer(
            Code::ResourceExhausted,
            "STORE_FULL",
            "the gateway's store is full; repeat the call later",
        )
        .retry(ROOM);
    }
    // The store has logged what is wrong with it.
    tracing::debug!(%error, "a call failed because of the store");
    answer(
        Code::Unavailable,
        "STORE_UNAVAILABLE",
        "the gateway's store is unavailable; repeat the call",
    )
    .retry(SOON)
}

fn refused(refusal: &Refusal) -> Answer {
    let (code, reason, message) = match refusal.kind {
        RefusalKind::InvalidInput => {
            (Code::InvalidArgument, "UPSTREAM_INVALID_INPUT", "ThingSpace finds the input invalid")
        }
        RefusalKind::AccountNotFound => {
            (Code::NotFound, "UPSTREAM_ACCOUNT_NOT_FOUND", "ThingSpace does not know the account")
        }
        RefusalKind::AccountForbidden => (
            Code::PermissionDenied,
            "UPSTREAM_ACCOUNT_FORBIDDEN",
            "the gateway's ThingSpace user may not use the account",
        ),
        RefusalKind::PlanNotFound => {
            (Code::NotFound, "UPSTREAM_PLAN_NOT_FOUND", "ThingSpace does not know the service plan")
        }
        RefusalKind::DeviceNotFound => (
            Code::NotFound,
            "UPSTREAM_DEVICE_NOT_FOUND",
            "ThingSpace does not know a device of the order",
        ),
        RefusalKind::DeviceState => (
            Code::FailedPrecondition,
            "UPSTREAM_DEVICE_STATE",
            "a device is in a state that does not allow this",
        ),
        RefusalKind::RequestNotFound | RefusalKind::TurnedAway | RefusalKind::Other => {
            (Code::FailedPrecondition, "UPSTREAM_REFUSED", "ThingSpace refuses")
        }
    };
    answer(code, reason, message)
        .with("upstreamCode", &refusal.code)
        .with("upstreamStatus", &refusal.status)
}

#[cfg(test)]
mod tests;
