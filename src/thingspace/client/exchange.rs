//! One call with both tokens: it is sent, repeated once for each kind of token that was refused,
//! and what failed is classified.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::limit::Turn;
use super::{Client, Upstream};
use crate::thingspace::{
    Error, Retries,
    error::LEFT_ALONE,
    http::{
        code,
        transport::{Endpoint, Failure, Reply},
        verdict::{Stale, Verdict},
    },
    login::{Pair, Renewals, Tokens},
};

/// What is sent.
pub(super) struct Call<'a> {
    pub(super) endpoint: Endpoint<'a>,
    pub(super) body: Bytes,
    /// Not later, nor again: others will have drawn their conclusions.
    pub(super) send_by: Option<Instant>,
}

/// A call that failed, and whether the very call may be tried again.
#[derive(Debug)]
pub(super) struct Failed {
    error: Error,
    again: Again,
    /// Whoever made the call says what became of it: an order is refused, or of unknown outcome; a
    /// request is not known.
    told_elsewhere: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    /// Not before so long.
    After(Option<Duration>),
}

/// What became of a call that was answered.
enum Attempt<T> {
    Done(T),
    Stale(Stale),
}

impl Failed {
    pub(super) fn for_good(error: Error) -> Self {
        Self { error, again: Again::Never, told_elsewhere: false }
    }

    /// The host is not called for so long.
    pub(super) fn left_alone(wait: Duration) -> Self {
        Self::for_good(Error::NotSent { reason: LEFT_ALONE.to_owned(), retry_after: Some(wait) })
    }

    /// It is too late to send it. Whatever was sent of it before was turned away.
    fn held_up() -> Self {
        let reason = "the call was held up for too long to be sent safely".to_owned();
        Self {
            told_elsewhere: true,
            ..Self::for_good(Error::NotSent { reason, retry_after: None })
        }
    }

    pub(super) fn pause(&self, retries: &mut Retries) -> Option<Duration> {
        match self.again {
            Again::Never => None,
            Again::After(asked) => retries.next(asked),
        }
    }

    pub(super) fn error(&self) -> &Error {
        &self.error
    }

    pub(super) fn into_error(self) -> Error {
        self.error
    }

    pub(super) fn is_told_here(&self) -> bool {
        !self.told_elsewhere
    }

    /// The call had left before, and was turned away: to that, a connection that failed adds
    /// nothing.
    fn after_a_refusal(self) -> Self {
        match self.error {
            Error::NotConnected { reason } => {
                Self { error: Error::NotSent { reason, retry_after: None }, ..self }
            }
            error => Self { error, ..self },
        }
    }

    /// There was no answer.
    fn unanswered(endpoint: Endpoint<'_>, failure: Failure) -> Self {
        match failure {
            // An order's next try is the affair of whoever has made it durable.
            Failure::NotConnected(reason) => {
                let again = if endpoint.is_order() { Again::Never } else { Again::After(None) };
                Self { again, ..Self::for_good(Error::NotConnected { reason }) }
            }
            Failure::Broken(reason) => {
                let again =
                    if endpoint.has_no_effect() { Again::After(None) } else { Again::Never };
                let error = Error::Ambiguous { reason, retry_after: None };
                Self { error, again, told_elsewhere: endpoint.is_order() }
            }
            Failure::NoDescriptor => Self::for_good(Error::NoDescriptor),
            Failure::LeftAlone(wait) => Self::left_alone(wait),
        }
    }

    /// Nobody knows what became of it.
    fn unclear(endpoint: Endpoint<'_>, reply: &Reply, reason: String) -> Self {
        let status = reply.status;
        let passes = reply.cut || status == 408 || status.is_server_error();
        // A success that cannot be read, and not for being too long, may have been broken on its
        // way.
        let passes = passes || status.is_success() && reply.body.is_some();
        let again = if passes && endpoint.has_no_effect() {
            Again::After(reply.retry_after)
        } else {
            Again::Never
        };
        let error = Error::Ambiguous { reason, retry_after: reply.retry_after };
        Self { error, again, told_elsewhere: endpoint.is_order() }
    }

