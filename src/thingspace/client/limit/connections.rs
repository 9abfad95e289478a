//! The pool of connections that all sets of credentials share. Each call has a connection of its
//! own.
//!
//! Every set has an equal part of `max_connections`. A quarter of it is reserved for orders, a
//! quarter for status queries, a quarter for polls, and a sixteenth for status queries about
//! external requests. The rest of all parts is common to orders, status queries and polls. A set
//! that has its part of the common connections gets no more while another set waits for its part.
//! So calls that hang delay neither other classes nor other sets. Token requests, logins and probes
//! of the breaker are not counted: there is one of each at a time.

use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, futures::Notified};

use super::queue::{CLASSES, Class};
use crate::lock::lock;

/// A set's part divided by this is reserved for each of three classes, or for external requests.
const RESERVED: usize = 4;
const RESERVED_EXTERNAL: usize = 16;

#[derive(Debug)]
pub(in crate::thingspace::client) struct ConnectionPool {
    state: Mutex<PoolState>,
    freed: Notify,
}

#[derive(Debug)]
struct PoolState {
    /// The number of reserved connections for each class of each set.
    reserved: [usize; CLASSES.len()],
    common: usize,
    /// The part of one set in the common connections.
    common_part: usize,
    sets: Vec<SetUsage>,
}

/// The connections in use by a set of credentials.
#[derive(Debug, Clone, Copy, Default)]
struct SetUsage {
    reserved: [usize; CLASSES.len()],
    common: usize,
    /// A call of this set waits for a connection.
    waits: bool,
}

/// The right to use one connection until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    pool: Arc<ConnectionPool>,
    set: usize,
    origin: PoolShare,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PoolShare {
    Reserved(Class),
    Common,
}

impl ConnectionPool {
    pub(in crate::thingspace::client) fn new(connections: usize, sets: usize) -> Arc<Self> {
        let state = Mutex::new(PoolState::new(connections, sets.max(1)));
        Arc::new(Self { state, freed: Notify::new() })
    }

    pub(super) fn take(self: &Arc<Self>, set: usize, class: Class) -> Option<ConnectionPermit> {
        let origin = lock(&self.state).take(set, class)?;
        Some(ConnectionPermit { pool: Arc::clone(self), set, origin })
    }

    /// Notes whether a set waits for a connection, which limits the other sets.
    pub(super) fn set_waits(&self, set: usize, waits: bool) {
        let waited = std::mem::replace(&mut lock(&self.state).sets[set].waits, waits);
        if waited && !waits {
            self.freed.notify_waiters();
        }
    }

    /// Waits until a connection is returned, or a set stops waiting, after this call.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        lock(&self.pool.state).give_back(self.set, self.origin);
        self.pool.freed.notify_waiters();
    }
}

impl PoolState {
    fn new(connections: usize, sets: usize) -> Self {
        let part = connections / sets;
        let (reserved, external) = ((part / RESERVED).max(1), (part / RESERVED_EXTERNAL).max(1));
        let reserved = [reserved, reserved, reserved, external];
        let common = connections.saturating_sub(sets * reserved.iter().sum::<usize>());
        let common_part = common.div_ceil(sets);
        Self { reserved, common, common_part, sets: vec![SetUsage::default(); sets] }
    }

    fn take(&mut self, set: usize, class: Class) -> Option<PoolShare> {
        let index = class as usize;
        let usage = self.sets[set];
        if usage.reserved[index] < self.reserved[index] {
            self.sets[set].reserved[index] += 1;
            return Some(PoolShare::Reserved(class));
        }
        let used: usize = self.sets.iter().map(|usage| usage.common).sum();
        if class == Class::External || used >= self.common {
            return None;
        }
        let entitled = |usage: &SetUsage| usage.common < self.common_part;
        let mut others = self.sets.iter().enumerate().filter(|(other, _)| *other != set);
        if !entitled(&usage) && others.any(|(_, other)| other.waits && entitled(other)) {
            return None;
        }
        self.sets[set].common += 1;
        Some(PoolShare::Common)
    }

    fn give_back(&mut self, set: usize, origin: PoolShare) {
        match origin {
            PoolShare::Reserved(class) => self.sets[set].reserved[class as usize] -= 1,
            PoolShare::Common => self.sets[set].common -= 1,
        }
    }
}

#[cfg(test)]
mod tests;
