//! Permits. A permit is the right to send one call: a share of the rate and a connection.
//!
//! Each set of credentials has its own [`Permits`], and all share one [`ConnectionPool`]. A task
//! issues the permits: it waits for the rate, then gives the next call of the [`queue`] a
//! connection. A waiting call holds neither a share nor a connection, so waiting sets, classes and
//! accounts do not delay each other.
//!
//! Guarantees: at most `calls_per_second` calls begin in a second, and [`rate::BURST`] more after a
//! pause. Each class gets the share that [`queue`] states. A permit that is dropped unused, or
//! whose caller stopped waiting, is returned. No timer runs while no call waits.

mod connections;
mod queue;
mod rate;

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    connections::ConnectionPermit,
    queue::{Queue, Ticket},
    rate::Rate,
};
use crate::{identity::AccountName, lock::lock, thingspace::Error};

pub(super) use self::{connections::ConnectionPool, queue::Class};

/// Bounds of `retry_after` for a call that is refused because too many wait.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// The permits of one set of credentials.
#[derive(Debug)]
pub(super) struct Permits {
    issuer: Arc<Issuer>,
    /// Ends the task when it is dropped.
    _running: DropGuard,
}

#[derive(Debug)]
struct Issuer {
    state: Mutex<IssuerState>,
    /// Notified when a call begins or stops waiting, and when a permit is returned.
    changed: Notify,
    connections: Arc<ConnectionPool>,
    /// The number of this set of credentials in the pool.
    set: usize,
}

#[derive(Debug)]
struct IssuerState {
    queue: Queue<oneshot::Sender<Permit>>,
    rate: Rate,
}

/// The right to send one call. It holds a connection until it is dropped. If it was not used, its
/// share of the rate is returned, too.
#[derive(Debug)]
pub(super) struct Permit {
    issuer: Arc<Issuer>,
    pub(super) class: Class,
    /// The call was sent, so the share of the rate is not returned.
    pub(super) used: bool,
    _connection: ConnectionPermit,
}

impl Permits {
    /// Starts the task that issues permits. It ends when this is dropped.
    pub(super) fn new(
        per_second: NonZeroU32,
        connections: Arc<ConnectionPool>,
        set: usize,
    ) -> Self {
        let state =
            IssuerState { queue: Queue::new(), rate: Rate::new(per_second, Instant::now()) };
        let state = Mutex::new(state);
        let issuer = Arc::new(Issuer { state, changed: Notify::new(), connections, set });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&issuer).run()));
        Self { issuer, _running: stop.drop_guard() }
    }

    /// Waits for a permit. Fails at once if the wait would exceed `latest` or the queue is full.
    /// Cancel-safe: a caller that stops waiting uses no permit.
    pub(super) async fn wait(
        &self,
        class: Class,
        account: &AccountName,
        latest: Option<Instant>,
    ) -> Result<Permit, Error> {
        self.issue(|state, call| {
            let now = Instant::now();
            let wait = state.wait(class, account, now);
            // If the deadline has passed, the queue is not the cause. The caller ends the wait.
            let longest =
                latest.map(|at| at.saturating_duration_since(now)).filter(|l| !l.is_zero());
            match longest.and_then(|longest| wait.checked_sub(longest)) {
                Some(excess) if !excess.is_zero() => Err(excess),
                _ => state.queue.push(class, account, call).ok_or(wait),
            }
        })
        .await
    }

    /// Waits for another permit of a call that had one, ahead of the other calls of its class.
    pub(super) async fn wait_again(&self, class: Class) -> Result<Permit, Error> {
        self.issue(|state, call| Ok(state.queue.push_first(class, call))).await
    }

    /// Waits for a permit. `enqueue` adds the call to the queue, or returns how long to wait before
    /// it is tried again.
    async fn issue(
        &self,
        enqueue: impl FnOnce(&mut IssuerState, oneshot::Sender<Permit>) -> Result<Ticket, Duration>,
    ) -> Result<Permit, Error> {
        let busy = |wait: Duration| Error::Busy { retry_after: wait.clamp(RETRY_MIN, RETRY_MAX) };
        let (call, permit) = oneshot::channel();
        let ticket = enqueue(&mut lock(&self.issuer.state), call).map_err(busy)?;
        let _place = QueuePlace { issuer: &self.issuer, ticket };
        self.issuer.changed.notify_one();
        permit.await.map_err(|_| busy(RETRY_MIN))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.used {
            lock(&self.issuer.state).rate.give_back();
            self.issuer.changed.notify_one();
        }
    }
}

/// Removes a call from the queue when it is dropped.
struct QueuePlace<'a> {
    issuer: &'a Issuer,
    ticket: Ticket,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        lock(&self.issuer.state).queue.remove(&self.ticket);
        self.issuer.changed.notify_one();
    }
}

impl IssuerState {
    /// Returns how long a new call would wait.
    fn wait(&self, class: Class, account: &AccountName, now: Instant) -> Duration {
        let permits = u32::try_from(self.queue.permits_before(class, account)).unwrap_or(u32::MAX);
        match permits {
            0 => Duration::ZERO,
            permits => self.rate.wait(now) + self.rate.interval * permits,
        }
    }
}

/// Why no permit can be issued.
enum Obstacle {
    NoCall,
    /// The rate allows no call for this long.
    Rate(Duration),
    NoConnection,
}

impl Issuer {
    async fn run(self: Arc<Self>) {
        loop {
            let mut freed = std::pin::pin!(self.connections.freed());
            freed.as_mut().enable();
            match self.issue_one() {
                Ok(()) => {}
                Err(Obstacle::NoCall) => self.changed.notified().await,
                Err(Obstacle::Rate(wait)) => {
                    // A permit may be returned meanwhile.
                    let _ = tokio::time::timeout(wait, self.changed.notified()).await;
                }
                Err(Obstacle::NoConnection) => tokio::select! {
                    () = freed => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }

    fn issue_one(self: &Arc<Self>) -> Result<(), Obstacle> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.queue.is_empty() {
            self.connections.set_waits(self.set, false);
            return Err(Obstacle::NoCall);
        }
        let wait = state.rate.wait(now);
        if !wait.is_zero() {
            return Err(Obstacle::Rate(wait));
        }
        let next = state.queue.take(|class| self.connections.take(self.set, class));
        self.connections.set_waits(self.set, next.is_none());
        let (call, class, connection) = next.ok_or(Obstacle::NoConnection)?;
        state.rate.take(now);
        drop(state);
        let issuer = Arc::clone(self);
        let permit = Permit { issuer, class, used: false, _connection: connection };
        // If the caller has just stopped waiting, the permit is dropped and thus returned.
        let _ = call.send(permit);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
