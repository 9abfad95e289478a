//! Follows the stream of events through a consumer. Creates a new consumer after a missed
//! heartbeat, an error, an end, or a gap in the deliveries.
//!
//! Nothing is lost or repeated: each consumer starts after the follower's position, messages up to
//! it are dropped, and consumers number their deliveries. The stream is checked before each
//! consumer is created, because a consumer does not report that its stream was created again or
//! ends before the position. The server of a consumer may lag, so only the leader knows whether the
//! follower has reached the end.

use std::{convert::Infallible, fmt::Display, sync::Arc, time::Duration};

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::{Info, State},
};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep},
};

use super::{
    Core,
    availability::{StoreId, until_available},
    facts::MessageId,
    logs::timestamp,
    record::EVENTS,
    replaced::id_of,
};
use crate::{
    backoff::backoff,
    store::{Entry, Followed, Lost, Position},
};

/// The limits of what was read from NATS and not yet taken by the reader. Beyond them nothing more
/// is requested.
const QUEUE_EVENTS: usize = 256;
const QUEUE_BYTES: u32 = 16 * 1024 * 1024;

/// The limits of one request to NATS.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// How long NATS keeps a request for events, and how often it sends a heartbeat meanwhile.
const REQUEST_EXPIRES: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// NATS deletes a consumer that was not used for this time.
const INACTIVE_AFTER: Duration = Duration::from_secs(30);

/// While the follower catches up, the stream is checked again if no event arrives for this time.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The back-off before the next consumer is created.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// After this time without a failure, the back-off starts from its minimum again.
const STEADY: Duration = Duration::from_secs(10);

/// How often in a row a stream must end before the position until it counts as another stream. A
/// new leader may not have read its whole log yet.
const SHORT_CHECKS: usize = 6;

/// An item for the reader, and its part of [`QUEUE_BYTES`].
type Queued = (Followed, Option<OwnedSemaphorePermit>);

struct StreamFollower {
    core: Arc<Core>,
    sender: mpsc::Sender<Queued>,
    queue_bytes: Arc<Semaphore>,
    /// Unknown before the first check.
    epoch: Option<u64>,
    /// The sequence up to which everything was delivered.
    position: u64,
    catching_up: CatchUp,
    /// The time of the last event. Times never go back.
    time: Timestamp,
    /// How often in a row the stream ended before the position.
    short: usize,
}

/// Whether the follower has delivered what was stored when it began.
enum CatchUp {
    /// The stream was not checked yet.
    Unknown,
    /// The stream ended at this sequence.
    To(u64),
    Done,
}

/// Why a follower stops using its consumer.
enum End {
    Lost(Lost),
    /// The reader is gone.
    NoReader,
    Retry(String),
}

impl End {
    fn retry(why: impl Display) -> Self {
        Self::Retry(why.to_string())
    }
}

pub(super) fn follow(core: Arc<Core>, after: Option<Position>) -> BoxStream<'static, Followed> {
    let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
    let follower = StreamFollower {
        core,
        sender,
        queue_bytes: queue_bytes(),
        epoch: after.map(|after| after.epoch),
        position: after.map_or(0, |after| after.sequence),
        catching_up: CatchUp::Unknown,
        time: Timestamp::MIN,
        short: 0,
    };
    // A task of its own, because a consumer that is not polled misses its heartbeats.
    tokio::spawn(follower.run());
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?.0, receiver)) })
        .boxed()
}

fn queue_bytes() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(QUEUE_BYTES as usize))
}

impl StreamFollower {
    async fn run(mut self) {
        let (end, sender) = (self.core.end.clone(), self.sender.clone());
        tokio::select! {
            () = self.follow() => {}
            () = end.cancelled() => {}
            () = sender.closed() => {}
        }
    }

