//! How much each caller and all callers together use, and the limits of that.
//!
//! Every pool has a total and a share that one caller may use. The last quarter of the total is
//! only for callers that use little. So callers that use much cannot leave others without anything.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{lock::lock, server::source};

/// The most callers that are told apart. Further ones share one entry. An entry takes about 300
/// bytes. Only anonymous callers and callers of the health service can be so many.
const MAX_CALLERS: usize = 16_384;

/// The least time between two removals of the unused entries.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long a caller may save up calls.
const SAVED: Duration = Duration::from_secs(10);

/// The quarters of these calls that orders may use. The rest is only for status calls, so that they
/// survive when orders are refused.
const QUARTERS_FOR_ORDERS: u32 = 3;

/// Who uses something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::grpc) enum CallerKey {
    Named(Arc<str>),
    /// A caller without a name, by its address; for IPv6, by the first 64 bits (a site).
    Address(IpAddr),
    /// A caller without an address, or one for which the table has no space.
    Other,
}

impl CallerKey {
    pub(super) fn of_address(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Other, |address| Self::Address(source(address)))
    }
}

impl fmt::Display for CallerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Address(address) => write!(f, "anonymous at {address}"),
            Self::Other => f.write_str("other anonymous callers"),
        }
    }
}

/// What is limited. The discriminants are indices.
#[derive(Debug, Clone, Copy)]
pub(in crate::grpc) enum Pool {
    Orders,
    StatusCalls,
    Watches,
    /// Calls of the health service and of unknown methods.
    OpenCalls,
    Reflections,
    /// Bytes of requests that have not arrived completely or are not decoded.
    RequestBytes,
    /// Bytes of the orders under way.
    OrderBytes,
    /// Bytes of large answers that are being sent.
    AnswerBytes,
}

pub(super) const POOLS: usize = 8;

/// The limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolLimits {
    /// The name in `limit` of the metadata: the key of the configuration, if there is one.
    pub(super) name: &'static str,
    pub(super) total: usize,
    /// What one caller may use.
    pub(super) share: usize,
    /// A caller that uses at most this may use the last quarter of the total.
    pub(super) little: usize,
}

/// What is counted per second.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rate {
    Orders,
    StatusCalls,
    Watches,
    OpenCalls,
}

const BUCKETS: usize = 3;

impl Rate {
    /// Orders and status calls share a bucket.
    fn bucket(self) -> usize {
        match self {
            Self::Orders | Self::StatusCalls => 0,
            Self::Watches => 1,
            Self::OpenCalls => 2,
        }
    }
}

/// The rates of one caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateLimits {
    /// Orders and status calls per second; also watches.
    pub(super) calls: u32,
    /// The watches that a caller may begin at once, for example after it lost its connections.
    pub(super) watches: usize,
    /// Calls per second of the health service and of unknown methods.
    pub(super) open_calls: u32,
}

impl RateLimits {
    /// Returns the time that a call costs, and the time that a caller may have saved.
    fn of(self, rate: Rate) -> (Duration, Duration) {
        let second = Duration::from_secs(1);
        match rate {
            Rate::Orders => (second / self.calls, SAVED / 4 * QUARTERS_FOR_ORDERS),
            Rate::StatusCalls => (second / self.calls, SAVED),
            Rate::Watches => {
                let watches = u32::try_from(self.watches).unwrap_or(u32::MAX);
                (second / self.calls, SAVED.max(second * watches / self.calls))
            }
            Rate::OpenCalls => (second / self.open_calls, SAVED),
        }
    }
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grpc) struct LimitReached {
    pub(super) limit: &'static str,
    /// `None`: it is not known when there will be space.
    pub(super) retry_after: Option<Duration>,
}

/// Counts what is used. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Usage(Arc<UsageInner>);

#[derive(Debug)]
struct UsageInner {
    pools: [PoolLimits; POOLS],
    rates: RateLimits,
    /// The name of the limit of calls per second.
    rate_name: &'static str,
    state: Mutex<UsageState>,
}

#[derive(Debug)]
struct UsageState {
    callers: HashMap<CallerKey, CallerUsage>,
    used: [usize; POOLS],
    /// When the unused entries may be removed again.
    next_sweep: Instant,
}

#[derive(Debug)]
struct CallerUsage {
    used: [usize; POOLS],
    /// When each bucket will be full again (GCRA). A caller in the past has saved all its calls.
    full_at: [Instant; BUCKETS],
}

