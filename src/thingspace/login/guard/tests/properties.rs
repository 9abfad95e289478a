//! Sequences of logins with every outcome, crashes, lost cells, changed passwords and operators,
//! over several processes, against a model that counts rejected logins as ThingSpace does.

use proptest::{collection::vec, prelude::*};

use super::{
    answers::{Effect, SESSION, answers, outcome},
    *,
};

/// A claim that is older is not used.
const FRESH: Duration = Duration::from_secs(20);

/// A process with its files and the phase of its attempt.
#[derive(Debug, Clone)]
struct Process {
    lives: u32,
    file: u8,
    phase: Phase,
    /// The guard that it saw last; its version, and when it first saw that.
    memory: Option<Guard>,
    seen: (u64, Duration),
}

#[derive(Debug, Clone)]
enum Phase {
    Idle,
    /// It has decided on a swap.
    Decided(u64, GuardDecision, GuardAttempt),
    Claimed(GuardAttempt, Duration),
    /// ThingSpace has answered.
    Answered(GuardAttempt, AttemptOutcome),
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A process does its next step. If that is a login, ThingSpace evaluates it and gives any
    /// answer.
    Step(usize, usize),
    /// The same, but ThingSpace does not evaluate it.
    Fail(usize, usize),
    /// A process dies and restarts.
    Kill(usize),
    /// The request of a process cannot be sent.
    NotSent(usize),
    /// The files of a process change.
    File(usize, u8),
    /// The password at ThingSpace changes.
    Password(u8),
    /// An operator runs `unblock`, through one of the processes.
    Unblock(usize),
    /// An operator logs in elsewhere, then runs `unblock --force`.
    LogIn(usize),
    /// The same, with `--risk-lock`.
    LogInAgain(usize),
    /// An operator runs `unblock --force` without a login elsewhere.
    Mistake(usize),
    /// The store loses its cells, and knows that.
    Lose,
    Pass(u64),
}

#[derive(Debug)]
struct World {
    guard: Option<Guard>,
    version: u64,
    lost: bool,
    now: Duration,
    exclusive: bool,
    settings: GuardSettings,
    processes: Vec<Process>,
    password: u8,
    /// ThingSpace's count.
    rejected: u32,
    /// The highest count allowed: a mistaken `unblock --force` leads to one more rejection, hence
    /// to a lock only if there were four.
    most: u32,
    /// A mistaken `--force` was accepted, and no login since. A second one must be refused.
    mistaken: bool,
    accepted: u32,
    attempts: u32,
}

impl World {
    fn new(processes: usize, exclusive: bool) -> Self {
        let idle = Process {
            lives: 0,
            file: 0,
            phase: Phase::Idle,
            memory: None,
            seen: (0, Duration::ZERO),
        };
        Self {
            guard: None,
            version: 0,
            lost: false,
            now: Duration::ZERO,
            exclusive,
            settings: settings(),
            processes: vec![idle; if exclusive { 1 } else { processes }],
            password: 0,
            rejected: 0,
            most: COUNT_LIMIT,
            mistaken: false,
            accepted: 0,
            attempts: 0,
        }
    }

    fn swap(&mut self, process: &mut Process, expected: u64, next: Guard) -> bool {
        let first = expected == self.version;
        if first {
            self.guard = Some(next.clone());
            self.version += 1;
            (process.memory, process.seen) = (Some(next), (self.version, self.now));
        }
        first
    }

    /// Writes back what the store has lost, as the cells of [`crate::thingspace::login`] do.
    fn remind(&mut self, process: &mut Process) {
        let memory = process.memory.clone();
        let forgotten =
            memory.and_then(|known| merged(self.guard.as_ref(), &known, &self.settings));
        if let Some(next) = forgotten {
            self.swap(process, self.version, next);
        }
        process.memory.clone_from(&self.guard);
        if process.seen.0 != self.version {
            process.seen = (self.version, self.now);
        }
    }

    fn look(&self, process: &Process) -> Observation {
        let unchanged = self.now.saturating_sub(process.seen.1);
        Observation {
            guard: self.guard.clone(),
            lost: self.lost,
            unchanged,
            exclusive: self.exclusive,
        }
    }

    /// ThingSpace gets a login.
    fn ask(&mut self, attempt: &GuardAttempt, effect: Effect, roll: usize) -> AttemptOutcome {
        let right = attempt.fingerprint == [self.password];
        if effect == Effect::Evaluated {
            if right {
                self.cleared();
            } else {
                self.rejected += 1;
            }
            self.accepted += u32::from(right);
        }
        let answers = answers(right, effect);
        let report = outcome(answers[roll % answers.len()].as_ref());
        assert!(
            report != AttemptOutcome::NotEvaluated || effect == Effect::Nothing,
            "an evaluated login must count"
        );
        assert!(
            !matches!(report, AttemptOutcome::Accepted { .. }) || right,
            "only a session is a success"
        );
        report
    }

