//! The limits of open connections, in total and per address.
//!
//! When a limit is reached, a new connection evicts one that waits for its peer: the connection
//! that has been idle for longest, from the address with the most such connections. So an address
//! that opens many connections takes slots only from itself. Addresses that have sent a valid
//! request are trusted, and their connections are evicted last. No connection is evicted while its
//! request is being answered, or before its peer has had [`FIRST_WAIT`] to send a request.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    mem,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::lock::lock;

/// How long a peer has for its request before its connection may be evicted.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The most trusted addresses that are remembered. A further one replaces the oldest.
const MAX_TRUSTED: usize = 1024;

const IPV6_SITE_BITS: u32 = 64;

/// Returns the address by which connections are counted: for IPv6, the first 64 bits (a site).
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let site = address.to_bits() & (u128::MAX << (u128::BITS - IPV6_SITE_BITS));
            IpAddr::V6(Ipv6Addr::from_bits(site))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Debug)]
pub(super) struct OpenConnection {
    number: u64,
    source: IpAddr,
    trusted: AtomicBool,
    /// Cancelled when another connection gets the slot.
    evicted: CancellationToken,
    start: Instant,
    /// When a request last began, was received or ended, in nanoseconds from the start.
    last: AtomicU64,
    /// Requests that are not answered yet.
    open: AtomicUsize,
    /// Open requests that have arrived completely.
    received: AtomicUsize,
}

