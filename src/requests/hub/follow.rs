//! Following the store: from the low-water mark to the end, and on; and keeping house meanwhile.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Ahead, Hint, Hub, LowWater, Note, Progress, Projection, Stray, Tracked, is_same, open_devices,
    read_ahead::{self, ReadAhead},
};
use crate::{
    identity::RequestId,
    proto::storage::Event,
    requests::{
        age,
        fold::{
            event::{self, Kind},
            order::Order,
        },
        lock,
    },
    store::{self, Entry, Followed, LogClass, LogName, Position, StoreError},
};

/// How often the hub looks for entries to drop and raises the low-water mark.
const HOUSEKEEPING: Duration = Duration::from_mins(1);
const HOUSEKEEPING_AT_LEAST: Duration = Duration::from_secs(1);

/// How long the last time may take, when the process is about to end.
const LAST_HOUSEKEEPING: Duration = Duration::from_secs(2);

/// The pause after a failed read of the store.
const READ_RETRY: Duration = Duration::from_millis(500);

/// A follower that is behind the end of a usable store and makes no progress for this long stands
/// still.
const STANDS_STILL_AFTER: Duration = Duration::from_secs(30);

/// How often the follower's progress is checked.
const PROGRESS_CHECK: Duration = Duration::from_secs(1);

/// Why following ended before it was stopped.
enum Interrupted {
    Lost(store::Lost),
    /// The stream of events ended, which it must not.
    Ended,
    StandsStill,
}

/// The order that a request belongs to, if it does.
struct Owner(Option<String>);
/// How often a log that is damaged is read again before it is set aside.
const CORRUPT_TRIES: u32 = 2;

