//! What an answer to an order means, decided by everything in it.
//!
//! Only an order that certainly was not carried out may be sent again, and only an id that
//! ThingSpace certainly gave is believed. So each verdict but [`Verdict::Unclear`] needs an answer
//! in which nothing contradicts it:
//!
//! | verdict | HTTP status | error codes | request ids | besides |
//! |---|---|---|---|---|
//! | accepted | 2xx | none | exactly one, carried exactly | |
//! | session refused | 4xx but 408 | exactly one, of a refused session | none | no word of success |
//! | bearer refused | 4xx but 408, 5xx | exactly one, of a refused bearer | none | no word of success |
//! | tokens refused | 401 | none, or one that is a refusal and not ThingSpace's own | none | no word of success or of a time-out, only texts of plain refusals |
//! | throttled | 429 | none, or exactly one that is a refusal | none | no word of success or of a time-out, no UUID in a text, only texts of plain refusals |
//! | throttled | 4xx but 408, 5xx | exactly one, of the throttling | none | no word of success or of a time-out |
//! | refused | 4xx but 408 and 429 | exactly one that is a refusal | none | no word of success or of a time-out, no UUID in a text |
//!
//! Where the HTTP status decides, because there is no code, or one that neither ThingSpace nor its
//! API manager uses, each text has to be the plain refusal of a token or of a rate: nobody can list
//! all texts that say that an order may have been carried out. A UUID or a number in it is none.
//!
//! A word of success may stand in a text for people, see [`phrases`](super::phrases). A refused
//! session or bearer may well have timed out, so such a word says nothing beside their codes.
//!
//! A UUID in a text may be a request's id. It may also be a session or a bearer, which refusals of
//! these quote, or an id of the API manager's own. So it decides nothing beside a code of the API
//! manager, nor where only the tokens are refused.
//!
//! Any other answer leaves the outcome unknown, and so does a body that was cut, is too long or
//! cannot be read.

use super::{
    Stale, Verdict,
    evidence::{self, Ids, Texts},
};
use crate::{
    identity::RequestId,
    thingspace::http::{
        body::{self, Body},
        code::{Said, table::Means},
        transport::Reply,
    },
};

const MORE_THAN_A_REFUSAL: &str = "with a text that is more than a refusal";

pub(crate) fn judge_order(reply: &Reply) -> Verdict<RequestId> {
    let status = reply.status.as_u16();
    let unclear =
        |what: &str| Verdict::Unclear { status, reason: format!("HTTP {status}, {what}") };
    let Some(text) = reply.body.as_deref().map(body::text) else {
        return unclear("its body was cut, too long or encoded");
    };
    let body = Body::parse(&text);
    let Some(evidence) = evidence::read(body.text, reply) else {
        return unclear("without a body of a known shape");
    };
    let said = Said::of(&body);
    match (status, evidence.ids, &said) {
        (200..=299, Ids::One(id), Said::Nothing | Said::Success) => return Verdict::Done(id),
        (_, Ids::One(_) | Ids::Doubtful, Said::Nothing | Said::Success) => {
            return unclear("with what looks like a request id");
        }
        (_, Ids::One(_) | Ids::Doubtful, Said::One(_) | Said::Contradictory) => {
            return unclear("with an error code and what looks like a request id");
        }
        (_, Ids::None, Said::Contradictory) => {
            return unclear("with error codes that contradict each other");
        }
        (_, Ids::None, _) if evidence.success => {
            return unclear("with a word of success and no request id");
        }
        (_, Ids::None, Said::Success) => {
            return unclear("with a code of success and no request id");
        }
        (_, Ids::None, Said::Nothing | Said::One(_)) => {}
    }
    let Said::One(code) = said else {
        return match status {
            401 | 429 if evidence.texts == Texts::TimedOut => {
                unclear("with a text that speaks of a time-out")
            }
            401 | 429 if evidence.texts == Texts::Others => unclear(MORE_THAN_A_REFUSAL),
            401 => Verdict::Stale(Stale::BOTH),
            429 if evidence.quotes_uuid => {
                unclear("with a text that quotes what may be a request id")
            }
            429 => Verdict::Throttled(reply.retry_after),
            _ => unclear("without a body of a known shape"),
        };
    };
    let is_error = matches!(status, 400..=407 | 409..=599);
    // With any other status ThingSpace may have carried the order out before it looked at the
    // session.
    let blames_the_call = is_error && reply.status.is_client_error();
    let may_quote_id = evidence.quotes_uuid && !code.is_from_api_manager();
    match (status, code.row(status).means) {
        (_, Means::SessionRefused) if blames_the_call => Verdict::Stale(Stale::SESSION),
        (_, Means::BearerRefused) if is_error => Verdict::Stale(Stale::BEARER),
        (_, Means::Throttled | Means::Refused(_)) if evidence.texts == Texts::TimedOut => {
            unclear("with an error code and a text that speaks of a time-out")
        }
        (_, Means::Throttled) if is_error => Verdict::Throttled(reply.retry_after),
        (401 | 429, Means::Refused(_)) if code.is_general() && evidence.texts == Texts::Others => {
            unclear(MORE_THAN_A_REFUSAL)
        }
        (401, Means::Refused(_)) if !code.is_from_thingspace() => Verdict::Stale(Stale::BOTH),
        (_, Means::Refused(_)) if may_quote_id => {
            unclear("with an error code and a text that quotes what may be a request id")
        }
        (429, Means::Refused(_)) => Verdict::Throttled(reply.retry_after),
        (_, Means::Refused(kind)) if blames_the_call => {
            Verdict::Refused(code.refusal(kind, status))
        }
        _ => unclear("with an error code"),
    }
}