    async fn follow(&mut self) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let Err(end) = self.consume().await;
            let why = match end {
                End::NoReader => return,
                End::Lost(lost) => {
                    let _ = self.send(Followed::Lost(lost)).await;
                    return;
                }
                End::Retry(why) => why,
            };
            if began.elapsed() > STEADY {
                failures = 0;
            }
            // A single failure is common and needs no warning.
            if failures == 1 {
                tracing::warn!(why, "cannot follow the events on NATS; trying again");
            } else {
                tracing::debug!(why, "following the events again");
            }
            sleep(backoff(failures, RETRY_MIN, RETRY_MAX)).await;
            failures += 1;
        }
    }

    /// Checks the stream, creates a consumer, and delivers its messages until there is a problem.
    async fn consume(&mut self) -> Result<Infallible, End> {
        let link = self.core.follow_link.clone();
        link.connected().await;
        let mut availability = self.core.availability.subscribe();
        let id = until_available(&mut availability).await.ok_or(End::NoReader)?;
        let stream = link.context.get_stream(&self.core.names.events).await.map_err(|error| {
            // The stream may be gone.
            self.core.check_now.notify_one();
            End::retry(error)
        })?;
        self.check(id, created_ns(stream.cached_info()), &stream.cached_info().state)?;
        if self.core.holds_another_event(&stream, id.epoch).await.map_err(End::retry)? {
            self.core.check_now.notify_one();
            return Err(End::retry("the stream holds another event than before"));
        }
        if stream.cached_info().state.messages == 0 {
            self.caught_up().await?;
        }

        let consumer = stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position + 1 },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: INACTIVE_AFTER,
            ..pull::Config::default()
        });
        let consumer = consumer.await.map_err(End::retry)?;
        if consumer.cached_info().num_pending == 0 && self.is_at_the_end().await? {
            self.caught_up().await?;
        }
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch(BATCH_BYTES)
            .heartbeat(HEARTBEAT)
            .expires(REQUEST_EXPIRES)
            .messages();
        let mut messages = messages.await.map_err(End::retry)?;
        let mut deliveries = 0;
        loop {
            let catching_up = !matches!(self.catching_up, CatchUp::Done);
            let message = tokio::select! {
                message = messages.next() => message,
                () = sleep(STALLED_AFTER), if catching_up => {
                    return Err(End::retry("no event arrives"));
                }
                // A new epoch may begin, or something may be lost.
                changed = availability.wait_for(|now| !now.is(id)) => {
                    drop(changed);
                    return Err(End::retry("the store is being checked"));
                }
            };
            let message = message.ok_or_else(|| End::retry("the consumer ended"))?;
            self.deliver(message.map_err(End::retry)?, &mut deliveries).await?;
        }
    }

    /// Fails unless this is the stream that was followed before, and it has the next events.
    fn check(&mut self, id: StoreId, created_ns: u64, state: &State) -> Result<(), End> {
        if created_ns != id.created_ns {
            self.core.check_now.notify_one();
            return Err(End::retry("the stream was deleted and created again"));
        }
        if *self.epoch.get_or_insert(id.epoch) != id.epoch {
            return Err(End::Lost(Lost::Replaced));
        }
        if state.last_sequence < self.position {
            self.short += 1;
            self.core.check_now.notify_one();
            return Err(if self.short < SHORT_CHECKS {
                End::retry("the stream ends before what was read")
            } else {
                End::Lost(Lost::Replaced)
            });
        }
        self.short = 0;
        if self.position > 0 && state.first_sequence > self.position + 1 {
            return Err(End::Lost(Lost::TooOld));
        }
        if let CatchUp::Unknown = self.catching_up {
            self.catching_up = CatchUp::To(state.last_sequence);
        }
        Ok(())
    }

    /// Returns whether the leader has no event between the position and the end to catch up to.
    /// That is so if the last events have expired.
    async fn is_at_the_end(&self) -> Result<bool, End> {
        let CatchUp::To(end) = self.catching_up else { return Ok(true) };
        if self.position >= end {
            return Ok(true);
        }
        let events = self.core.names.all_of(&self.core.names.events);
        let next = self.core.next_event(self.position + 1, &events).await.map_err(End::retry)?;
        Ok(next.is_none_or(|next| next.sequence > end))
    }

    /// Delivers `CaughtUp`, once. Does not change the position, which counts only what was
    /// delivered.
    async fn caught_up(&mut self) -> Result<(), End> {
        if let CatchUp::To(end) = self.catching_up
            && let Some(epoch) = self.epoch
        {
            self.catching_up = CatchUp::Done;
            let sequence = self.position.max(end);
            self.send(Followed::CaughtUp(Position { epoch, sequence })).await?;
        }
        Ok(())
    }

    async fn deliver(&mut self, message: Message, deliveries: &mut u64) -> Result<(), End> {
        let info = message.info().map_err(End::retry)?;
        *deliveries += 1;
        if info.consumer_sequence != *deliveries {
            return Err(End::retry("the consumer skipped a delivery"));
        }
        let sequence = info.stream_sequence;
        if sequence > self.position {
            if let CatchUp::To(end) = self.catching_up
                && sequence > end
            {
                self.caught_up().await?;
            }
            let time = timestamp(info.published.unix_timestamp_nanos()).unwrap_or(self.time);
            self.time = self.time.max(time);
            let epoch = self.epoch.unwrap_or_default();
            let id = id_of(message.headers.as_ref()).to_owned();
            self.core.facts().saw(epoch, EVENTS, MessageId { sequence, id });
            let position = Position { epoch, sequence };
            let names = &self.core.names;
            if let Some(log) = names.to_log(&message.subject) {
                let entry = Entry { position, time: self.time, event: message.message.payload };
                self.send(Followed::Event(log, entry)).await?;
            } else {
                if *message.subject != names.report() {
                    tracing::warn!(
                        sequence,
                        "ignoring a message that no gateway stored; let only gateways publish to \
                         the stream of events"
                    );
                }
                self.send(Followed::Skipped(position)).await?;
            }
            self.position = sequence;
        }
        match self.catching_up {
            CatchUp::To(end) if self.position >= end => self.caught_up().await,
            _ => Ok(()),
        }
    }

    async fn send(&self, followed: Followed) -> Result<(), End> {
        let permit = match &followed {
            Followed::Event(_, entry) => {
                let bytes = u32::try_from(entry.event.len()).unwrap_or(u32::MAX).min(QUEUE_BYTES);
                let permit = Arc::clone(&self.queue_bytes).acquire_many_owned(bytes).await;
                Some(permit.map_err(|_| End::NoReader)?)
            }
            Followed::CaughtUp(_) | Followed::Skipped(_) | Followed::Lost(_) => None,
        };
        self.sender.send((followed, permit)).await.map_err(|_| End::NoReader)
    }
}

fn created_ns(info: &Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
