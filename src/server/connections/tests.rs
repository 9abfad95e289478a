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
    let strangers: Vec<_> =
        (2..20).map(|n| limit.admit_later(IpAddr::from([192, 0, 2, n])).ok().unwrap()).collect();
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
