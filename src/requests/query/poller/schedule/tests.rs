use proptest::prelude::*;

use super::*;

fn config() -> PollingConfig {
    PollingConfig {
        min_age: Duration::from_secs(1),
        first: Duration::from_secs(2),
        factor: 1.6,
        max_watched: Duration::from_mins(1),
        max: Duration::from_mins(5),
        give_up: Duration::from_hours(72),
    }
}

#[test]
fn intervals_grow_to_their_bound_and_leave_ten_times_the_pause() {
    let PollingConfig { max_watched, max, .. } = config();
    let poll = ScheduledPoll::new(account(0), Instant::now());
    let of = |count, longest, took| {
        ScheduledPoll { count, ..poll.clone() }.interval(
            &config(),
            longest,
            Duration::from_millis(took),
        )
    };
    assert_eq!(of(0, max_watched, 0), Duration::from_secs(2));
    assert_eq!(of(1, max_watched, 0), Duration::from_millis(3_200));
    assert_eq!(of(100, max_watched, 0), Duration::from_mins(1));
    assert_eq!(of(u32::MAX, max, 0), Duration::from_mins(5));
    assert_eq!(of(0, max_watched, 1_000), Duration::from_secs(10));
    // The pause also applies if another replica received the answer.
    let rested =
        poll.clone().polled(poll.last, PollCount { count: 0, pause: Duration::from_secs(10) });
    assert_eq!(rested.interval(&config(), max_watched, Duration::ZERO), Duration::from_secs(10));
}

fn id(number: usize) -> RequestId {
    RequestId::parse(&format!("r{number}")).unwrap()
}

fn account(number: usize) -> AccountName {
    AccountName::parse(&format!("{number:010}-00001")).unwrap()
}

/// A request that is due at that time.
fn due(at: Instant, urgency: Urgency, account: AccountName) -> ScheduledPoll {
    ScheduledPoll { due: Some((at, urgency)), ..ScheduledPoll::new(account, at) }
}

#[test]
fn a_request_is_taken_once_when_due() {
    let mut schedule = Schedule::default();
    let (now, id) = (Instant::now(), id(1));
    let later = now + Duration::from_secs(1);
    schedule.set(&id, ScheduledPoll::new(account(0), now));
    let hint = Some(PollHint::Soon);
    schedule.set(
        &id,
        ScheduledPoll {
            due: Some((later, Urgency::First)),
            hint,
            ..ScheduledPoll::new(account(0), now)
        },
    );
    assert!(schedule.take(&account(0), now).is_none());
    let (taken, poll, _) = schedule.take(&account(0), later).unwrap();
    assert_eq!((&taken, poll.due, poll.hint), (&id, None, None));
    assert!(schedule.take(&account(0), now + Duration::from_secs(9)).is_none());
    assert!(schedule.next().is_none());
}

#[test]
fn a_withheld_status_is_released_without_a_permit() {
    let mut schedule = Schedule::default();
    let now = Instant::now();
    let release = Some(now + Duration::from_secs(1));
    schedule.set(&id(1), ScheduledPoll { release, ..due(now, Urgency::Rest, account(1)) });
    assert_eq!(schedule.begin_waiting(now), [account(1)]);
    assert!(schedule.take_release(now).is_none());
    assert_eq!(schedule.take_release(now + Duration::from_secs(1)).unwrap(), id(1));
    assert!(schedule.take(&account(1), now + Duration::from_secs(1)).is_none(), "it is under way");
}

/// An account waits for one permit at a time, and only if a request is due.
#[test]
fn each_account_waits_for_its_own_permit() {
    let mut schedule = Schedule::default();
    let now = Instant::now();
    (0..1_000).for_each(|n| schedule.set(&id(n), due(now, Urgency::Rest, account(1))));
    schedule.set(&id(1_000), due(now, Urgency::Rest, account(2)));
    schedule.set(&id(1_001), due(now + Duration::from_secs(1), Urgency::Rest, account(3)));
    let mut begun = schedule.begin_waiting(now);
    begun.sort();
    assert_eq!(begun, [account(1), account(2)]);
    assert!(schedule.begin_waiting(now).is_empty());
    assert_eq!(schedule.next(), Some(now + Duration::from_secs(1)));
    assert_eq!(schedule.take(&account(2), now).unwrap().0, id(1_000));
    schedule.take(&account(1), now).unwrap();
    assert_eq!(schedule.begin_waiting(now), [account(1)]);
}

#[test]
fn polls_in_progress_are_bounded() {
    let mut schedule = Schedule::default();
    let now = Instant::now();
    (0..2 * MAX_POLLS).for_each(|n| schedule.set(&id(n), due(now, Urgency::Rest, account(1))));
    for _ in 0..MAX_POLLS {
        assert_eq!(schedule.begin_waiting(now).len(), 1);
        schedule.take(&account(1), now).unwrap();
    }
    assert!(schedule.begin_waiting(now).is_empty() && schedule.next().is_none());
    schedule.finished(&account(1));
    assert_eq!(schedule.begin_waiting(now).len(), 1);
}

/// A new watch waits for at most two polls. Requests without watchers get a quarter of the polls,
/// in the order in which they came due.
#[test]
fn urgent_requests_go_first_and_the_rest_gets_its_share() {
    let mut schedule = Schedule::default();
    let now = Instant::now();
    let ago = |n: usize| now - Duration::from_millis(10_000 - n as u64);
    for n in 0..1_000 {
        schedule.set(&id(n), due(ago(n), Urgency::Rest, account(1)));
        schedule.set(&id(1_000 + n), due(ago(n), Urgency::Watched, account(1)));
    }
    let mut rest = Vec::new();
    for round in 0..100 {
        let new = id(10_000 + round);
        schedule.set(&new, due(now, Urgency::First, account(1)));
        let taken: Vec<_> = (0..4).map(|_| schedule.take(&account(1), now).unwrap().0).collect();
        assert!(taken[..2].contains(&new), "{taken:?}");
        rest.extend(taken.into_iter().filter(|taken| (0..1_000).any(|n| *taken == id(n))));
    }
    assert_eq!(rest, (0..100).map(id).collect::<Vec<_>>());
}

