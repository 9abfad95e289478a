//! Sends one call with both tokens, repeats it once for each kind of token that was refused, and
//! classifies failures.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Client, CredentialSet, Retries, limit::Permit};
use crate::thingspace::{
    Error,
    error::BREAKER_OPEN,
    http::{
        code,
        reply::{Reply, SendError},
        transport::Endpoint,
        verdict::{Stale, Verdict},
    },
    login::{RenewalsLeft, TokenPair, Tokens},
};

pub(super) struct UpstreamCall<'a> {
    pub(super) endpoint: Endpoint<'a>,
    pub(super) body: Bytes,
    /// Never sent or repeated after this: the lease of the order has ended then.
    pub(super) send_by: Option<Instant>,
}

/// A failed call, and whether the same call may be tried again.
#[derive(Debug)]
pub(super) struct CallFailure {
    pub(super) error: Error,
    retry: Retry,
    /// The caller logs it: an order that is refused or has an unknown outcome, an unknown request.
    pub(super) logged_by_caller: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Never,
    /// Not before this time has passed, if ThingSpace asked for one.
    After(Option<Duration>),
}

/// The result of an answered attempt.
enum Attempt<T> {
    Done(T),
    Stale(Stale),
}

impl CallFailure {
    pub(super) fn permanent(error: Error) -> Self {
        Self { error, retry: Retry::Never, logged_by_caller: false }
    }

    /// The breaker of the host is open for so long.
    pub(super) fn left_alone(wait: Duration) -> Self {
        Self::permanent(Error::NotSent { reason: BREAKER_OPEN.to_owned(), retry_after: Some(wait) })
    }

    /// It is too late to send the call. ThingSpace refused whatever was sent of it before.
    fn too_late() -> Self {
        let reason = "the call was held up for too long to be sent safely".to_owned();
        Self {
            logged_by_caller: true,
            ..Self::permanent(Error::NotSent { reason, retry_after: None })
        }
    }

    /// Returns how long to wait before the next try; `None`: there is none.
    pub(super) fn pause(&self, retries: &mut Retries) -> Option<Duration> {
        match self.retry {
            Retry::Never => None,
            Retry::After(asked) => retries.next(asked),
        }
    }

    /// The call was sent before, and refused. A later failure to connect changes nothing about
    /// that, but it is no [`Error::NotConnected`] any more.
    fn after_a_refusal(self) -> Self {
        match self.error {
            Error::NotConnected { reason } => {
                Self { error: Error::NotSent { reason, retry_after: None }, ..self }
            }
            error => Self { error, ..self },
        }
    }

    fn unanswered(endpoint: Endpoint<'_>, failure: SendError) -> Self {
        match failure {
            // The sender of an order, which has made it durable, decides about the next try.
            SendError::NotConnected(reason) => {
                let retry = if endpoint.is_order() { Retry::Never } else { Retry::After(None) };
                Self { retry, ..Self::permanent(Error::NotConnected { reason }) }
            }
            SendError::NoAnswer(reason) => {
                let retry =
                    if endpoint.has_no_effect() { Retry::After(None) } else { Retry::Never };
                let error = Error::OutcomeUnknown { reason, retry_after: None };
                Self { error, retry, logged_by_caller: endpoint.is_order() }
            }
            SendError::NoDescriptor => Self::permanent(Error::NoDescriptor),
            SendError::BreakerOpen(wait) => Self::left_alone(wait),
        }
    }

    /// The answer does not say whether the call was executed.
    fn unknown_outcome(endpoint: Endpoint<'_>, reply: &Reply, reason: String) -> Self {
        let status = reply.status;
        let passing = reply.cut || status == 408 || status.is_server_error();
        // A success that cannot be read, and is not too long, may have been damaged on its way.
        let passing = passing || status.is_success() && reply.body.is_some();
        let retry = if passing && endpoint.has_no_effect() {
            Retry::After(reply.retry_after)
        } else {
            Retry::Never
        };
        let error = Error::OutcomeUnknown { reason, retry_after: reply.retry_after };
        Self { error, retry, logged_by_caller: endpoint.is_order() }
    }

