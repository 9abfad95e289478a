//! The rate of calls of one set of credentials.
//!
//! Guarantees: never more than `calls_per_second` begun in a second (after a pause, one second's worth at once); polls get
//! three grants of ten while they and others wait; of the others orders go first, then callers' questions; requests made
//! elsewhere get one in twenty and never wait; first come, first served within a class; a permit that is dropped
//! unspent, or whose waiter gave up, goes back. Never runs a timer while nobody waits.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::Error;

/// Calls that may wait, for each class.
const MAX_WAITING: usize = 16_384;
const POLLS_OF_TEN: u32 = 3;
/// Foreign requests get one call in twenty.
const FOREIGN_SHARE: u32 = 20;
pub(super) const BURST: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Order,
    /// A caller asks.
    Ask,
    Poll,
}

#[derive(Debug)]
pub(super) struct Limiter {
    bucket: Bucket,
    foreign: Bucket,
    orders: mpsc::Sender<Waiter>,
    asks: mpsc::Sender<Waiter>,
    polls: mpsc::Sender<Waiter>,
}

type Waiter = oneshot::Sender<Permit>;

/// The right to one call. Goes back when it is dropped unspent.
#[derive(Debug)]
pub(super) struct Permit {
    bucket: Option<Bucket>,
}

impl Limiter {
    /// Spawns the task that hands out permits; it ends when the limiter is dropped.
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        let ((orders, order_queue), (asks, ask_queue), (polls, poll_queue)) =
            (mpsc::channel(MAX_WAITING), mpsc::channel(MAX_WAITING), mpsc::channel(MAX_WAITING));
        let bucket = Bucket::new(interval);
        let queues = Queues {
            orders: Queue::new(order_queue),
            asks: Queue::new(ask_queue),
            polls: Queue::new(poll_queue),
            polls_due: 0,
        };
        tokio::spawn(queues.hand_out(bucket.clone()));
        Self { bucket, foreign: Bucket::new(interval * FOREIGN_SHARE), orders, asks, polls }
    }

    /// Waits its turn. Cancel-safe: whoever stops waiting costs no permit.
    pub(super) async fn wait(&self, class: Class) -> Result<Permit, Error> {
        let queue = match class {
            Class::Order => &self.orders,
            Class::Ask => &self.asks,
            Class::Poll => &self.polls,
        };
        let (waiter, permit) = oneshot::channel();
        // Not for a caller to repeat at once, as what was merely not sent is.
        let full = || Error::Throttled { retry_after: Some(BURST) };
        queue.try_send(waiter).map_err(|_| full())?;
        permit.await.map_err(|_| full())
    }

    /// A permit now or never: within the share of foreign requests, and if the rate has one left just now.
    pub(super) fn take_foreign(&self) -> Result<Permit, Error> {
        let throttled = |wait| Error::Throttled { retry_after: Some(wait) };
        let foreign = self.foreign.try_take().map_err(throttled)?;
        let permit = self.bucket.try_take().map_err(throttled)?;
        foreign.spend();
        Ok(permit)
    }
}

impl Permit {
    /// The call is made: the permit does not go back.
    pub(super) fn spend(mut self) {
        self.bucket = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.give_back();
        }
    }
}

/// Everybody who waits.
struct Queues {
    orders: Queue,
    asks: Queue,
    polls: Queue,
    /// In tenths of a grant: what polls have coming from the grants while others waited.
    polls_due: u32,
}

