//! The gRPC status of each error. Only this module names gRPC codes.
//!
//! Every status has an `ErrorInfo`. Messages are constant texts, apart from names of fields. The
//! cause of an INTERNAL error is logged here and not sent.
//!
//! UNAVAILABLE promises that it is safe to repeat the call. Its reasons, and why each is safe:
//!
//! - `ORDER_IN_PROGRESS`: another call or replica is placing the order with this key. This call has
//!   sent nothing, and its repetition joins the first.
//! - `UPSTREAM_UNAVAILABLE`: an order was not sent, or ThingSpace refused it without executing it.
//!   Its key can be used again. Status queries have no effect.
//! - `STORE_UNAVAILABLE`: the key of an order could not be claimed, so nothing was sent. If the
//!   claim was stored after all, the repetition finds it. Status calls and watches have no effect.
//! - `CALLER_UNAUTHENTICATED`: the keys that verify tokens have not been fetched yet. The call was
//!   not passed on.
//! - `SLOW_READER`: a response was not read for too long. If it is the answer to an order, the
//!   repetition with the same key gets the same answer. Other calls have no effect.
//! - `STREAM_AGE`: a watch has no effect, and resumes with its token.
//! - `DRAINING`: the call was not admitted or waited for a permit, so nothing was sent. A watch
//!   resumes with its token.
//!
//! If the store fails after the first byte of an order may have been sent, the reason is
//! `ORDER_OUTCOME_UNKNOWN`.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tracing::error;
use uuid::Uuid;

use super::convert::Violations;
use crate::{
    requests::{Effect, Error, TokenKind},
    store::StoreError,
    thingspace::{Refusal, RefusalKind},
};

mod layers;

pub(super) use layers::{
    malformed, message_too_large, metadata_too_large, not_allowed, not_received, of_library,
    over_limit, too_many_devices, unauthenticated,
};

const DOMAIN: &str = "thingspace-gateway";

/// The retry delay after a short failure.
const SOON: Duration = Duration::from_secs(1);

/// The retry delay after a limit was reached.
const LATER: Duration = Duration::from_secs(5);

/// The retry delay while the store is full. An operator has to make space.
const STORE_FULL_DELAY: Duration = Duration::from_secs(30);

/// The maximum size of the violations in a status, in bytes. The details then stay below 2,000
/// bytes, and the trailers, which contain them in base64, fit into the 4 KiB that nginx accepts.
const MAX_VIOLATION_BYTES: usize = 1_600;

const OVERLOADED: &str = "OVERLOADED";
const MESSAGE_TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
const MALFORMED_CALL: &str = "MALFORMED_CALL";

/// Tells gRPC clients when they may repeat a call by themselves (gRFC A6), in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

struct StatusBuilder {
    code: Code,
    reason: &'static str,
    message: String,
    retry: Option<Duration>,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
}

fn status(code: Code, reason: &'static str, message: impl Into<String>) -> StatusBuilder {
    StatusBuilder {
        code,
        reason,
        message: message.into(),
        retry: None,
        metadata: HashMap::new(),
        violations: Vec::new(),
    }
}

impl StatusBuilder {
    fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    fn with(mut self, key: &str, value: &dyn ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    fn resume(self, token: Option<String>) -> Self {
        match token {
            Some(token) => self.with("resumeToken", &token),
            None => self,
        }
    }

    fn build(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, self.metadata);
        if let Some(after) = self.retry {
            details.set_retry_info(Some(after));
        }
        if !self.violations.is_empty() {
            details.set_bad_request(self.violations);
        }
        let mut metadata = MetadataMap::new();
        if let Some(after) = self.retry.filter(|_| self.reason == OVERLOADED) {
            let milliseconds = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
            metadata.insert(PUSHBACK, milliseconds.into());
        }
        Status::with_error_details_and_metadata(self.code, self.message, details, metadata)
    }
}

/// Returns the trailers that end a response with this status.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).expect("our own status fits into headers");
    trailers
}

pub(crate) fn of(error: &Error) -> Status {
    of_watch(error, None)
}

