//! Follows the store: folds all events from the low-water mark on. Replaces a follower that ends or
//! stalls, and reads the store again if it was replaced.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    ClosedAhead, EntryFacts, FollowerProgress, Hub, PollHint, Projection, SpellingVariant, Tracked,
    is_same,
    open_devices::RequestDevices,
    read_ahead::{self, ReadAhead},
};
use crate::{
    identity::RequestId,
    proto::storage::Event,
    requests::{
        fold::event::{self, Kind},
        lock,
    },
    store::{self, Entry, Followed, LogClass, LogName, Position, StoreError},
};

/// How long the last housekeeping may take before the process ends.
const LAST_HOUSEKEEPING: Duration = Duration::from_secs(2);

/// The pause after a failed read of the store.
pub(super) const READ_RETRY: Duration = Duration::from_millis(500);

/// How often a damaged log is read again before it is skipped.
const CORRUPT_TRIES: u32 = 2;

/// A follower is stalled if it makes no progress for this long although the store has more events.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The interval between checks of the follower's progress.
const PROGRESS_CHECK: Duration = Duration::from_secs(1);

/// Why a follower ended before it was stopped.
enum Interrupted {
    Lost(store::Lost),
    /// The follower must be replaced, for this reason.
    Failed(&'static str),
}

impl Hub {
    /// Follows the store until stopped. Replaces a follower that ends or stalls.
    pub(crate) async fn follow(&self, stop: CancellationToken) {
        let mut from = self.low_water(&stop).await;
        while let Some(interrupted) = stop.run_until_cancelled(self.follow_from(from)).await {
            let why = match interrupted {
                Interrupted::Failed(why) => why,
                Interrupted::Lost(lost) => {
                    match lost {
                        store::Lost::Replaced => {
                            warn!(
                                "the store was replaced; it is read again from the start. Run \
                                 `status` if no operator restored it or accepted a loss"
                            );
                        }
                        store::Lost::TooOld => info!(
                            "the low-water mark is older than the oldest event; the store is read \
                             from the oldest event"
                        ),
                    }
                    self.reset();
                    from = None;
                    continue;
                }
            };
            if !self.stalled.swap(true, Ordering::Relaxed) {
                error!(
                    why,
                    "the store is no longer followed, and the gateway is not ready; a new follower \
                     starts. Restart the gateway if this lasts"
                );
            }
            self.progress.send_modify(|progress| progress.caught_up = false);
            from = self.progress.borrow().folded.or(from);
            if stop.run_until_cancelled(tokio::time::sleep(READ_RETRY)).await.is_none() {
                break;
            }
        }
        // Lets the next start read fewer events.
        let _ = tokio::time::timeout(LAST_HOUSEKEEPING, self.evict_and_advance()).await;
    }

    /// Folds events until that is interrupted. Housekeeping runs concurrently, so events are folded
    /// even if cells cannot be written.
    async fn follow_from(&self, from: Option<Position>) -> Interrupted {
        tokio::select! {
            why = self.fold_all(from) => why,
            () = self.wait_until_stalled() => {
                Interrupted::Failed("the follower reads no events although the store has more")
            }
            never = self.housekeeping() => match never {},
        }
    }

