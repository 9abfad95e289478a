//! One function for each endpoint, with the permits, retries and log lines of its calls.
//!
//! - [`limit`]: permits, which limit the rate and divide the connections between classes of calls
//!   and sets of credentials.
//! - [`exchange`]: sends one call with both tokens, and renews those that were refused.
//! - [`permit_wait`]: measures how long calls wait for their permits.
//! - [`reports`]: what operators see.
//! - [`retry`] and [`failure_log`]: the pauses between attempts, and the log lines about failures.
//!
//! Each attempt has a permit of its own. A caller that stops waiting returns its permit, and
//! nothing more is sent for it. When the drain begins, calls that wait for their first permit end.

mod exchange;
mod failure_log;
mod limit;
mod permit_wait;
mod reports;
mod retry;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::{
    exchange::{CallFailure, UpstreamCall},
    failure_log::FailureLog,
    limit::{Class, ConnectionPool, Permit, Permits},
};
use super::{
    CallbackPasswords, Error, Order, Registration, StatusAnswer, Target, UnblockMode, Unblocked,
    http::{
        body::ReplyBody,
        code,
        reply::Reply,
        transport::{Endpoint, Transport},
        verdict::{judge, judge_order},
        wire,
    },
    login::{LoginContext, Tokens, Users},
};
use crate::{
    config::{CredentialsConfig, ThingSpaceConfig},
    identity::{AccountName, RequestId},
    store::Store,
};

pub(crate) use self::retry::Retries;

/// The client of ThingSpace for all configured credentials. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<Transport>,
    accounts: Arc<HashMap<AccountName, Arc<CredentialSet>>>,
    sets: Arc<[Arc<CredentialSet>]>,
    drain: CancellationToken,
}

/// What the accounts of one set of credentials share.
#[derive(Debug)]
struct CredentialSet {
    tokens: Arc<Tokens>,
    permits: Permits,
    failures: FailureLog,
}

/// Why no client can be built from a configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum BuildError {
    #[error("{key} is not a plain http:// or https:// URL")]
    Url { key: &'static str },
    #[error("thingspace.calls_per_second must be at least 1")]
    Rate,
    #[error(
        "the HTTPS client cannot be set up; are trusted CA certificates installed (package \
         ca-certificates)?"
    )]
    Tls(#[source] reqwest::Error),
}

/// The right to send one order, from [`Client::prepare_order`]. It may be dropped unused.
#[derive(Debug)]
pub(crate) struct OrderPermit {
    set: Arc<CredentialSet>,
    permit: Permit,
}

/// The right to send one poll, from [`Client::prepare_poll`]. It may be dropped unused.
#[derive(Debug)]
pub struct PollPermit(Permit);

/// Why the status of a request is queried, which decides about the permit.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// A poll. Polls get at least 30 % of the rate.
    Poll(PollPermit),
    /// A caller's status query about a request of this gateway. These get at least 10 % of the
    /// rate, and what orders and polls do not use. A poll of the same request may pass on its
    /// permit.
    Query { poll: oneshot::Receiver<PollPermit> },
    /// A status query about an external request. These get 5 % of the rate while other calls wait.
    External,
}

/// What ThingSpace knows about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StatusLookup {
    Found(StatusAnswer),
    /// ThingSpace does not know the request, or not yet.
    NotKnown,
}

impl Client {
    /// Builds a client. Sends nothing. `tasks` tracks renewals, so that a drain waits for their
    /// outcome.
    ///
    /// Must be called inside a tokio runtime, because it starts two tasks for each set of
    /// credentials: one issues permits, and one watches the credential files. They end when the
    /// last clone of the client is dropped.
    pub fn new(
        thingspace: &ThingSpaceConfig,
        credentials: &[CredentialsConfig],
        store: &Arc<dyn Store>,
        tasks: &TaskTracker,
    ) -> Result<Self, BuildError> {
        let rate = thingspace.calls_per_second.try_into().map_err(|_| BuildError::Rate)?;
        let probed = credentials.iter().flat_map(|set| &set.accounts).next();
        let transport = Arc::new(Transport::new(thingspace, probed.cloned())?);
        let context = LoginContext {
            transport: Arc::clone(&transport),
            store: Arc::clone(store),
            tasks: tasks.clone(),
            incarnation: Uuid::now_v7().to_string().into(),
            users: Arc::new(Users::default()),
        };
        let connections = ConnectionPool::new(thingspace.max_connections, credentials.len());
        let (mut accounts, mut sets) = (HashMap::new(), Vec::new());
        for (number, config) in credentials.iter().enumerate() {
            let set = Arc::new(CredentialSet {
                tokens: Tokens::new(config, thingspace, &context),
                permits: Permits::new(rate, Arc::clone(&connections), number),
                failures: FailureLog::default(),
            });
            for account in &config.accounts {
                accounts.insert(account.clone(), Arc::clone(&set));
            }
            sets.push(set);
        }
        let (accounts, sets) = (Arc::new(accounts), sets.into());
        Ok(Self { transport, accounts, sets, drain: CancellationToken::new() })
    }

