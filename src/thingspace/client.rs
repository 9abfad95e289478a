//! The calls others make: what they cost at the limiter, which tokens they carry, and the one repeat per kind of token.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    Error, Order, Registration, StatusAnswer, Target, code,
    limit::{Class, Limiter, Permit},
    session::{Pair, Tokens},
    transport::{Endpoint, Failure, Transport},
    trouble::Trouble,
    verdict::{Stale, Verdict, judge},
    wire,
};
use crate::{
    config,
    identity::{AccountName, RequestId},
    store::Store,
};

/// ThingSpace, for all configured credentials. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<Transport>,
    accounts: Arc<HashMap<AccountName, Arc<Upstream>>>,
}

/// What the accounts of one set of credentials share.
#[derive(Debug)]
struct Upstream {
    tokens: Arc<Tokens>,
    limiter: Limiter,
    trouble: Trouble,
}

/// Why no client can be built from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{key} is not a plain http:// or https:// URL")]
    Url { key: &'static str },
    #[error("thingspace.calls_per_second must be at least 1")]
    Rate,
    #[error(
        "the HTTPS client cannot be set up; are trusted CA certificates installed (package ca-certificates)?"
    )]
    Tls(#[source] reqwest::Error),
}

/// The right to send one order, from [`Client::prepare_order`]. Dropped unused, it costs nothing.
#[derive(Debug)]
pub struct OrderPermit {
    upstream: Arc<Upstream>,
    permit: Permit,
}

/// What a status is asked for, which decides how long it may wait for the rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request of ours: waits its turn, after the orders, but gets at least 30 % of the rate.
    Poll,
    /// Somebody asks for a request that was made elsewhere: at most 5 % of the rate, and never waits
    /// ([`Error::Throttled`] when that is used up).
    Foreign,
}

/// What ThingSpace knows of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusLookup {
    Found(StatusAnswer),
    /// ThingSpace does not know this request (yet).
    NotKnown,
}

impl Client {
    /// Must be called inside a tokio runtime: each set of credentials has a small task that hands out the rate. The
    /// tasks end when the last clone of the client is gone. No secret file is read, nothing is sent. What was begun with the
    /// credentials and must be reported is among `tasks`.
    pub fn new(
        thingspace: &config::ThingSpace,
        credentials: &[config::Credentials],
        store: &Arc<dyn Store>,
        tasks: &TaskTracker,
    ) -> Result<Self, BuildError> {
        let rate = thingspace.calls_per_second.try_into().map_err(|_| BuildError::Rate)?;
        let transport = Arc::new(Transport::new(thingspace)?);
        let mut accounts = HashMap::new();
        for set in credentials {
            let upstream = Arc::new(Upstream {
                tokens: Arc::new(Tokens::new(set, Arc::clone(&transport), Arc::clone(store), tasks.clone())),
                limiter: Limiter::new(rate),
                trouble: Trouble::default(),
            });
            for account in &set.accounts {
                accounts.insert(account.clone(), Arc::clone(&upstream));
            }
        }
        Ok(Self { transport, accounts: Arc::new(accounts) })
    }

    /// True when some credentials serve this account.
    pub fn serves(&self, account: &AccountName) -> bool {
        self.accounts.contains_key(account)
    }

    /// Everything an order needs before it is sent: a bearer, a session, a permit of the rate limit. Cancel-safe: drop
    /// it at the deadline. Nothing is sent for the order itself.
    pub async fn prepare_order(&self, account: &AccountName) -> Result<OrderPermit, Error> {
        let upstream = self.upstream(account)?;
        upstream.tokens.pair().await?;
        let permit = upstream.limiter.wait(Class::Order).await?;
        Ok(OrderPermit { upstream, permit })
    }

    /// One POST. Repeats only after an authentication refusal: one renewal and one repeat per kind of token. After
    /// [`Error::NotSent`] the caller may call it again with a new permit.
    pub async fn place_order(&self, permit: OrderPermit, order: &Order) -> Result<RequestId, Error> {
        let OrderPermit { upstream, permit } = permit;
        let body = wire::order(order);
        self.exchange(&upstream, permit, Endpoint::Download, body, wire::request_id).await
    }

    /// One GET (and the same authentication repeats), and how long that took once it had its permit.
    pub async fn request_status(
        &self,
        account: &AccountName,
        request: &RequestId,
        purpose: Purpose,
    ) -> Result<(StatusLookup, Duration), Error> {
        let upstream = self.upstream(account)?;
        upstream.tokens.pair().await?;
        let permit = match purpose {
            Purpose::Poll => upstream.limiter.wait(Class::Poll).await?,
            Purpose::Foreign => upstream.limiter.take_foreign()?,
        };
        let began = Instant::now();
        let endpoint = Endpoint::Status { account, request };
        let answer =
            self.exchange(&upstream, permit, endpoint, Bytes::new(), |body| wire::status(body, request));
        let lookup = match answer.await {
            Ok(answer) => StatusLookup::Found(answer),
            Err(Error::Refused(refusal)) if code::says_unknown_request(&refusal) => StatusLookup::NotKnown,
            Err(error) => return Err(error),
        };
        Ok((lookup, began.elapsed()))
    }

