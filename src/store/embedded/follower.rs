//! A follower reads the tables in bounded steps and, at their end, waits to be told of a new one.
//! Being behind and being live are the same code, there is no queue per follower and nothing to
//! overflow.

use std::{sync::Arc, time::Duration, vec};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::{sync::watch, time};

use super::{Shared, tables};
use crate::store::{Entry, Followed, LogName, Lost, Position};

/// After a failed read, unless the store says that something has changed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

struct Follower {
    shared: Arc<Shared>,
    epoch: u64,
    end: watch::Receiver<u64>,
    /// The sequence up to which everything was delivered.
    position: u64,
    batch: vec::IntoIter<(LogName, Entry)>,
    phase: Phase,
    /// From a failed read to the next that works, so that each is logged once.
    failing: bool,
}

enum Phase {
    /// Up to where the store ended when the follower asked.
    CatchingUp(u64),
    Live,
    Lost(Lost),
    Ended,
}

pub(super) fn follow(shared: Arc<Shared>, after: Option<Position>) -> BoxStream<'static, Followed> {
    let (epoch, end) = (shared.epoch(), shared.end.clone());
    let last = *end.borrow();
    let position = after.map_or(0, |after| after.sequence);
    let phase = if after.is_some_and(|after| after.epoch != epoch) || position > last {
        Phase::Lost(Lost::Replaced)
    } else {
        Phase::CatchingUp(last)
    };
    let batch = Vec::new().into_iter();
    let follower = Follower { shared, epoch, end, position, batch, phase, failing: false };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
    .boxed()
}

impl Follower {
    async fn next(&mut self) -> Option<Followed> {
        loop {
            let is_over = matches!(self.phase, Phase::Lost(_) | Phase::Ended);
            if !is_over && self.shared.epoch() != self.epoch {
                self.batch = Vec::new().into_iter();
                self.phase = Phase::Lost(Lost::Replaced);
            }
            if let Some((log, entry)) = self.batch.next() {
                self.position = entry.position.sequence;
                return Some(Followed::Event(log, entry));
            }
            let end = match self.phase {
                Phase::CatchingUp(to) if self.position == to => {
                    self.phase = Phase::Live;
                    return Some(Followed::CaughtUp(Position { epoch: self.epoch, sequence: to }));
                }
                Phase::CatchingUp(to) => to,
                Phase::Live => *self.end.borrow_and_update(),
                Phase::Lost(lost) => {
                    self.phase = Phase::Ended;
                    return Some(Followed::Lost(lost));
                }
                Phase::Ended => return None,
            };
            if self.position == end {
                self.end.changed().await.ok()?;
            } else {
                self.read(end).await?;
            }
        }
    }

    /// Fetches what comes next, up to a sequence; `None` when the store was closed.
    async fn read(&mut self, end: u64) -> Option<()> {
        let (epoch, position) = (self.epoch, self.position);
        let read = self.shared.read(move |txn| tables::read_all(txn, epoch, position, end)).await;
        let failed_before = std::mem::replace(&mut self.failing, read.is_err());
        match read {
            Ok(Some(batch)) if batch.is_empty() => self.position = end,
            Ok(Some(batch)) => self.batch = batch.into_iter(),
            Ok(None) => self.phase = Phase::Lost(Lost::TooOld),
            Err(error) => {
                if !failed_before {
                    tracing::warn!(%error, "a follower waits for the store");
                }
                if let Ok(changed) = time::timeout(RETRY_AFTER, self.end.changed()).await {
                    changed.ok()?;
                }
            }
        }
        Some(())
    }
}
