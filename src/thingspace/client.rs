//! The calls others make: what they wait for before they are sent, and which of them are tried
//! again.
//!
//! A call waits for its turn before it is sent, and each try has a turn of its own. A caller that
//! stops waiting gives its turn back, and nothing is sent for it any more. When the drain begins,
//! calls that wait for their first turn end.

mod exchange;
pub(super) mod limit;
mod retry;
mod trouble;

pub use self::retry::Retries;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::exchange::{Call, Failed};
use self::{
    limit::{Class, Connections, Turn, Turns},
    trouble::Trouble,
};
use super::{
    Error, HostHealth, Order, Registration, Sent, StatusAnswer, Target, UnblockMode,
    http::{
        body::Body,
        code,
        transport::{Endpoint, Reply, Transport},
        verdict::{judge, judge_order},
        wire,
    },
    login::{Shared, Standing, Tokens, Unblocked, Users},
};
use crate::{
    config::{CredentialsConfig, ThingSpaceConfig},
    identity::{AccountName, RequestId},
    store::Store,
};

/// ThingSpace, for all configured credentials. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<Transport>,
    accounts: Arc<HashMap<AccountName, Arc<Upstream>>>,
    /// One for each set of credentials.
    upstreams: Arc<[Arc<Upstream>]>,
    drain: CancellationToken,
}

/// What the accounts of one set of credentials share.
#[derive(Debug)]
struct Upstream {
    tokens: Arc<Tokens>,
    turns: Turns,
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

/// The right to make one poll, from [`Client::prepare_poll`]. Dropped unused, it costs nothing.
#[derive(Debug)]
pub struct PollTurn(Turn);

/// What a status is asked for, which decides for which turn it waits.
#[derive(Debug)]
pub enum Purpose {
    /// A request of ours. Polls get at least 30 % of the rate.
    Poll(PollTurn),
    /// A caller asks about a request of ours: at least 10 % of the rate, and what orders and polls
    /// leave. The turn of a poll for the same answer may be handed over, too.
    Query { poll: oneshot::Receiver<PollTurn> },
    /// A caller asks about a request that was placed elsewhere: 5 % of the rate while other calls
    /// wait.
    Elsewhere,
}

/// What ThingSpace knows of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusLookup {
    Found(StatusAnswer),
    /// ThingSpace does not know this request (yet).
    NotKnown,
}

