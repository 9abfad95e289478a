//! Delivers the events in order. A follower reads them in bounded steps, and waits at their end for
//! the next commit. It has no queue, so a slow reader costs no more memory.

use std::{ops::ControlFlow, sync::Arc, time::Duration, vec};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::{sync::watch, time};

use super::{EmbeddedShared, tables};
use crate::store::{Entry, Followed, LogName, Lost, Position};

/// The pause after a failed read, unless a commit comes earlier.
const RETRY_AFTER: Duration = Duration::from_secs(1);

struct FileFollower {
    shared: Arc<EmbeddedShared>,
    epoch: u64,
    end: watch::Receiver<u64>,
    /// The sequence of the last event that was delivered.
    position: u64,
    batch: vec::IntoIter<(LogName, Entry)>,
    /// The last sequence when the follower began. `None` once `CaughtUp` is delivered.
    catch_up_to: Option<u64>,
    /// The last read failed. Only the first failure in a row is logged.
    failing: bool,
}

pub(super) fn follow(
    shared: Arc<EmbeddedShared>,
    after: Option<Position>,
) -> BoxStream<'static, Followed> {
    let (start, end) = (Position { epoch: shared.epoch(), sequence: 0 }, shared.end.clone());
    let Position { epoch, sequence: position } = after.unwrap_or(start);
    let (catch_up_to, batch) = (Some(*end.borrow()), Vec::new().into_iter());
    let follower =
        FileFollower { shared, epoch, end, position, batch, catch_up_to, failing: false };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        let item = follower.next().await?;
        let next = (!matches!(item, Followed::Lost(_))).then_some(follower);
        Some((item, next))
    })
    .boxed()
}

impl FileFollower {
    async fn next(&mut self) -> Option<Followed> {
        loop {
            let is_beyond_end = self.catch_up_to.is_some_and(|last| self.position > last);
            if is_beyond_end || self.shared.epoch() != self.epoch {
                return Some(Followed::Lost(Lost::Replaced));
            }
            if let Some((log, entry)) = self.batch.next() {
                self.position = entry.position.sequence;
                return Some(Followed::Event(log, entry));
            }
            let Self { epoch, position, .. } = *self;
            if self.catch_up_to.take_if(|last| *last == position).is_some() {
                return Some(Followed::CaughtUp(Position { epoch, sequence: position }));
            }
            let end = self.catch_up_to.unwrap_or_else(|| *self.end.borrow_and_update());
            if position == end {
                self.end.changed().await.ok()?;
            } else if let ControlFlow::Break(last) = self.read(end).await {
                return last;
            }
        }
    }

    /// Reads the next events, up to a sequence. Breaks with the last item, or with `None` if the
    /// store was closed.
    async fn read(&mut self, end: u64) -> ControlFlow<Option<Followed>> {
        let (epoch, position) = (self.epoch, self.position);
        let read = self.shared.read(move |txn| tables::read_all(txn, epoch, position, end)).await;
        let failed_before = std::mem::replace(&mut self.failing, read.is_err());
        match read {
            Ok(Some(batch)) if batch.is_empty() => self.position = end,
            Ok(Some(batch)) => self.batch = batch.into_iter(),
            Ok(None) => return ControlFlow::Break(Some(Followed::Lost(Lost::TooOld))),
            Err(error) => {
                if !failed_before {
                    tracing::warn!(%error, "cannot follow the store now; trying again");
                }
                if let Ok(Err(_)) = time::timeout(RETRY_AFTER, self.end.changed()).await {
                    return ControlFlow::Break(None);
                }
            }
        }
        ControlFlow::Continue(())
    }
}
