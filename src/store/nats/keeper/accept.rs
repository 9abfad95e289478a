//! An operator accepts that the streams forgot something.

use jiff::Timestamp;
use tokio::time::sleep;

use super::{Examined, LOOK_AGAIN, LOOK_LEAST, all, away};
use crate::store::{
    Loss, StoreError,
    nats::{
        Shared,
        link::backoff,
        record::{self, CELLS, CellsAfter, Forgotten},
        streams::{self, Hindrance},
    },
};

/// How often accepting a loss is tried again when another gateway does the same.
const TRIES: usize = 5;

impl Shared {
    /// What is accepted: the loss that was said, and what was forgotten since.
    fn accepted_loss(&self, forgotten: &[Forgotten]) -> Loss {
        let said = self.facts().loss.clone();
        let (mut parts, noticed) = said
            .map_or_else(|| (Vec::new(), Timestamp::now()), |loss| (vec![loss.what], loss.noticed));
        for Forgotten { stream, what, .. } in forgotten {
            let name = self.names.streams()[*stream];
            if !parts.first().is_some_and(|said| said.contains(name)) {
                parts.push(what.clone());
            }
        }
        if parts.is_empty() {
            parts.push("a backup was restored".to_owned());
        }
        Loss { what: parts.join("; "), noticed }
    }

    /// See [`Store::accept_loss`](crate::store::Store::accept_loss). Operators may run it at
    /// several gateways at once: one of them carries it out, and the others find nothing left to
    /// accept.
    pub(in crate::store::nats) async fn accept_loss(
        &self,
        restored: bool,
    ) -> Result<Option<Loss>, StoreError> {
        let (mut tries, mut begun) = (0, None);
        loop {
            match Box::pin(self.try_accept_loss(restored, &mut begun)).await {
                Ok(accepted) => return Ok(accepted),
                // Another gateway makes the streams or writes the record at this moment.
                Err(Hindrance::Away(why)) if tries < TRIES => {
                    tracing::debug!(why, "accepting a loss again");
                    sleep(backoff(tries, LOOK_LEAST, LOOK_AGAIN)).await;
                    tries += 1;
                }
                Err(why) => return Err(StoreError::Unavailable(why.to_string())),
            }
        }
    }

    /// `begun`: the epoch and the loss of a try whose record may have been written before it
    /// failed.
    async fn try_accept_loss(
        &self,
        restored: bool,
        begun: &mut Option<(u64, Loss)>,
    ) -> Result<Option<Loss>, Hindrance> {
        let connection = self.link.state.borrow().made;
        let mut memory = self.memory.lock().await;
        let Examined { found, forgotten, known, first, latest } = self.examine(&mut memory).await?;
        let epoch = known.as_ref().map(|known| known.epoch);
        let is_done = begun.as_ref().is_some_and(|(begun, _)| Some(*begun) == epoch);
        let (accepted, there) = if forgotten.is_empty() && (is_done || !restored) {
            let (Some(found), Some(known), None) = (all(found), known, first) else {
                return Ok(None);
            };
            let accepted = begun.take().filter(|_| is_done).map(|(_, loss)| loss);
            // Otherwise another gateway may just have accepted it.
            (accepted, self.remember(&mut memory, known, &found, is_done, connection).await?)
        } else {
            let Loss { what, noticed } = self.accepted_loss(&forgotten);
            streams::make(&self.link, &self.wanted, &found).await?;
            let found = all(streams::look(&self.link, &self.wanted).await?);
            let found = found.ok_or_else(|| away("a stream is missing"))?;
            let of_cells = |one: &&Forgotten| one.stream == CELLS;
            let after = CellsAfter {
                lost: restored || forgotten.iter().any(|one| of_cells(&one)),
                older: restored || forgotten.iter().filter(of_cells).any(|one| one.is_older),
            };
            let record = record::accepted(known.as_ref(), latest, &found, what.clone(), after);
            *begun = Some((record.epoch, Loss { what: what.clone(), noticed }));
            let there = self.remember(&mut memory, record, &found, true, connection).await?;
            (Some(Loss { what, noticed }), there)
        };
        memory.sightings = 0;
        drop(memory);
        self.stand(Ok(there));
        Ok(accepted)
    }
}
