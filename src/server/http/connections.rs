//! The open connections, bounded in total and for each address.
//!
//! Where a bound is reached, a new connection takes the place of one that waits for its peer: of
//! the address with the most, the one on which nothing has happened for longest. A connection whose
//! request is being answered keeps its place. Those of an address that has proved itself once give
//! way only after all others, however many other addresses there are. So an address that holds many
//! connections takes places away from nobody but itself.
//!
//! No connection gives way before its peer has had [`FIRST_WAIT`] to send a request. A flood of
//! connections is accepted no faster than that allows.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::lock::lock;

use tokio_util::sync::CancellationToken;

/// How long a peer has for its request before its connection may give way.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Addresses that are remembered as proved. The oldest is forgotten first.
const MOST_PROVED: usize = 1024;

/// Leading bits of an IPv6 address that one host or site usually has for itself.
const IPV6_SITE_BITS: u32 = 64;

/// The address that counts for the bounds: of IPv6 the site.
pub(super) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let site = address.to_bits() & (u128::MAX << (u128::BITS - IPV6_SITE_BITS));
            IpAddr::V6(Ipv6Addr::from_bits(site))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// What happens on a connection.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// When a request last began or ended, in nanoseconds from the start of the listener.
    last: AtomicU64,
    /// Requests that have begun and are not answered yet.
    open: AtomicUsize,
    /// Of these, the ones that have arrived as a whole.
    received: AtomicUsize,
    proved: AtomicBool,
}

impl Activity {
    fn new(start: Instant) -> Self {
        let (last, open, received, proved) = Default::default();
        let activity = Self { start, last, open, received, proved };
        activity.touch();
        activity
    }

    /// When something last happened.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.last.store(nanoseconds(self.start.elapsed()), Ordering::Relaxed);
    }

    fn waits_for_peer(&self) -> bool {
        self.received.load(Ordering::Relaxed) == 0
    }

    fn is_proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }

    /// Whether nothing is open and nothing has happened since the last look.
    pub(super) fn rested_since(&self, last: &mut u64) -> bool {
        let before = std::mem::replace(last, self.last());
        before == *last && self.open.load(Ordering::Relaxed) == 0
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A request that is not answered yet.
pub(super) struct Open(Arc<Activity>);

impl Open {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.touch();
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.touch();
    }
}

/// Where a request comes from: an extension of every request.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The peer's address; of an IPv6 address the first 64 bits.
    pub source: IpAddr,
    pub(super) activity: Arc<Activity>,
    limit: ConnectionLimit,
}

impl Origin {
    /// The request has arrived as a whole: its connection keeps its place while this is held.
    pub fn received(&self) -> Received {
        self.activity.received.fetch_add(1, Ordering::Relaxed);
        Received(Arc::clone(&self.activity))
    }

    /// The peer has proved itself: its connections, also later ones, give way only after all
    /// others.
    pub fn prove(&self) {
        if !self.activity.proved.swap(true, Ordering::Relaxed) {
            self.limit.places().remember_proved(self.source);
        }
    }
}

/// Keeps a connection's place.
#[derive(Debug)]
pub struct Received(Arc<Activity>);

