//! What the reply to an order means.
//!
//! An order may be sent again only if it certainly was not executed, and an id is accepted only if
//! ThingSpace certainly gave it. So each verdict except [`Verdict::Unknown`] requires a reply in
//! which nothing contradicts it:
//!
//! | verdict | HTTP status | error codes | request ids | texts |
//! |---|---|---|---|---|
//! | accepted | 2xx | none | exactly one, exact | any |
//! | session refused | 4xx except 408 | exactly one, of a refused session | none | no success |
//! | bearer refused | 4xx except 408, 5xx | exactly one, of a refused bearer | none | no success |
//! | tokens refused | 401 | none, or a refusal that is not ThingSpace's | none | plain refusals |
//! | throttled | 429 | none, or exactly one that is a refusal | none | plain refusals, no UUID |
//! | throttled | 4xx except 408, 5xx | exactly one, of throttling | none | no success or time-out |
//! | refused | 4xx except 408, 429 | exactly one, a refusal | none | no success, time-out or UUID |
//!
//! A success may be a word in a field, or a phrase in a text for people; see
//! [`phrases`](super::phrases). A text about a time-out is ignored beside the code of a refused
//! session or bearer, because these do time out.
//!
//! Without a code, or with a general code, the HTTP status decides. Then each text has to be a
//! *plain refusal*: one that says only that a token or the rate is refused. A search for texts that
//! mention an executed order is not enough, because no list of them could be complete.
//!
//! A UUID in a text may be the id of a request. It may also be a token, which refusals of tokens
//! quote, or an id of the API manager. So it is ignored beside a code of the API manager, and if
//! only tokens are refused.
//!
//! Any other reply leaves the outcome unknown, and so does a body that is cut, too long or
//! unreadable.

use super::{
    Stale, Verdict,
    evidence::{self, RequestIds, Texts},
};
use crate::{
    identity::RequestId,
    thingspace::http::{
        body::ReplyBody,
        code::{ErrorCodes, table::CodeClass},
        reply::Reply,
    },
};

const TIMED_OUT: &str = "with a text that mentions a time-out";
const MORE_THAN_A_REFUSAL: &str = "with a text that is more than a refusal";
const QUOTES_UUID: &str = "with a text that quotes what may be a request id";

pub(crate) fn judge_order(reply: &Reply) -> Verdict<RequestId> {
    let status = reply.status.as_u16();
    let unknown =
        |what: &str| Verdict::Unknown { status, reason: format!("HTTP {status}, {what}") };
    let Some(text) = reply.body.as_deref().map(String::from_utf8_lossy) else {
        return unknown("its body was cut, too long or encoded");
    };
    let body = ReplyBody::parse(&text);
    let Some(evidence) = evidence::read(body.text, reply) else {
        return unknown("without a body of a known shape");
    };
    let codes = ErrorCodes::of(&body);
    match (status, evidence.ids, &codes) {
        (200..=299, RequestIds::One(id), ErrorCodes::None | ErrorCodes::Success) => {
            return Verdict::Done(id);
        }
        (_, RequestIds::One(_) | RequestIds::Doubtful, ErrorCodes::None | ErrorCodes::Success) => {
            return unknown("with what looks like a request id");
        }
        (_, RequestIds::One(_) | RequestIds::Doubtful, _) => {
            return unknown("with an error code and what looks like a request id");
        }
        (_, RequestIds::None, ErrorCodes::Contradictory) => {
            return unknown("with error codes that contradict each other");
        }
        (_, RequestIds::None, _) if evidence.success => {
            return unknown("with a word of success and no request id");
        }
        (_, RequestIds::None, ErrorCodes::Success) => {
            return unknown("with a code of success and no request id");
        }
        (_, RequestIds::None, ErrorCodes::None | ErrorCodes::One(_)) => {}
    }
    let ErrorCodes::One(code) = codes else {
        return match status {
            401 | 429 if evidence.texts == Texts::TimedOut => unknown(TIMED_OUT),
            401 | 429 if evidence.texts == Texts::Others => unknown(MORE_THAN_A_REFUSAL),
            401 => Verdict::Stale(Stale::BOTH),
            429 if evidence.quotes_uuid => unknown(QUOTES_UUID),
            429 => Verdict::Throttled(reply.retry_after),
            _ => unknown("without a body of a known shape"),
        };
    };
    let is_error = matches!(status, 400..=407 | 409..=599);
    let is_client_error = is_error && status < 500;
    let is_of_status = matches!(status, 401 | 429) && code.is_general();
    let may_quote_id = evidence.quotes_uuid && !code.is_from_api_manager();
    match (status, code.row(status).class) {
        // With any other status ThingSpace may have executed the order before it checked the
        // session.
        (_, CodeClass::SessionRefused) if is_client_error => Verdict::Stale(Stale::SESSION),
        (_, CodeClass::BearerRefused) if is_error => Verdict::Stale(Stale::BEARER),
        (_, CodeClass::Throttled | CodeClass::Refused(_)) if evidence.texts == Texts::TimedOut => {
            unknown("with an error code and a text that mentions a time-out")
        }
        (_, CodeClass::Throttled) if is_error => Verdict::Throttled(reply.retry_after),
        (_, CodeClass::Refused(_)) if is_of_status && evidence.texts == Texts::Others => {
            unknown(MORE_THAN_A_REFUSAL)
        }
        (401, CodeClass::Refused(_)) if !code.is_from_thingspace() => Verdict::Stale(Stale::BOTH),
        (_, CodeClass::Refused(_)) if may_quote_id => {
            unknown("with an error code and a text that quotes what may be a request id")
        }
        (429, CodeClass::Refused(_)) => Verdict::Throttled(reply.retry_after),
        (_, CodeClass::Refused(kind)) if is_client_error => {
            Verdict::Refused(code.refusal(kind, status))
        }
        _ => unknown("with an error code"),
    }
}