    async fn wait_until_stalled(&self) {
        let (mut last, mut since) = (None, Instant::now());
        while since.elapsed() < STALLED_AFTER {
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

    fn mark_running(&self) {
        if self.stalled.swap(false, Ordering::Relaxed) {
            info!("the store is followed again");
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
                        self.progress.send_modify(|p| {
                            p.folded = Some(position.max(p.folded.unwrap_or(position)));
                            p.caught_up = true;
                        });
                    }
                    Followed::Skipped(position) => {
                        self.progress.send_modify(|p| p.folded = Some(position));
                    }
                    Followed::Lost(lost) => return Interrupted::Lost(lost),
                }
                self.mark_running();
            }
        }
        Interrupted::Failed("the follower ended")
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
        // A withdrawn order has no outcome any more. It needs its devices, which only its log has.
        if !matches!(event.kind, Some(Kind::Withdrawn(_))) {
            let mut projection = lock(&self.projection);
            if projection.orders.contains(id) || matches!(event.kind, Some(Kind::Ordered(_))) {
                return projection.orders.apply(id, entry, event);
            }
        }
        // An order that is not in memory had an outcome, which these events change.
        if matches!(event.kind, Some(Kind::AcceptedAs(_) | Kind::Settled(_) | Kind::Withdrawn(_))) {
            let Some(order) = self.read_if_readable(&LogName::order(id), || self.order(id)).await
            else {
                return;
            };
            lock(&self.projection).orders.insert(id, order);
            self.wake_resolver();
        }
    }

    /// Removes an order whose `Accepted` was folded into a request that belongs to the order
    /// `owner`. If the owner is another order, or if another order has a request whose id differs
    /// only in case, the order stays, because the resolver may have to withdraw the acceptance.
    fn close_order(&self, order_id: &str, owner: Option<&str>, request: &RequestId) {
        let is_of_another = owner.is_some_and(|owner| owner != order_id);
        if is_of_another || lock(&self.projection).has_rival(order_id, request) {
            return self.wake_resolver();
        }
        let candidates = lock(&self.projection).orders.remove(order_id);
        for from in candidates.into_iter().filter(|id| id != request && is_same(id, request)) {
            self.add_spelling_variant(SpellingVariant { from, to: request.clone() });
            self.wake_resolver();
        }
    }

    /// Folds an event of a request's log. Returns the order that the request belongs to.
    async fn fold_request(
        &self,
        id: &RequestId,
        entry: &Entry,
        kind: Option<&Kind>,
        read: &mut ReadAhead,
    ) -> Option<String> {
        if let Some(ClosedAhead { order_id, .. }) = self.read_already(id, entry) {
            self.note_callback(id, kind);
            return order_id;
        }
        if let Some(owner) = self.fold_tracked(id, entry, kind) {
            return owner;
        }
        let _loading = self.loading.lock(id).await;
        if let Some(owner) = self.fold_tracked(id, entry, kind) {
            return owner;
        }
        // All open requests are in memory, and a callback does not open one. So this request is
        // closed or external, and its log need not be read.
        if matches!(kind, Some(Kind::CalledBack(_))) {
            self.note_callback(id, kind);
            return None;
        }
        let log = LogName::request(id.as_str());
        let folded = match read.remove(id) {
            Some(folded) => folded,
            None => self.read_if_readable(&log, || self.read(id)).await?,
        };
        let order_id = folded.request.order_id.clone();
        self.apply_facts(id, EntryFacts::of(&folded, entry, true));
        if !folded.request.is_closed() {
            // Only the follower resets the projection, so this insertion succeeds.
            let generation = lock(&self.projection).generation;
            self.insert(Tracked::new(id.clone(), folded), generation);
            return order_id;
        }
        let last = folded.position().sequence;
        if last > entry.position.sequence {
            let ahead = ClosedAhead { last, order_id: order_id.clone() };
            lock(&self.projection).closed_ahead.insert(id.clone(), ahead);
        }
        order_id
    }

    /// Records a callback for a request that belongs to no known order. The request may belong to
    /// an order without an outcome, or may be known under another spelling.
    fn note_callback(&self, id: &RequestId, kind: Option<&Kind>) {
        let Some(Kind::CalledBack(called_back)) = kind else { return };
        let mut projection = lock(&self.projection);
        let is_owner =
            |other: &Arc<Tracked>| other.id != *id && other.lock().request.order_id.is_some();
        let owner = projection.spellings(id).into_iter().find(is_owner);
        let is_candidate = projection.orders.add_candidate(id, called_back);
        projection.callback_spellings.add(id);
        drop(projection);
        if let Some(owner) = &owner {
            self.add_spelling_variant(SpellingVariant { from: id.clone(), to: owner.id.clone() });
        }
        if is_candidate || owner.is_some() {
            self.wake_resolver();
        }
    }

