//! What an answer means: the closed list.
//!
//! Whatever is not certainly a success, a refusal before execution or a throttling is [`Verdict::Unclear`]: the call may
//! have been executed.

use std::time::Duration;

use super::{Refusal, code::Code, transport::Reply};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<T> {
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
pub(super) struct Stale {
    pub(super) bearer: bool,
    pub(super) session: bool,
}

impl Stale {
    pub(super) const BEARER: Self = Self { bearer: true, session: false };
    const SESSION: Self = Self { bearer: false, session: true };
    const BOTH: Self = Self { bearer: true, session: true };
}

/// `parse` reads the body of a success.
pub(super) fn judge<T>(reply: &Reply, parse: impl Fn(&[u8]) -> Option<T>) -> Verdict<T> {
    let status = reply.status.as_u16();
    let body = reply.body.as_deref();
    if let (200..=299, Some(done)) = (status, body.and_then(parse)) {
        return Verdict::Done(done);
    }
    let code = body.and_then(Code::read);
    match (status, &code) {
        (_, Some(code)) if code.refuses_session() => Verdict::Stale(Stale::SESSION),
        (_, Some(code)) if code.refuses_bearer(status) => Verdict::Stale(Stale::BEARER),
        (_, Some(code)) if code.throttles() => Verdict::Throttled(reply.retry_after),
        (429, _) => Verdict::Throttled(reply.retry_after),
        (401, Some(code)) if code.is_from_thingspace() => Verdict::Refused(code.refusal(status)),
        (401, _) => Verdict::Stale(Stale::BOTH),
        (400..=499, Some(code)) if status != 408 && !code.is_on_hold() => {
            Verdict::Refused(code.refusal(status))
        }
        _ => {
            let what = match (reply.body.is_some(), code.is_some()) {
                (false, _) => "its body was cut or too long",
                (true, true) => "with an error code",
                (true, false) => "without a body of a known shape",
            };
            Verdict::Unclear { status, reason: format!("HTTP {status}, {what}") }
        }
    }
}