impl Queues {
    async fn hand_out(mut self, bucket: Bucket) {
        loop {
            if self.next().is_none() {
                let arrived = tokio::select! {
                    arrived = self.orders.arrival() => arrived,
                    arrived = self.asks.arrival() => arrived,
                    arrived = self.polls.arrival() => arrived,
                };
                if !arrived {
                    return;
                }
            }
            let permit = match bucket.try_take() {
                Ok(permit) => permit,
                Err(wait) => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            // Whoever is first in line now: some may have given up, and others come, during the sleep.
            if let Some(waiter) = self.next().and_then(|class| self.take(class)) {
                // Refused by a waiter that gave up: the permit comes back and is dropped, hence not spent.
                let _ = waiter.send(permit);
            }
        }
    }

    /// Whose turn it is.
    fn next(&mut self) -> Option<Class> {
        let others = if self.orders.someone_waits() {
            Some(Class::Order)
        } else {
            self.asks.someone_waits().then_some(Class::Ask)
        };
        let polls = self.polls.someone_waits();
        match others {
            Some(_) if polls && self.polls_due + POLLS_OF_TEN >= 10 => Some(Class::Poll),
            None if polls => Some(Class::Poll),
            others => others,
        }
    }

    /// Takes the first of a class whose turn it is.
    fn take(&mut self, class: Class) -> Option<Waiter> {
        let contended =
            self.polls.someone_waits() && (self.orders.someone_waits() || self.asks.someone_waits());
        if contended {
            self.polls_due = (self.polls_due + POLLS_OF_TEN) % 10;
        }
        match class {
            Class::Order => self.orders.first.take(),
            Class::Ask => self.asks.first.take(),
            Class::Poll => self.polls.first.take(),
        }
    }
}

/// One class of waiters, first come first served.
struct Queue {
    first: Option<Waiter>,
    rest: mpsc::Receiver<Waiter>,
}

impl Queue {
    fn new(rest: mpsc::Receiver<Waiter>) -> Self {
        Self { first: None, rest }
    }

    /// Passes over those who gave up.
    fn someone_waits(&mut self) -> bool {
        while self.first.as_ref().is_none_or(Waiter::is_closed) {
            self.first = self.rest.try_recv().ok();
            if self.first.is_none() {
                return false;
            }
        }
        true
    }

    /// False: nobody will ever come again.
    async fn arrival(&mut self) -> bool {
        self.first = self.rest.recv().await;
        self.first.is_some()
    }
}

/// A leaky bucket by the generic cell rate algorithm: `due` is when all permits taken so far would be paid for.
#[derive(Debug, Clone)]
struct Bucket {
    interval: Duration,
    due: Arc<Mutex<Instant>>,
}

impl Bucket {
    fn new(interval: Duration) -> Self {
        Self { interval, due: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Or how long to wait.
    fn try_take(&self) -> Result<Permit, Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let next = (*due).max(now) + self.interval;
        let wait = next.saturating_duration_since(now + BURST.max(self.interval));
        if !wait.is_zero() {
            return Err(wait);
        }
        *due = next;
        Ok(Permit { bucket: Some(self.clone()) })
    }

    fn give_back(&self) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) -= self.interval;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    fn limiter(rate: u32) -> Arc<Limiter> {
        Arc::new(Limiter::new(rate.try_into().unwrap()))
    }

    /// Waiters in the limiter's queue, in the order given.
    fn enqueue(limiter: &Arc<Limiter>, class: Class, count: usize) -> VecDeque<BoxFuture<'static, Permit>> {
        (0..count)
            .map(|_| {
                let limiter = Arc::clone(limiter);
                let mut waiter = async move { limiter.wait(class).await.unwrap() }.boxed();
                assert!(waiter.as_mut().now_or_never().is_none());
                waiter
            })
            .collect()
    }