    fn throttled(endpoint: Endpoint<'_>, retry_after: Option<Duration>) -> Self {
        let asked = retry_after.filter(|_| endpoint.has_no_effect());
        let retry = asked.map_or(Retry::Never, |asked| Retry::After(Some(asked)));
        Self { retry, ..Self::permanent(Error::Throttled { retry_after }) }
    }
}

impl Client {
    /// Sends a call with both tokens, and again after each kind of token was refused and renewed:
    /// three times at most, or more if the renewed token was found in the store, where it may be
    /// old. Each repeat has a permit of its own: when a token ends, all calls in progress are
    /// repeated, and the rate holds for them as well. While a call waits for a token or a permit,
    /// it holds no connection.
    pub(super) async fn exchange<T>(
        &self,
        set: &CredentialSet,
        mut permit: Permit,
        call: UpstreamCall<'_>,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<T, CallFailure> {
        let UpstreamCall { endpoint, body, send_by } = call;
        let tokens = &set.tokens;
        let unlogged =
            |error| CallFailure { logged_by_caller: true, ..CallFailure::permanent(error) };
        let mut pair = tokens.pair().await.map_err(unlogged)?;
        let (mut renewals, mut refused, mut same) = (RenewalsLeft::default(), false, false);
        loop {
            // The tokens may have taken long.
            if send_by.is_some_and(|by| Instant::now() > by) {
                return Err(CallFailure::too_late());
            }
            permit.used = true;
            let stale = match self.attempt(set, endpoint, &pair, body.clone(), judge).await {
                Ok(Attempt::Done(done)) => return Ok(done),
                Ok(Attempt::Stale(stale)) => stale,
                Err(failure) if refused => return Err(failure.after_a_refusal()),
                Err(failure) => return Err(failure),
            };
            let Some(due) = renewals.allow(stale) else {
                let rejected = Error::CredentialsRejected { name: tokens.name().to_owned() };
                return Err(CallFailure::permanent(rejected));
            };
            refused = true;
            let class = permit.class;
            drop(permit);
            let renewed = tokens.renewed(due, &pair).await.map_err(unlogged)?;
            // ThingSpace may hand out a token before all of its servers know it. A call without an
            // effect sends it once more.
            if renewed.headers() != pair.headers() {
                renewals.count(due, &renewed);
            } else if !endpoint.has_no_effect() || std::mem::replace(&mut same, true) {
                return Err(CallFailure::permanent(Tokens::same_token_refused()));
            }
            pair = renewed;
            let next = set.permits.wait_again(class);
            permit = match send_by {
                None => next.await,
                Some(by) => {
                    tokio::time::timeout_at(by, next).await.map_err(|_| CallFailure::too_late())?
                }
            }
            .map_err(unlogged)?;
        }
    }

    async fn attempt<T>(
        &self,
        set: &CredentialSet,
        endpoint: Endpoint<'_>,
        pair: &TokenPair,
        body: Bytes,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<Attempt<T>, CallFailure> {
        let sent = self.transport.send(endpoint, pair.headers(), body).await;
        let reply = sent.map_err(|failure| CallFailure::unanswered(endpoint, failure))?;
        let verdict = judge(&reply);
        if matches!(verdict, Verdict::Done(_) | Verdict::Refused(_)) {
            set.tokens.worked(pair);
        }
        match verdict {
            Verdict::Done(done) => {
                set.failures.succeeded(set.tokens.name());
                Ok(Attempt::Done(done))
            }
            Verdict::Stale(stale) => Ok(Attempt::Stale(stale)),
            Verdict::Refused(refusal) => {
                let logged_by_caller = endpoint.is_order() || code::says_unknown_request(&refusal);
                let failure = CallFailure::permanent(Error::Refused(refusal));
                Err(CallFailure { logged_by_caller, ..failure })
            }
            Verdict::Throttled(retry_after) => Err(CallFailure::throttled(endpoint, retry_after)),
            Verdict::Unknown { reason, .. } => {
                Err(CallFailure::unknown_outcome(endpoint, &reply, reason))
            }
        }
    }
}
