//! What the answer to a login or a token request says about the credentials.

use std::time::Duration;

use crate::thingspace::http::{
    body::ReplyBody,
    code::{self, Code, ErrorCodes, table::CodeClass},
    reply::Reply,
    verdict::{Verdict, judge},
};

/// Why an attempt returned no token. A closed list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::thingspace::login) enum AttemptFailure {
    Rejected,
    /// A login was not evaluated, because its bearer token was refused.
    StaleBearer,
    /// Not evaluated: too many calls.
    Throttled(Option<Duration>),
    /// Not sent: the host does not answer, and is not called before this time has passed.
    HostUnavailable(Duration),
    /// Not sent, or certainly not evaluated.
    NotEvaluated(String),
    /// The credentials may have been accepted or rejected.
    Unanswered(String),
}

/// Reads the answer to a login. An answer counts as a rejection if it may be one and is not clearly
/// about something else. ThingSpace documents neither the HTTP status nor the code of a rejection.
pub(in crate::thingspace::login) fn to_login<T>(
    reply: &Reply,
    parse: impl Fn(&ReplyBody<'_>) -> Option<T>,
) -> Result<T, AttemptFailure> {
    let status = reply.status.as_u16();
    let unanswered = |what| AttemptFailure::Unanswered(format!("HTTP {status}, {what}"));
    let text = reply.body.as_deref().map(String::from_utf8_lossy);
    let codes = text.map_or(ErrorCodes::None, |text| ErrorCodes::of(&ReplyBody::parse(&text)));
    let class = |code: &Code| code.row(status).class;
    // The API manager uses these statuses for calls that it does not pass on. With any other
    // status its code proves nothing.
    let is_client_error = (400..500).contains(&status);
    Err(match (judge(reply, parse), codes) {
        (Verdict::Done(accepted), ErrorCodes::None | ErrorCodes::Success) => return Ok(accepted),
        (Verdict::Done(_), _) => unanswered("with a session and an error code"),
        (_, ErrorCodes::One(code)) => match class(&code) {
            CodeClass::BearerRefused if is_client_error => AttemptFailure::StaleBearer,
            CodeClass::Throttled if is_client_error || status == 503 => {
                AttemptFailure::Throttled(reply.retry_after)
            }
            CodeClass::Refused(kind)
                if is_client_error && code::is_by_api_manager(&code.refusal(kind, status)) =>
            {
                AttemptFailure::NotEvaluated(code.refusal(kind, status).to_string())
            }
            CodeClass::BearerRefused | CodeClass::Throttled | CodeClass::Unknown => {
                unanswered("with an error code that says nothing about the password")
            }
            // With a 5xx, a code that is not ThingSpace's own says only that a server failed.
            _ if status >= 500 && !code.is_from_thingspace() => {
                unanswered("with a general error code")
            }
            CodeClass::Refused(_) | CodeClass::SessionRefused => AttemptFailure::Rejected,
        },
        // A 429 without a code may also be the answer to too many rejected logins.
        _ => match status {
            404 | 407 | 408 | 429 => unanswered("without a clear error code"),
            400..=499 => AttemptFailure::Rejected,
            _ => unanswered("without a body of a known shape"),
        },
    })
}

/// Reads the answer to a token request. A rejected one locks no user.
pub(in crate::thingspace::login) fn to_token_request<T>(
    reply: &Reply,
    parse: impl Fn(&ReplyBody<'_>) -> Option<T>,
) -> Result<T, AttemptFailure> {
    Err(match judge(reply, parse) {
        Verdict::Done(accepted) => return Ok(accepted),
        Verdict::Throttled(wait) => AttemptFailure::Throttled(wait),
        // No bearer token was sent, so the API manager has a problem of its own.
        Verdict::Stale(_) if reply.status.is_server_error() => AttemptFailure::Unanswered(format!(
            "HTTP {}, which refuses a bearer token",
            reply.status.as_u16()
        )),
        Verdict::Refused(refusal) if code::is_by_api_manager(&refusal) => {
            AttemptFailure::NotEvaluated(refusal.to_string())
        }
        Verdict::Unknown { status, reason } if !matches!(status, 400 | 401 | 403) => {
            AttemptFailure::Unanswered(reason)
        }
        Verdict::Stale(_) | Verdict::Refused(_) | Verdict::Unknown { .. } => {
            AttemptFailure::Rejected
        }
    })
}