impl Client {
    /// Must be called inside a tokio runtime: each set of credentials has a small task that hands
    /// out turns. The tasks end when the last clone of the client is gone, and another one looks at
    /// the files. Nothing is sent. What was begun with the credentials and must be reported is
    /// among `tasks`.
    pub fn new(
        thingspace: &ThingSpaceConfig,
        credentials: &[CredentialsConfig],
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
            users: Arc::new(Users::default()),
        };
        let connections = Connections::new(thingspace.max_connections, credentials.len());
        let (mut accounts, mut upstreams) = (HashMap::new(), Vec::new());
        for (number, set) in credentials.iter().enumerate() {
            let upstream = Arc::new(Upstream {
                tokens: Tokens::new(set, thingspace, shared.clone()),
                turns: Turns::new(rate, Arc::clone(&connections), number),
                trouble: Trouble::default(),
            });
            for account in &set.accounts {
                accounts.insert(account.clone(), Arc::clone(&upstream));
            }
            upstreams.push(upstream);
        }
        let (accounts, upstreams) = (Arc::new(accounts), upstreams.into());
        Ok(Self { transport, accounts, upstreams, drain: CancellationToken::new() })
    }

    /// How the logins of each set of credentials are doing, by its name: now, and whenever that
    /// changes.
    pub fn standings(&self) -> impl Iterator<Item = (&str, watch::Receiver<Standing>)> {
        self.upstreams.iter().map(|upstream| (upstream.tokens.name(), upstream.tokens.standing()))
    }

    /// Lets a set of credentials be tried once more, as an operator asks for it. `None`: there is
    /// no set of this name.
    pub async fn unblock(&self, name: &str, mode: UnblockMode) -> Option<Result<Unblocked, Error>> {
        let upstream = self.upstreams.iter().find(|upstream| upstream.tokens.name() == name)?;
        Some(upstream.tokens.unblock(mode).await)
    }

    /// True when some credentials serve this account.
    pub fn serves(&self, account: &AccountName) -> bool {
        self.accounts.contains_key(account)
    }

    /// From now on a password that is also in this file, which holds the one of callbacks, logs
    /// nobody in.
    pub fn keep_apart_from(&self, sent: &Sent) {
        for upstream in &*self.upstreams {
            upstream.tokens.keep_apart_from(sent.clone());
        }
    }

    /// How ThingSpace's hosts are doing: the API's, then that of the tokens if it is another.
    pub fn hosts(&self) -> Vec<HostHealth> {
        self.transport.health()
    }

    /// From now on no order, status query or poll begins: those that wait for their turn end with
    /// [`Error::Draining`]. Calls that have been sent once go on, and so do changes of callbacks.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Everything an order needs before it is sent: a host that answers, a bearer, a session, a
    /// turn. Refused at once with [`Error::Busy`] if the turn cannot come before `deadline`.
    /// Cancel-safe: drop it at the deadline. Nothing is sent for the order itself.
    pub async fn prepare_order(
        &self,
        account: &AccountName,
        deadline: Instant,
    ) -> Result<OrderPermit, Error> {
        let upstream = self.upstream(account)?;
        let prepared = async {
            // Here and not when it is sent: by then it is durable, and its lease runs.
            let answers = self.transport.ensure_it_answers().await;
            answers.map_err(|wait| upstream.tell(Failed::left_alone(wait)))?;
            self.ready(&upstream).await?;
            upstream.turns.wait(Class::Order, account, Some(deadline)).await
        };
        let turn = self.unless_draining(prepared).await?;
        Ok(OrderPermit { upstream, turn })
    }

    /// Everything a poll of one of an account's requests needs before it is sent. Cancel-safe.
    pub async fn prepare_poll(&self, account: &AccountName) -> Result<PollTurn, Error> {
        let upstream = self.upstream(account)?;
        self.unless_draining(self.turn(&upstream, Class::Poll, account)).await.map(PollTurn)
    }

    /// One POST. Repeats only after an authentication refusal: one renewal and one repeat per kind
    /// of token. After `send_by` it is neither sent nor repeated, however long a token took. After
    /// [`Error::NotConnected`] the caller may call it again with a new permit.
    pub async fn place_order(
        &self,
        permit: OrderPermit,
        order: &Order,
        send_by: Instant,
    ) -> Result<RequestId, Error> {
        let OrderPermit { upstream, turn } = permit;
        let call =
            Call { endpoint: Endpoint::Download, body: wire::order(order), send_by: Some(send_by) };
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
        let elsewhere = matches!(purpose, Purpose::Elsewhere);
        let endpoint = Endpoint::Status { account, request, elsewhere };
        let parse = |body: &Body<'_>| wire::status(body, account, request);
        let turn = self.unless_draining(self.first_turn(&upstream, account, purpose)).await?;
        match self.call(&upstream, account, turn, endpoint, Bytes::new(), parse).await {
            Ok((answer, took)) => Ok((StatusLookup::Found(answer), took)),
            Err((Error::Refused(refusal), took)) if code::says_unknown_request(&refusal) => {
                Ok((StatusLookup::NotKnown, took))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Where the results of an account go, service by service.
    pub async fn callbacks(&self, account: &AccountName) -> Result<Vec<Registration>, Error> {
        self.manage(account, Endpoint::Callbacks { account }, Bytes::new(), wire::registrations)
            .await
    }

    /// Registers a target for a service that has none: ThingSpace refuses it over another.
    pub async fn register_callback(
        &self,
        account: &AccountName,
        service: &str,
        target: &Target<'_>,
    ) -> Result<(), Error> {
        let body = wire::registration(service, target);
        let answer = |body: &Body<'_>| wire::registered(body, service);
        self.manage(account, Endpoint::RegisterCallback { account }, body, answer).await
    }

    /// From here on results of this service are lost, until it is registered again.
    pub async fn deregister_callback(
        &self,
        account: &AccountName,
        service: &str,
    ) -> Result<(), Error> {
        let endpoint = Endpoint::DeregisterCallback { account, service };
        self.manage(account, endpoint, Bytes::new(), |body| wire::registered(body, service)).await
    }

    /// A call that has its turn like a poll.
    async fn manage<T>(
        &self,
        account: &AccountName,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&Body<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let upstream = self.upstream(account)?;
        let turn = self.turn(&upstream, Class::Poll, account).await?;
        let called = self.call(&upstream, account, turn, endpoint, body, parse).await;
        called.map(|(done, _)| done).map_err(|(error, _)| error)
    }

    /// A call that is no order: tried again where that is safe, each time with a turn of its own.
    /// With the time that the last try took.
    async fn call<T>(
        &self,
        upstream: &Arc<Upstream>,
        account: &AccountName,
        mut turn: Turn,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&Body<'_>) -> Option<T>,
    ) -> Result<(T, Duration), (Error, Duration)> {
        let judge = |reply: &Reply| judge(reply, &parse);
        let (class, mut retries) = (turn.class(), Retries::default());
        loop {
            let began = Instant::now();
            let call = Call { endpoint, body: body.clone(), send_by: None };
            let failed = match self.exchange(upstream, turn, call, &judge).await {
                Ok(done) => return Ok((done, began.elapsed())),
                Err(failed) => failed,
            };
            let took = began.elapsed();
            let Some(pause) = failed.pause(&mut retries) else {
                return Err((upstream.tell(failed), took));
            };
            tracing::debug!(
                credentials = upstream.tokens.name(),
                ?pause,
                "trying again: {}",
                failed.error()
            );
            tokio::time::sleep(pause).await;
            turn = match self.turn(upstream, class, account).await {
                Ok(turn) => turn,
                // What failed says more than what kept it from being tried again.
                Err(_) => return Err((upstream.tell(failed), took)),
            };
        }
    }

    /// The turn of a status call that was not tried yet.
    async fn first_turn(
        &self,
        upstream: &Arc<Upstream>,
        account: &AccountName,
        purpose: Purpose,
    ) -> Result<Turn, Error> {
        match purpose {
            Purpose::Poll(PollTurn(turn)) => Ok(turn),
            Purpose::Query { poll } => tokio::select! {
                turn = self.turn(upstream, Class::Query, account) => turn,
                Ok(PollTurn(turn)) = poll => Ok(turn),
            },
            Purpose::Elsewhere => self.turn(upstream, Class::Elsewhere, account).await,
        }
    }

    /// Waits for a turn, unless both tokens are missing or the host is left alone: then waiting
    /// would be for nothing.
    async fn turn(
        &self,
        upstream: &Arc<Upstream>,
        class: Class,
        account: &AccountName,
    ) -> Result<Turn, Error> {
        self.ready(upstream).await?;
        upstream.turns.wait(class, account, None).await
    }

    async fn ready(&self, upstream: &Arc<Upstream>) -> Result<(), Error> {
        if let Some(wait) = self.transport.left_alone() {
            return Err(upstream.tell(Failed::left_alone(wait)));
        }
        upstream.tokens.pair().await.map(drop)
    }

    async fn unless_draining<T>(
        &self,
        wait: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.drain.run_until_cancelled(wait).await.unwrap_or(Err(Error::Draining))
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