    /// Takes what is granted at this instant from the front of a queue.
    fn granted(queue: &mut VecDeque<BoxFuture<'static, Permit>>) -> usize {
        let mut count = 0;
        while let Some(permit) = queue.front_mut().and_then(FutureExt::now_or_never) {
            permit.spend();
            queue.pop_front();
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_s_worth_at_once_then_the_rate() {
        let limiter = limiter(10);
        let began = Instant::now();
        for n in 0..30_u32 {
            limiter.wait(Class::Order).await.unwrap().spend();
            let least = Duration::from_millis(100) * n.saturating_sub(9);
            assert!(began.elapsed() >= least, "call {n} after {:?}", began.elapsed());
            assert!(
                began.elapsed() <= least + Duration::from_millis(20),
                "call {n} after {:?}",
                began.elapsed()
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn orders_go_first_and_polls_get_their_share() {
        let limiter = limiter(10);
        let (mut polls, mut orders) =
            (enqueue(&limiter, Class::Poll, 40), enqueue(&limiter, Class::Order, 40));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (polled, ordered) = (granted(&mut polls), granted(&mut orders));
        assert!((39..=41).contains(&(polled + ordered)), "{polled} + {ordered}");
        assert!((11..=13).contains(&polled), "{polled}");
        // Alone, either class gets all.
        drop(orders);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(granted(&mut polls) >= 9);
    }

    /// Whoever waits, in queues that never run dry: the grants of ten seconds after the first second's worth.
    #[tokio::test(start_paused = true)]
    async fn shares_of_the_rate() {
        // Orders, asks, polls waiting, and what each gets.
        let table = [
            ([true, true, true], [70, 0, 30]),
            ([true, true, false], [100, 0, 0]),
            ([true, false, true], [70, 0, 30]),
            ([false, true, true], [0, 70, 30]),
            ([false, false, true], [0, 0, 100]),
            ([false, true, false], [0, 100, 0]),
        ];
        for (waiting, expected) in table {
            let limiter = limiter(10);
            let mut queues = [Class::Order, Class::Ask, Class::Poll]
                .map(|class| enqueue(&limiter, class, if waiting[class as usize] { 200 } else { 0 }));
            tokio::time::sleep(Duration::from_millis(1)).await;
            for queue in &mut queues {
                granted(queue);
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            let got = queues.each_mut().map(granted);
            for (got, expected) in got.into_iter().zip(expected) {
                assert!(got.abs_diff(expected) <= 1, "{waiting:?}: {got:?}, not {expected:?}");
            }
        }
    }

    /// The class that comes last gets on as soon as those before it are served.
    #[tokio::test(start_paused = true)]
    async fn a_question_waits_for_the_orders_that_wait_and_no_longer() {
        let limiter = limiter(10);
        let mut orders = enqueue(&limiter, Class::Order, 20);
        let mut asks = enqueue(&limiter, Class::Ask, 1);
        tokio::time::sleep(Duration::from_millis(950)).await;
        assert_eq!((granted(&mut orders), granted(&mut asks)), (19, 0));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!((granted(&mut orders), granted(&mut asks)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served() {
        let limiter = limiter(1);
        let mut waiters = enqueue(&limiter, Class::Poll, 5);
        for _ in 0..5 {
            while granted(&mut waiters) == 0 {
                // Nobody behind the first has one.
                for later in waiters.iter_mut().skip(1) {
                    assert!(later.now_or_never().is_none());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_costs_nothing() {
        let limiter = limiter(1);
        limiter.wait(Class::Order).await.unwrap().spend();
        // Given up while waiting, after the grant, and with the permit in hand.
        drop(enqueue(&limiter, Class::Order, 100));
        let granted_unseen = enqueue(&limiter, Class::Order, 1);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        drop(granted_unseen);
        drop(limiter.wait(Class::Order).now_or_never());
        let began = Instant::now();
        drop(limiter.wait(Class::Order).await.unwrap());
        limiter.wait(Class::Poll).await.unwrap().spend();
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn foreign_calls_get_one_in_twenty_and_never_wait() {
        let limiter = limiter(10);
        let began = Instant::now();
        let mut taken = 0;
        for _ in 0..95 {
            match limiter.take_foreign() {
                Ok(permit) => {
                    permit.spend();
                    taken += 1;
                }
                Err(Error::Throttled { retry_after: Some(wait) }) => assert!(!wait.is_zero()),
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(taken, 5, "in {:?}", began.elapsed());
        // Nothing is left over for them while others wait.
        let mut orders = enqueue(&limiter, Class::Order, 100);
        tokio::time::sleep(Duration::from_millis(3_050)).await;
        assert!(granted(&mut orders) > 0);
        assert!(matches!(limiter.take_foreign(), Err(Error::Throttled { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let limiter = limiter(1);
        limiter.wait(Class::Poll).await.unwrap().spend();
        let _waiting = enqueue(&limiter, Class::Poll, MAX_WAITING);
        let refused = limiter.wait(Class::Poll).now_or_never().expect("refused at once");
        assert!(matches!(refused, Err(Error::Throttled { retry_after: Some(_) })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_limiter() {
        let limiter = limiter(1);
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks(), 1);
        drop(limiter);
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
