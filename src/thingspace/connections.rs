//! How many calls are under way at once, and whose: a call has a connection for itself, so this is how many are in use.
//!
//! A quarter of `max_connections` belongs to orders, a quarter to callers' questions and a quarter to polls; what is left is for
//! whoever needs more, first come, first served. So none of them, however long its calls hang, has more than about half, and
//! each goes on. Token requests, logins and probes of the breaker are not counted: of each there is one at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, limit::Class};

/// Calls that may wait, for each class.
const MAX_WAITING: usize = 16_384;

/// One share for each class, and one for all.
const SHARES: usize = 4;

#[derive(Debug)]
pub(super) struct Connections {
    orders: Share,
    asks: Share,
    polls: Share,
    common: Arc<Semaphore>,
}

/// What belongs to a class.
#[derive(Debug)]
struct Share {
    own: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to use one connection, as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        let quarter = (most / SHARES).max(1);
        let share = || Share { own: Arc::new(Semaphore::new(quarter)), waiting: AtomicUsize::new(0) };
        let common = most.saturating_sub(quarter * (SHARES - 1)).max(1);
        Self { orders: share(), asks: share(), polls: share(), common: Arc::new(Semaphore::new(common)) }
    }

    /// Waits its turn. Cancel-safe.
    pub(super) async fn wait(&self, class: Class) -> Result<Connection, Error> {
        if let Some(connection) = self.take(class) {
            return Ok(connection);
        }
        let share = self.share(class);
        let _waiting = Waiting::begin(&share.waiting)?;
        let permit = tokio::select! {
            permit = Arc::clone(&share.own).acquire_owned() => permit,
            permit = Arc::clone(&self.common).acquire_owned() => permit,
        };
        Ok(Connection { _permit: permit.expect("nobody closes these semaphores") })
    }

    /// Now or never.
    fn take(&self, class: Class) -> Option<Connection> {
        let own = Arc::clone(&self.share(class).own).try_acquire_owned();
        let permit = own.or_else(|_| Arc::clone(&self.common).try_acquire_owned()).ok()?;
        Some(Connection { _permit: permit })
    }

    fn share(&self, class: Class) -> &Share {
        match class {
            Class::Order => &self.orders,
            Class::Ask => &self.asks,
            Class::Poll => &self.polls,
        }
    }
}

/// A place in the queue, given up with it.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Result<Self, Error> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(Error::Throttled { retry_after: Some(super::limit::BURST) });
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const CLASSES: [Class; 3] = [Class::Order, Class::Ask, Class::Poll];

    fn take_all(connections: &Connections, class: Class) -> Vec<Connection> {
        std::iter::from_fn(|| connections.take(class)).collect()
    }

    #[test]
    fn nobody_takes_it_all_and_everybody_together_no_more_than_there_is() {
        for most in [4, 5, 7, 128, 10_000] {
            for greedy in CLASSES {
                let connections = Connections::new(most);
                let taken = take_all(&connections, greedy);
                assert_eq!(taken.len(), most - 2 * (most / 4), "{most}");
                let others = CLASSES.into_iter().filter(|class| *class != greedy);
                let left: Vec<_> = others.map(|class| take_all(&connections, class)).collect();
                assert!(left.iter().all(|left| left.len() == most / 4), "{most}");
            }
        }
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_comes_free_first() {
        let connections = Connections::new(4);
        let (mut orders, mut polls) =
            (take_all(&connections, Class::Order), take_all(&connections, Class::Poll));
        assert_eq!((orders.len(), polls.len()), (2, 1));
        // First an order's that was common, then a poll's own.
        for freed in [orders.pop(), polls.pop()] {
            let mut waits = Box::pin(connections.wait(Class::Poll));
            assert!(waits.as_mut().now_or_never().is_none());
            drop(freed);
            polls.push(waits.await.unwrap());
        }
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_a_place_in_it_is_given_back() {
        let connections = Connections::new(4);
        let taken = take_all(&connections, Class::Ask);
        let mut waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let mut waits = Box::pin(connections.wait(Class::Ask));
                assert!(waits.as_mut().now_or_never().is_none());
                waits
            })
            .collect();
        let refused = connections.wait(Class::Ask).now_or_never().expect("refused at once");
        assert!(matches!(refused, Err(Error::Throttled { retry_after: Some(_) })));
        waiting.pop();
        assert!(connections.wait(Class::Ask).now_or_never().is_none());
        drop(waiting);
        drop(taken);
        assert_eq!(take_all(&connections, Class::Ask).len(), 2);
    }
}
