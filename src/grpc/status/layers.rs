//! The statuses of calls that the layers around the services refuse.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::FieldViolation;

use super::{
    MALFORMED_CALL, MESSAGE_TOO_LARGE, SOON, invalid_fields, overloaded, status, unavailable,
};
use crate::{auth::AuthError, grpc::gate::MAX_HEADER_LIST};

/// The status of a call without a caller.
pub(in crate::grpc) fn unauthenticated(error: AuthError) -> Status {
    match error {
        AuthError::NoKeys => {
            unavailable("CALLER_UNAUTHENTICATED", &error.to_string(), SOON).build()
        }
        _ => status(Code::Unauthenticated, "CALLER_UNAUTHENTICATED", error.to_string()).build(),
    }
}

/// The status of a call that the policy does not allow. It says nothing about the account.
pub(in crate::grpc) fn not_allowed() -> Status {
    let message = "the caller may not call this method for this account";
    status(Code::PermissionDenied, "CALLER_NOT_ALLOWED", message).build()
}

/// Adds details to an error of the gRPC library or of its health and reflection services.
pub(in crate::grpc) fn of_library(bare: &Status) -> Status {
    let (reason, message) = match bare.code() {
        Code::Unimplemented | Code::NotFound => ("UNKNOWN_METHOD", "no such method"),
        Code::OutOfRange | Code::ResourceExhausted => {
            (MESSAGE_TOO_LARGE, "the message is too large")
        }
        _ => (MALFORMED_CALL, "the call cannot be read"),
    };
    let message = if bare.message().is_empty() { message } else { bare.message() };
    status(bare.code(), reason, message).build()
}

/// The status of a call that exceeds a limit. Nothing was done for it.
pub(in crate::grpc) fn over_limit(limit: &str, retry: Duration) -> Status {
    overloaded(limit, retry, "a limit of the gateway is reached; nothing was sent").build()
}

/// The status of a call with too many bytes of headers. It is not RESOURCE_EXHAUSTED, because
/// repeating the call does not help.
pub(in crate::grpc) fn metadata_too_large() -> Status {
    let limit = MAX_HEADER_LIST >> 10;
    let message = format!("the metadata of the call is larger than {limit} KiB");
    status(Code::OutOfRange, MESSAGE_TOO_LARGE, message).build()
}

/// The status of a call whose message has more than `limit` bytes.
pub(in crate::grpc) fn message_too_large(limit: usize) -> Status {
    let message = format!("the message is larger than {limit} bytes");
    status(Code::OutOfRange, MESSAGE_TOO_LARGE, message).build()
}

/// The status of a call whose request does not have exactly one complete message.
pub(in crate::grpc) fn malformed(message: &str) -> Status {
    status(Code::Internal, MALFORMED_CALL, message).build()
}

/// The status of a call whose message did not arrive in time.
pub(in crate::grpc) fn not_received() -> Status {
    let message = "the message did not arrive in time (grpc.receive_timeout); nothing was sent";
    status(Code::DeadlineExceeded, "DEADLINE", message).with("nothingSent", &true).build()
}

/// The status of an order with more devices than any configuration allows.
pub(in crate::grpc) fn too_many_devices(limit: usize) -> Status {
    let description = format!("must be at most {limit} devices");
    invalid_fields(vec![FieldViolation::new("devices", description)]).build()
}
