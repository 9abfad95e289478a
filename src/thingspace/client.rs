//! The calls others make: what they wait for before they are sent, and which of them are tried again.
//!
//! A call has a connection and a permit of the rate before it is sent, and each try has its own. Whoever stops waiting, at
//! its deadline or for good, gives back what it held, and nothing is sent for it any more.

mod exchange;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::exchange::{Call, Failed};
use super::{
    Error, HostHealth, Order, Registration, Retries, StatusAnswer, Target, code,
    connections::{Connection, Connections},
    limit::{Class, Limiter, Permit},
    session::{Shared, Standing, Tokens, Unblocked},
    transport::{Endpoint, Reply, Transport},
    trouble::Trouble,
    verdict::{judge, judge_order},
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
    connections: Arc<Connections>,
    accounts: Arc<HashMap<AccountName, Arc<Upstream>>>,
    /// One for each set of credentials.
    upstreams: Arc<[Arc<Upstream>]>,
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
    turn: Turn,
}

/// What a call has to have before it is sent.
#[derive(Debug)]
struct Turn {
    permit: Permit,
    connection: Connection,
}

/// What a status is asked for, which decides how long it may wait for its turn.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// A request of ours: gets at least 30 % of the rate.
    Poll,
    /// A caller asks: waits until no order does, with what polls leave. Once `polled` is cancelled somebody waits for
    /// the same answer as for a poll, and it has a poll's turn too.
    Ask { polled: CancellationToken },
    /// Somebody asks for a request that was made elsewhere: at most 5 % of the rate, and never waits for it
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
    /// tasks end when the last clone of the client is gone, and another one looks at the files. Nothing is sent. What was begun
    /// with the credentials and must be reported is among `tasks`.
    pub fn new(
        thingspace: &config::ThingSpace,
        credentials: &[config::Credentials],
        store: &Arc<dyn Store>,
        tasks: &TaskTracker,
    ) -> Result<Self, BuildError> {
        let rate = thingspace.calls_per_second.try_into().map_err(|_| BuildError::Rate)?;
        let probed = credentials.iter().flat_map(|set| &set.accounts).next();
        let transport = Arc::new(Transport::new(thingspace, probed.cloned())?);
        let shared = Shared {
            transport: Arc::clone(&transport),
            store: Arc::clone(store),
            tasks: tasks.clone(),
            incarnation: Uuid::now_v7().to_string().into(),
        };
        let (mut accounts, mut upstreams) = (HashMap::new(), Vec::new());
        for set in credentials {
            let upstream = Arc::new(Upstream {
                tokens: Tokens::new(set, thingspace, shared.clone()),
                limiter: Limiter::new(rate),
                trouble: Trouble::default(),
            });
            for account in &set.accounts {
                accounts.insert(account.clone(), Arc::clone(&upstream));
            }
            upstreams.push(upstream);
        }
        let connections = Arc::new(Connections::new(thingspace.max_connections));
        Ok(Self { transport, connections, accounts: Arc::new(accounts), upstreams: upstreams.into() })
    }

    /// How the logins of each set of credentials are doing, by its name: now, and whenever that changes.
    pub fn standings(&self) -> impl Iterator<Item = (&str, watch::Receiver<Standing>)> {
        self.upstreams.iter().map(|upstream| (upstream.tokens.name(), upstream.tokens.standing()))
    }

    /// Lets a set of credentials be tried once more. `logged_in`: an operator has logged in elsewhere,
    /// which clears what ThingSpace has counted. `None`: there is no set of this name.
    pub async fn unblock(&self, name: &str, logged_in: bool) -> Option<Result<Unblocked, Error>> {
        let upstream = self.upstreams.iter().find(|upstream| upstream.tokens.name() == name)?;
        Some(upstream.tokens.unblock(logged_in).await)
    }

    /// True when some credentials serve this account.
    pub fn serves(&self, account: &AccountName) -> bool {
        self.accounts.contains_key(account)
    }

    /// From now on a password that is also in this file, which holds the one of callbacks, logs nobody in.
    pub fn keep_apart_from(&self, sent: &Path) {
        for upstream in &*self.upstreams {
            upstream.tokens.keep_apart_from(sent.to_owned());
        }
    }

    /// How ThingSpace's hosts are doing: the API's, then that of the tokens if it is another.
    pub fn hosts(&self) -> Vec<HostHealth> {
        self.transport.health()
    }

    /// Everything an order needs before it is sent: a host that answers, a bearer, a session, a connection, a permit of the
    /// rate limit. Cancel-safe: drop it at the deadline. Nothing is sent for the order itself.
    pub async fn prepare_order(&self, account: &AccountName) -> Result<OrderPermit, Error> {
        let upstream = self.upstream(account)?;
        // Here and not when it is sent: by then it is durable, and its lease runs.
        let answers = self.transport.ensure_it_answers().await;
        answers.map_err(|wait| upstream.tell(Failed::left_alone(wait)))?;
        self.ready(&upstream).await?;
        let turn = self.turn(&upstream, Class::Order).await?;
        Ok(OrderPermit { upstream, turn })
    }

    /// One POST. Repeats only after an authentication refusal: one renewal and one repeat per kind of token. After `send_by` it
    /// is neither sent nor repeated, however long a token took. After [`Error::NotConnected`] the caller may call it again with a
    /// new permit.
    pub async fn place_order(
        &self,
        permit: OrderPermit,
        order: &Order,
        send_by: Instant,
    ) -> Result<RequestId, Error> {
        let OrderPermit { upstream, turn } = permit;
        let call = Call { endpoint: Endpoint::Download, body: wire::order(order), send_by: Some(send_by) };
        let placed = self.exchange(&upstream, turn, call, &judge_order).await;
        placed.map_err(|failed| upstream.tell(failed))
    }

    /// A GET, tried again if it fails, and how long the answer took once that try had its turn.
    pub async fn request_status(
        &self,
        account: &AccountName,
        request: &RequestId,
        purpose: Purpose,
    ) -> Result<(StatusLookup, Duration), Error> {
        let upstream = self.upstream(account)?;
        let endpoint = Endpoint::Status { account, request };
        let parse = |body: &[u8]| wire::status(body, request);
        match self.call(&upstream, &purpose, endpoint, Bytes::new(), parse).await {
            Ok((answer, took)) => Ok((StatusLookup::Found(answer), took)),
            Err((Error::Refused(refusal), took)) if code::says_unknown_request(&refusal) => {
                Ok((StatusLookup::NotKnown, took))
            }
            Err((error, _)) => Err(error),
        }
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
        let called = self.call(&upstream, &Purpose::Poll, endpoint, body, parse).await;
        called.map(|(done, _)| done).map_err(|(error, _)| error)
    }

    /// A call that is no order: tried again where that is safe, each time with a turn of its own. With the time that the last
    /// try took.
    async fn call<T>(
        &self,
        upstream: &Arc<Upstream>,
        purpose: &Purpose,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(T, Duration), (Error, Duration)> {
        let judge = |reply: &Reply| judge(reply, &parse);
        let mut retries = Retries::default();
        let waited = self.take_turn(upstream, purpose).await;
        let mut turn = waited.map_err(|error| (error, Duration::ZERO))?;
        loop {
            let began = Instant::now();
            let call = Call { endpoint, body: body.clone(), send_by: None };
            let failed = match self.exchange(upstream, turn, call, &judge).await {
                Ok(done) => return Ok((done, began.elapsed())),
                Err(failed) => failed,
            };
            let took = began.elapsed();
            let Some(pause) = failed.pause(&mut retries) else { return Err((upstream.tell(failed), took)) };
            tracing::debug!(credentials = upstream.tokens.name(), ?pause, "trying again: {}", failed.error());
            tokio::time::sleep(pause).await;
            turn = match self.take_turn(upstream, purpose).await {
                Ok(turn) => turn,
                // What failed says more than what kept it from being tried again.
                Err(_) => return Err((upstream.tell(failed), took)),
            };
        }
    }

    /// Both tokens are there, and the host is not left alone: else waiting for a turn would be for nothing.
    async fn ready(&self, upstream: &Arc<Upstream>) -> Result<(), Error> {
        if let Some(wait) = self.transport.left_alone() {
            return Err(upstream.tell(Failed::left_alone(wait)));
        }
        upstream.tokens.pair().await.map(drop)
    }

    async fn take_turn(&self, upstream: &Arc<Upstream>, purpose: &Purpose) -> Result<Turn, Error> {
        self.ready(upstream).await?;
        match purpose {
            Purpose::Poll => self.turn(upstream, Class::Poll).await,
            Purpose::Ask { polled } => {
                let as_poll = async {
                    polled.cancelled().await;
                    self.turn(upstream, Class::Poll).await
                };
                tokio::select! {
                    turn = self.turn(upstream, Class::Ask) => turn,
                    turn = as_poll => turn,
                }
            }
            Purpose::Foreign => {
                let connection = self.connections.wait(Class::Ask).await?;
                Ok(Turn { permit: upstream.limiter.take_foreign()?, connection })
            }
        }
    }

    /// The connection first: a permit that waits for one would be missing from the rate.
    async fn turn(&self, upstream: &Upstream, class: Class) -> Result<Turn, Error> {
        let connection = self.connections.wait(class).await?;
        Ok(Turn { permit: upstream.limiter.wait(class).await?, connection })
    }

    fn upstream(&self, account: &AccountName) -> Result<Arc<Upstream>, Error> {
        self.accounts.get(account).cloned().ok_or_else(|| Error::NotSent {
            reason: "no credentials serve this account".to_owned(),
            retry_after: None,
        })
    }
}

impl Upstream {
    /// A call failed for good: said here, unless whoever made it says it.
    fn tell(&self, failed: Failed) -> Error {
        if failed.is_told_here() {
            self.trouble.failed(self.tokens.name(), failed.error());
        }
        failed.into_error()
    }
}