#[test]
fn requests_found_after_a_restart_come_due_one_after_the_other() {
    let (config, now) = (config(), Instant::now());
    let rolls = (0..100_u32).map(|n| f64::from(n) / 100.0);
    let dues = |age: Duration| -> Vec<Duration> {
        let polls = rolls
            .clone()
            .map(|roll| ScheduledPoll::resumed(account(0), now, age, &config, config.max, roll));
        let due = |poll: ScheduledPoll| {
            poll.last + poll.interval(&config, config.max, Duration::ZERO) - now
        };
        polls.map(due).collect()
    };
    let day = dues(Duration::from_hours(24));
    for second in 0..300 {
        let at = |due: &&Duration| due.as_secs() == second;
        assert!(day.iter().filter(at).count() <= 1, "{day:?}");
    }
    assert!(day.iter().all(|due| *due <= config.max));
    // A new request waits for the first interval.
    assert!(dues(Duration::ZERO).iter().all(|due| *due == config.first));
}

#[test]
fn a_poll_of_another_replica_is_found_by_the_count() {
    let table = [
        // Nobody has polled yet, or the cell has expired.
        (None, None, false, false),
        (Some(3), None, false, false),
        (Some(3), Some(3), false, false),
        (Some(3), Some(4), false, true),
        // After a start, with and without other replicas.
        (None, Some(4), false, true),
        (None, Some(4), true, false),
    ];
    for (seen, held, exclusive, elsewhere) in table {
        assert_eq!(
            polled_elsewhere(seen, held, exclusive),
            elsewhere,
            "{seen:?} {held:?} {exclusive}"
        );
    }
}

/// Replicas that share one cell, with a clock that only the test moves.
struct World {
    now: Instant,
    cell: Option<u32>,
    replicas: Vec<Replica>,
    polls: Vec<Instant>,
}

struct Replica {
    schedule: Schedule,
    longest: Duration,
    alive: bool,
}

impl World {
    /// Replicas that see the request this long after its beginning.
    fn new(heard: &[Duration], longest: Duration) -> Self {
        let (now, id) = (Instant::now(), request());
        let replica = |after: &Duration| {
            let heard = now + *after;
            let mut schedule = Schedule::default();
            let poll = ScheduledPoll::new(account(0), heard);
            schedule.set(
                &id,
                polled_at(poll.clone(), heard + poll.interval(&config(), longest, Duration::ZERO)),
            );
            Replica { schedule, longest, alive: true }
        };
        Self { now, cell: None, replicas: heard.iter().map(replica).collect(), polls: Vec::new() }
    }

    fn run_until(&mut self, end: Instant, mut latency: impl FnMut() -> Duration) {
        loop {
            let next =
                |(at, replica): (usize, &Replica)| replica.schedule.next().map(|due| (due, at));
            let living = self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive);
            let Some((due, at)) = living.filter_map(next).min().filter(|(due, _)| *due < end)
            else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            self.poll(at, latency());
        }
    }

    /// Does what `Poller` does with a due poll, which takes `latency`.
    fn poll(&mut self, at: usize, latency: Duration) {
        let replica = &mut self.replicas[at];
        let (id, poll, _) = replica.schedule.take(&account(0), self.now).unwrap();
        if !polled_elsewhere(poll.seen, self.cell, false) {
            self.cell = Some(self.cell.unwrap_or(0) + 1);
            self.polls.push(self.now);
        }
        let counted = PollCount { count: self.cell.unwrap(), pause: Duration::ZERO };
        let poll = poll.polled(self.now + latency, counted);
        let due = poll.last + poll.interval(&config(), replica.longest, Duration::ZERO);
        replica.schedule.finished(&account(0));
        replica.schedule.set(&id, polled_at(poll, due));
    }
}

fn polled_at(poll: ScheduledPoll, due: Instant) -> ScheduledPoll {
    ScheduledPoll { due: Some((due, Urgency::Rest)), ..poll }
}

fn request() -> RequestId {
    RequestId::parse("r1").unwrap()
}

const INTERVAL: Duration = Duration::from_secs(2);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the offsets of the replicas and their latencies are, polls are never closer than
    /// the interval of one replica, and as frequent.
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

    /// When the replica that polls dies, another one polls within about an interval.
    #[test]
    fn a_dead_replica_is_replaced(
        heard in proptest::collection::vec(0_u64..2_000, 2..6),
        at in 3_u32..20,
    ) {
        let heard: Vec<_> = heard.into_iter().map(Duration::from_millis).collect();
        let mut world = World::new(&heard, INTERVAL);
        let latency = Duration::from_millis(1);
        let died = world.now + at * INTERVAL;
        world.run_until(died, || latency);
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

/// A replica with a watcher has shorter intervals, and so polls for all.
#[test]
fn one_watcher_is_enough_for_the_watched_cadence() {
    let mut world = World::new(
        &[Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)],
        60 * INTERVAL,
    );
    world.replicas[2].longest = INTERVAL;
    let began = world.now;
    world.run_until(began + 60 * INTERVAL, || Duration::from_millis(5));
    assert!((54..=60).contains(&world.polls.len()), "{}", world.polls.len());
}
