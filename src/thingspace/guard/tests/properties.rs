//! What holds for every sequence of attempts, crashes, lost reports and changed files, over several processes.

use proptest::{collection::vec, prelude::*};

use super::*;

/// What locks: one rejection more than the guard allows.
const LOCK: u32 = REJECTIONS + 1;

/// A process: what its files hold, and how far its attempt is.
#[derive(Debug, Clone)]
struct Process {
    lives: u32,
    file: u8,
    at: At,
    /// The version it saw last, and when it first did.
    seen: (u64, Duration),
}

#[derive(Debug, Clone)]
enum At {
    Idle,
    /// It holds a swap that it has decided on.
    Decided(u64, Step, GuardAttempt),
    Claimed(GuardAttempt, Duration),
    /// ThingSpace has answered.
    Answered(GuardAttempt, Report),
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A process does its next step.
    Step(usize),
    /// It dies and begins anew.
    Kill(usize),
    /// Its request goes out and comes to nothing.
    Break(usize),
    /// Its request has its effect and the answer is lost.
    Lose(usize),
    /// Its files change.
    File(usize, u8),
    /// Somebody changes the password at ThingSpace.
    Password(u8),
    /// An operator lets everything be tried once more; after four rejections they log in elsewhere first, as they are told.
    Unblock,
    Pass(u64),
}

#[derive(Debug)]
struct World {
    guard: Option<Guard>,
    version: u64,
    now: Duration,
    exclusive: bool,
    processes: Vec<Process>,
    password: u8,
    /// What ThingSpace counts.
    rejected: u32,
    /// Rejections of what was accepted last that nobody was told of, since the last accepted login.
    unseen: u32,
    attempts: u32,
}

impl World {
    fn new(processes: usize, exclusive: bool) -> Self {
        let idle = Process { lives: 0, file: 0, at: At::Idle, seen: (0, Duration::ZERO) };
        Self {
            guard: None,
            version: 0,
            now: Duration::ZERO,
            exclusive,
            processes: vec![idle; if exclusive { 1 } else { processes }],
            password: 0,
            rejected: 0,
            unseen: 0,
            attempts: 0,
        }
    }

    fn swap(&mut self, expected: u64, next: Guard) -> bool {
        let first = expected == self.version;
        if first {
            self.guard = Some(next);
            self.version += 1;
        }
        first
    }

    /// ThingSpace looks at a login.
    fn ask(&mut self, attempt: &GuardAttempt) -> Report {
        if attempt.fingerprint == [self.password] {
            (self.rejected, self.unseen) = (0, 0);
            return accepted();
        }
        self.rejected += 1;
        Report::Rejected
    }

    /// The gap that is documented: four in a row that die between a rejection and its report.
    fn would_be_unseen(&self, attempt: &GuardAttempt) -> bool {
        let Some(guard) = &self.guard else { return false };
        let tried = guard.candidate(&attempt.fingerprint);
        guard.accepted_last == attempt.fingerprint && tried.is_some_and(|tried| tried.strikes == 0)
    }

    fn step(&mut self, n: usize) {
        let mut process = self.processes[n].clone();
        process.at = match process.at {
            At::Idle => {
                if process.seen.0 != self.version {
                    process.seen = (self.version, self.now);
                }
                let mut attempt = by(&format!("{n} {}", process.lives), process.file);
                self.attempts += 1;
                attempt.id = self.attempts.to_string();
                let unchanged = self.now.saturating_sub(process.seen.1);
                let look = Look { guard: self.guard.as_ref(), unchanged, exclusive: self.exclusive };
                let step = next(look, &attempt, &terms());
                At::Decided(self.version, step, attempt)
            }
            At::Decided(version, Step::Claim(guard), attempt) => {
                if self.swap(version, guard) {
                    At::Claimed(attempt, self.now)
                } else {
                    At::Idle
                }
            }
            At::Decided(version, Step::Settle(guard), _) => {
                self.swap(version, guard);
                At::Idle
            }
            At::Decided(..) => At::Idle,
            // A process that stood still for too long does not use its claim.
            At::Claimed(attempt, since) if self.now.saturating_sub(since) > SECOND * 20 => {
                At::Answered(attempt, Report::Void)
            }
            At::Claimed(attempt, _) => {
                let answer = self.ask(&attempt);
                At::Answered(attempt, answer)
            }
            At::Answered(attempt, answer) => {
                if let Some(next) = report(self.guard.clone(), &attempt, &answer, &terms()) {
                    self.swap(self.version, next);
                }
                At::Idle
            }
        };
        self.processes[n] = process;
    }

