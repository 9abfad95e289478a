//! Decides what a reply means: one [`Verdict`] of a closed list.
//!
//! A reply that is not certainly a success, a refusal before execution or a throttling is
//! [`Verdict::Unknown`]: ThingSpace may have executed the call.

mod evidence;
mod mention;
mod order;
mod phrases;

use std::{borrow::Cow, time::Duration};

pub(crate) use evidence::{exact_id, is_request_id};
pub(crate) use order::judge_order;

use super::{
    body::ReplyBody,
    code::{Code, ErrorCodes, table::CodeClass},
    reply::Reply,
};
use crate::thingspace::Refusal;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// Executed, with this result.
    Done(T),
    /// Refused before execution, because of these tokens.
    Stale(Stale),
    /// Refused before execution, because of too many calls; with its `Retry-After`.
    Throttled(Option<Duration>),
    /// Refused before execution, for another reason.
    Refused(Refusal),
    /// The outcome is unknown.
    Unknown { status: u16, reason: String },
}

/// The tokens to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) bearer: bool,
    pub(crate) session: bool,
}

impl Stale {
    pub(crate) const BEARER: Self = Self { bearer: true, session: false };
    const SESSION: Self = Self { bearer: false, session: true };
    const BOTH: Self = Self { bearer: true, session: true };
}

/// Returns the verdict on a reply to any call except an order; for orders see [`judge_order`].
/// `parse` reads the body of a success.
///
/// A code of a refusal is ignored if the HTTP status is a 5xx or 408. It is also ignored if the
/// body reads as a success, because the status of a failed request may contain a code.
pub(crate) fn judge<T>(reply: &Reply, parse: impl Fn(&ReplyBody<'_>) -> Option<T>) -> Verdict<T> {
    let status = reply.status.as_u16();
    let text = reply.body.as_deref().map(String::from_utf8_lossy);
    let body = text.as_deref().map(ReplyBody::parse);
    let body = body.as_ref();
    // Text that is not UTF-8 was damaged on its way.
    let is_intact = matches!(text, Some(Cow::Borrowed(_)));
    let read = body.filter(|_| is_intact).and_then(parse);
    let reads_as_success = read.is_some();
    if let (200..=299, Some(done)) = (status, read)
        && !body.is_some_and(|body| fails_the_call(body, status))
    {
        return Verdict::Done(done);
    }
    let code = body.and_then(Code::first);
    let class = code.as_ref().map(|code| (code, code.row(status).class));
    match (status, class) {
        (_, Some((_, CodeClass::SessionRefused))) => Verdict::Stale(Stale::SESSION),
        (_, Some((_, CodeClass::BearerRefused))) => Verdict::Stale(Stale::BEARER),
        (_, Some((_, CodeClass::Throttled))) | (429, _) => Verdict::Throttled(reply.retry_after),
        // Any other 401 concerns the tokens, but does not say which.
        (401, class) if !class.is_some_and(|(code, _)| code.is_from_thingspace()) => {
            Verdict::Stale(Stale::BOTH)
        }
        (400..=407 | 409..=499, Some((code, CodeClass::Refused(kind)))) if !reads_as_success => {
            Verdict::Refused(code.refusal(kind, status))
        }
        _ => {
            let what = match (reply.body.is_some(), code.is_some()) {
                (false, _) => "its body was cut, too long or encoded",
                (true, true) => "with an error code",
                (true, false) => "without a body of a known shape",
            };
            Verdict::Unknown { status, reason: format!("HTTP {status}, {what}") }
        }
    }
}

/// Returns whether the body of a success has a code that says that the call failed. A code of a
/// refusal does not say that: it belongs to the request that the body describes.
fn fails_the_call(body: &ReplyBody<'_>, status: u16) -> bool {
    match ErrorCodes::of(body) {
        ErrorCodes::None | ErrorCodes::Success => false,
        ErrorCodes::One(code) => !matches!(code.row(status).class, CodeClass::Refused(_)),
        ErrorCodes::Contradictory => true,
    }
}