    /// Permits one more attempt with a set of credentials, for an operator. Returns `None` if no
    /// set has this name.
    pub(crate) async fn unblock(
        &self,
        name: &str,
        mode: UnblockMode,
    ) -> Option<Result<Unblocked, Error>> {
        let set = self.sets.iter().find(|set| set.tokens.name() == name)?;
        Some(set.tokens.unblock(mode).await)
    }

    pub(crate) fn serves(&self, account: &AccountName) -> bool {
        self.accounts.contains_key(account)
    }

    /// Refuses to log in with the passwords of callbacks from now on.
    pub(crate) fn refuse_passwords(&self, callbacks: &CallbackPasswords) {
        for set in &*self.sets {
            set.tokens.refuse(callbacks.clone());
        }
    }

    /// Begins the drain: orders, status queries and polls that wait for their permit end with
    /// [`Error::Draining`]. Calls that were sent already continue, as do changes of registrations.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Waits for everything that an order needs before it is sent: a host that answers, both
    /// tokens, a permit. Fails at once with [`Error::Busy`] if no permit is possible before
    /// `deadline`. Cancel-safe: drop it at the deadline. Sends nothing of the order itself.
    pub(crate) async fn prepare_order(
        &self,
        account: &AccountName,
        deadline: Instant,
    ) -> Result<OrderPermit, Error> {
        let set = self.set(account)?;
        let preparation = async {
            // Probes now, because later the order is durable and its lease runs.
            let probe = self.transport.probe_if_due().await;
            probe.map_err(|wait| set.failed(CallFailure::breaker_open(wait)))?;
            self.check_ready(&set).await?;
            let issued = set.permits.wait(Class::Order, account, Some(deadline));
            set.measured(Class::Order, issued).await
        };
        let permit = self.unless_draining(preparation).await?;
        Ok(OrderPermit { set, permit })
    }

    /// Waits for everything that a poll needs before it is sent. Cancel-safe.
    pub(crate) async fn prepare_poll(&self, account: &AccountName) -> Result<PollPermit, Error> {
        let set = self.set(account)?;
        self.unless_draining(self.permit(&set, Class::Poll, account)).await.map(PollPermit)
    }

    /// Sends one order. Repeats it only after ThingSpace refused a token, with a renewed one, at
    /// most twice for each kind of token. Never sends or repeats it after `send_by`. After
    /// [`Error::NotConnected`] the caller may send it again with a new permit.
    pub(crate) async fn place_order(
        &self,
        permit: OrderPermit,
        order: &Order,
        send_by: Instant,
    ) -> Result<RequestId, Error> {
        let OrderPermit { set, permit } = permit;
        let (endpoint, body) = (Endpoint::Download, wire::order(order));
        let call = UpstreamCall { endpoint, body, send_by: Some(send_by) };
        let result = self.exchange(&set, permit, call, &judge_order).await;
        result.map_err(|failure| set.failed(failure))
    }