/// Returns the status that ends a watch, with the token that resumes it, if there is one.
pub(super) fn of_watch(error: &Error, resume_token: Option<String>) -> Status {
    match error {
        Error::Internal(cause) => internal(cause),
        Error::Store(error @ (StoreError::Corrupt(_) | StoreError::TooLarge(_))) => {
            internal(&error.to_string())
        }
        error => describe(error).resume(resume_token).build(),
    }
}

pub(super) fn invalid(violations: Violations) -> Status {
    invalid_fields(violations.0).build()
}

/// Reports as many violations as fit into a status.
fn invalid_fields(violations: Vec<FieldViolation>) -> StatusBuilder {
    let total = violations.len();
    let mut bytes = 0;
    let mut reported: Vec<_> = violations
        .into_iter()
        .take_while(|violation| {
            bytes += violation.field.len() + violation.description.len() + 8;
            bytes <= MAX_VIOLATION_BYTES
        })
        .collect();
    let first = reported.first().map(|first| format!("{}: {}", first.field, first.description));
    let summary = match (first, total - 1) {
        (Some(first), 0) => first,
        (Some(first), more) => format!("{first}; and {more} more"),
        (None, _) => format!("{total} fields are wrong"),
    };
    if reported.len() < total {
        let more = total - reported.len();
        reported.push(FieldViolation::new("", format!("and {more} more violations")));
    }
    let status = status(Code::InvalidArgument, "INVALID_FIELD", summary);
    StatusBuilder { violations: reported, ..status }
}

/// The status that ends a stream when its caller's token expires.
pub(super) fn expired(resume_token: Option<String>) -> Status {
    let message = "the caller's token has expired; call again with a new one, and resume a watch";
    let status = status(Code::Unauthenticated, "CALLER_UNAUTHENTICATED", message);
    status.resume(resume_token).build()
}

/// The status that ends a watch because of its age, or because of the age of its connection.
pub(super) fn stream_age(resume_token: Option<String>) -> Status {
    let message = "the call or its connection has reached its age; resume a watch, and repeat any \
                   other call";
    unavailable("STREAM_AGE", message, Duration::ZERO).resume(resume_token).build()
}

fn internal(cause: &str) -> Status {
    let id = Uuid::now_v7().to_string();
    error!(error.id = id, cause, "a call failed because of a defect of the gateway; report it");
    let mut details = ErrorDetails::with_error_info("INTERNAL", DOMAIN, HashMap::new());
    details.set_request_info(id, "");
    Status::with_error_details(Code::Internal, "internal error", details)
}