    fn throttled(endpoint: Endpoint<'_>, retry_after: Option<Duration>) -> Self {
        let asked = retry_after.filter(|_| endpoint.has_no_effect());
        let again = asked.map_or(Again::Never, |asked| Again::After(Some(asked)));
        Self { again, ..Self::for_good(Error::Throttled { retry_after }) }
    }
}

impl Client {
    /// Sends a call with both tokens, and again after each kind of token was refused and renewed:
    /// three times at most, but for tokens that somebody else had renewed, which may be old. Each
    /// repeat has a turn of its own: when a token ends, all calls under way are repeated, and the
    /// rate holds for them as well. While a call waits for a token or that turn, it holds no
    /// connection.
    pub(super) async fn exchange<T>(
        &self,
        upstream: &Arc<Upstream>,
        mut turn: Turn,
        call: Call<'_>,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<T, Failed> {
        let Call { endpoint, body, send_by } = call;
        let tokens = &upstream.tokens;
        let quiet = |error| Failed { told_elsewhere: true, ..Failed::for_good(error) };
        let mut pair = tokens.pair().await.map_err(quiet)?;
        let (mut renewals, mut turned_away, mut same) = (Renewals::default(), false, false);
        loop {
            // Tokens may have taken their time.
            if send_by.is_some_and(|by| Instant::now() > by) {
                return Err(Failed::held_up());
            }
            turn.spend();
            let stale = match self.attempt(upstream, endpoint, &pair, body.clone(), judge).await {
                Ok(Attempt::Done(done)) => return Ok(done),
                Ok(Attempt::Stale(stale)) => stale,
                Err(failed) if turned_away => return Err(failed.after_a_refusal()),
                Err(failed) => return Err(failed),
            };
            let Some(due) = renewals.of(stale) else {
                let rejected = Error::CredentialsRejected { name: tokens.name().to_owned() };
                return Err(Failed::for_good(rejected));
            };
            turned_away = true;
            let class = turn.class();
            drop(turn);
            let renewed = match tokens.renewed(due, &pair).await {
                Ok(renewed) => renewed,
                Err(error) => return Err(quiet(error)),
            };
            // ThingSpace may hand out a token before all of its servers know it. A call without an
            // effect sends it once more.
            if renewed.headers() != pair.headers() {
                renewals.count(due, &renewed);
            } else if !endpoint.has_no_effect() || std::mem::replace(&mut same, true) {
                return Err(Failed::for_good(Tokens::same_again()));
            }
            pair = renewed;
            let again = upstream.turns.again(class);
            turn = match send_by {
                None => again.await,
                Some(by) => {
                    tokio::time::timeout_at(by, again).await.map_err(|_| Failed::held_up())?
                }
            }
            .map_err(quiet)?;
        }
    }

    async fn attempt<T>(
        &self,
        upstream: &Upstream,
        endpoint: Endpoint<'_>,
        pair: &Pair,
        body: Bytes,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<Attempt<T>, Failed> {
        let reply = match self.transport.send(endpoint, pair.headers(), body).await {
            Ok(reply) => reply,
            Err(failure) => return Err(Failed::unanswered(endpoint, failure)),
        };
        let verdict = judge(&reply);
        if matches!(verdict, Verdict::Done(_) | Verdict::Refused(_)) {
            upstream.tokens.worked(pair);
        }
        match verdict {
            Verdict::Done(done) => {
                upstream.trouble.answered(upstream.tokens.name());
                Ok(Attempt::Done(done))
            }
            Verdict::Stale(stale) => Ok(Attempt::Stale(stale)),
            Verdict::Refused(refusal) => {
                let told_elsewhere = endpoint.is_order() || code::says_unknown_request(&refusal);
                Err(Failed { told_elsewhere, ..Failed::for_good(Error::Refused(refusal)) })
            }
            Verdict::Throttled(retry_after) => Err(Failed::throttled(endpoint, retry_after)),
            Verdict::Unclear { reason, .. } => Err(Failed::unclear(endpoint, &reply, reason)),
        }
    }
}