impl CallerUsage {
    fn new(now: Instant) -> Self {
        Self { used: [0; POOLS], full_at: [now; BUCKETS] }
    }

    /// Whether a new entry would be the same.
    fn is_idle(&self, now: Instant) -> bool {
        self.used == [0; POOLS] && self.full_at.iter().all(|full_at| *full_at <= now)
    }
}

impl UsageState {
    /// Returns the entry of a caller, and the key under which it is.
    fn entry(&mut self, key: &CallerKey, now: Instant) -> (CallerKey, &mut CallerUsage) {
        let is_new = !self.callers.contains_key(key);
        if is_new && now >= self.next_sweep {
            self.callers.retain(|_, usage| !usage.is_idle(now));
            self.next_sweep = now + SWEEP_EVERY;
        }
        let full = self.callers.len() >= MAX_CALLERS;
        let key = if is_new && full { &CallerKey::Other } else { key };
        let entry = match self.callers.entry(key.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(CallerUsage::new(now)),
        };
        (key.clone(), entry)
    }
}

impl Usage {
    pub(super) fn new(
        pools: &[PoolLimits; POOLS],
        rates: RateLimits,
        rate_name: &'static str,
    ) -> Self {
        let state =
            UsageState { callers: HashMap::new(), used: [0; POOLS], next_sweep: Instant::now() };
        Self(Arc::new(UsageInner { pools: *pools, rates, rate_name, state: Mutex::new(state) }))
    }

    /// Counts a call.
    pub(super) fn count(
        &self,
        caller: &CallerKey,
        rate: Rate,
        now: Instant,
    ) -> Result<(), LimitReached> {
        let (cost, saved) = self.0.rates.of(rate);
        let mut state = lock(&self.0.state);
        let (_, usage) = state.entry(caller, now);
        let full_at = &mut usage.full_at[rate.bucket()];
        let after = (*full_at).max(now) + cost;
        let ahead = after.saturating_duration_since(now);
        if ahead > saved {
            let retry_after = Some(ahead.saturating_sub(saved));
            return Err(LimitReached { limit: self.0.rate_name, retry_after });
        }
        *full_at = after;
        Ok(())
    }

    /// Takes an amount from a pool, until the permit is dropped.
    pub(super) fn take(
        &self,
        caller: &CallerKey,
        pool: Pool,
        amount: usize,
    ) -> Result<Permit, LimitReached> {
        let caller = self.add(caller, pool, amount)?;
        Ok(Permit { usage: self.clone(), caller, pool, amount })
    }

    /// Adds an amount, and returns the key under which it was added.
    fn add(
        &self,
        caller: &CallerKey,
        pool: Pool,
        amount: usize,
    ) -> Result<CallerKey, LimitReached> {
        let (limits, index) = (&self.0.pools[pool as usize], pool as usize);
        let mut state = lock(&self.0.state);
        let used_by_all = state.used[index].saturating_add(amount);
        let (key, usage) = state.entry(caller, Instant::now());
        let used = usage.used[index].saturating_add(amount);
        let total =
            if used <= limits.little { limits.total } else { limits.total - limits.total / 4 };
        if used > limits.share || used_by_all > total {
            return Err(LimitReached { limit: limits.name, retry_after: None });
        }
        usage.used[index] = used;
        state.used[index] = used_by_all;
        Ok(key)
    }
}

/// An amount of a pool. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    usage: Usage,
    caller: CallerKey,
    pool: Pool,
    amount: usize,
}

impl Permit {
    pub(super) fn caller(&self) -> &CallerKey {
        &self.caller
    }

    pub(in crate::grpc) fn grow(&mut self, by: usize) -> Result<(), LimitReached> {
        self.usage.add(&self.caller, self.pool, by)?;
        self.amount += by;
        Ok(())
    }

    /// Takes an amount from another pool for the same caller.
    pub(in crate::grpc) fn take(&self, pool: Pool, amount: usize) -> Result<Self, LimitReached> {
        self.usage.take(&self.caller, pool, amount)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (mut state, index) = (lock(&self.usage.0.state), self.pool as usize);
        state.used[index] -= self.amount;
        if let Some(usage) = state.callers.get_mut(&self.caller) {
            usage.used[index] -= self.amount;
        }
    }
}

#[cfg(test)]
mod tests;