impl Hub {
    /// Follows the store until stopped. A follower that ends or stands still is replaced by a new
    /// one.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut from = self.low_water(&stop).await;
        while let Some(why) = stop.run_until_cancelled(self.follow_from(from)).await {
            let why = match why {
                Interrupted::Lost(lost) => {
                    match lost {
                        store::Lost::Replaced => warn!("the store was replaced; starting over"),
                        store::Lost::TooOld => {
                            info!(
                                "the low-water mark is older than the oldest event; starting from that"
                            );
                        }
                    }
                    self.reset();
                    from = None;
                    continue;
                }
                Interrupted::Ended => "it ended",
                Interrupted::StandsStill => "it stands still while the store goes on",
            };
            if !self.stalled.swap(true, Ordering::Relaxed) {
                error!(
                    why,
                    "the store is no longer followed: not ready, and following it anew; restart the gateway if \
                     this stays"
                );
            }
            self.progress.send_modify(|progress| progress.caught_up = false);
            from = self.progress.borrow().folded.or(from);
            if stop.run_until_cancelled(tokio::time::sleep(READ_RETRY)).await.is_none() {
                break;
            }
        }
        // The next start then reads only what is still open. Without it, it reads more.
        let _ = tokio::time::timeout(LAST_HOUSEKEEPING, self.keep_house()).await;
    }

    async fn low_water(&self, stop: &CancellationToken) -> Option<Position> {
        let load = async {
            let mut said = false;
            loop {
                match LowWater::load(&*self.store).await {
                    Ok(mark) => return mark.and_then(LowWater::position),
                    Err(error) => {
                        if !std::mem::replace(&mut said, true) {
                            warn!(%error, "cannot read the low-water mark yet; trying until it works");
                        }
                        tokio::time::sleep(READ_RETRY).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(load).await.flatten()
    }

    /// House is kept beside it: while the cells are away, events are folded all the same.
    async fn follow_from(&self, from: Option<Position>) -> Interrupted {
        tokio::select! {
            why = self.fold_all(from) => why,
            () = self.stands_still() => Interrupted::StandsStill,
            never = self.housekeeping() => match never {},
        }
    }

    /// Resolves when the follower has made no progress for too long although the store has more.
    async fn stands_still(&self) {
        let (mut last, mut since) = (None, Instant::now());
        while since.elapsed() < STANDS_STILL_AFTER {
            tokio::time::sleep(PROGRESS_CHECK).await;
            let folded = self.progress.borrow().folded;
            let behind = self.store.end().is_some_and(|end| match folded {
                Some(folded) => folded.epoch != end.epoch || folded.sequence < end.sequence,
                None => end.sequence > 0,
            });
            if folded != last || !behind || self.store.trouble().is_some() {
                (last, since) = (folded, Instant::now());
            }
        }
    }

    /// The follower has made progress.
    fn goes_on(&self) {
        if self.stalled.swap(false, Ordering::Relaxed) {
            info!("the store is followed again");
        }
    }

    async fn housekeeping(&self) -> Infallible {
        // What leaves memory sooner than that is looked for more often.
        let mut tick =
            tokio::time::interval(self.keep.idle.clamp(HOUSEKEEPING_AT_LEAST, HOUSEKEEPING));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.keep_house().await;
        }
    }

    async fn fold_all(&self, from: Option<Position>) -> Interrupted {
        let mut followed = self.store.follow(from).ready_chunks(read_ahead::EVENTS);
        while let Some(chunk) = followed.next().await {
            let mut ahead = self.read_ahead(&chunk).await;
            for followed in chunk {
                match followed {
                    Followed::Event(log, entry) => {
                        self.events_read.fetch_add(1, Ordering::Relaxed);
                        self.fold(&log, &entry, &mut ahead).await;
                        self.progress.send_modify(|p| p.folded = Some(entry.position));
                    }
                    Followed::CaughtUp(position) => {
                        debug!(sequence = position.sequence, "caught up with the store");
                        let folded = |p: &Progress| position.max(p.folded.unwrap_or(position));
                        let caught_up =
                            |p: &Progress| Progress { folded: Some(folded(p)), caught_up: true };
                        self.progress.send_modify(|p| *p = caught_up(p));
                    }
                    Followed::Skipped(position) => {
                        self.progress.send_modify(|p| p.folded = Some(position));
                    }
                    Followed::Lost(lost) => return Interrupted::Lost(lost),
                }
                self.goes_on();
            }
        }
        Interrupted::Ended
    }

    async fn fold(&self, log: &LogName, entry: &Entry, ahead: &mut ReadAhead) {
        let event = event::decode(&entry.event);
        match log.class {
            LogClass::Order => self.fold_order(&log.id, entry, &event.unwrap_or_default()).await,
            LogClass::Request => {
                let Ok(id) = RequestId::parse(&log.id) else { return };
                let kind = event.and_then(|event| event.kind);
                let owner = self.fold_request(&id, entry, kind.as_ref(), ahead).await;
                if let Some(Kind::Accepted(accepted)) = kind {
                    self.close_order(&accepted.order_id, owner.as_deref(), &id);
                }
            }
        }
    }

    async fn fold_order(&self, id: &str, entry: &Entry, event: &Event) {
        // The devices of an order with an outcome are not in memory, and one without an outcome
        // needs them again.
        if !matches!(event.kind, Some(Kind::Withdrawn(_))) {
            let mut projection = lock(&self.projection);
            if projection.orders.contains(id) || matches!(event.kind, Some(Kind::Ordered(_))) {
                return projection.orders.apply(id, entry, event);
            }
        }
        // An order's log begins with Ordered, so an order that is not in memory has ended. These
        // events change its outcome.
        if matches!(event.kind, Some(Kind::AcceptedAs(_) | Kind::Settled(_) | Kind::Withdrawn(_))) {
            let Some(order) = self.read_if_readable(&LogName::order(id), || self.order(id)).await
            else {
                return;
            };
            lock(&self.projection).orders.insert(id, order);
            self.wake_resolver();
        }
    }

    /// The `Accepted` of an order was folded, into a request that belongs to `owner`. The order is
    /// finished, unless that is another order, or another order may have the request under an id in
    /// another case. Then the acceptance may have to be withdrawn, by whoever looks after
    /// unfinished orders.
    fn close_order(&self, order_id: &str, owner: Option<&str>, request: &RequestId) {
        let is_anothers = owner.is_some_and(|owner| owner != order_id);
        if is_anothers || lock(&self.projection).has_rival(order_id, request) {
            return self.wake_resolver();
        }
        let leads = lock(&self.projection).orders.remove(order_id);
        for from in leads.into_iter().filter(|lead| lead != request && is_same(lead, request)) {
            self.add_stray(Stray { from, to: request.clone() });
            self.wake_resolver();
        }
    }

    /// Folds an event of a request's log. Returns the order that the request belongs to, as far as
    /// this had to know it.
    async fn fold_request(
        &self,
        id: &RequestId,
        entry: &Entry,
        kind: Option<&Kind>,
        read: &mut ReadAhead,
    ) -> Option<String> {
        if let Some(Ahead { order_id, .. }) = self.was_read(id, entry) {
            self.take_lead(id, kind);
            return order_id;
        }
        if let Some(Owner(owner)) = self.fold_tracked(id, entry, kind) {
            return owner;
        }
        let _loading = self.loading.lock(id).await;
        if let Some(Owner(owner)) = self.fold_tracked(id, entry, kind) {
            return owner;
        }
        // Open requests are in memory and a callback opens none: what is not here has ended, or is
        // somebody else's. So foreign callbacks cost no reading and no memory.
        if matches!(kind, Some(Kind::CalledBack(_))) {
            self.take_lead(id, kind);
            return None;
        }
        let log = LogName::request(id.as_str());
        let folded = match read.take(id) {
            Some(folded) => folded,
            None => self.read_if_readable(&log, || self.read(id)).await?,
        };
        let order_id = folded.request.order_id.clone();
        self.take_note(id, Note::of(&folded, entry, true));
        if !folded.request.is_closed() {
            // The follower alone begins the projection anew.
            let generation = lock(&self.projection).generation;
            self.insert(Tracked::new(id.clone(), folded), generation);
            return order_id;
        }
        let last = folded.position().sequence;
        if last > entry.position.sequence {
            let ahead = Ahead { last, order_id: order_id.clone() };
            lock(&self.projection).ahead.insert(id.clone(), ahead);
        }
        order_id
    }

    /// A callback for a request of which no order is known here.
    fn take_lead(&self, id: &RequestId, kind: Option<&Kind>) {
        let Some(Kind::CalledBack(called_back)) = kind else { return };
        let mut projection = lock(&self.projection);
        let is_owner =
            |other: &Arc<Tracked>| other.id != *id && other.lock().request.order_id.is_some();
        let owner = projection.spellings(id).into_iter().find(is_owner);
        let is_lead = projection.orders.lead(id, called_back);
        projection.heard.add(id);
        drop(projection);
        if let Some(owner) = &owner {
            self.add_stray(Stray { from: id.clone(), to: owner.id.clone() });
        }
        if is_lead || owner.is_some() {
            self.wake_resolver();
        }
    }

    /// What is known of a closed log, if it was read up to an entry, or further.
    fn was_read(&self, id: &RequestId, entry: &Entry) -> Option<Ahead> {
        let ahead = &mut lock(&self.projection).ahead;
        let last = ahead.get(id)?.last;
        let known =
            if entry.position.sequence >= last { ahead.remove(id) } else { ahead.get(id).cloned() };
        known.filter(|_| entry.position.sequence <= last)
    }

    /// Folds an event into a request that is in memory, and says which order that belongs to;
    /// `None` if it is not in memory.
    fn fold_tracked(&self, id: &RequestId, entry: &Entry, kind: Option<&Kind>) -> Option<Owner> {
        let mut projection = lock(&self.projection);
        let tracked = projection.requests.get(id).map(Arc::clone)?;
        let mut folded = tracked.lock();
        let before = open_devices(&folded.request);
        let effect = folded.apply(id.as_str(), entry);
        projection.open_devices = projection.open_devices + open_devices(&folded.request) - before;
        let closed = folded.request.is_closed().then(|| folded.bytes());
        let (revision, request_open) = (folded.request.revision, !folded.request.is_closed());
        let note = Note::of(&folded, entry, false);
        let order_id = folded.request.order_id.clone();
        // Other replicas cannot read what this one has read of an expired log. A request that was
        // placed elsewhere after all is not polled before somebody asks for it again.
        let leaves = folded.request.is_expired()
            || effect.changed && matches!(kind, Some(Kind::Withdrawn(_)));
        drop(folded);
        projection.set_closed(id, closed);
        let gone = if leaves { projection.forget(id) } else { None };
        let evicted = if closed.is_some() { projection.evict(self.keep) } else { Vec::new() };
        drop(projection);
        drop(evicted);
        if let Some(gone) = gone {
            gone.lose();
        }
        if order_id.is_none() {
            self.take_lead(id, kind);
        }
        self.take_note(id, note);
        if effect.puzzling {
            self.hints.add(id, Hint::Soon);
        }
        if effect.changed {
            tracked.wake(revision);
            if before == 0 && request_open {
                self.hint(id);
            }
        }
        Some(Owner(order_id))
    }

    pub(super) async fn keep_house(&self) {
        self.history.drop_unused(self.keep.idle);
        self.snapshots.drop_unused(super::snapshots::STALLED);
        let evicted;
        // Before the projection is looked at: what it says of everything up to here, it says then.
        let Progress { folded, caught_up } = *self.progress.borrow();
        let oldest_open = {
            let mut projection = lock(&self.projection);
            evicted = projection.evict(self.keep);
            let requests = projection.requests.values().filter_map(|tracked| {
                let folded = tracked.lock();
                folded.request.first.filter(|_| !folded.request.is_closed())
            });
            let young = |order: &&Order| {
                let age = age(&*self.store, order.first, order.sent_time);
                age < self.give_up || order.outcome.is_some()
            };
            let orders = projection
                .orders
                .iter()
                .map(|(_, order)| order)
                .filter(young)
                .filter_map(|order| order.first);
            requests.chain(orders).min()
        };
        // What is not folded yet may be open, too: a log that somebody asked for may have been read
        // further than the follower is.
        if let Some(mark) = oldest_open.into_iter().chain(folded).min()
            && caught_up
            && let Err(error) = LowWater::raise(&*self.store, mark).await
        {
            warn!(%error, "cannot raise the low-water mark; the next start reads more than it has to");
        }
        debug!(evicted = evicted.len(), "housekeeping");
    }

    fn reset(&self) {
        let projection = {
            let mut projection = lock(&self.projection);
            // A log that is being read may be one of the store that was lost.
            let generation = projection.generation + 1;
            std::mem::replace(&mut *projection, Projection { generation, ..Projection::default() })
        };
        self.unreadable.forget();
        self.history.drop_unused(Duration::ZERO);
        for tracked in projection.requests.values() {
            tracked.lose();
        }
        self.progress.send_replace(Progress::default());
    }

    /// Reads a log, for as long as it takes. `None`: it is damaged, and is set aside; all others
    /// are followed on.
    async fn read_if_readable<T, F>(&self, log: &LogName, read: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (mut said, mut tries) = (false, 0);
        loop {
            match read().await {
                Ok(read) => return Some(read),
                Err(StoreError::Corrupt(why)) if tries == CORRUPT_TRIES => {
                    self.unreadable.set_aside(log, why);
                    return None;
                }
                Err(StoreError::Corrupt(_)) => tries += 1,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(log = log.encode(), %error, "cannot read a log yet; trying until it works");
                    }
                }
            }
            tokio::time::sleep(READ_RETRY).await;
        }
    }
}
