//! When which request is due. Knows nothing of why, of ThingSpace or of the store.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::PollingConfig,
    identity::{AccountName, RequestId},
    requests::hub::Hint,
};

/// A poll is never sooner than this many times what the last answer took.
const REST: u32 = 10;

/// Polls of one account that are under way at once. Each has a connection, so that their number is
/// bounded for all accounts together as well.
const MAX_POLLS: usize = 64;

/// Whose poll is next, by urgency, over and over; the most urgent of those that are due where
/// nobody of that urgency is. So requests that nobody watches get a quarter of an account's polls
/// at least.
const PICKS: [Urgency; 4] = [Urgency::First, Urgency::Watched, Urgency::First, Urgency::Rest];

/// The turns of all requests that are polled, account by account: each account waits for its own
/// calls.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    accounts: HashMap<AccountName, Account>,
    turns: HashMap<RequestId, Turn>,
    /// When withheld answers have to be told, which needs no call.
    releases: BTreeSet<(Instant, RequestId)>,
}

#[derive(Debug, Default)]
struct Account {
    /// When polls are due, by urgency.
    due: [BTreeSet<(Instant, RequestId)>; 3],
    /// It waits for its turn to call ThingSpace.
    waits: bool,
    under_way: usize,
    /// How many polls were taken.
    taken: usize,
}

/// Which of the requests that are due is polled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Somebody has just begun to watch it, or a callback has to be explained.
    First,
    /// It is watched, or new.
    Watched,
    Rest,
}

/// Where one request stands.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) account: AccountName,
    /// When it is to be polled, and how urgent that is. `None`: it is under way.
    pub(super) due: Option<(Instant, Urgency)>,
    /// When a withheld answer has to be told.
    pub(super) release: Option<Instant>,
    /// When it was polled last, by whomever and as far as this replica saw, or first heard of.
    pub(super) last: Instant,
    /// What makes the intervals grow: polls, and failures to claim one.
    pub(super) count: u32,
    /// What the request's cell said when this replica looked last.
    pub(super) seen: Option<u32>,
    /// The rest that the last replica to poll leaves ThingSpace.
    pub(super) rest: Duration,
    /// Why its next poll is more urgent than others.
    pub(super) hint: Option<Hint>,
}

/// A poll that was counted in the request's cell: how many there were with it, and the rest that
/// follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) count: u32,
    pub(super) rest: Duration,
}

impl Turn {
    pub(super) fn new(account: AccountName, now: Instant) -> Self {
        Self {
            account,
            due: Some((now, Urgency::Watched)),
            release: None,
            last: now,
            count: 0,
            seen: None,
            rest: Duration::ZERO,
            hint: None,
        }
    }

    /// Of a request that others have polled for most of its `age`, as after a restart. Nobody knows
    /// when it was polled last: some part of its interval ago, so that the requests there are come
    /// due one after the other. `roll` is a random number from 0 to 1.
    pub(super) fn resumed(
        account: AccountName,
        now: Instant,
        age: Duration,
        config: &PollingConfig,
        longest: Duration,
        roll: f64,
    ) -> Self {
        let mut turn = Self::new(account, now);
        let mut polled_for = Duration::ZERO;
        let interval = loop {
            let interval = turn.interval(config, longest, Duration::ZERO);
            polled_for += interval;
            if polled_for > age || interval >= longest {
                break interval;
            }
            turn.count += 1;
        };
        if age >= interval {
            turn.last = now.checked_sub(interval.mul_f64(roll)).unwrap_or(now);
        }
        turn
    }

    /// After a poll, this replica's or another's.
    pub(super) fn polled(self, now: Instant, counted: Counted) -> Self {
        let Counted { count, rest } = counted;
        Self { last: now, count, seen: Some(count), rest, ..self }
    }

    /// After a poll that could not be claimed.
    pub(super) fn failed(self, now: Instant) -> Self {
        Self { last: now, count: self.count.saturating_add(1), ..self }
    }

    /// How long after `last` it is due, for a request whose interval grows to `longest` and whose
    /// last answer `took` so long here.
    pub(super) fn interval(
        &self,
        config: &PollingConfig,
        longest: Duration,
        took: Duration,
    ) -> Duration {
        let grown =
            config.first.as_secs_f64() * config.factor.powf(f64::from(self.count.min(1_000)));
        let grown =
            if grown < longest.as_secs_f64() { Duration::from_secs_f64(grown) } else { longest };
        grown.max(rest_after(took)).max(self.rest)
    }
}

/// How long ThingSpace is left alone after an answer that took so long.
pub(super) fn rest_after(took: Duration) -> Duration {
    took * REST
}

