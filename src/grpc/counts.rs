//! The counts of failures that alerts use exist with 0 from the start. So the first failure is an
//! increase, which Prometheus would not see in a count that begins with 1.

use super::{SERVICE_NAME, authorize::NOT_ALLOWED};
use crate::{
    auth::{AuthError, Method},
    telemetry::{attribute, metrics, names},
};

/// The reasons of failed orders and status calls against which callers can do nothing.
const FAILURES: [&str; 9] = [
    "INTERNAL",
    "DEADLINE",
    "DRAINING",
    "STORE_UNAVAILABLE",
    "STORE_FULL",
    "UPSTREAM_UNAVAILABLE",
    "UPSTREAM_CREDENTIALS_REJECTED",
    "UPSTREAM_CREDENTIALS_UNAVAILABLE",
    "UPSTREAM_LOGIN_BLOCKED",
];

/// Every kind of [`AuthError`].
const UNAUTHENTICATED: [AuthError; 6] = [
    AuthError::Missing,
    AuthError::Nameless,
    AuthError::Malformed,
    AuthError::Unknown,
    AuthError::Invalid(""),
    AuthError::NoKeys,
];

pub(super) fn start() {
    for method in [Method::DownloadProfile, Method::GetRequestStatus] {
        for reason in FAILURES {
            let method = format!("{SERVICE_NAME}/{}", method.name());
            let method = attribute(names::RPC_METHOD, method);
            metrics().call_failures.start(&[method, attribute(names::REASON, reason)]);
        }
    }
    for reason in UNAUTHENTICATED.map(AuthError::name).into_iter().chain([NOT_ALLOWED]) {
        metrics().calls_denied.start(&[attribute(names::REASON, reason)]);
    }
}