    /// Returns the log of a closed request if it was already read up to an entry or beyond it.
    fn read_already(&self, id: &RequestId, entry: &Entry) -> Option<ClosedAhead> {
        let ahead = &mut lock(&self.projection).closed_ahead;
        let last = ahead.get(id)?.last;
        let log =
            if entry.position.sequence >= last { ahead.remove(id) } else { ahead.get(id).cloned() };
        log.filter(|_| entry.position.sequence <= last)
    }

    /// Folds an event into a request that is in memory. Returns the order that it belongs to, if
    /// any. `None`: the request is not in memory.
    #[expect(clippy::option_option, reason = "the outer one is for the request, not its order")]
    fn fold_tracked(
        &self,
        id: &RequestId,
        entry: &Entry,
        kind: Option<&Kind>,
    ) -> Option<Option<String>> {
        let mut projection = lock(&self.projection);
        let tracked = projection.requests.get(id).map(Arc::clone)?;
        let mut folded = tracked.lock();
        let before = RequestDevices::of(&folded.request);
        let effect = folded.apply(id.as_str(), entry);
        projection.open_devices.replace(&before, RequestDevices::of(&folded.request));
        let closed = folded.request.is_closed().then(|| folded.bytes());
        let (revision, request_open) = (folded.request.revision, !folded.request.is_closed());
        let facts = EntryFacts::of(&folded, entry, false);
        let order_id = folded.request.order_id.clone();
        // An expired request is removed, because other replicas cannot read its lost events. A
        // request whose acceptance was withdrawn is external. Callers load it again.
        let is_removed = folded.request.is_expired()
            || effect.changed && matches!(kind, Some(Kind::Withdrawn(_)));
        drop(folded);
        projection.set_closed(id, closed);
        let removed = if is_removed { projection.forget(id) } else { None };
        let evicted =
            if closed.is_some() { projection.evict(self.closed_limits) } else { Vec::new() };
        drop(projection);
        drop(evicted);
        if let Some(removed) = removed {
            removed.discard();
        }
        if order_id.is_none() {
            self.note_callback(id, kind);
        }
        self.apply_facts(id, facts);
        if effect.unassigned {
            self.hints.add(id, PollHint::Soon);
        }
        if effect.changed {
            tracked.wake(revision);
            if before.is_empty() && request_open {
                self.hints.add(id, PollHint::Reschedule);
            }
        }
        Some(order_id)
    }

    fn reset(&self) {
        let projection = {
            let mut projection = lock(&self.projection);
            // The new generation excludes logs of the former store that are still being read.
            let generation = projection.generation + 1;
            std::mem::replace(&mut *projection, Projection { generation, ..Projection::default() })
        };
        self.unreadable.clear();
        self.history.drop_unused(Duration::ZERO);
        for tracked in projection.requests.values() {
            tracked.discard();
        }
        self.progress.send_replace(FollowerProgress::default());
    }

    /// Reads a log, and tries again until it succeeds. `None`: the log is damaged and is skipped.
    async fn read_if_readable<T, F>(&self, log: &LogName, read: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (mut warned, mut tries) = (false, 0);
        loop {
            match read().await {
                Ok(read) => return Some(read),
                Err(StoreError::Corrupt(why)) if tries == CORRUPT_TRIES => {
                    self.unreadable.add(log, why);
                    return None;
                }
                Err(StoreError::Corrupt(_)) => tries += 1,
                Err(error) => {
                    if !std::mem::replace(&mut warned, true) {
                        warn!(
                            log = log.encode(),
                            %error,
                            "cannot read a log yet; trying again. Check the store if this lasts"
                        );
                    }
                }
            }
            tokio::time::sleep(READ_RETRY).await;
        }
    }
}
