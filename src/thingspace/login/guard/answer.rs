//! What the answer to a login or a token request says about the credentials.

use std::time::Duration;

use crate::thingspace::http::{
    body::{self, Body},
    code::{self, Code, Said, table::Means},
    transport::Reply,
    verdict::{Verdict, judge},
};

/// A closed list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    Accepted(T),
    Rejected,
    /// A login was not evaluated, because its bearer was refused.
    StaleBearer,
    /// Not evaluated: too many calls.
    Throttled(Option<Duration>),
    /// Certainly not evaluated.
    NotEvaluated(String),
    /// It may have been accepted or rejected.
    Unclear(String),
}

/// The answer to a login. Anything that may be a rejection and is not about something else is one,
/// whatever its HTTP status: ThingSpace documents neither the status nor the code.
pub(crate) fn to_login<T>(reply: &Reply, parse: impl Fn(&Body<'_>) -> Option<T>) -> Answer<T> {
    let status = reply.status.as_u16();
    let unclear = |what| Answer::Unclear(format!("HTTP {status}, {what}"));
    let text = reply.body.as_deref().map(body::text);
    let said = text.map_or(Said::Nothing, |text| Said::of(&Body::parse(&text)));
    let means = |code: &Code| code.row(status).means;
    // The API manager refuses calls that it does not pass on with these. With any other status its
    // code proves nothing.
    let refused = (400..500).contains(&status);
    match (judge(reply, parse), said) {
        (Verdict::Done(accepted), Said::Nothing | Said::Success) => Answer::Accepted(accepted),
        (Verdict::Done(_), _) => unclear("with a session and an error code"),
        (_, Said::One(code)) => match means(&code) {
            Means::BearerRefused if refused => Answer::StaleBearer,
            Means::Throttled if refused || status == 503 => Answer::Throttled(reply.retry_after),
            Means::Refused(kind)
                if refused && code::is_by_api_manager(&code.refusal(kind, status)) =>
            {
                Answer::NotEvaluated(code.refusal(kind, status).to_string())
            }
            Means::BearerRefused | Means::Throttled | Means::Unclear => {
                unclear("with an error code that says nothing about the password")
            }
            // What is no code of ThingSpace's own says that the server failed.
            _ if status >= 500 && !code.is_from_thingspace() => {
                unclear("with a general error code")
            }
            Means::Refused(_) | Means::SessionRefused => Answer::Rejected,
        },
        // A 429 without a code may also be the answer to too many rejected logins.
        _ => match status {
            404 | 407 | 408 | 429 => unclear("without a clear error code"),
            400..=499 => Answer::Rejected,
            _ => unclear("without a body of a known shape"),
        },
    }
}

/// The answer to a token request, which locks nobody.
pub(crate) fn to_token_request<T>(
    reply: &Reply,
    parse: impl Fn(&Body<'_>) -> Option<T>,
) -> Answer<T> {
    match judge(reply, parse) {
        Verdict::Done(accepted) => Answer::Accepted(accepted),
        Verdict::Throttled(wait) => Answer::Throttled(wait),
        // No bearer was sent, so the API manager has a problem of its own.
        Verdict::Stale(_) if reply.status.is_server_error() => {
            Answer::Unclear(format!("HTTP {}, which blames a bearer", reply.status.as_u16()))
        }
        Verdict::Refused(refusal) if code::is_by_api_manager(&refusal) => {
            Answer::NotEvaluated(refusal.to_string())
        }
        Verdict::Unclear { status, reason } if !matches!(status, 400 | 401 | 403) => {
            Answer::Unclear(reason)
        }
        Verdict::Stale(_) | Verdict::Refused(_) | Verdict::Unclear { .. } => Answer::Rejected,
    }
}
