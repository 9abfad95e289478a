//! The low-water mark, from which a replica follows the store at its start, and the housekeeping
//! that raises it.
//!
//! No open log begins before the mark. The mark only rises. If it is too low, a start takes longer.

use std::{convert::Infallible, time::Duration};

use prost::Message;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{FollowerProgress, Hub, follow::READ_RETRY, snapshots::STALLED};
use crate::{
    proto::storage,
    requests::{age, fold::order::Order, lock},
    store::{CELL_FORMAT, CellName, Position, Store, StoreError, Versioned, swap_cell},
};

/// The bounds of the housekeeping interval, which is the idle time of closed requests.
const MAX_HOUSEKEEPING_INTERVAL: Duration = Duration::from_mins(1);
const MIN_HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

fn cell() -> CellName {
    CellName::permanent("low-water")
}

async fn load_mark(store: &dyn Store) -> Result<Option<Versioned<storage::LowWater>>, StoreError> {
    let Some(Versioned { version, value }) = store.load(&cell()).await? else { return Ok(None) };
    // A mark in a newer format is valid too.
    let value =
        storage::LowWater::decode(value).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(Some(Versioned { version, value }))
}

/// Raises the mark. A higher mark, or one in a newer format, stays.
async fn raise(store: &dyn Store, mark: Position) -> Result<(), StoreError> {
    let current = load_mark(store).await?;
    let stays = current.as_ref().is_some_and(|Versioned { value, .. }| {
        value.version > CELL_FORMAT
            || (value.epoch == mark.epoch && value.sequence >= mark.sequence)
    });
    if stays {
        return Ok(());
    }
    let (epoch, sequence) = (mark.epoch, mark.sequence);
    let mut value = storage::LowWater { epoch, sequence, ..storage::LowWater::default() };
    // On a conflict another replica has raised the mark.
    swap_cell(store, &cell(), current.map(|current| current.version), &mut value).await.map(drop)
}

impl Hub {
    /// Returns the position after which the store is followed. `None`: from its first event.
    pub(super) async fn low_water(&self, stop: &CancellationToken) -> Option<Position> {
        let mut warned = false;
        let load = async {
            loop {
                match load_mark(&*self.store).await {
                    Ok(mark) => return mark,
                    Err(error) if !warned => {
                        warn!(
                            %error,
                            "cannot read the low-water mark yet; trying again. Check the store if \
                             this lasts"
                        );
                        warned = true;
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(READ_RETRY).await;
            }
        };
        let mark = stop.run_until_cancelled(load).await.flatten()?.value;
        let sequence = mark.sequence.checked_sub(1).filter(|&s| s > 0)?;
        Some(Position { epoch: mark.epoch, sequence })
    }

    pub(super) async fn housekeeping(&self) -> Infallible {
        let period =
            self.closed_limits.idle.clamp(MIN_HOUSEKEEPING_INTERVAL, MAX_HOUSEKEEPING_INTERVAL);
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.evict_and_advance().await;
        }
    }

    /// Evicts unused data, and raises the low-water mark.
    pub(super) async fn evict_and_advance(&self) {
        self.history.drop_unused(self.closed_limits.idle);
        self.snapshots.drop_unused(STALLED);
        // Read before the projection, so that the projection includes all events up to `folded`.
        let FollowerProgress { folded, caught_up } = *self.progress.borrow();
        let (evicted, oldest_open) = {
            let mut projection = lock(&self.projection);
            let evicted = projection.evict(self.closed_limits);
            let requests = projection.requests.values().filter_map(|tracked| {
                let folded = tracked.lock();
                folded.request.first.filter(|_| !folded.request.is_closed())
            });
            let holds_mark = |order: &&Order| {
                let age = age(&*self.store, order.first, order.sent_time);
                age < self.give_up || order.outcome.is_some()
            };
            let orders = projection.orders.iter().map(|(_, order)| order).filter(holds_mark);
            let orders = orders.filter_map(|order| order.first);
            (evicted, requests.chain(orders).min())
        };
        // Later requests may also be open, so the mark must not exceed `folded`. Logs that were
        // loaded for callers may begin beyond it.
        if let Some(mark) = oldest_open.into_iter().chain(folded).min()
            && caught_up
            && let Err(error) = raise(&*self.store, mark).await
        {
            warn!(
                %error,
                "cannot raise the low-water mark yet; trying again. Until then a start takes longer"
            );
        }
        debug!(evicted = evicted.len(), "housekeeping");
    }
}
