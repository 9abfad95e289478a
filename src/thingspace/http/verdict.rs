//! What an answer means: the closed list.
//!
//! Whatever is not certainly a success, a refusal before execution or a throttling is
//! [`Verdict::Unclear`]: the call may have been executed.

mod evidence;
mod mention;
mod order;
mod phrases;

use std::{borrow::Cow, time::Duration};

pub(crate) use evidence::{carried, is_request_id};
pub(crate) use order::judge_order;

use super::{
    body::{self, Body},
    code::{Code, Said, table::Means},
    transport::Reply,
};
use crate::thingspace::Refusal;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    Done(T),
    /// Refused before execution, for want of a good token.
    Stale(Stale),
    Throttled(Option<Duration>),
    Refused(Refusal),
    Unclear {
        status: u16,
        reason: String,
    },
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

/// Whether a success has a code that is about the call and not about what was asked for. A request
/// that failed may have its own code.
fn blames_the_call(body: &Body<'_>, status: u16) -> bool {
    match Said::of(body) {
        Said::Nothing | Said::Success => false,
        Said::One(code) => !matches!(code.row(status).means, Means::Refused(_)),
        Said::Contradictory => true,
    }
}

/// What an answer to anything but an order means; see [`judge_order`] for those. `parse` reads the
/// body of a success.
///
/// A code that the [table](super::code::table) knows as a refusal counts as one only in an answer
/// that blames the call: not with a 5xx or a 408, nor where the body also reads as a success (a
/// request that failed has its id all the same).
pub(crate) fn judge<T>(reply: &Reply, parse: impl Fn(&Body<'_>) -> Option<T>) -> Verdict<T> {
    let status = reply.status.as_u16();
    let text = reply.body.as_deref().map(body::text);
    let body = text.as_deref().map(Body::parse);
    let body = body.as_ref();
    // Text that is not UTF-8 was damaged on its way.
    let is_intact = matches!(text, Some(Cow::Borrowed(_)));
    let read = body.filter(|_| is_intact).and_then(parse);
    let reads_as_success = read.is_some();
    if let (200..=299, Some(done)) = (status, read)
        && !body.is_some_and(|body| blames_the_call(body, status))
    {
        return Verdict::Done(done);
    }
    let code = body.and_then(Code::first);
    let means = code.as_ref().map(|code| (code, code.row(status).means));
    match (status, means) {
        (_, Some((_, Means::SessionRefused))) => Verdict::Stale(Stale::SESSION),
        (_, Some((_, Means::BearerRefused))) => Verdict::Stale(Stale::BEARER),
        (_, Some((_, Means::Throttled))) | (429, _) => Verdict::Throttled(reply.retry_after),
        // Any other 401 is about the tokens, and does not say which.
        (401, means) if !means.is_some_and(|(code, _)| code.is_from_thingspace()) => {
            Verdict::Stale(Stale::BOTH)
        }
        (400..=407 | 409..=499, Some((code, Means::Refused(kind)))) if !reads_as_success => {
            Verdict::Refused(code.refusal(kind, status))
        }
        _ => {
            let what = match (reply.body.is_some(), code.is_some()) {
                (false, _) => "its body was cut, too long or encoded",
                (true, true) => "with an error code",
                (true, false) => "without a body of a known shape",
            };
            Verdict::Unclear { status, reason: format!("HTTP {status}, {what}") }
        }
    }
}