    fn step(&mut self, n: usize, effect: Effect, roll: usize) {
        let mut process = self.processes[n].clone();
        process.phase = match process.phase.clone() {
            Phase::Idle => {
                self.remind(&mut process);
                let mut attempt = by(&format!("{n} {}", process.lives), process.file);
                self.attempts += 1;
                attempt.id = self.attempts.to_string();
                let step = next(&self.look(&process), &attempt, &self.settings);
                Phase::Decided(self.version, step, attempt)
            }
            Phase::Decided(version, GuardDecision::Claim(guard), attempt) => {
                if self.swap(&mut process, version, guard) {
                    Phase::Claimed(attempt, self.now)
                } else {
                    Phase::Idle
                }
            }
            Phase::Decided(version, GuardDecision::Settle(guard), _) => {
                self.swap(&mut process, version, guard);
                Phase::Idle
            }
            Phase::Decided(..) => Phase::Idle,
            Phase::Claimed(attempt, since) if self.now.saturating_sub(since) > FRESH => {
                Phase::Answered(attempt, AttemptOutcome::NotEvaluated)
            }
            Phase::Claimed(attempt, _) => {
                let answer = self.ask(&attempt, effect, roll);
                Phase::Answered(attempt, answer)
            }
            Phase::Answered(attempt, answer) => {
                self.remind(&mut process);
                if let Some(next) = report(self.guard.clone(), &attempt, &answer, &self.settings) {
                    self.swap(&mut process, self.version, next);
                }
                Phase::Idle
            }
        };
        self.processes[n] = process;
    }

    /// A login is accepted.
    fn cleared(&mut self) {
        (self.rejected, self.most, self.mistaken) = (0, COUNT_LIMIT, false);
    }

    /// Returns whether the command changed the guard.
    fn unblock(&mut self, n: usize, mode: UnblockMode) -> bool {
        let mut process = self.processes[n].clone();
        self.remind(&mut process);
        let permitted = unblocked(&self.look(&process), &[process.file], mode, &self.settings);
        let next = permitted.ok().flatten();
        let permitted = next.is_some();
        if let Some(next) = next {
            self.swap(&mut process, self.version, next);
        }
        self.processes[n] = process;
        permitted
    }

    fn happen(&mut self, event: Event) {
        let count = self.processes.len();
        match event {
            Event::Step(n, roll) => self.step(n % count, Effect::Evaluated, roll),
            Event::Fail(n, roll) => self.step(n % count, Effect::Nothing, roll),
            Event::Kill(n) => {
                let process = &mut self.processes[n % count];
                process.lives += 1;
                (process.phase, process.memory) = (Phase::Idle, None);
                process.seen = (u64::MAX, Duration::ZERO);
            }
            Event::NotSent(n) => {
                let process = &mut self.processes[n % count];
                if let Phase::Claimed(attempt, _) = process.phase.clone() {
                    process.phase = Phase::Answered(attempt, AttemptOutcome::NotEvaluated);
                }
            }
            Event::File(n, password) => self.processes[n % count].file = password,
            Event::Password(password) => self.password = password,
            Event::Unblock(n) => drop(self.unblock(n % count, UnblockMode::Retry)),
            Event::LogIn(n) => {
                self.cleared();
                self.unblock(n % count, UnblockMode::LoggedIn);
            }
            Event::LogInAgain(n) => {
                self.cleared();
                assert!(self.unblock(n % count, UnblockMode::RiskLock) || self.stopped().is_none());
            }
            Event::Mistake(n) => {
                // A command that finds no count to clear only permits secrets to be tried again.
                let permitted = self.unblock(n % count, UnblockMode::LoggedIn);
                let believed = permitted && self.guard.as_ref().is_some_and(|guard| guard.forced);
                // If ThingSpace has counted nothing, the statement is true in effect.
                if believed && self.rejected > 0 {
                    assert!(!self.mistaken, "believed twice: {self:?}");
                    self.mistaken = true;
                    self.most = self.most.max(self.rejected + 1);
                }
            }
            Event::Lose => {
                // The replica that remembers the `--force` may not be the first to write back.
                (self.guard, self.lost, self.mistaken) = (None, true, false);
                self.version += 1;
            }
            Event::Pass(seconds) => self.now += SECOND * u32::try_from(seconds).unwrap(),
        }
    }