/// Whether a request whose cell says `held` was polled by another replica since this one looked,
/// when it said `seen`. A replica that has never looked takes up the others' rhythm, unless the
/// store says that there are no others.
pub(super) fn polled_elsewhere(seen: Option<u32>, held: Option<u32>, exclusive: bool) -> bool {
    !exclusive && held.is_some() && held != seen
}

impl Schedule {
    pub(super) fn get(&self, id: &RequestId) -> Option<Turn> {
        self.turns.get(id).cloned()
    }

    pub(super) fn set(&mut self, id: &RequestId, turn: Turn) {
        self.remove(id);
        if let Some((due, urgency)) = turn.due {
            let account = self.accounts.entry(turn.account.clone()).or_default();
            account.due[urgency as usize].insert((due, id.clone()));
            self.releases.extend(turn.release.map(|release| (release, id.clone())));
        }
        self.turns.insert(id.clone(), turn);
    }

    pub(super) fn remove(&mut self, id: &RequestId) {
        if let Some(turn) = self.turns.remove(id) {
            self.forget(id, &turn);
        }
    }

    /// It is not due any more.
    fn forget(&mut self, id: &RequestId, turn: &Turn) {
        if let Some((due, urgency)) = turn.due
            && let Some(account) = self.accounts.get_mut(&turn.account)
        {
            account.due[urgency as usize].remove(&(due, id.clone()));
            self.forget_idle(&turn.account);
        }
        if let Some(release) = turn.release {
            self.releases.remove(&(release, id.clone()));
        }
    }

    /// When something has to be done next.
    pub(super) fn next(&self) -> Option<Instant> {
        let polls =
            self.accounts.values().filter(|account| account.may_wait()).filter_map(Account::next);
        polls.chain(self.releases.first().map(|(due, _)| *due)).min()
    }

    /// The accounts that have to begin to wait for their turn now, because a poll is due.
    pub(super) fn begin_waiting(&mut self, now: Instant) -> Vec<AccountName> {
        let due =
            |account: &Account| account.may_wait() && account.next().is_some_and(|due| due <= now);
        let begin =
            self.accounts.iter_mut().filter(|(_, account)| due(account)).map(|(name, account)| {
                account.waits = true;
                name.clone()
            });
        begin.collect()
    }

    /// An account has had its turn: takes the request to poll, unless none is due any more.
    pub(super) fn take(&mut self, name: &AccountName, now: Instant) -> Option<(RequestId, Turn)> {
        let account = self.accounts.get_mut(name)?;
        account.waits = false;
        let taken = account.take(now);
        account.under_way += usize::from(taken.is_some());
        self.forget_idle(name);
        self.begin(taken?)
    }

    /// Takes a request whose withheld answer has to be told.
    pub(super) fn take_release(&mut self, now: Instant) -> Option<(RequestId, Turn)> {
        let id = pop_due(&mut self.releases, now)?;
        self.begin(id)
    }

    fn begin(&mut self, id: RequestId) -> Option<(RequestId, Turn)> {
        let mut turn = self.get(&id)?;
        self.forget(&id, &turn);
        (turn.due, turn.release, turn.hint) = (None, None, None);
        self.turns.insert(id.clone(), turn.clone());
        Some((id, turn))
    }

    /// A poll of an account is over.
    pub(super) fn finished(&mut self, name: &AccountName) {
        if let Some(account) = self.accounts.get_mut(name) {
            account.under_way = account.under_way.saturating_sub(1);
        }
        self.forget_idle(name);
    }

    fn forget_idle(&mut self, name: &AccountName) {
        if self.accounts.get(name).is_some_and(Account::is_idle) {
            self.accounts.remove(name);
        }
    }
}

impl Account {
    fn may_wait(&self) -> bool {
        !self.waits && self.under_way < MAX_POLLS
    }

    fn is_idle(&self) -> bool {
        !self.waits && self.under_way == 0 && self.next().is_none()
    }

    fn next(&self) -> Option<Instant> {
        self.due.iter().filter_map(|due| due.first()).map(|(due, _)| *due).min()
    }

    fn take(&mut self, now: Instant) -> Option<RequestId> {
        let picked = PICKS[self.taken % PICKS.len()];
        let by_urgency = [picked, Urgency::First, Urgency::Watched, Urgency::Rest];
        let id = by_urgency
            .into_iter()
            .find_map(|urgency| pop_due(&mut self.due[urgency as usize], now))?;
        self.taken = self.taken.wrapping_add(1);
        Some(id)
    }
}

/// Takes the first that is due.
fn pop_due(due: &mut BTreeSet<(Instant, RequestId)>, now: Instant) -> Option<RequestId> {
    if due.first()?.0 > now {
        return None;
    }
    due.pop_first().map(|(_, id)| id)
}

#[cfg(test)]
mod tests;
