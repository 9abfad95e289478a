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
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    impl ConnectionLimit {
        fn admit_now(&self, source: IpAddr) -> Result<ConnectionSlot, NoSlot> {
            self.admit_at((source, 1).into(), Instant::now())
        }

        fn admit_later(&self, source: IpAddr) -> Result<ConnectionSlot, NoSlot> {
            self.admit_at((source, 1).into(), Instant::now() + FIRST_WAIT)
        }
    }

    fn is_evicted(slot: &ConnectionSlot) -> bool {
        slot.0.connection.evicted.is_cancelled()
    }

    fn evicted(slots: &[ConnectionSlot]) -> Vec<bool> {
        slots.iter().map(is_evicted).collect()
    }

    #[test]
    fn the_connection_that_was_idle_for_longest_is_evicted() {
        let limit = ConnectionLimit::new(3, 3);
        let mut slots: Vec<_> = (0..3).map(|_| limit.admit_now(ONE).ok().unwrap()).collect();
        // A request that has not arrived completely does not protect its connection.
        let slow = slots[1].0.open_request();
        drop(slots[0].0.open_request());
        slots.push(limit.admit_later(ONE).ok().unwrap());
        assert_eq!(evicted(&slots), [false, false, true, false]);
        slots.push(limit.admit_later(ONE).ok().unwrap());
        assert_eq!(evicted(&slots), [false, true, true, false, false]);
        drop((slots, slow));
        assert!(limit.slots().open.is_empty() && limit.slots().sources.is_empty());
    }

    #[test]
    fn every_peer_has_time_for_its_first_request() {
        let limit = ConnectionLimit::new(1, 1);
        let slot = limit.admit_now(ONE).ok().unwrap();
        let soon = limit.admit_now(ONE).err().unwrap();
        assert!(matches!(soon, NoSlot::Wait(wait) if wait <= FIRST_WAIT), "{soon:?}");
        assert!(!is_evicted(&slot));
        assert!(limit.admit_later(ONE).is_ok() && is_evicted(&slot));
    }

    /// The listener once waited for each connection of an address whose other connections were in
    /// use, and no other address could connect meanwhile.
    #[test]
    fn nobody_waits_for_the_few_connections_that_are_not_in_use() {
        let limit = ConnectionLimit::new(4, 4);
        let slots: Vec<_> = (0..4).map(|_| limit.admit_now(ONE).ok().unwrap()).collect();
        let _protected: Vec<_> = slots[1..].iter().map(|slot| slot.0.protect()).collect();
        assert_eq!(limit.admit_now(ONE).err(), Some(NoSlot::Full));
        assert!(limit.admit_later(ONE).is_ok() && is_evicted(&slots[0]));
    }

    #[test]
    fn a_connection_whose_request_is_being_answered_keeps_its_slot() {
        let limit = ConnectionLimit::new(2, 2);
        let slots: Vec<_> = (0..2).map(|_| limit.admit_now(ONE).ok().unwrap()).collect();
        let mut received: Vec<_> = slots.iter().map(|slot| slot.0.protect()).collect();
        for source in [ONE, OTHER] {
            assert_eq!(limit.admit_later(source).err(), Some(NoSlot::Full));
        }
        received.pop();
        assert!(limit.admit_later(OTHER).is_ok());
        assert_eq!(evicted(&slots), [false, true]);
    }

    #[test]
    fn an_address_takes_slots_only_from_itself() {
        let limit = ConnectionLimit::new(4, 3);
        let quiet = limit.admit_now(OTHER).ok().unwrap();
        let mut slots: Vec<_> = (0..8).map(|_| limit.admit_later(ONE).ok().unwrap()).collect();
        assert_eq!(evicted(&slots).iter().filter(|evicted| !**evicted).count(), 3);
        for n in [3, 4] {
            slots.push(limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap());
        }
        assert!(!is_evicted(&quiet));
        assert_eq!(evicted(&slots).iter().filter(|evicted| !**evicted).count(), 3);
    }

    #[test]
    fn trusted_addresses_are_evicted_last() {
        let limit = ConnectionLimit::new(4, 4);
        let trusted: Vec<_> = (0..3).map(|_| limit.admit_now(ONE).ok().unwrap()).collect();
        for slot in &trusted {
            slot.0.trust();
        }
        for n in 2..9 {
            let _slot = limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap();
        }
        let strangers: Vec<_> =
            (2..4).map(|n| limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap()).collect();
        assert_eq!((evicted(&trusted), evicted(&strangers)), (vec![false; 3], vec![true, false]));
        let _received = strangers[1].0.protect();
        assert!(limit.admit_later(OTHER).is_ok());
        assert_eq!(evicted(&trusted), [true, false, false]);
    }

    #[test]
    fn later_connections_of_a_trusted_address_are_evicted_last() {
        let limit = ConnectionLimit::new(4, 4);
        limit.admit_now(ONE).ok().unwrap().0.trust();
        let later: Vec<_> = (0..2).map(|_| limit.admit_now(ONE).ok().unwrap()).collect();
        let strangers: Vec<_> = (2..20)
            .map(|n| limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap())
            .collect();
        assert_eq!(evicted(&later), [false, false]);
        assert_eq!(evicted(&strangers).iter().filter(|evicted| !**evicted).count(), 2);
    }

    #[test]
    fn an_ipv6_site_is_one_source() {
        let parse = |text: &str| source(text.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:0:0:1"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), ONE);
    }

    #[test]
    fn a_connection_is_idle_if_nothing_happened_since_the_previous_check() {
        let slot = ConnectionLimit::new(1, 1).admit_now(ONE).ok().unwrap();
        let connection = &slot.0.connection;
        let mut last = connection.last();
        assert!(connection.is_idle_since(&mut last));
        let open = slot.0.open_request();
        assert!(!connection.is_idle_since(&mut last) && !connection.is_idle_since(&mut last));
        drop(open);
        assert!(!connection.is_idle_since(&mut last));
        assert!(connection.is_idle_since(&mut last));
    }
}
