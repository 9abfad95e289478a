//! Sends one call with both tokens, renews tokens that were refused and repeats the call, and
//! decides which failed calls may be retried.

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
    /// The call is not sent or repeated after this time, because the lease of its order could end
    /// before the answer comes.
    pub(super) send_by: Option<Instant>,
}

/// A failed call, and whether it may be retried.
#[derive(Debug)]
pub(super) struct CallFailure {
    pub(super) error: Error,
    retry: Retry,
    /// Another module logs it: a refused order, an unknown outcome, an unknown request, no token.
    pub(super) logged_by_caller: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Never,
    /// With a pause of at least this long, if ThingSpace asked for one.
    After(Option<Duration>),
}

impl CallFailure {
    pub(super) fn permanent(error: Error) -> Self {
        Self { error, retry: Retry::Never, logged_by_caller: false }
    }

    /// Returns the failure of a call to a host whose breaker stays open for `wait`.
    pub(super) fn breaker_open(wait: Duration) -> Self {
        Self::permanent(Error::NotSent { reason: BREAKER_OPEN.to_owned(), retry_after: Some(wait) })
    }

    /// Returns the failure of a call whose `send_by` has passed. ThingSpace refused its earlier
    /// attempts, if any.
    fn too_late() -> Self {
        let reason = "the call was held up for too long to be sent safely".to_owned();
        Self {
            logged_by_caller: true,
            ..Self::permanent(Error::NotSent { reason, retry_after: None })
        }
    }

    /// Returns how long to wait before the next attempt; `None`: there is none.
    pub(super) fn pause(&self, retries: &mut Retries) -> Option<Duration> {
        match self.retry {
            Retry::Never => None,
            Retry::After(asked) => retries.next(asked),
        }
    }

    /// Replaces [`Error::NotConnected`], because an earlier attempt was sent and refused.
    fn after_a_refusal(mut self) -> Self {
        if let Error::NotConnected { reason } = self.error {
            self.error = Error::NotSent { reason, retry_after: None };
        }
        self
    }

    fn unanswered(endpoint: Endpoint<'_>, failure: SendError) -> Self {
        match failure {
            // Orders are retried by `requests::orders`, which has made them durable.
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
            SendError::BreakerOpen(wait) => Self::breaker_open(wait),
        }
    }

    /// Returns the failure of a call whose answer does not say whether it was executed.
    fn unknown_outcome(endpoint: Endpoint<'_>, reply: &Reply, reason: String) -> Self {
        let status = reply.status;
        let is_temporary = reply.cut || status == 408 || status.is_server_error();
        // A success that cannot be read may have been damaged on its way, unless it is too long.
        let is_temporary = is_temporary || status.is_success() && reply.body.is_some();
        let retry = if is_temporary && endpoint.has_no_effect() {
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
    /// Sends a call with both tokens. If a token is refused, renews it and repeats the call, once
    /// for each kind of token. A renewed token that came from the store may be old, so it may be
    /// renewed once more.
    ///
    /// Each repeat has a permit of its own, because all calls in progress are repeated when a token
    /// ends. A call that waits for a token or a permit holds no connection.
    pub(super) async fn exchange<T>(
        &self,
        set: &CredentialSet,
        mut permit: Permit,
        call: UpstreamCall<'_>,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<T, CallFailure> {
        let UpstreamCall { endpoint, body, send_by } = call;
        let tokens = &set.tokens;
        // The login and the queue of permits log their own failures.
        let not_ready =
            |error| CallFailure { logged_by_caller: true, ..CallFailure::permanent(error) };
        let mut pair = tokens.pair().await.map_err(not_ready)?;
        let (mut renewals, mut refused, mut is_same) = (RenewalsLeft::default(), false, false);
        loop {
            // The wait for tokens may have been long.
            if send_by.is_some_and(|by| Instant::now() > by) {
                return Err(CallFailure::too_late());
            }
            permit.used = true;
            let stale = match self.attempt(set, endpoint, &pair, body.clone(), judge).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(stale)) => stale,
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
            let renewed = tokens.renewed(due, &pair).await.map_err(not_ready)?;
            // ThingSpace may issue a token before all of its servers know it, so a call without an
            // effect is repeated once with the same token.
            if renewed.headers() != pair.headers() {
                renewals.count(due, &renewed);
            } else if !endpoint.has_no_effect() || std::mem::replace(&mut is_same, true) {
                return Err(CallFailure::permanent(Tokens::same_token_refused()));
            }
            pair = renewed;
            let next = set.measured(class, set.permits.wait_again(class));
            permit = match send_by {
                None => next.await,
                Some(by) => {
                    tokio::time::timeout_at(by, next).await.map_err(|_| CallFailure::too_late())?
                }
            }
            .map_err(not_ready)?;
        }
    }

    /// Sends a call once. The inner error names the tokens that were refused.
    async fn attempt<T>(
        &self,
        set: &CredentialSet,
        endpoint: Endpoint<'_>,
        pair: &TokenPair,
        body: Bytes,
        judge: &impl Fn(&Reply) -> Verdict<T>,
    ) -> Result<Result<T, Stale>, CallFailure> {
        let result = self.transport.send(endpoint, pair.headers(), body).await;
        let reply = result.map_err(|failure| CallFailure::unanswered(endpoint, failure))?;
        let verdict = judge(&reply);
        if matches!(verdict, Verdict::Done(_) | Verdict::Refused(_)) {
            set.tokens.worked(pair);
        }
        match verdict {
            Verdict::Done(done) => {
                set.failures.succeeded(set.tokens.name());
                Ok(Ok(done))
            }
            Verdict::Stale(stale) => Ok(Err(stale)),
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
