//! Turns: the right to make one call, which is a part of the rate and a connection.
//!
//! Each set of credentials has a [`Turns`] of its own, and all share one pool of [`Connections`]. A
//! task hands out the turns: it waits for the rate, then gives the next call of the [`queue`] a
//! connection. A call that waits holds neither, so what one set, class or account waits for keeps
//! nobody else from going on.
//!
//! Guarantees: never more than `calls_per_second` calls begin in a second, and [`rate::BURST`] more
//! after a pause; the shares that [`queue`] states; a turn that is dropped unspent, or whose caller
//! gave up, goes back. Runs no timer while nobody waits.

mod connections;
mod queue;
mod rate;

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    connections::Connection,
    queue::{Queue, Ticket},
    rate::Rate,
};
use crate::identity::AccountName;
use crate::thingspace::Error;

pub(crate) use connections::Connections;
pub(crate) use queue::Class;

/// When a call that was refused for a full queue may come again, at least and at most.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_mins(1);

/// The turns of one set of credentials.
#[derive(Debug)]
pub(crate) struct Turns {
    inner: Arc<Inner>,
    /// Ends the task.
    _running: DropGuard,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// A call waits that did not before, or no longer does, or a turn came back.
    changed: Notify,
    connections: Arc<Connections>,
    /// Which of the sets of credentials in the pool this is.
    set: usize,
}

#[derive(Debug)]
struct State {
    queue: Queue<oneshot::Sender<Turn>>,
    rate: Rate,
}

/// The right to make one call. Goes back when it is dropped unspent; its connection is in use until
/// it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    of: Arc<Inner>,
    class: Class,
    spent: bool,
    _connection: Connection,
}

impl Turns {
    /// Spawns the task that hands out turns; it ends when this is dropped.
    pub(crate) fn new(per_second: NonZeroU32, connections: Arc<Connections>, set: usize) -> Self {
        let state = State { queue: Queue::new(), rate: Rate::new(per_second, Instant::now()) };
        let inner =
            Arc::new(Inner { state: Mutex::new(state), changed: Notify::new(), connections, set });
        let stop = CancellationToken::new();
        let handing_out = Arc::clone(&inner).hand_out();
        tokio::spawn(stop.clone().run_until_cancelled_owned(handing_out));
        Self { inner, _running: stop.drop_guard() }
    }

    /// Waits for a turn. Refuses at once a call that would wait beyond `latest`, or whose queue is
    /// full. Cancel-safe: a caller that stops waiting costs no turn.
    pub(crate) async fn wait(
        &self,
        class: Class,
        account: &AccountName,
        latest: Option<Instant>,
    ) -> Result<Turn, Error> {
        let (call, turn) = oneshot::channel();
        let _place = {
            let state = &mut *self.inner.lock();
            let now = Instant::now();
            let wait = state.wait(class, account, now);
            // A deadline that has passed is not the queue's fault.
            let latest =
                latest.map(|latest| latest.saturating_duration_since(now)).filter(|l| !l.is_zero());
            let too_long =
                latest.and_then(|latest| wait.checked_sub(latest)).filter(|w| !w.is_zero());
            if let Some(too_long) = too_long {
                return Err(busy(too_long));
            }
            let ticket = state.queue.push(class, account, call).ok_or_else(|| busy(wait))?;
            Place { inner: &self.inner, ticket }
        };
        self.inner.changed.notify_one();
        turn.await.map_err(|_| busy(SOONEST))
    }

    /// Waits for the turn of a call that had one before, ahead of the other calls of its class.
    pub(crate) async fn again(&self, class: Class) -> Result<Turn, Error> {
        let (call, turn) = oneshot::channel();
        let _place = {
            let ticket = self.inner.lock().queue.push_first(class, call);
            Place { inner: &self.inner, ticket }
        };
        self.inner.changed.notify_one();
        turn.await.map_err(|_| busy(SOONEST))
    }
}

fn busy(retry_after: Duration) -> Error {
    Error::Busy { retry_after: retry_after.clamp(SOONEST, LATEST) }
}

impl Turn {
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// The call is made: this turn does not go back.
    pub(crate) fn spend(&mut self) {
        self.spent = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.spent {
            self.of.lock().rate.give_back();
            self.of.changed.notify_one();
        }
    }
}

/// A place in the queue, which is given up with it.
struct Place<'a> {
    inner: &'a Inner,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.inner.lock().queue.remove(&self.ticket);
        self.inner.changed.notify_one();
    }
}

impl State {
    /// How long a call that came now would wait.
    fn wait(&self, class: Class, account: &AccountName, now: Instant) -> Duration {
        let turns = u32::try_from(self.queue.turns_before(class, account)).unwrap_or(u32::MAX);
        if turns == 0 { Duration::ZERO } else { self.rate.wait(now) + self.rate.interval() * turns }
    }
}

impl Inner {
    async fn hand_out(self: Arc<Self>) {
        loop {
            let mut freed = std::pin::pin!(self.connections.freed());
            freed.as_mut().enable();
            match self.next() {
                Next::Given => {}
                Next::NobodyWaits => self.changed.notified().await,
                Next::NotBefore(wait) => {
                    // A turn may come back meanwhile.
                    let _ = tokio::time::timeout(wait, self.changed.notified()).await;
                }
                Next::NoConnection => tokio::select! {
                    () = freed => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }

    /// Hands out one turn, if that is possible.
    fn next(self: &Arc<Self>) -> Next {
        let mut state = self.lock();
        let now = Instant::now();
        if state.queue.is_empty() {
            self.connections.set_waits(self.set, false);
            return Next::NobodyWaits;
        }
        let wait = state.rate.wait(now);
        if !wait.is_zero() {
            return Next::NotBefore(wait);
        }
        let taken = state.queue.take(|class| self.connections.take(self.set, class));
        self.connections.set_waits(self.set, taken.is_none());
        let Some((call, class, connection)) = taken else { return Next::NoConnection };
        state.rate.take(now);
        drop(state);
        let turn = Turn { of: Arc::clone(self), class, spent: false, _connection: connection };
        // A caller that has just given up hands the turn back by dropping it.
        let _ = call.send(turn);
        Next::Given
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Given,
    NobodyWaits,
    /// The rate allows no call before so long.
    NotBefore(Duration),
    NoConnection,
}

#[cfg(test)]
mod tests;
