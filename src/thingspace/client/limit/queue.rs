//! Who is next: the waiting calls of one set of credentials. Knows no clock and no connection.
//!
//! Each class but orders has a guaranteed share of the turns. A class earns its share with every
//! turn that is taken, up to [`MAX_CREDIT`], so that it cannot save up while it is idle. A class
//! that has earned a whole turn goes first; without such a class, the first class in the order of
//! [`Class`] goes. Within a class accounts take turns.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::identity::AccountName;

/// Calls of one class that may wait, for each account.
pub(super) const MAX_WAITING: usize = 4_096;

/// One turn, in the unit of [`Class::share`].
const TURN: u32 = 100;

/// What a class may have earned at most: one turn, and one more for the time that other classes go
/// before it.
const MAX_CREDIT: u32 = 2 * TURN;

const CLASSES: [Class; 4] = [Class::Order, Class::Query, Class::Poll, Class::Elsewhere];

/// What a call is made for. Turns that no share guarantees go to the first of these that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Order,
    /// A caller asks for the status of a request that was placed here.
    Query,
    Poll,
    /// A caller asks for the status of a request that was placed elsewhere.
    Elsewhere,
}

impl Class {
    /// The guaranteed part of the turns, in per cent.
    fn share(self) -> u32 {
        match self {
            Self::Order => 0,
            Self::Query => 10,
            Self::Poll => 30,
            Self::Elsewhere => 5,
        }
    }
}

/// A place in the queue.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    class: Class,
    /// `None`: before all accounts.
    account: Option<AccountName>,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    classes: [Lanes<T>; CLASSES.len()],
    credits: [u32; CLASSES.len()],
    tickets: u64,
}

/// The calls of one class, oldest first.
#[derive(Debug)]
struct Lanes<T> {
    /// Calls that go before all accounts.
    first: BTreeMap<u64, T>,
    accounts: HashMap<AccountName, BTreeMap<u64, T>>,
    /// The accounts that wait, in the order of their turns.
    order: VecDeque<AccountName>,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            classes: CLASSES.map(|_| Lanes::new()),
            credits: CLASSES.map(Class::share),
            tickets: 0,
        }
    }

    /// `None`: too many calls wait already.
    pub(super) fn push(&mut self, class: Class, account: &AccountName, call: T) -> Option<Ticket> {
        let number = self.ticket();
        let lanes = &mut self.classes[class as usize];
        if lanes.waiting(account) >= MAX_WAITING {
            return None;
        }
        if !lanes.accounts.contains_key(account) {
            lanes.order.push_back(account.clone());
        }
        lanes.accounts.entry(account.clone()).or_default().insert(number, call);
        Some(Ticket { class, account: Some(account.clone()), number })
    }

    /// Before all that wait in this class. Only for calls whose number is bounded elsewhere.
    pub(super) fn push_first(&mut self, class: Class, call: T) -> Ticket {
        let number = self.ticket();
        self.classes[class as usize].first.insert(number, call);
        Ticket { class, account: None, number }
    }

    /// Gives a place up. Nothing happens if its turn has come.
    pub(super) fn remove(&mut self, ticket: &Ticket) {
        self.classes[ticket.class as usize].remove(ticket);
    }

    /// Takes the next call, of the first class that gets a connection.
    pub(super) fn take<C>(
        &mut self,
        mut connect: impl FnMut(Class) -> Option<C>,
    ) -> Option<(T, Class, C)> {
        let mut waiting: Vec<_> = self.waiting_classes().collect();
        waiting.sort_by_key(|class| {
            let credit = self.credits[*class as usize];
            (std::cmp::Reverse(if credit >= TURN { credit } else { 0 }), *class)
        });
        let (class, connection) = waiting
            .into_iter()
            .find_map(|class| connect(class).map(|connection| (class, connection)))?;
        let call = self.classes[class as usize].pop()?;
        for (credit, class) in self.credits.iter_mut().zip(CLASSES) {
            *credit = (*credit + class.share()).min(MAX_CREDIT);
        }
        let credit = &mut self.credits[class as usize];
        *credit = credit.saturating_sub(TURN);
        Some((call, class, connection))
    }

    /// How many turns a call that came now would wait, if no others came.
    pub(super) fn turns_before(&self, class: Class, account: &AccountName) -> u64 {
        let before = self.classes[class as usize].before(account) as u64;
        let others = self.waiting_classes().filter(|other| *other != class);
        let share = match class {
            // Orders wait for nothing but the shares of others.
            Class::Order => TURN - others.map(Class::share).sum::<u32>(),
            Class::Query | Class::Poll | Class::Elsewhere => class.share(),
        };
        before * u64::from(TURN) / u64::from(share)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting_classes().next().is_none()
    }

    fn waiting_classes(&self) -> impl Iterator<Item = Class> {
        CLASSES.into_iter().filter(|class| !self.classes[*class as usize].is_empty())
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

impl<T> Lanes<T> {
    fn new() -> Self {
        Self { first: BTreeMap::new(), accounts: HashMap::new(), order: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.order.is_empty()
    }

    fn waiting(&self, account: &AccountName) -> usize {
        self.accounts.get(account).map_or(0, BTreeMap::len)
    }

    /// How many calls go before the next one of an account.
    fn before(&self, account: &AccountName) -> usize {
        let own = self.waiting(account);
        let others = self.accounts.iter().filter(|(other, _)| *other != account);
        self.first.len() + own + others.map(|(_, calls)| calls.len().min(own + 1)).sum::<usize>()
    }

    fn pop(&mut self) -> Option<T> {
        if let Some((_, call)) = self.first.pop_first() {
            return Some(call);
        }
        let account = self.order.pop_front()?;
        let calls = self.accounts.get_mut(&account)?;
        let (_, call) = calls.pop_first()?;
        if calls.is_empty() {
            self.accounts.remove(&account);
        } else {
            self.order.push_back(account);
        }
        Some(call)
    }

    fn remove(&mut self, ticket: &Ticket) {
        let Some(account) = &ticket.account else {
            self.first.remove(&ticket.number);
            return;
        };
        let Some(calls) = self.accounts.get_mut(account) else { return };
        calls.remove(&ticket.number);
        if calls.is_empty() {
            self.accounts.remove(account);
            self.order.retain(|waiting| waiting != account);
        }
    }
}

#[cfg(test)]
mod tests;