impl OpenConnection {
    fn touch(&self) {
        self.last.store(nanoseconds(self.start.elapsed()), Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Returns whether no request is open, and nothing has happened since the previous check.
    pub(super) fn is_idle_since(&self, last: &mut u64) -> bool {
        let before = mem::replace(last, self.last());
        before == *last && self.open.load(Ordering::Relaxed) == 0
    }

    fn waits_for_peer(&self) -> bool {
        self.received.load(Ordering::Relaxed) == 0
    }

    fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts a request as open, or as received, while it is held.
#[derive(Debug)]
pub(crate) struct CountedRequest {
    connection: Arc<OpenConnection>,
    counter: fn(&OpenConnection) -> &AtomicUsize,
}

impl CountedRequest {
    fn new(connection: &Arc<OpenConnection>, counter: fn(&OpenConnection) -> &AtomicUsize) -> Self {
        counter(connection).fetch_add(1, Ordering::Relaxed);
        connection.touch();
        Self { connection: Arc::clone(connection), counter }
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        (self.counter)(&self.connection).fetch_sub(1, Ordering::Relaxed);
        self.connection.touch();
    }
}

/// The sender of a request. Every request has it as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The address by which connections are counted; of an IPv6 address the first 64 bits.
    pub(crate) source: IpAddr,
    pub(super) connection: Arc<OpenConnection>,
    limit: ConnectionLimit,
}

impl Peer {
    /// Counts a request as open while the guard is held.
    pub(super) fn open_request(&self) -> impl Drop + use<> {
        CountedRequest::new(&self.connection, |connection| &connection.open)
    }

    /// Protects the connection of an arrived request from eviction, while the guard is held.
    pub(crate) fn protect(&self) -> CountedRequest {
        CountedRequest::new(&self.connection, |connection| &connection.received)
    }

    /// Marks the peer as trusted: its connections, also later ones, are evicted last.
    pub(crate) fn trust(&self) {
        if !self.connection.trusted.swap(true, Ordering::Relaxed) {
            self.limit.slots().remember_trusted(self.source);
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ConnectionLimit {
    max: usize,
    max_of_source: usize,
    start: Instant,
    slots: Arc<Mutex<Slots>>,
}

#[derive(Debug, Default)]
struct Slots {
    newest: u64,
    open: HashMap<u64, Arc<OpenConnection>>,
    sources: HashMap<IpAddr, usize>,
    /// Trusted addresses, oldest first.
    trusted: VecDeque<IpAddr>,
}

/// The slot of a connection, released when it is dropped.
pub(super) struct ConnectionSlot(pub(super) Peer);

impl ConnectionSlot {
    pub(super) async fn evicted(&self) {
        self.0.connection.evicted.cancelled().await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum NoSlot {
    /// A connection can be evicted after this time.
    Wait(Duration),
    /// No connection can be evicted: a request is being answered on each, or on most of them.
    Full,
}

impl ConnectionLimit {
    pub(super) fn new(max: usize, max_of_source: usize) -> Self {
        Self { max, max_of_source, start: Instant::now(), slots: Arc::default() }
    }

    /// Returns a slot for a new connection; `None` if no other connection can be evicted.
    pub(super) async fn admit(&self, address: SocketAddr) -> Option<ConnectionSlot> {
        loop {
            match self.admit_at(address, Instant::now()) {
                Ok(slot) => return Some(slot),
                Err(NoSlot::Wait(wait)) => sleep(wait).await,
                Err(NoSlot::Full) => return None,
            }
        }
    }

    fn admit_at(&self, address: SocketAddr, now: Instant) -> Result<ConnectionSlot, NoSlot> {
        let source = source(address.ip());
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let mut slots = self.slots();
        let of_source = slots.sources.get(&source).copied().unwrap_or_default();
        if of_source >= self.max_of_source {
            slots.evict(Some(source), self.max_of_source, now)?;
        } else if slots.open.len() >= self.max {
            slots.evict(None, self.max, now)?;
        }
        slots.newest += 1;
        let (evicted, last, open, received) = Default::default();
        let connection = Arc::new(OpenConnection {
            number: slots.newest,
            source,
            trusted: slots.trusted.contains(&source).into(),
            evicted,
            start: self.start,
            last,
            open,
            received,
        });
        connection.touch();
        slots.open.insert(connection.number, Arc::clone(&connection));
        *slots.sources.entry(source).or_default() += 1;
        drop(slots);
        Ok(ConnectionSlot(Peer { address, source, connection, limit: self.clone() }))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }
}

impl Slots {
    /// Evicts a connection of `source`, or of any address if `source` is `None`, because the limit
    /// `max` is reached.
    fn evict(&mut self, source: Option<IpAddr>, max: usize, now: u64) -> Result<(), NoSlot> {
        let waiting = || {
            self.open.values().filter(|open| {
                source.is_none_or(|source| source == open.source) && open.waits_for_peer()
            })
        };
        let mut untrusted: HashMap<IpAddr, usize> = HashMap::new();
        for open in waiting().filter(|open| !open.is_trusted()) {
            *untrusted.entry(open.source).or_default() += 1;
        }
        let rank = |open: &OpenConnection| {
            let count = untrusted.get(&open.source).copied().unwrap_or_default();
            (!open.is_trusted(), count, Reverse((open.last(), open.number)))
        };
        let candidate = waiting().max_by_key(|open| rank(open)).ok_or(NoSlot::Full)?;
        let waited = Duration::from_nanos(now.saturating_sub(candidate.last()));
        if let Some(wait) = FIRST_WAIT.checked_sub(waited).filter(|wait| !wait.is_zero()) {
            // The listener waits, and with it every address. That is worth it only if many
            // connections can be evicted after one wait.
            let many = 2 * waiting().count() >= max;
            return Err(if many { NoSlot::Wait(wait) } else { NoSlot::Full });
        }
        candidate.evicted.cancel();
        let number = candidate.number;
        self.remove(number);
        Ok(())
    }

    fn remember_trusted(&mut self, source: IpAddr) {
        if !self.trusted.contains(&source) {
            self.trusted.push_back(source);
        }
        if self.trusted.len() > MAX_TRUSTED {
            self.trusted.pop_front();
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(connection) = self.open.remove(&number)
            && let Some(count) = self.sources.get_mut(&connection.source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&connection.source);
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.limit.slots().remove(self.0.connection.number);
    }
}

#[cfg(test)]
mod tests;
