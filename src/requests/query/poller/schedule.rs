//! Decides when each request is polled, and in which order. It does no I/O and reads no clock.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::PollingConfig,
    identity::{AccountName, RequestId},
    requests::hub::PollHint,
};

/// The shortest pause after an answer, as a multiple of the time that the answer took.
const PAUSE_FACTOR: u32 = 10;

/// The maximum number of polls of one account in progress. The number of connections limits the
/// polls of all accounts.
const MAX_POLLS: usize = 64;

/// The urgency of the next poll, in rotation. If no request of that urgency is due, the most urgent
/// one that is due is polled. So requests without watchers get at least a quarter of the polls.
const PICKS: [Urgency; 4] = [Urgency::First, Urgency::Watched, Urgency::First, Urgency::Rest];

/// The next polls of all requests, by account. Each account waits for its own permits.
#[derive(Debug, Default)]
pub(in crate::requests) struct Schedule {
    accounts: HashMap<AccountName, AccountPolls>,
    polls: HashMap<RequestId, ScheduledPoll>,
    /// When withheld statuses are released, which needs no call.
    releases: BTreeSet<(Instant, RequestId)>,
}

#[derive(Debug, Default)]
struct AccountPolls {
    /// When polls are due, by urgency.
    due: [BTreeSet<(Instant, RequestId)>; 3],
    waits_for_permit: bool,
    in_progress: usize,
    /// Selects the next entry of [`PICKS`].
    picks: usize,
}

/// The order of polls among the requests that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A watch has just begun, or a callback matched no device.
    First,
    /// Watched or new.
    Watched,
    Rest,
}

#[derive(Debug, Clone)]
pub(super) struct ScheduledPoll {
    pub(super) account: AccountName,
    /// When the poll is due, and its urgency. `None`: it is in progress.
    pub(super) due: Option<(Instant, Urgency)>,
    /// When a withheld status is released.
    pub(super) release: Option<Instant>,
    /// When this replica last saw a poll by any replica. Before the first poll, when it first saw
    /// the request.
    pub(super) last: Instant,
    /// Polls and failed claims so far. The interval grows with them.
    pub(super) count: u32,
    /// The count that this replica last read from the request's cell.
    pub(super) seen: Option<u32>,
    /// The pause that was stored with the last poll.
    pub(super) pause: Duration,
    /// A reason for more urgency.
    pub(super) hint: Option<PollHint>,
}

/// The content of a request's poll cell: the number of polls, and the pause after the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PollCount {
    pub(super) count: u32,
    pub(super) pause: Duration,
}

impl ScheduledPoll {
    pub(super) fn new(account: AccountName, now: Instant) -> Self {
        Self {
            account,
            due: Some((now, Urgency::Watched)),
            release: None,
            last: now,
            count: 0,
            seen: None,
            pause: Duration::ZERO,
            hint: None,
        }
    }

    /// Returns the next poll of a request that was polled before, for example before a restart. The
    /// time of its last poll is unknown. The random part `roll` (0 to 1) of the interval spreads
    /// the polls of requests that are read at the same time.
    pub(super) fn resumed(
        account: AccountName,
        now: Instant,
        age: Duration,
        config: &PollingConfig,
        longest: Duration,
        roll: f64,
    ) -> Self {
        let mut poll = Self::new(account, now);
        let mut polled_for = Duration::ZERO;
        let interval = loop {
            let interval = poll.interval(config, longest, Duration::ZERO);
            polled_for += interval;
            if polled_for > age || interval >= longest {
                break interval;
            }
            poll.count += 1;
        };
        if age >= interval {
            poll.last = now.checked_sub(interval.mul_f64(roll)).unwrap_or(now);
        }
        poll
    }

    /// Returns the poll after one that was counted.
    pub(super) fn polled(self, now: Instant, counted: PollCount) -> Self {
        let PollCount { count, pause } = counted;
        Self { last: now, count, seen: Some(count), pause, ..self }
    }

    /// Returns the poll after one that failed.
    pub(super) fn failed(self, now: Instant) -> Self {
        Self { last: now, count: self.count.saturating_add(1), ..self }
    }

    /// Returns the time from `last` to the next poll. It grows to `longest`, and is never shorter
    /// than the pause after an answer that `took` this long.
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
        grown.max(pause_after(took)).max(self.pause)
    }
}

pub(super) fn pause_after(took: Duration) -> Duration {
    took * PAUSE_FACTOR
}

/// Returns whether another replica has polled since this one read the count `seen`. `stored` is the
/// count in the cell now. A replica that has read no count waits as if another one had polled. An
/// `exclusive` store has no other replicas.
pub(super) fn polled_elsewhere(seen: Option<u32>, stored: Option<u32>, exclusive: bool) -> bool {
    !exclusive && stored.is_some() && stored != seen
}

impl Schedule {
    pub(super) fn get(&self, id: &RequestId) -> Option<ScheduledPoll> {
        self.polls.get(id).cloned()
    }

