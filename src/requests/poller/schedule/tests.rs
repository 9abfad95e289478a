use proptest::prelude::*;

use super::*;

fn config() -> config::Polling {
    config::Polling {
        min_age: Duration::from_secs(1),
        first: Duration::from_secs(2),
        factor: 1.6,
        max_watched: Duration::from_mins(1),
        max: Duration::from_mins(5),
        give_up: Duration::from_hours(72),
    }
}

#[test]
fn intervals_grow_to_their_bound_and_leave_ten_times_the_rest() {
    let config::Polling { max_watched, max, .. } = config();
    let turn = Turn::new(Instant::now());
    let of = |count, longest, took| {
        Turn { count, ..turn }.interval(&config(), longest, Duration::from_millis(took))
    };
    assert_eq!(of(0, max_watched, 0), Duration::from_secs(2));
    assert_eq!(of(1, max_watched, 0), Duration::from_millis(3_200));
    assert_eq!(of(100, max_watched, 0), Duration::from_mins(1));
    assert_eq!(of(u32::MAX, max, 0), Duration::from_mins(5));
    assert_eq!(of(0, max_watched, 1_000), Duration::from_secs(10));
    // Also where another replica got the last answer.
    let rested = turn.polled(turn.last, Counted { count: 0, rest: Duration::from_secs(10) });
    assert_eq!(rested.interval(&config(), max_watched, Duration::ZERO), Duration::from_secs(10));
}

#[test]
fn a_request_is_taken_once_when_due() {
    let mut schedule = Schedule::default();
    let (now, id) = (Instant::now(), RequestId::parse("r1").unwrap());
    let later = now + Duration::from_secs(1);
    schedule.set(&id, Turn::new(now));
    schedule.set(&id, Turn { due: Some(later), soon: true, ..Turn::new(now) });
    assert!(schedule.take(now).is_none());
    let (taken, turn) = schedule.take(later).unwrap();
    assert_eq!((&taken, turn.due, turn.soon), (&id, None, false));
    assert!(schedule.take(now + Duration::from_secs(9)).is_none());
    assert!(schedule.next().is_none());
}

#[test]
fn a_poll_of_others_is_told_by_the_count() {
    let table = [
        // Nobody has polled yet, or the cell has expired.
        (None, None, false, false),
        (Some(3), None, false, false),
        (Some(3), Some(3), false, false),
        (Some(3), Some(4), false, true),
        // After a start: others may be at it, or cannot.
        (None, Some(4), false, true),
        (None, Some(4), true, false),
    ];
    for (seen, held, exclusive, elsewhere) in table {
        assert_eq!(polled_elsewhere(seen, held, exclusive), elsewhere, "{seen:?} {held:?} {exclusive}");
    }
}

/// Replicas over one cell, in time that only the test moves.
struct World {
    now: Instant,
    cell: Option<u32>,
    replicas: Vec<Replica>,
    /// When it was polled.
    polls: Vec<Instant>,
}

struct Replica {
    schedule: Schedule,
    longest: Duration,
    alive: bool,
}

impl World {
    /// Replicas that hear of the request so long after its beginning.
    fn new(heard: &[Duration], longest: Duration) -> Self {
        let (now, id) = (Instant::now(), request());
        let replica = |after: &Duration| {
            let heard = now + *after;
            let mut schedule = Schedule::default();
            let turn = Turn::new(heard);
            schedule.set(
                &id,
                Turn { due: Some(heard + turn.interval(&config(), longest, Duration::ZERO)), ..turn },
            );
            Replica { schedule, longest, alive: true }
        };
        Self { now, cell: None, replicas: heard.iter().map(replica).collect(), polls: Vec::new() }
    }

    fn run_until(&mut self, end: Instant, mut latency: impl FnMut() -> Duration) {
        loop {
            let next = |(at, replica): (usize, &Replica)| replica.schedule.next().map(|due| (due, at));
            let living = self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive);
            let Some((due, at)) = living.filter_map(next).min().filter(|(due, _)| *due < end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            self.turn(at, latency());
        }
    }

    /// What `Poller` does when one is due; it takes `latency` until the next turn is known.
    fn turn(&mut self, at: usize, latency: Duration) {
        let replica = &mut self.replicas[at];
        let (id, turn) = replica.schedule.take(self.now).unwrap();
        if !polled_elsewhere(turn.seen, self.cell, false) {
            self.cell = Some(self.cell.unwrap_or(0) + 1);
            self.polls.push(self.now);
        }
        let counted = Counted { count: self.cell.unwrap(), rest: Duration::ZERO };
        let turn = turn.polled(self.now + latency, counted);
        let due = turn.last + turn.interval(&config(), replica.longest, Duration::ZERO);
        replica.schedule.set(&id, Turn { due: Some(due), ..turn });
    }
}

fn request() -> RequestId {
    RequestId::parse("r1").unwrap()
}

const INTERVAL: Duration = Duration::from_secs(2);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the replicas' clocks lie to each other and however long their looks take: never sooner than one alone would, and as
    /// often.
    #[test]
    fn replicas_poll_as_often_as_one(
        heard in proptest::collection::vec(0_u64..2_000, 1..6),
        latencies in proptest::collection::vec(0_u64..100, 1..50),
    ) {
        let heard: Vec<_> = heard.into_iter().map(Duration::from_millis).collect();
        let mut world = World::new(&heard, INTERVAL);
        let (began, mut latencies) = (world.now, latencies.into_iter().cycle());
        let took = Duration::from_millis(100);
        world.run_until(began + 61 * INTERVAL, || Duration::from_millis(latencies.next().unwrap()));
        let gaps: Vec<_> = world.polls.windows(2).map(|pair| pair[1] - pair[0]).collect();
        prop_assert!(gaps.iter().all(|gap| *gap >= INTERVAL), "{gaps:?}");
        prop_assert!(gaps.iter().all(|gap| *gap <= INTERVAL + 2 * took), "{gaps:?}");
        prop_assert!((54..=61).contains(&world.polls.len()), "{}", world.polls.len());
    }

    /// The poller dies, and another goes on within about an interval.
    #[test]
    fn a_dead_replica_is_replaced(heard in proptest::collection::vec(0_u64..2_000, 2..6), at in 3_u32..20) {
        let heard: Vec<_> = heard.into_iter().map(Duration::from_millis).collect();
        let mut world = World::new(&heard, INTERVAL);
        let latency = Duration::from_millis(1);
        let died = world.now + at * INTERVAL;
        world.run_until(died, || latency);
        // Whoever polled last is the one with the least time left, of those that saw the last count.
        let last = *world.polls.last().unwrap();
        let poller = (0..heard.len())
            .find(|at| world.replicas[*at].schedule.get(&request()).unwrap().last == last + latency)
            .unwrap();
        world.replicas[poller].alive = false;
        world.run_until(died + 3 * INTERVAL, || latency);
        let next = world.polls.iter().find(|poll| **poll > last).unwrap();
        prop_assert!(*next - last <= 2 * INTERVAL + 4 * latency, "{:?}", *next - last);
    }
}

/// A replica with a watcher looks sooner, and polls then.
#[test]
fn one_watcher_is_enough_for_the_watched_cadence() {
    let mut world =
        World::new(&[Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)], 60 * INTERVAL);
    world.replicas[2].longest = INTERVAL;
    let began = world.now;
    world.run_until(began + 60 * INTERVAL, || Duration::from_millis(5));
    assert!((54..=60).contains(&world.polls.len()), "{}", world.polls.len());
}