    /// Where the results of an account go, service by service.
    pub async fn callbacks(&self, account: &AccountName) -> Result<Vec<Registration>, Error> {
        self.manage(account, Endpoint::Callbacks { account }, Bytes::new(), wire::registrations).await
    }

    /// Registers a target for a service that has none: ThingSpace refuses it over another.
    pub async fn register_callback(
        &self,
        account: &AccountName,
        service: &str,
        target: &Target<'_>,
    ) -> Result<(), Error> {
        let body = wire::registration(service, target);
        let answer = |body: &[u8]| wire::registered(body, service);
        self.manage(account, Endpoint::RegisterCallback { account }, body, answer).await
    }

    /// From here on results of this service are lost, until it is registered again.
    pub async fn deregister_callback(&self, account: &AccountName, service: &str) -> Result<(), Error> {
        let endpoint = Endpoint::DeregisterCallback { account, service };
        self.manage(account, endpoint, Bytes::new(), |body| wire::registered(body, service)).await
    }

    /// A call that has its turn like a poll.
    async fn manage<T>(
        &self,
        account: &AccountName,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, Error> {
        let upstream = self.upstream(account)?;
        upstream.tokens.pair().await?;
        let permit = upstream.limiter.wait(Class::Poll).await?;
        self.exchange(&upstream, permit, endpoint, body, parse).await
    }

    fn upstream(&self, account: &AccountName) -> Result<Arc<Upstream>, Error> {
        self.accounts.get(account).cloned().ok_or_else(|| Error::NotSent {
            reason: "no credentials serve this account".to_owned(),
            retry_after: None,
        })
    }

    /// Sends a call with both tokens, and again after each kind of token was refused and renewed: three times at most.
    /// The repeats ride on the call's own permit.
    async fn exchange<T>(
        &self,
        upstream: &Upstream,
        permit: Permit,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, Error> {
        let tokens = &upstream.tokens;
        let mut pair = tokens.pair().await?;
        permit.spend();
        let (mut bearer_renewed, mut session_renewed) = (false, false);
        loop {
            let stale = match self.attempt(upstream, endpoint, &pair, body.clone(), &parse).await? {
                Attempt::Done(done) => return Ok(done),
                Attempt::Stale(stale) => stale,
            };
            let (renew_bearer, renew_session) =
                (stale.bearer && !bearer_renewed, stale.session && !session_renewed);
            if !renew_bearer && !renew_session {
                return Err(upstream.failed(Error::CredentialsRejected { name: tokens.name().to_owned() }));
            }
            if renew_bearer {
                tokens.invalidate_bearer(&pair);
                bearer_renewed = true;
            }
            if renew_session {
                tokens.invalidate_session(&pair);
                session_renewed = true;
            }
            let renewed = tokens.pair().await?;
            if renewed.headers() == pair.headers() {
                return Err(upstream.failed(Tokens::same_again()));
            }
            pair = renewed;
        }
    }

    /// Sends a call once. What fails is logged here, but for what its caller says of one call: an order is refused, or of
    /// unknown outcome; a request is not known.
    async fn attempt<T>(
        &self,
        upstream: &Upstream,
        endpoint: Endpoint<'_>,
        pair: &Pair,
        body: Bytes,
        parse: &impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Attempt<T>, Error> {
        let is_order = matches!(endpoint, Endpoint::Download);
        let error = match self.transport.send(endpoint, pair.headers(), body).await {
            Ok(reply) => match judge(&reply, parse) {
                Verdict::Done(done) => {
                    upstream.trouble.answered(upstream.tokens.name());
                    return Ok(Attempt::Done(done));
                }
                Verdict::Stale(stale) => return Ok(Attempt::Stale(stale)),
                Verdict::Refused(refusal) => {
                    let told = is_order || code::says_unknown_request(&refusal);
                    let error = Error::Refused(refusal);
                    return Err(if told { error } else { upstream.failed(error) });
                }
                Verdict::Throttled(retry_after) => Error::Throttled { retry_after },
                Verdict::Unclear { reason, .. } => Error::Ambiguous { reason },
            },
            Err(failure) => Error::from(failure),
        };
        let told = is_order && matches!(error, Error::Ambiguous { .. });
        Err(if told { error } else { upstream.failed(error) })
    }
}

/// What became of a call that was answered.
enum Attempt<T> {
    Done(T),
    Stale(Stale),
}

impl Upstream {
    fn failed(&self, error: Error) -> Error {
        self.trouble.failed(self.tokens.name(), &error);
        error
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected(reason) => Self::NotSent { reason, retry_after: None },
            Failure::Broken(reason) => Self::Ambiguous { reason },
        }
    }
}
