//! The layer that limits what each caller, and all callers together, may use.
//!
//! - Calls per second of each caller ([`usage`]).
//! - Calls under way, in pools for each class, so that status calls are answered when orders are
//!   refused. A permit lives as long as the response's body: until the caller has read it, has
//!   reset the call, or has lost its connection.
//! - Bytes of large answers that are being sent. The layer [`super::receive`] takes the bytes of
//!   requests from the same table.
//!
//! The connection of an authenticated caller is not evicted while a call is under way.
//!
//! Callers are told apart by their names, anonymous ones by their addresses. A call above a limit
//! ends at once, RESOURCE_EXHAUSTED with the name of the limit; nothing waits here.

mod body;
mod usage;

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use tonic::Status;
use tower::Service;
use tracing::warn;

use super::{authenticate::Sender, class::CallClass, status};
use crate::{config::Config, log_throttle::LogThrottle, server::Connection};
use body::LimitedBody;
pub(crate) use usage::Permit;
pub(super) use usage::{CallerKey, Pool};
use usage::{LimitReached, POOLS, PoolLimits, Rate, RateLimits, Usage};

/// Orders and status calls under way. Each takes about 10 KiB, and more for its headers (at most 16
/// KiB) and its devices ([`ORDER_BYTES`]), so together about 120 MiB.
const ORDERS: usize = 4_000;
const STATUS_CALLS: usize = 8_000;

/// Open watches. An idle one takes about 3 kB: together 600 MB, for which the operator provides
/// with `limits.caller_watches`.
const WATCHES: usize = 200_000;

/// Calls of the health service, whose watches take about 10 KiB, and of unknown methods. They are
/// open to everybody, so they have their own pool.
const OPEN_CALLS: usize = 4_000;

/// Calls of the reflection service. Each may have an answer of 100 KiB in memory.
const REFLECTIONS: usize = 64;

/// Bytes of the orders under way, counted as in [`super::receive`], with their devices as decoded.
const ORDER_BYTES: usize = 128 << 20;

/// Bytes of large answers that are being sent.
const ANSWER_BYTES: usize = 128 << 20;

/// What orders and answers under way may take together, in bytes.
pub(crate) const CALL_BYTES: usize = ORDER_BYTES + ANSWER_BYTES;

/// Calls per second of a caller to the health service and to unknown methods. A probe is one call
/// in seconds.
const OPEN_CALLS_PER_SECOND: u32 = 1_000;

/// How long a caller should wait after a refusal.
const RETRY_CALL: Duration = Duration::from_secs(1);
const RETRY_WATCH: Duration = Duration::from_secs(5);

/// The most lines about refused calls in a minute.
const MAX_REFUSALS: u32 = 10;

static REFUSED: LogThrottle = LogThrottle::with_lines(MAX_REFUSALS);