    /// Queries the status of a request, with retries. Also returns the duration of the last
    /// attempt, from its permit to its answer.
    pub(crate) async fn request_status(
        &self,
        account: &AccountName,
        request: &RequestId,
        purpose: Purpose,
    ) -> Result<(StatusLookup, Duration), Error> {
        let set = self.set(account)?;
        let external = matches!(purpose, Purpose::External);
        let endpoint = Endpoint::Status { account, request, external };
        let parse = |body: &ReplyBody<'_>| wire::status(body, account, request);
        let permit = self.unless_draining(self.first_permit(&set, account, purpose)).await?;
        match self.call(&set, account, permit, endpoint, Bytes::new(), parse).await {
            Ok((answer, took)) => Ok((StatusLookup::Found(answer), took)),
            Err((Error::Refused(refusal), took)) if code::says_unknown_request(&refusal) => {
                Ok((StatusLookup::NotKnown, took))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Lists the registrations of an account, one for each service.
    pub(crate) async fn callbacks(
        &self,
        account: &AccountName,
    ) -> Result<Vec<Registration>, Error> {
        self.manage(account, Endpoint::Callbacks { account }, Bytes::new(), wire::registrations)
            .await
    }

    /// Registers a target for a service that has none. ThingSpace refuses to replace one.
    pub(crate) async fn register_callback(
        &self,
        account: &AccountName,
        service: &str,
        target: &Target<'_>,
    ) -> Result<(), Error> {
        let body = wire::registration(service, target);
        let answer = |body: &ReplyBody<'_>| wire::registered(body, service);
        self.manage(account, Endpoint::RegisterCallback { account }, body, answer).await
    }

    /// Removes the target of a service. Until the next registration, its results are lost.
    pub(crate) async fn deregister_callback(
        &self,
        account: &AccountName,
        service: &str,
    ) -> Result<(), Error> {
        let endpoint = Endpoint::DeregisterCallback { account, service };
        self.manage(account, endpoint, Bytes::new(), |body| wire::registered(body, service)).await
    }

    /// Sends a call about registrations, with a permit for a poll.
    async fn manage<T>(
        &self,
        account: &AccountName,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&ReplyBody<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let set = self.set(account)?;
        let permit = self.permit(&set, Class::Poll, account).await?;
        let result = self.call(&set, account, permit, endpoint, body, parse).await;
        result.map(|(done, _)| done).map_err(|(error, _)| error)
    }

    /// Sends a call that is no order, with retries if they are safe. Also returns the duration of
    /// the last attempt.
    async fn call<T>(
        &self,
        set: &CredentialSet,
        account: &AccountName,
        mut permit: Permit,
        endpoint: Endpoint<'_>,
        body: Bytes,
        parse: impl Fn(&ReplyBody<'_>) -> Option<T>,
    ) -> Result<(T, Duration), (Error, Duration)> {
        let judge = |reply: &Reply| judge(reply, &parse);
        let (class, mut retries) = (permit.class, Retries::default());
        loop {
            let began = Instant::now();
            let call = UpstreamCall { endpoint, body: body.clone(), send_by: None };
            let failure = match self.exchange(set, permit, call, &judge).await {
                Ok(done) => return Ok((done, began.elapsed())),
                Err(failure) => failure,
            };
            let took = began.elapsed();
            let Some(pause) = failure.pause(&mut retries) else {
                return Err((set.failed(failure), took));
            };
            let credentials = set.tokens.name();
            tracing::debug!(credentials, ?pause, "a call is retried: {}", failure.error);
            tokio::time::sleep(pause).await;
            permit = match self.permit(set, class, account).await {
                Ok(permit) => permit,
                // The caller needs to know why the call failed, not why there is no permit.
                Err(_) => return Err((set.failed(failure), took)),
            };
        }
    }

    async fn first_permit(
        &self,
        set: &CredentialSet,
        account: &AccountName,
        purpose: Purpose,
    ) -> Result<Permit, Error> {
        match purpose {
            Purpose::Poll(PollPermit(permit)) => Ok(permit),
            Purpose::Query { poll } => tokio::select! {
                permit = self.permit(set, Class::Query, account) => permit,
                Ok(PollPermit(permit)) = poll => Ok(permit),
            },
            Purpose::External => self.permit(set, Class::External, account).await,
        }
    }

    /// Waits for a permit. Fails at once if there is no token or the breaker is open, because then
    /// the call would fail after the wait.
    async fn permit(
        &self,
        set: &CredentialSet,
        class: Class,
        account: &AccountName,
    ) -> Result<Permit, Error> {
        self.check_ready(set).await?;
        set.measured(class, set.permits.wait(class, account, None)).await
    }

    async fn check_ready(&self, set: &CredentialSet) -> Result<(), Error> {
        if let Some(wait) = self.transport.breaker_open_for() {
            return Err(set.failed(CallFailure::breaker_open(wait)));
        }
        set.tokens.pair().await.map(drop)
    }

    async fn unless_draining<T>(
        &self,
        wait: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.drain.run_until_cancelled(wait).await.unwrap_or(Err(Error::Draining))
    }

    fn set(&self, account: &AccountName) -> Result<Arc<CredentialSet>, Error> {
        self.accounts.get(account).cloned().ok_or_else(|| Error::NotSent {
            reason: "no credentials serve this account".to_owned(),
            retry_after: None,
        })
    }
}

impl CredentialSet {
    /// Returns the error of a call that is not retried, and logs it unless the caller does.
    fn failed(&self, failure: CallFailure) -> Error {
        if !failure.logged_by_caller {
            self.failures.failed(self.tokens.name(), &failure.error);
        }
        failure.error
    }
}
