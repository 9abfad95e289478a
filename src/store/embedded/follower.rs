//! Followers. A follower reads the tables in bounded steps, and waits at their end for the next
//! commit. It has no queue, so that a slow one costs no memory.

use std::{sync::Arc, time::Duration, vec};

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
    phase: FollowPhase,
    /// The last read failed. Only the first failure in a row is logged.
    failing: bool,
}

enum FollowPhase {
    /// Up to the sequence that was the last when the follower began.
    CatchingUp(u64),
    Live,
    Lost(Lost),
    Ended,
}

pub(super) fn follow(
    shared: Arc<EmbeddedShared>,
    after: Option<Position>,
) -> BoxStream<'static, Followed> {
    let (epoch, end) = (shared.epoch(), shared.end.clone());
    let last = *end.borrow();
    let position = after.map_or(0, |after| after.sequence);
    let phase = if after.is_some_and(|after| after.epoch != epoch) || position > last {
        FollowPhase::Lost(Lost::Replaced)
    } else {
        FollowPhase::CatchingUp(last)
    };
    let batch = Vec::new().into_iter();
    let follower = FileFollower { shared, epoch, end, position, batch, phase, failing: false };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
    .boxed()
}

impl FileFollower {
    async fn next(&mut self) -> Option<Followed> {
        loop {
            let is_over = matches!(self.phase, FollowPhase::Lost(_) | FollowPhase::Ended);
            if !is_over && self.shared.epoch() != self.epoch {
                self.batch = Vec::new().into_iter();
                self.phase = FollowPhase::Lost(Lost::Replaced);
            }
            if let Some((log, entry)) = self.batch.next() {
                self.position = entry.position.sequence;
                return Some(Followed::Event(log, entry));
            }
            let end = match self.phase {
                FollowPhase::CatchingUp(to) if self.position == to => {
                    self.phase = FollowPhase::Live;
                    return Some(Followed::CaughtUp(Position { epoch: self.epoch, sequence: to }));
                }
                FollowPhase::CatchingUp(to) => to,
                FollowPhase::Live => *self.end.borrow_and_update(),
                FollowPhase::Lost(lost) => {
                    self.phase = FollowPhase::Ended;
                    return Some(Followed::Lost(lost));
                }
                FollowPhase::Ended => return None,
            };
            if self.position == end {
                self.end.changed().await.ok()?;
            } else {
                self.read(end).await?;
            }
        }
    }

    /// Reads the next events, up to a sequence. `None`: the store was closed.
    async fn read(&mut self, end: u64) -> Option<()> {
        let (epoch, position) = (self.epoch, self.position);
        let read = self.shared.read(move |txn| tables::read_all(txn, epoch, position, end)).await;
        let failed_before = std::mem::replace(&mut self.failing, read.is_err());
        match read {
            Ok(Some(batch)) if batch.is_empty() => self.position = end,
            Ok(Some(batch)) => self.batch = batch.into_iter(),
            Ok(None) => self.phase = FollowPhase::Lost(Lost::TooOld),
            Err(error) => {
                if !failed_before {
                    tracing::warn!(%error, "cannot follow the store now; trying again");
                }
                if let Ok(changed) = time::timeout(RETRY_AFTER, self.end.changed()).await {
                    changed.ok()?;
                }
            }
        }
        Some(())
    }
}
