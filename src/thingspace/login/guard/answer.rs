//! What the answer to a login or a token request says about the credentials.

use std::time::Duration;

use crate::thingspace::http::{
    body::{self, Body},
    code::{self, Code, Said, table::Means},
    transport::Reply,
    verdict::{Verdict, judge},
};

/// Why an attempt brought no token. A closed list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::thingspace::login) enum AttemptFailure {
    Rejected,
    /// A login was not evaluated, because its bearer token was refused.
    StaleBearer,
    /// Not evaluated: too many calls.
    Throttled(Option<Duration>),
    /// Not sent: the host does not answer, and is not called for so long.
    HostUnavailable(Duration),
    /// Not sent, or certainly not evaluated.
    NotEvaluated(String),
    /// It may have been accepted or rejected.
    Unanswered(String),
}

/// Reads the answer to a login. Anything that may be a rejection and is not about something else is
/// one, whatever its HTTP status: ThingSpace documents neither the status nor the code.
pub(in crate::thingspace::login) fn to_login<T>(
    reply: &Reply,
    parse: impl Fn(&Body<'_>) -> Option<T>,
) -> Result<T, AttemptFailure> {
    let status = reply.status.as_u16();
    let unanswered = |what| AttemptFailure::Unanswered(format!("HTTP {status}, {what}"));
    let text = reply.body.as_deref().map(body::text);
    let said = text.map_or(Said::Nothing, |text| Said::of(&Body::parse(&text)));
    let means = |code: &Code| code.row(status).means;
    // The API manager uses these statuses for calls that it does not pass on. With any other
    // status its code proves nothing.
    let refused = (400..500).contains(&status);
    Err(match (judge(reply, parse), said) {
        (Verdict::Done(accepted), Said::Nothing | Said::Success) => return Ok(accepted),
        (Verdict::Done(_), _) => unanswered("with a session and an error code"),
        (_, Said::One(code)) => match means(&code) {
            Means::BearerRefused if refused => AttemptFailure::StaleBearer,
            Means::Throttled if refused || status == 503 => {
                AttemptFailure::Throttled(reply.retry_after)
            }
            Means::Refused(kind)
                if refused && code::is_by_api_manager(&code.refusal(kind, status)) =>
            {
                AttemptFailure::NotEvaluated(code.refusal(kind, status).to_string())
            }
            Means::BearerRefused | Means::Throttled | Means::Unclear => {
                unanswered("with an error code that says nothing about the password")
            }
            // A code that is not ThingSpace's own says that the server failed.
            _ if status >= 500 && !code.is_from_thingspace() => {
                unanswered("with a general error code")
            }
            Means::Refused(_) | Means::SessionRefused => AttemptFailure::Rejected,
        },
        // A 429 without a code may also be the answer to too many rejected logins.
        _ => match status {
            404 | 407 | 408 | 429 => unanswered("without a clear error code"),
            400..=499 => AttemptFailure::Rejected,
            _ => unanswered("without a body of a known shape"),
        },
    })
}

/// Reads the answer to a token request, which locks nobody.
pub(in crate::thingspace::login) fn to_token_request<T>(
    reply: &Reply,
    parse: impl Fn(&Body<'_>) -> Option<T>,
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
        Verdict::Unclear { status, reason } if !matches!(status, 400 | 401 | 403) => {
            AttemptFailure::Unanswered(reason)
        }
        Verdict::Stale(_) | Verdict::Refused(_) | Verdict::Unclear { .. } => {
            AttemptFailure::Rejected
        }
    })
}
