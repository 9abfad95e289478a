//! Who uses how many connections: one pool for all sets of credentials. A call has a connection for
//! itself.
//!
//! Every set has an equal part of `max_connections`. Of its part, a quarter each is reserved for
//! orders, status queries and polls, and a sixteenth for requests that were placed elsewhere. What
//! remains of all parts is common to orders, queries and polls. A set that holds its part of the
//! common connections gets no more while another set waits that does not. So calls that hang,
//! however long, stop neither other classes nor other sets. Token requests, logins and probes of
//! the breaker are not counted: of each there is one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, futures::Notified};

use super::queue::Class;

/// Parts of a set's part that are reserved: for each of three classes, and for requests placed
/// elsewhere.
const RESERVED: usize = 4;
const RESERVED_ELSEWHERE: usize = 16;

const CLASSES: usize = 4;

#[derive(Debug)]
pub(crate) struct Connections {
    state: Mutex<State>,
    freed: Notify,
}

/// Knows no waiting.
#[derive(Debug)]
struct State {
    /// For each class of each set.
    reserved: [usize; CLASSES],
    common: usize,
    /// Of the common connections, the part of one set.
    common_part: usize,
    sets: Vec<Held>,
}

/// What a set of credentials holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    reserved: [usize; CLASSES],
    common: usize,
    /// A call of this set found no connection.
    waits: bool,
}

/// The right to use one connection, as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    pool: Arc<Connections>,
    set: usize,
    from: From,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Reserved(Class),
    Common,
}

impl Connections {
    pub(crate) fn new(most: usize, sets: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(most, sets.max(1))), freed: Notify::new() })
    }

    /// Now or never.
    pub(super) fn take(self: &Arc<Self>, set: usize, class: Class) -> Option<Connection> {
        let from = self.lock().take(set, class)?;
        Some(Connection { pool: Arc::clone(self), set, from })
    }

    /// Says whether a set waits for a connection, which others have to consider.
    pub(super) fn set_waits(&self, set: usize, waits: bool) {
        let waited = std::mem::replace(&mut self.lock().sets[set].waits, waits);
        if waited && !waits {
            self.freed.notify_waiters();
        }
    }

    /// A connection may be had that could not be had before. Counts from the call on.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.lock().give_back(self.set, self.from);
        self.pool.freed.notify_waiters();
    }
}

impl State {
    fn new(most: usize, sets: usize) -> Self {
        let part = most / sets;
        let (reserved, elsewhere) = ((part / RESERVED).max(1), (part / RESERVED_ELSEWHERE).max(1));
        let reserved = [reserved, reserved, reserved, elsewhere];
        let common = most.saturating_sub(sets * reserved.iter().sum::<usize>());
        let common_part = common.div_ceil(sets);
        Self { reserved, common, common_part, sets: vec![Held::default(); sets] }
    }

    fn take(&mut self, set: usize, class: Class) -> Option<From> {
        let at = class as usize;
        let held = self.sets[set];
        if held.reserved[at] < self.reserved[at] {
            self.sets[set].reserved[at] += 1;
            return Some(From::Reserved(class));
        }
        let used: usize = self.sets.iter().map(|held| held.common).sum();
        if class == Class::Elsewhere || used >= self.common {
            return None;
        }
        let entitled = |held: &Held| held.common < self.common_part;
        let mut others = self.sets.iter().enumerate().filter(|(other, _)| *other != set);
        if !entitled(&held) && others.any(|(_, other)| other.waits && entitled(other)) {
            return None;
        }
        self.sets[set].common += 1;
        Some(From::Common)
    }

    fn give_back(&mut self, set: usize, from: From) {
        match from {
            From::Reserved(class) => self.sets[set].reserved[class as usize] -= 1,
            From::Common => self.sets[set].common -= 1,
        }
    }
}

#[cfg(test)]
mod tests;
