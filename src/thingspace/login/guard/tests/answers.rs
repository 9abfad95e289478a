//! The answers that ThingSpace may give to a login, and what the gateway reports of them.

use bytes::Bytes;
use http::StatusCode;

use super::*;
use crate::thingspace::{
    http::{reply::Reply, wire},
    login::guard::answer::{AttemptFailure, to_login},
};

const CODE: &str = r#"{"errorCode":"UnifiedWebService.REQUEST_FAILED.InvalidCredentials"}"#;
const PAGE: &str = "<html>Sorry</html>";

/// The index of the session among the answers to an accepted login.
pub(super) const SESSION: usize = 13;

/// What ThingSpace does with a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It evaluates the password.
    Evaluated,
    /// It does not, and no observer can see that.
    Nothing,
}

/// How it answers a login that it accepted, rejected or did not evaluate; `None`: not at all.
pub(super) fn answers(accepted: bool, effect: Effect) -> Vec<Option<Reply>> {
    let reply = |status: u16, body: &'static str| {
        let status = StatusCode::from_u16(status).unwrap();
        let body = Some(Bytes::from_static(body.as_bytes()));
        Some(Reply {
            status,
            retry_after: None,
            locations: Vec::new(),
            request_ids: Vec::new(),
            notes: Vec::new(),
            body,
            cut: false,
        })
    };
    let whole = reply(200, "");
    let cut = whole.map(|whole| Reply { body: None, cut: true, ..whole });
    let mut answers =
        vec![None, cut, reply(408, ""), reply(500, PAGE), reply(503, ""), reply(502, PAGE)];
    answers.extend([reply(404, PAGE), reply(200, PAGE), reply(200, ""), reply(302, "")]);
    answers.extend([200, 500].map(|status| reply(status, r#"{"fault":{"code":900901}}"#)));
    answers.push(reply(200, r#"{"fault":{"code":900800}}"#));
    match (effect, accepted) {
        (Effect::Nothing, _) => {
            answers.push(reply(500, r#"{"fault":{"code":101503}}"#));
            answers.push(reply(429, r#"{"fault":{"code":900800}}"#));
            answers.push(reply(401, r#"{"fault":{"code":900901}}"#));
            answers.push(reply(404, r#"{"fault":{"code":900906}}"#));
        }
        (Effect::Evaluated, true) => {
            // More often than everything else together.
            answers.extend((0..20).map(|_| reply(200, r#"{"sessionToken":"a-b"}"#)));
        }
        (Effect::Evaluated, false) => {
            let statuses = [200, 400, 401, 403, 404, 407, 408, 409, 422, 423, 429, 500, 502, 503];
            answers.extend(statuses.map(|status| reply(status, CODE)));
            let other = r#"{"faultResponse":{"faultcode":"UWS.INPUT_INVALID.Password.Invalid"}}"#;
            answers.extend([
                reply(500, other),
                reply(200, other),
                reply(200, r#"{"error":"invalid_grant"}"#),
            ]);
            answers
                .extend([400, 401, 403, 407, 409, 422, 423, 429].map(|status| reply(status, "")));
            answers.extend(
                [503, 500].map(|status| reply(status, r#"{"error":"Service Unavailable"}"#)),
            );
        }
    }
    answers
}

/// The outcome that the gateway reports to the guard.
pub(super) fn outcome(reply: Option<&Reply>) -> AttemptOutcome {
    let Some(reply) = reply else { return AttemptOutcome::Unanswered };
    match to_login(reply, wire::session) {
        Ok(_) => accepted(),
        Err(AttemptFailure::Rejected) => AttemptOutcome::Rejected,
        Err(AttemptFailure::Unanswered(_)) => AttemptOutcome::Unanswered,
        Err(
            AttemptFailure::StaleBearer
            | AttemptFailure::Throttled(_)
            | AttemptFailure::HostUnavailable(_)
            | AttemptFailure::NotEvaluated(_),
        ) => AttemptOutcome::NotEvaluated,
    }
}