fn describe(error: &Error) -> StatusBuilder {
    match error {
        Error::AccountNotConfigured(account) => status(
            Code::NotFound,
            "ACCOUNT_NOT_CONFIGURED",
            "the gateway has no credentials for this account",
        )
        .with("account", account),
        Error::IdempotencyKeyReused => status(
            Code::InvalidArgument,
            "IDEMPOTENCY_KEY_REUSED",
            "idempotency_key already names another order of this account",
        ),
        Error::OrderInProgress => unavailable(
            "ORDER_IN_PROGRESS",
            "an earlier call with this key is still in progress; repeat the call",
            SOON,
        ),
        Error::OrderOutcomeUnknown { order_id, sent_time, request_id } => {
            let message = match request_id {
                Some(_) => {
                    "ThingSpace accepted the order, but the gateway cannot store that yet; \
                     the order is not sent again"
                }
                None => "the order was sent and its outcome is unknown; it is not sent again",
            };
            let status = status(Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN", message)
                .with("orderId", order_id)
                .with("sentTime", sent_time);
            match request_id {
                Some(request_id) => status.with("requestId", request_id),
                None => status,
            }
        }
        Error::RequestNotFound => {
            status(Code::NotFound, "REQUEST_NOT_FOUND", "the account has no such request")
        }
        Error::InvalidToken(TokenKind::Resume) => status(
            Code::InvalidArgument,
            "INVALID_RESUME_TOKEN",
            "resume_token is not a token of this request; start without it",
        ),
        Error::InvalidToken(TokenKind::Page) => invalid_fields(vec![FieldViolation::new(
            "page_token",
            "is not a token of this request",
        )]),
        Error::StillPending => status(
            Code::FailedPrecondition,
            "STILL_PENDING",
            "the gateway has given up polling and the request is still pending",
        ),
        Error::Refused(refusal) => refused(refusal),
        Error::CredentialsRejected { name } => operator_required(
            "UPSTREAM_CREDENTIALS_REJECTED",
            name,
            "ThingSpace rejects the gateway's credentials",
        ),
        Error::CredentialsUnreadable { name } => operator_required(
            "UPSTREAM_CREDENTIALS_UNAVAILABLE",
            name,
            "the gateway cannot read its credentials",
        ),
        Error::LoginBlocked { name } => operator_required(
            "UPSTREAM_LOGIN_BLOCKED",
            name,
            "logins to ThingSpace are stopped so that it does not lock the user",
        ),
        Error::Throttled { retry_after } => status(
            Code::ResourceExhausted,
            "UPSTREAM_THROTTLED",
            "ThingSpace throttles the gateway; repeat the call later",
        )
        .retry(retry_after.unwrap_or(LATER)),
        Error::UpstreamUnavailable { retry_after, .. } => unavailable(
            "UPSTREAM_UNAVAILABLE",
            "ThingSpace cannot be reached; repeat the call",
            retry_after.unwrap_or(SOON),
        ),
        Error::Overloaded { limit } => {
            overloaded(limit, LATER, "a limit of the gateway is reached")
        }
        Error::Busy { retry_after } => overloaded(
            "thingspace.calls_per_second",
            *retry_after,
            "too many calls wait for a permit to call ThingSpace; nothing was sent",
        ),
        Error::Store(error) => store(error),
        Error::SlowReader => unavailable(
            "SLOW_READER",
            "the response was not read for too long; repeat the call, or resume the watch",
            Duration::ZERO,
        ),
        Error::Draining => unavailable(
            "DRAINING",
            "this replica is shutting down; repeat the call",
            Duration::ZERO,
        ),
        Error::Deadline(effect) => deadline(*effect),
        Error::Internal(_) => status(Code::Internal, "INTERNAL", "internal error"),
    }
}

fn unavailable(reason: &'static str, message: &str, retry: Duration) -> StatusBuilder {
    status(Code::Unavailable, reason, message).retry(retry)
}

fn operator_required(reason: &'static str, credentials: &str, problem: &str) -> StatusBuilder {
    status(Code::FailedPrecondition, reason, format!("{problem}; an operator has to act"))
        .with("credentials", &credentials)
}

fn overloaded(limit: &str, retry: Duration, message: &str) -> StatusBuilder {
    status(Code::ResourceExhausted, OVERLOADED, message).with("limit", &limit).retry(retry)
}

fn deadline(effect: Effect) -> StatusBuilder {
    let (message, nothing_sent) = match effect {
        Effect::None => ("the deadline has passed", None),
        Effect::NothingSent => ("the deadline has passed and nothing was sent", Some(true)),
        Effect::Unknown => (
            "the deadline has passed; the order may still be placed: \
             repeat the call with the same key",
            Some(false),
        ),
    };
    let status = status(Code::DeadlineExceeded, "DEADLINE", message);
    match nothing_sent {
        Some(nothing_sent) => status.with("nothingSent", &nothing_sent),
        None => status,
    }
}

fn store(error: &StoreError) -> StatusBuilder {
    if let StoreError::Full(_) = error {
        let message = "the gateway's store is full; repeat the call later";
        return status(Code::ResourceExhausted, "STORE_FULL", message).retry(STORE_FULL_DELAY);
    }
    // The store has logged its problem.
    tracing::debug!(%error, "a call failed because of the store");
    unavailable("STORE_UNAVAILABLE", "the gateway's store is unavailable; repeat the call", SOON)
}

fn refused(refusal: &Refusal) -> StatusBuilder {
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
            "a device is in a state that does not allow a download",
        ),
        RefusalKind::RequestNotFound | RefusalKind::NotForwarded | RefusalKind::Other => {
            (Code::FailedPrecondition, "UPSTREAM_REFUSED", "ThingSpace refused the call")
        }
    };
    status(code, reason, message)
        .with("upstreamCode", &refusal.code)
        .with("upstreamStatus", &refusal.status)
}

#[cfg(test)]
mod tests;