impl Drop for Received {
    fn drop(&mut self) {
        self.0.received.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open connections.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimit {
    most: usize,
    most_of_source: usize,
    start: Instant,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    count: u64,
    held: HashMap<u64, Held>,
    /// How many of the places each source holds.
    sources: HashMap<IpAddr, usize>,
    /// Addresses that have proved themselves, oldest first.
    proved: VecDeque<IpAddr>,
}

#[derive(Debug)]
struct Held {
    source: IpAddr,
    activity: Arc<Activity>,
    taken: CancellationToken,
}

/// A connection's place, given back when it is dropped.
pub(super) struct Place {
    pub(super) origin: Origin,
    /// The place was given to another connection.
    pub(super) taken: CancellationToken,
    number: u64,
    limit: ConnectionLimit,
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The connection that would give way has to be waited for so long.
    Wait(Duration),
    /// On every connection that could give way a request is being answered.
    Full,
}

impl ConnectionLimit {
    pub(super) fn new(most: usize, most_of_source: usize) -> Self {
        Self { most, most_of_source, start: Instant::now(), places: Arc::default() }
    }

    pub(super) fn admit(&self, source: IpAddr) -> Result<Place, NoPlace> {
        self.admit_at(source, Instant::now())
    }

    fn admit_at(&self, source: IpAddr, now: Instant) -> Result<Place, NoPlace> {
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let mut places = self.places();
        let of_source = places.sources.get(&source).copied().unwrap_or_default();
        if of_source >= self.most_of_source {
            places.give_way(Some(source), now)?;
        } else if places.held.len() >= self.most {
            places.give_way(None, now)?;
        }
        places.count += 1;
        let (number, taken) = (places.count, CancellationToken::new());
        let activity = Arc::new(Activity::new(self.start));
        activity.proved.store(places.proved.contains(&source), Ordering::Relaxed);
        let held = Held { source, activity: Arc::clone(&activity), taken: taken.clone() };
        places.held.insert(number, held);
        *places.sources.entry(source).or_default() += 1;
        drop(places);
        let origin = Origin { source, activity, limit: self.clone() };
        Ok(Place { origin, taken, number, limit: self.clone() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }
}

impl Places {
    /// Ends a connection, of this source if there is one.
    fn give_way(&mut self, of: Option<IpAddr>, now: u64) -> Result<(), NoPlace> {
        let waiting = || {
            self.held.iter().filter(|(_, held)| {
                of.is_none_or(|source| source == held.source) && held.activity.waits_for_peer()
            })
        };
        let mut unproved: HashMap<IpAddr, usize> = HashMap::new();
        for (_, held) in waiting().filter(|(_, held)| !held.activity.is_proved()) {
            *unproved.entry(held.source).or_default() += 1;
        }
        let rank = |number: u64, held: &Held| {
            let count = unproved.get(&held.source).copied().unwrap_or_default();
            (!held.activity.is_proved(), count, Reverse((held.activity.last(), number)))
        };
        let chosen = waiting().max_by_key(|(number, held)| rank(**number, held));
        let (number, held) = chosen.ok_or(NoPlace::Full)?;
        let waited = Duration::from_nanos(now.saturating_sub(held.activity.last()));
        if let Some(wait) = FIRST_WAIT.checked_sub(waited).filter(|wait| !wait.is_zero()) {
            return Err(NoPlace::Wait(wait));
        }
        let number = *number;
        if let Some(held) = self.remove(number) {
            held.taken.cancel();
        }
        Ok(())
    }

    fn remember_proved(&mut self, source: IpAddr) {
        if !self.proved.contains(&source) {
            self.proved.push_back(source);
        }
        if self.proved.len() > MOST_PROVED {
            self.proved.pop_front();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Held> {
        let held = self.held.remove(&number)?;
        if let Some(count) = self.sources.get_mut(&held.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&held.source);
            }
        }
        Some(held)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limit.places().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    impl ConnectionLimit {
        /// Admits when every connection has had its first wait.
        fn admit_later(&self, source: IpAddr) -> Result<Place, NoPlace> {
            self.admit_at(source, Instant::now() + FIRST_WAIT)
        }
    }

    fn taken(places: &[Place]) -> Vec<bool> {
        places.iter().map(|place| place.taken.is_cancelled()).collect()
    }

    #[test]
    fn the_connection_on_which_nothing_has_happened_for_longest_makes_room() {
        let limit = ConnectionLimit::new(3, 3);
        let mut places: Vec<_> = (0..3).map(|_| limit.admit(ONE).ok().unwrap()).collect();
        // A request that does not arrive does not keep a place; one that was answered does.
        let slow = Open::new(&places[1].origin.activity);
        drop(Open::new(&places[0].origin.activity));
        places.push(limit.admit_later(ONE).ok().unwrap());
        assert_eq!(taken(&places), [false, false, true, false]);
        places.push(limit.admit_later(ONE).ok().unwrap());
        assert_eq!(taken(&places), [false, true, true, false, false]);
        drop((places, slow));
        assert!(limit.places().held.is_empty() && limit.places().sources.is_empty());
    }

    #[test]
    fn every_peer_has_time_for_its_first_request() {
        let limit = ConnectionLimit::new(1, 1);
        let place = limit.admit(ONE).ok().unwrap();
        let soon = limit.admit(ONE).err().unwrap();
        assert!(matches!(soon, NoPlace::Wait(wait) if wait <= FIRST_WAIT), "{soon:?}");
        assert!(!place.taken.is_cancelled());
        assert!(limit.admit_later(ONE).is_ok() && place.taken.is_cancelled());
    }

    #[test]
    fn a_connection_whose_request_is_being_answered_keeps_its_place() {
        let limit = ConnectionLimit::new(2, 2);
        let places: Vec<_> = (0..2).map(|_| limit.admit(ONE).ok().unwrap()).collect();
        let mut received: Vec<_> = places.iter().map(|place| place.origin.received()).collect();
        for source in [ONE, OTHER] {
            assert_eq!(limit.admit_later(source).err(), Some(NoPlace::Full));
        }
        received.pop();
        assert!(limit.admit_later(OTHER).is_ok());
        assert_eq!(taken(&places), [false, true]);
    }

    #[test]
    fn an_address_takes_places_away_from_nobody_but_itself() {
        let limit = ConnectionLimit::new(4, 3);
        let quiet = limit.admit(OTHER).ok().unwrap();
        let mut places: Vec<_> = (0..8).map(|_| limit.admit_later(ONE).ok().unwrap()).collect();
        assert_eq!(taken(&places).iter().filter(|taken| !**taken).count(), 3);
        for n in [3, 4] {
            places.push(limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap());
        }
        assert!(!quiet.taken.is_cancelled());
        assert_eq!(taken(&places).iter().filter(|taken| !**taken).count(), 3);
    }

    /// Also if each of many addresses holds a single connection.
    #[test]
    fn who_has_proved_itself_gives_way_last() {
        let limit = ConnectionLimit::new(4, 4);
        let proved: Vec<_> = (0..3).map(|_| limit.admit(ONE).ok().unwrap()).collect();
        for place in &proved {
            place.origin.prove();
        }
        for n in 2..9 {
            let _place = limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap();
        }
        let strangers: Vec<_> =
            (2..4).map(|n| limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap()).collect();
        assert_eq!((taken(&proved), taken(&strangers)), (vec![false; 3], vec![true, false]));
        let _received = strangers[1].origin.received();
        assert!(limit.admit_later(OTHER).is_ok());
        assert_eq!(taken(&proved), [true, false, false]);
    }

    /// ThingSpace opens a connection for each of its calls, while each of many strangers holds one.
    #[test]
    fn later_connections_of_a_proved_address_give_way_last() {
        let limit = ConnectionLimit::new(4, 4);
        limit.admit(ONE).ok().unwrap().origin.prove();
        let later: Vec<_> = (0..2).map(|_| limit.admit(ONE).ok().unwrap()).collect();
        let strangers: Vec<_> = (2..20)
            .map(|n| limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap())
            .collect();
        assert_eq!(taken(&later), [false, false]);
        assert_eq!(taken(&strangers).iter().filter(|taken| !**taken).count(), 2);
    }

    #[test]
    fn an_ipv6_site_is_one_source() {
        let parse = |text: &str| source(text.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:0:0:1"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), ONE);
    }

    #[test]
    fn a_connection_rests_when_nothing_happened_since_the_last_look() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut last = activity.last();
        assert!(activity.rested_since(&mut last));
        let open = Open::new(&activity);
        assert!(!activity.rested_since(&mut last) && !activity.rested_since(&mut last));
        drop(open);
        assert!(!activity.rested_since(&mut last));
        assert!(activity.rested_since(&mut last));
    }
}
