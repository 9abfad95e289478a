//! Sequences of logins with every outcome, crashes, lost cells, changed passwords and operators,
//! over several processes, against a model that counts rejected logins as ThingSpace does.

use bytes::Bytes;
use http::StatusCode;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::thingspace::{
    http::{transport::Reply, wire},
    login::guard::answer::{Answer, to_login},
};

/// A claim that is older is not used.
const FRESH: Duration = Duration::from_secs(20);

const CODE: &str = r#"{"errorCode":"UnifiedWebService.REQUEST_FAILED.InvalidCredentials"}"#;
const PAGE: &str = "<html>Sorry</html>";

/// The index of the session among the answers to an accepted login.
const SESSION: usize = 13;

/// What ThingSpace does with a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It evaluates the password.
    Evaluated,
    /// It does not, and nobody can see that.
    Nothing,
}

/// How it answers a login that it accepted, rejected or did not evaluate; `None`: not at all.
fn answers(accepted: bool, effect: Effect) -> Vec<Option<Reply>> {
    let reply = |status: u16, body: &'static str| {
        let status = StatusCode::from_u16(status).unwrap();
        let body = Some(Bytes::from_static(body.as_bytes()));
        Some(Reply {
            status,
            retry_after: None,
            locations: Vec::new(),
            request_ids: Vec::new(),
            body,
            cut: false,
        })
    };
    let whole = reply(200, "");
    let cut = whole.map(|whole| Reply { body: None, cut: true, ..whole });
    let mut answers =
        vec![None, cut, reply(408, ""), reply(500, PAGE), reply(503, ""), reply(502, PAGE)];
    answers.extend([reply(404, PAGE), reply(200, PAGE), reply(200, ""), reply(302, "")]);
    answers.extend([200, 500].map(|status| reply(status, r#"{"fault":{"code":900901}}"#)));
    answers.push(reply(200, r#"{"fault":{"code":900800}}"#));
    match (effect, accepted) {
        (Effect::Nothing, _) => {
            answers.push(reply(500, r#"{"fault":{"code":101503}}"#));
            answers.push(reply(429, r#"{"fault":{"code":900800}}"#));
            answers.push(reply(401, r#"{"fault":{"code":900901}}"#));
            answers.push(reply(404, r#"{"fault":{"code":900906}}"#));
        }
        (Effect::Evaluated, true) => {
            // More often than everything else together.
            answers.extend((0..20).map(|_| reply(200, r#"{"sessionToken":"a-b"}"#)));
        }
        (Effect::Evaluated, false) => {
            let statuses = [200, 400, 401, 403, 404, 407, 408, 409, 422, 423, 429, 500, 502, 503];
            answers.extend(statuses.map(|status| reply(status, CODE)));
            let other = r#"{"faultResponse":{"faultcode":"UWS.INPUT_INVALID.Password.Invalid"}}"#;
            answers.extend([
                reply(500, other),
                reply(200, other),
                reply(200, r#"{"error":"invalid_grant"}"#),
            ]);
            answers
                .extend([400, 401, 403, 407, 409, 422, 423, 429].map(|status| reply(status, "")));
            answers.extend(
                [503, 500].map(|status| reply(status, r#"{"error":"Service Unavailable"}"#)),
            );
        }
    }
    answers
}

/// What the gateway reports of an answer.
fn reported(reply: Option<&Reply>) -> Report {
    let Some(reply) = reply else { return Report::Unanswered };
    match to_login(reply, wire::session) {
        Answer::Accepted(_) => accepted(),
        Answer::Rejected => Report::Rejected,
        Answer::Unclear(_) => Report::Unanswered,
        Answer::StaleBearer | Answer::Throttled(_) | Answer::NotEvaluated(_) => Report::Void,
    }
}

/// A process: what its files hold, and how far its attempt is.
#[derive(Debug, Clone)]
struct Process {
    lives: u32,
    file: u8,
    at: At,
    /// What it saw last, in which version, and when it first did.
    memory: Option<Guard>,
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
    /// A process does its next step; if that is a login, ThingSpace evaluates it and answers
    /// somehow.
    Step(usize, usize),
    /// The same, but ThingSpace does not evaluate it.
    Fail(usize, usize),
    /// It dies and begins anew.
    Kill(usize),
    /// Its request cannot be sent.
    NotSent(usize),
    /// Its files change.
    File(usize, u8),
    /// Somebody changes the password at ThingSpace.
    Password(u8),
    /// An operator runs `unblock`, through one of the processes.
    Unblock(usize),
    /// An operator logs in elsewhere, then runs `unblock --force`.
    LogIn(usize),
    /// The same, with `--risk-lock` in case that the last one was a mistake.
    LogInAgain(usize),
    /// An operator runs `unblock --force` without that.
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
    terms: Terms,
    processes: Vec<Process>,
    password: u8,
    /// What ThingSpace counts.
    rejected: u32,
    /// What it may count at most: a mistaken `unblock --force` leads to one more, hence to a lock
    /// only if there were four.
    most: u32,
    /// An operator was mistaken, and no login was accepted since. A second mistake is not believed.
    mistaken: bool,
    accepted: u32,
    attempts: u32,
}

impl World {
    fn new(processes: usize, exclusive: bool) -> Self {
        let idle =
            Process { lives: 0, file: 0, at: At::Idle, memory: None, seen: (0, Duration::ZERO) };
        Self {
            guard: None,
            version: 0,
            lost: false,
            now: Duration::ZERO,
            exclusive,
            terms: terms(),
            processes: vec![idle; if exclusive { 1 } else { processes }],
            password: 0,
            rejected: 0,
            most: COUNTED,
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

    /// Writes back what the store forgot, as [`crate::thingspace::login`] does.
    fn remind(&mut self, process: &mut Process) {
        let memory = process.memory.clone();
        let forgotten = memory.and_then(|known| merged(self.guard.as_ref(), &known, &self.terms));
        if let Some(next) = forgotten {
            self.swap(process, self.version, next);
        }
        process.memory.clone_from(&self.guard);
        if process.seen.0 != self.version {
            process.seen = (self.version, self.now);
        }
    }

    fn look(&self, process: &Process) -> Look<'_> {
        let unchanged = self.now.saturating_sub(process.seen.1);
        Look { guard: self.guard.as_ref(), lost: self.lost, unchanged, exclusive: self.exclusive }
    }

    /// ThingSpace gets a login.
    fn ask(&mut self, attempt: &GuardAttempt, effect: Effect, roll: usize) -> Report {
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
        let report = reported(answers[roll % answers.len()].as_ref());
        assert!(
            report != Report::Void || effect == Effect::Nothing,
            "an evaluated login must count"
        );
        assert!(!matches!(report, Report::Accepted { .. }) || right, "only a session is a success");
        report
    }

    fn step(&mut self, n: usize, effect: Effect, roll: usize) {
        let mut process = self.processes[n].clone();
        process.at = match process.at.clone() {
            At::Idle => {
                self.remind(&mut process);
                let mut attempt = by(&format!("{n} {}", process.lives), process.file);
                self.attempts += 1;
                attempt.id = self.attempts.to_string();
                let step = next(self.look(&process), &attempt, &self.terms);
                At::Decided(self.version, step, attempt)
            }
            At::Decided(version, Step::Claim(guard), attempt) => {
                if self.swap(&mut process, version, guard) {
                    At::Claimed(attempt, self.now)
                } else {
                    At::Idle
                }
            }
            At::Decided(version, Step::Settle(guard), _) => {
                self.swap(&mut process, version, guard);
                At::Idle
            }
            At::Decided(..) => At::Idle,
            At::Claimed(attempt, since) if self.now.saturating_sub(since) > FRESH => {
                At::Answered(attempt, Report::Void)
            }
            At::Claimed(attempt, _) => {
                let answer = self.ask(&attempt, effect, roll);
                At::Answered(attempt, answer)
            }
            At::Answered(attempt, answer) => {
                self.remind(&mut process);
                if let Some(next) = report(self.guard.clone(), &attempt, &answer, &self.terms) {
                    self.swap(&mut process, self.version, next);
                }
                At::Idle
            }
        };
        self.processes[n] = process;
    }

    /// A login is accepted.
    fn cleared(&mut self) {
        (self.rejected, self.most, self.mistaken) = (0, COUNTED, false);
    }

    /// Whether it is permitted.
    fn unblock(&mut self, n: usize, mode: UnblockMode) -> bool {
        let mut process = self.processes[n].clone();
        self.remind(&mut process);
        let permitted = unblocked(self.look(&process), &[process.file], mode, &self.terms);
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
                (process.at, process.memory) = (At::Idle, None);
                process.seen = (u64::MAX, Duration::ZERO);
            }
            Event::NotSent(n) => {
                let process = &mut self.processes[n % count];
                if let At::Claimed(attempt, _) = process.at.clone() {
                    process.at = At::Answered(attempt, Report::Void);
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
                // Without a rejection that counts it is none.
                if self.unblock(n % count, UnblockMode::LoggedIn) && self.rejected > 0 {
                    assert!(!self.mistaken || !self.terms.locks, "believed twice: {self:?}");
                    self.mistaken = true;
                    self.most = self.most.max(self.rejected + 1);
                }
            }
            Event::Lose => {
                // A replica may remember it and not come first.
                (self.guard, self.lost, self.mistaken) = (None, true, false);
                self.version += 1;
            }
            Event::Pass(seconds) => self.now += SECOND * u32::try_from(seconds).unwrap(),
        }
    }

    /// Every file holds the right password, and nothing goes wrong any more.
    fn calm(&mut self) {
        for process in &mut self.processes {
            process.file = self.password;
        }
        for _ in 0..6 {
            self.happen(Event::Pass(400));
            for n in 0..self.processes.len() {
                // An attempt has four steps, and the one before may have to be settled or reported.
                for _ in 0..8 {
                    self.step(n, Effect::Evaluated, SESSION);
                }
            }
        }
    }

    /// Why the right password is not tried, if the guard has a reason.
    fn stopped(&self) -> Option<Stopped> {
        let look = Look {
            guard: self.guard.as_ref(),
            lost: self.lost,
            unchanged: LONG * 2,
            exclusive: true,
        };
        match next(look, &by("an observer", self.password), &self.terms) {
            Step::Stopped(stopped) => Some(stopped),
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
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

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

    /// Without an operator, unless the guard has one of the documented reasons.
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
        let given_up = held.is_some_and(|held| held.strikes >= STRIKES);
        let silent = held.is_some_and(|held| held.misses >= MISSES);
        match world.stopped() {
            None => prop_assert!(world.accepted > before, "{world:?}"),
            Some(Stopped::Strikes) => prop_assert!(given_up, "{world:?}"),
            Some(Stopped::Silences) => prop_assert!(silent, "{world:?}"),
            Some(Stopped::Closed) => prop_assert!(guard.counted() >= COUNTED, "{world:?}"),
            Some(Stopped::ForcedInVain) => {
                prop_assert!(guard.forced && guard.counted() >= COUNTED, "{world:?}");
            }
            Some(Stopped::Lost) => prop_assert!(world.lost && world.guard.is_none(), "{world:?}"),
        }
        prop_assert!(world.rejected <= world.most, "{world:?}");
    }

    /// Two mishaps in a row, of whatever kind, cost a right password nothing, however often they
    /// happen.
    #[test]
    fn two_mishaps_in_a_row_need_no_operator(mishaps in vec((any::<bool>(), any::<usize>()), 0..40)) {
        let mut world = World::new(1, true);
        world.calm();
        for pair in mishaps.chunks(2) {
            for &(killed, roll) in pair {
                while !matches!(world.processes[0].at, At::Claimed(..)) {
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

    /// A token request locks nobody, so whatever happens, the right secret is tried again.
    #[test]
    fn the_application_is_never_stopped(events in vec(event(), 0..200)) {
        let mut world = World::new(3, false);
        world.terms.locks = false;
        for event in events {
            world.happen(event);
        }
        let before = world.accepted;
        world.calm();
        prop_assert!(world.accepted > before && world.stopped().is_none(), "{world:?}");
    }
}