/// The limits of all callers. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Limits(Usage);

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        let quarter = |name, total: usize, little| {
            let share = total / 4;
            PoolLimits { name, total, share, little }
        };
        let caller_watches = config.limits.caller_watches;
        let watches = PoolLimits {
            name: "limits.caller_watches",
            total: WATCHES.max(caller_watches + caller_watches / 2),
            share: caller_watches,
            little: 1_000,
        };
        // A caller may read many pages at once.
        let answers = PoolLimits {
            name: "answers being sent",
            total: ANSWER_BYTES,
            share: ANSWER_BYTES / 2,
            little: 4 << 20,
        };
        // In the order of `Pool`.
        let pools: [PoolLimits; POOLS] = [
            quarter("orders under way", ORDERS, 50),
            quarter("status calls under way", STATUS_CALLS, 50),
            watches,
            quarter("health calls under way", OPEN_CALLS, 10),
            quarter("reflection calls under way", REFLECTIONS, 1),
            quarter("grpc.max_request_bytes", config.grpc.max_request_bytes, 64 << 10),
            quarter("bytes of orders under way", ORDER_BYTES, 1 << 20),
            answers,
        ];
        let rates = RateLimits {
            calls: config.limits.caller_calls_per_second,
            watches: caller_watches,
            open_calls: OPEN_CALLS_PER_SECOND,
        };
        Self(Usage::new(&pools, rates, "limits.caller_calls_per_second"))
    }

    /// Returns a handle for more that a caller uses.
    pub(super) fn allowance(&self, caller: CallerKey) -> Allowance {
        Allowance { usage: self.0.clone(), caller }
    }

    /// Counts a call, and takes a permit for it.
    fn admit(&self, caller: &CallerKey, class: CallClass) -> Result<Permit, Status> {
        let (rate, pool) = match class {
            CallClass::Order => (Rate::Orders, Pool::Orders),
            CallClass::Status => (Rate::StatusCalls, Pool::StatusCalls),
            CallClass::Watch => (Rate::Watches, Pool::Watches),
            CallClass::Health | CallClass::Unknown => (Rate::OpenCalls, Pool::OpenCalls),
            CallClass::Reflection => (Rate::OpenCalls, Pool::Reflections),
        };
        let counted = self.0.count(caller, rate, Instant::now());
        let admitted = counted.and_then(|()| self.0.take(caller, pool, 1));
        admitted.map_err(|reached| {
            let retry = if class == CallClass::Watch { RETRY_WATCH } else { RETRY_CALL };
            refused(caller, reached, retry)
        })
    }
}

/// Records and answers a call above a limit.
fn refused(caller: &CallerKey, reached: LimitReached, retry: Duration) -> Status {
    if let Some(times) = REFUSED.count() {
        if times > 1 {
            // They may be of other callers, and above other limits.
            warn!(times = times - 1, "further calls were refused because callers are above limits");
        }
        warn!(
            %caller,
            limit = reached.limit,
            "calls are refused because a caller is above a limit"
        );
    }
    status::over_limit(reached.limit, reached.retry_after.unwrap_or(retry))
}

impl Permit {
    /// Records that a limit is reached for the caller of this permit, and returns the status.
    pub(super) fn refused(&self, reached: LimitReached) -> Status {
        refused(self.caller(), reached, RETRY_CALL)
    }
}

/// A handle with which an inner layer takes more for the caller of a call; an extension of its
/// request.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    usage: Usage,
    caller: CallerKey,
}

impl Allowance {
    pub(super) fn take(&self, pool: Pool, amount: usize) -> Result<Permit, Status> {
        let taken = self.usage.take(&self.caller, pool, amount);
        taken.map_err(|reached| refused(&self.caller, reached, RETRY_CALL))
    }
}

/// The layer around the services.
#[derive(Debug, Clone)]
pub(crate) struct Limit<S> {
    inner: S,
    limits: Limits,
}

impl<S> Limit<S> {
    pub(crate) fn new(inner: S, limits: Limits) -> Self {
        Self { inner, limits }
    }
}

impl<S, In, Out> Service<Request<In>> for Limit<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Send + 'static,
{
    type Response = Response<LimitedBody<Out>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let (class, caller) = (CallClass::of(request.uri().path()), caller(&request));
        let permit = match self.limits.admit(&caller, class) {
            Ok(permit) => permit,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        request.extensions_mut().insert(self.limits.allowance(caller));
        // Not for health, which is open to everybody.
        let connection = request.extensions().get().filter(|_| is_authenticated(&request));
        let protection = connection.map(Connection::protect);
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| LimitedBody::new(body, class, permit, protection)))
        })
    }
}

fn is_authenticated<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Sender>().is_some()
}

/// Returns who makes a call. Health calls have no authenticated caller.
fn caller<B>(request: &Request<B>) -> CallerKey {
    let sender: Option<&Sender> = request.extensions().get();
    if let Some(name) = sender.and_then(|sender| sender.caller.known_name()) {
        return CallerKey::Named(name);
    }
    let connection: Option<&Connection> = request.extensions().get();
    CallerKey::of_address(connection.map(|connection| connection.address().ip()))
}
