//! The waiting calls of one set of credentials, and which of them is next. Uses no clock and no
//! connection.
//!
//! Each class except orders has a guaranteed share of the permits. With every permit that is
//! issued, a class gets its share as credit, up to [`MAX_CREDIT`], so an idle class collects
//! little. The next permit goes to the waiting class with the most credit. If none has the credit
//! of a whole permit, it goes to the first waiting class in the order of [`Class`]. Within a class
//! the accounts alternate.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use crate::identity::AccountName;

/// The most waiting calls of one class and one account.
pub(super) const MAX_WAITING: usize = 4_096;

/// One permit, in the unit of [`Class::share`].
const PERMIT: u32 = 100;

/// The most credit of a class: one permit, and one more while other classes go first.
const MAX_CREDIT: u32 = 2 * PERMIT;

pub(super) const CLASSES: [Class; 4] = [Class::Order, Class::Query, Class::Poll, Class::External];

/// The kinds of calls. Permits outside the guaranteed shares go to the first waiting class in this
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::thingspace::client) enum Class {
    Order,
    /// A caller's status query about a request of this gateway.
    Query,
    Poll,
    /// A status query about an external request.
    External,
}

impl Class {
    /// Returns the name of the class in metrics.
    pub(in crate::thingspace::client) fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Query => "query",
            Self::Poll => "poll",
            Self::External => "external",
        }
    }

    /// The guaranteed share of the permits, in per cent.
    fn share(self) -> u32 {
        match self {
            Self::Order => 0,
            Self::Query => 10,
            Self::Poll => 30,
            Self::External => 5,
        }
    }
}

/// Identifies a waiting call.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    class: Class,
    /// `None`: the call is ahead of all accounts.
    account: Option<AccountName>,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    classes: [Lanes<T>; CLASSES.len()],
    credits: [u32; CLASSES.len()],
    tickets: u64,
}

/// The waiting calls of one class, oldest first.
#[derive(Debug)]
struct Lanes<T> {
    /// Calls ahead of all accounts.
    first: BTreeMap<u64, T>,
    accounts: HashMap<AccountName, BTreeMap<u64, T>>,
    /// The accounts with waiting calls; the next one at the front.
    order: VecDeque<AccountName>,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        let credits = CLASSES.map(Class::share);
        Self { classes: CLASSES.map(|_| Lanes::new()), credits, tickets: 0 }
    }

    /// Adds a call. Returns `None` if the queue of the account is full.
    pub(super) fn push(&mut self, class: Class, account: &AccountName, call: T) -> Option<Ticket> {
        let number = self.next_number();
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

    /// Adds a call ahead of all others of its class. Use it only for calls whose number is limited
    /// elsewhere.
    pub(super) fn push_first(&mut self, class: Class, call: T) -> Ticket {
        let number = self.next_number();
        self.classes[class as usize].first.insert(number, call);
        Ticket { class, account: None, number }
    }

    /// Removes a call, unless it has got its permit.
    pub(super) fn remove(&mut self, ticket: &Ticket) {
        self.classes[ticket.class as usize].remove(ticket);
    }

    /// Takes the next call of the first class that gets a connection.
    pub(super) fn take<C>(
        &mut self,
        mut connect: impl FnMut(Class) -> Option<C>,
    ) -> Option<(T, Class, C)> {
        let mut waiting: Vec<_> = self.waiting_classes().collect();
        waiting.sort_by_key(|class| {
            let credit = self.credits[*class as usize];
            (Reverse(if credit >= PERMIT { credit } else { 0 }), *class)
        });
        let (class, connection) = waiting
            .into_iter()
            .find_map(|class| connect(class).map(|connection| (class, connection)))?;
        let call = self.classes[class as usize].pop()?;
        for (credit, class) in self.credits.iter_mut().zip(CLASSES) {
            *credit = (*credit + class.share()).min(MAX_CREDIT);
        }
        let credit = &mut self.credits[class as usize];
        *credit = credit.saturating_sub(PERMIT);
        Some((call, class, connection))
    }

    /// Returns how many permits would be issued before that of a new call, if no more calls came.
    pub(super) fn permits_before(&self, class: Class, account: &AccountName) -> u64 {
        let before = self.classes[class as usize].before(account) as u64;
        let others = self.waiting_classes().filter(|other| *other != class);
        let share = match class {
            // Orders wait only for the shares of the other classes.
            Class::Order => PERMIT - others.map(Class::share).sum::<u32>(),
            Class::Query | Class::Poll | Class::External => class.share(),
        };
        before * u64::from(PERMIT) / u64::from(share)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting_classes().next().is_none()
    }

    fn waiting_classes(&self) -> impl Iterator<Item = Class> {
        CLASSES.into_iter().filter(|class| !self.classes[*class as usize].is_empty())
    }

    fn next_number(&mut self) -> u64 {
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

    /// Returns how many calls go before a new one of an account.
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