    fn happen(&mut self, event: Event) {
        let count = self.processes.len();
        match event {
            Event::Step(n) => self.step(n % count),
            Event::Kill(n) => {
                let n = n % count;
                if let At::Answered(attempt, Report::Rejected) = self.processes[n].at.clone()
                    && self.would_be_unseen(&attempt)
                {
                    if self.unseen == SILENCES {
                        return;
                    }
                    self.unseen += 1;
                }
                let process = &mut self.processes[n];
                process.lives += 1;
                (process.at, process.seen) = (At::Idle, (u64::MAX, Duration::ZERO));
            }
            Event::Break(n) | Event::Lose(n) => {
                let n = n % count;
                if let At::Claimed(attempt, since) = self.processes[n].at.clone()
                    && self.now.saturating_sub(since) <= SECOND * 20
                {
                    if matches!(event, Event::Lose(_)) {
                        let wrong = attempt.fingerprint != [self.password];
                        if wrong && self.would_be_unseen(&attempt) {
                            if self.unseen == SILENCES {
                                return;
                            }
                            self.unseen += 1;
                        }
                        self.ask(&attempt);
                    }
                    self.processes[n].at = At::Answered(attempt, Report::Unanswered);
                }
            }
            Event::File(n, password) => self.processes[n % count].file = password,
            Event::Password(password) => self.password = password,
            Event::Unblock => {
                let Some(guard) = self.guard.clone() else { return };
                if guard.is_closed() {
                    (self.rejected, self.unseen) = (0, 0);
                }
                if let Some(next) = unblocked(guard) {
                    self.swap(self.version, next);
                }
            }
            Event::Pass(seconds) => self.now += SECOND * u32::try_from(seconds).unwrap(),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let process = 0..5_usize;
    prop_oneof![
        24 => process.clone().prop_map(Event::Step),
        3 => process.clone().prop_map(Event::Kill),
        1 => process.clone().prop_map(Event::Break),
        1 => process.clone().prop_map(Event::Lose),
        2 => (process, 0..12_u8).prop_map(|(n, password)| Event::File(n, password)),
        1 => (0..3_u8).prop_map(Event::Password),
        1 => Just(Event::Unblock),
        4 => (1..70_u64).prop_map(Event::Pass),
        1 => (300..400_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_user_is_never_locked(
        processes in 1..=5_usize,
        exclusive in any::<bool>(),
        events in vec(event(), 0..400),
    ) {
        let mut world = World::new(processes, exclusive);
        for event in events {
            world.happen(event);
            prop_assert!(world.rejected < LOCK, "{world:?}");
        }
    }

    /// With the right password in every file, nothing but silence is in the way, and that passes.
    #[test]
    fn what_was_accepted_is_accepted_again(kills in vec(any::<bool>(), 0..60)) {
        let mut world = World::new(1, true);
        for _ in 0..4 {
            world.step(0);
        }
        prop_assert!(world.guard.as_ref().is_some_and(|guard| guard.accepted_last == [0]));
        for broken in kills {
            world.happen(Event::Pass(60));
            for _ in 0..2 {
                world.step(0);
            }
            world.happen(if broken { Event::Break(0) } else { Event::Kill(0) });
            for _ in 0..2 {
                world.step(0);
            }
        }
        let claims = (0..20).any(|_| {
            world.happen(Event::Pass(60));
            world.step(0);
            matches!(world.processes[0].at, At::Claimed(..))
        });
        prop_assert!(claims, "{world:?}");
    }
}