    pub(super) fn set(&mut self, id: &RequestId, poll: ScheduledPoll) {
        self.remove(id);
        if let Some((due, urgency)) = poll.due {
            let account = self.accounts.entry(poll.account.clone()).or_default();
            account.due[urgency as usize].insert((due, id.clone()));
            self.releases.extend(poll.release.map(|release| (release, id.clone())));
        }
        self.polls.insert(id.clone(), poll);
    }

    pub(super) fn remove(&mut self, id: &RequestId) {
        if let Some(poll) = self.polls.remove(id) {
            self.forget(id, &poll);
        }
    }

    fn forget(&mut self, id: &RequestId, poll: &ScheduledPoll) {
        if let Some((due, urgency)) = poll.due
            && let Some(account) = self.accounts.get_mut(&poll.account)
        {
            account.due[urgency as usize].remove(&(due, id.clone()));
            self.forget_idle(&poll.account);
        }
        if let Some(release) = poll.release {
            self.releases.remove(&(release, id.clone()));
        }
    }

    /// Returns the time of the next poll or release.
    pub(super) fn next(&self) -> Option<Instant> {
        let polls = self
            .accounts
            .values()
            .filter(|account| account.may_wait())
            .filter_map(AccountPolls::next);
        polls.chain(self.releases.first().map(|(due, _)| *due)).min()
    }

    /// Returns the number of polls that are due and have not begun.
    pub(super) fn backlog(&self, now: Instant) -> usize {
        let is_due = |poll: &&ScheduledPoll| poll.due.is_some_and(|(due, _)| due <= now);
        self.polls.values().filter(is_due).count()
    }

    /// Marks the accounts with a due poll as waiting for a permit, and returns them.
    pub(super) fn begin_waiting(&mut self, now: Instant) -> Vec<AccountName> {
        let due = |account: &AccountPolls| {
            account.may_wait() && account.next().is_some_and(|due| due <= now)
        };
        let begin =
            self.accounts.iter_mut().filter(|(_, account)| due(account)).map(|(name, account)| {
                account.waits_for_permit = true;
                name.clone()
            });
        begin.collect()
    }

    /// Takes the next request of an account that has a permit, and returns when its poll was due.
    /// `None`: no poll is due any more.
    pub(super) fn take(
        &mut self,
        name: &AccountName,
        now: Instant,
    ) -> Option<(RequestId, ScheduledPoll, Instant)> {
        let account = self.accounts.get_mut(name)?;
        account.waits_for_permit = false;
        let taken = account.take(now);
        account.in_progress += usize::from(taken.is_some());
        self.forget_idle(name);
        let (due, id) = taken?;
        self.begin(id).map(|(id, poll)| (id, poll, due))
    }

    /// Takes a request whose withheld status is due.
    pub(super) fn take_release(&mut self, now: Instant) -> Option<RequestId> {
        let (_, id) = pop_due(&mut self.releases, now)?;
        self.begin(id).map(|(id, _)| id)
    }

    fn begin(&mut self, id: RequestId) -> Option<(RequestId, ScheduledPoll)> {
        let mut poll = self.get(&id)?;
        self.forget(&id, &poll);
        (poll.due, poll.release, poll.hint) = (None, None, None);
        self.polls.insert(id.clone(), poll.clone());
        Some((id, poll))
    }

    pub(super) fn finished(&mut self, name: &AccountName) {
        if let Some(account) = self.accounts.get_mut(name) {
            account.in_progress = account.in_progress.saturating_sub(1);
        }
        self.forget_idle(name);
    }

    fn forget_idle(&mut self, name: &AccountName) {
        if self.accounts.get(name).is_some_and(AccountPolls::is_idle) {
            self.accounts.remove(name);
        }
    }
}

impl AccountPolls {
    fn may_wait(&self) -> bool {
        !self.waits_for_permit && self.in_progress < MAX_POLLS
    }

    fn is_idle(&self) -> bool {
        !self.waits_for_permit && self.in_progress == 0 && self.next().is_none()
    }

    fn next(&self) -> Option<Instant> {
        self.due.iter().filter_map(|due| due.first()).map(|(due, _)| *due).min()
    }

    fn take(&mut self, now: Instant) -> Option<(Instant, RequestId)> {
        let picked = PICKS[self.picks % PICKS.len()];
        let by_urgency = [picked, Urgency::First, Urgency::Watched, Urgency::Rest];
        let taken = by_urgency
            .into_iter()
            .find_map(|urgency| pop_due(&mut self.due[urgency as usize], now))?;
        self.picks = self.picks.wrapping_add(1);
        Some(taken)
    }
}

fn pop_due(due: &mut BTreeSet<(Instant, RequestId)>, now: Instant) -> Option<(Instant, RequestId)> {
    if due.first()?.0 > now {
        return None;
    }
    due.pop_first()
}

#[cfg(test)]
mod tests;
