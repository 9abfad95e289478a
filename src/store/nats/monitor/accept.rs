//! Accepts a loss for an operator.

use jiff::Timestamp;
use tokio::time::sleep;

use super::{
    CONFIRM_EVERY, RECHECK_MIN,
    examine::{Examination, all},
};
use crate::{
    backoff::backoff,
    store::{
        Loss, StoreError,
        nats::{
            Core,
            record::{self, CELLS, CellsAfter, StreamLoss},
            streams::{self, StreamsError},
        },
    },
};

/// How often an attempt is repeated when another gateway accepts the loss, too.
const TRIES: usize = 5;

impl Core {
    /// Returns what is accepted: the loss that was reported, and what was lost since.
    fn loss_to_accept(&self, losses: &[StreamLoss]) -> Loss {
        let reported = self.facts().loss.clone();
        let (mut parts, noticed) = match reported {
            Some(loss) => (vec![loss.what], loss.noticed),
            None => (Vec::new(), Timestamp::now()),
        };
        for StreamLoss { stream, what, .. } in losses {
            let name = self.names.streams()[*stream];
            if !parts.first().is_some_and(|reported| reported.contains(name)) {
                parts.push(what.clone());
            }
        }
        if parts.is_empty() {
            parts.push("a backup was restored".to_owned());
        }
        Loss { what: parts.join("; "), noticed }
    }

    /// See [`Store::accept_loss`](crate::store::Store::accept_loss). Operators may run it at
    /// several gateways at once: one of them accepts the loss, and the others find nothing left to
    /// accept.
    pub(in crate::store::nats) async fn accept_loss(
        &self,
        restored: bool,
    ) -> Result<Option<Loss>, StoreError> {
        let (mut tries, mut earlier) = (0, None);
        loop {
            match Box::pin(self.try_accept_loss(restored, &mut earlier)).await {
                Ok(accepted) => return Ok(accepted),
                // Another gateway is making the streams or writing the record.
                Err(StreamsError::Away(why)) if tries < TRIES => {
                    tracing::debug!(why, "accepting a loss again");
                    sleep(backoff(tries, RECHECK_MIN, CONFIRM_EVERY)).await;
                    tries += 1;
                }
                Err(why) => return Err(why.into()),
            }
        }
    }

    /// Makes one attempt. `earlier`: the epoch and the loss of an attempt that may have written the
    /// record before it failed.
    async fn try_accept_loss(
        &self,
        restored: bool,
        earlier: &mut Option<(u64, Loss)>,
    ) -> Result<Option<Loss>, StreamsError> {
        let connection = self.link.state.borrow().number;
        let mut state = self.monitor.lock().await;
        let Examination { found, losses, known, first, latest } = self.examine(&mut state).await?;
        let epoch = known.as_ref().map(|known| known.epoch);
        let is_done = earlier.as_ref().is_some_and(|(earlier, _)| Some(*earlier) == epoch);
        let (accepted, id) = if losses.is_empty() && (is_done || !restored) {
            let (Some(found), Some(known), None) = (all(found), known, first) else {
                return Ok(None);
            };
            // If this process has not accepted the loss, another gateway may have done so.
            let accepted = earlier.take().filter(|_| is_done).map(|(_, loss)| loss);
            (accepted, self.remember(&mut state, known, &found, is_done, connection).await?)
        } else {
            let loss = self.loss_to_accept(&losses);
            streams::make_missing(&self.link, &self.configs, &found).await?;
            let found = all(streams::inspect(&self.link, &self.configs).await?);
            let found = found.ok_or_else(|| StreamsError::away("a stream is missing"))?;
            let of_cells: Vec<_> = losses.iter().filter(|loss| loss.stream == CELLS).collect();
            let after = CellsAfter {
                lost: restored || !of_cells.is_empty(),
                older: restored || of_cells.iter().any(|loss| loss.is_older),
            };
            let what = loss.what.clone();
            let record = record::accepted(known.as_ref(), latest, &found, what, after);
            *earlier = Some((record.epoch, loss.clone()));
            let id = self.remember(&mut state, record, &found, true, connection).await?;
            (Some(loss), id)
        };
        state.losses_in_a_row = 0;
        drop(state);
        self.set_availability(Ok(id));
        Ok(accepted)
    }
}