    /// Every file contains the right password, and nothing fails any more.
    fn calm(&mut self) {
        for process in &mut self.processes {
            process.file = self.password;
        }
        for _ in 0..6 {
            self.happen(Event::Pass(400));
            for n in 0..self.processes.len() {
                // An attempt has four steps, and the last one may have to be settled or reported.
                for _ in 0..8 {
                    self.step(n, Effect::Evaluated, SESSION);
                }
            }
        }
    }

    /// Why the guard does not allow the right password.
    fn stopped(&self) -> Option<Stopped> {
        let look = Observation {
            guard: self.guard.clone(),
            lost: self.lost,
            unchanged: LONG * 2,
            exclusive: true,
        };
        match next(&look, &by("an observer", self.password), &self.settings) {
            GuardDecision::Stopped(stopped) => Some(stopped),
            _ => None,
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let process = 0..5_usize;
    prop_oneof![
        24 => (process.clone(), any::<usize>()).prop_map(|(n, roll)| Event::Step(n, roll)),
        3 => (process.clone(), any::<usize>()).prop_map(|(n, roll)| Event::Fail(n, roll)),
        3 => process.clone().prop_map(Event::Kill),
        1 => process.clone().prop_map(Event::NotSent),
        2 => (process.clone(), 0..12_u8).prop_map(|(n, password)| Event::File(n, password)),
        1 => (0..3_u8).prop_map(Event::Password),
        2 => process.clone().prop_map(Event::Unblock),
        1 => process.clone().prop_map(Event::LogIn),
        1 => process.clone().prop_map(Event::LogInAgain),
        3 => process.prop_map(Event::Mistake),
        1 => Just(Event::Lose),
        4 => (1..70_u64).prop_map(Event::Pass),
        1 => (300..400_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 512,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_user_is_never_locked(
        processes in 1..=5_usize,
        exclusive in any::<bool>(),
        events in vec(event(), 0..400),
    ) {
        let mut world = World::new(processes, exclusive);
        for event in events {
            world.happen(event);
            prop_assert!(world.rejected <= world.most, "{world:?}");
        }
    }

    /// Needs no operator, unless the guard has one of the documented reasons.
    #[test]
    fn the_right_password_is_accepted_once_everything_works(
        processes in 1..=3_usize,
        exclusive in any::<bool>(),
        events in vec(event(), 0..100),
    ) {
        let mut world = World::new(processes, exclusive);
        for event in events {
            world.happen(event);
        }
        let before = world.accepted;
        world.calm();
        let guard = world.guard.clone().unwrap_or_default();
        let held = guard.candidate(&[world.password]);
        let given_up = held.is_some_and(|held| held.strikes >= REJECTIONS_LIMIT);
        let silent = held.is_some_and(|held| held.misses >= FAILURES_LIMIT);
        match world.stopped() {
            None => prop_assert!(world.accepted > before, "{world:?}"),
            Some(Stopped::Rejected) => prop_assert!(given_up, "{world:?}"),
            Some(Stopped::Unanswered) => prop_assert!(silent, "{world:?}"),
            Some(Stopped::CountLimit) => prop_assert!(guard.counted() >= COUNT_LIMIT, "{world:?}"),
            Some(Stopped::ForceUsed) => {
                prop_assert!(guard.forced && guard.counted() >= COUNT_LIMIT, "{world:?}");
            }
            Some(Stopped::CountLost) => {
                prop_assert!(world.lost && world.guard.is_none(), "{world:?}");
            }
        }
        prop_assert!(world.rejected <= world.most, "{world:?}");
    }

    /// A right password is still used after any two failures in a row, however often these happen.
    #[test]
    fn two_mishaps_in_a_row_need_no_operator(
        mishaps in vec((any::<bool>(), any::<usize>()), 0..40),
    ) {
        let mut world = World::new(1, true);
        world.calm();
        for pair in mishaps.chunks(2) {
            for &(killed, roll) in pair {
                while !matches!(world.processes[0].phase, Phase::Claimed(..)) {
                    world.happen(Event::Pass(400));
                    world.happen(Event::Step(0, SESSION));
                }
                world.happen(if killed { Event::Kill(0) } else { Event::Fail(0, roll) });
                world.happen(Event::Step(0, SESSION));
            }
            let before = world.accepted;
            world.calm();
            prop_assert!(world.accepted > before && world.stopped().is_none(), "{world:?}");
        }
    }

    /// A token request locks nobody, so the right secret is always tried again.
    #[test]
    fn the_application_is_never_stopped(events in vec(event(), 0..200)) {
        let mut world = World::new(3, false);
        world.settings.locks = false;
        for event in events {
            world.happen(event);
        }
        let before = world.accepted;
        world.calm();
        prop_assert!(world.accepted > before && world.stopped().is_none(), "{world:?}");
    }
}
