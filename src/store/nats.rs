//! The store of several replicas: three streams of [NATS JetStream](async_nats::jetstream).
//!
//! Guarantees: what is acknowledged is stored by a majority of the stream's replicas. An append is
//! repeated with the same id until the answer is clear, for up to 10 s. If the answer to a swap is
//! lost, the swap's message id shows whether it took place. A cell is always read from the stream's
//! leader. A follower delivers every event once, also after failures of servers, connections and
//! consumers.
//!
//! The store opens even if NATS cannot be reached. While NATS cannot be reached, or a stream has
//! wrong settings, it refuses everything ([`Store::trouble`] has the reason) and recovers by
//! itself. When a stream lost something (see `monitor` and `record`), it refuses everything until
//! an operator accepts the loss. It never changes or deletes a stream.

mod availability;
mod cells;
mod facts;
mod follower;
mod link;
mod logs;
mod monitor;
mod names;
mod probe;
mod publish;
mod record;
mod replaced;
mod reports;
mod space;
mod streams;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_nats::jetstream::{
    ErrorCode,
    message::StreamMessage,
    publish::PublishAck,
    stream::{LastRawMessageErrorKind, Stream},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::{
    availability::Availability,
    facts::{Facts, MessageId},
    link::Link,
    monitor::MonitorState,
    names::NatsNames,
    publish::{RETRY_MAX, RETRY_MIN, WriteError},
    space::StorageSpace,
    streams::{StreamConfigs, StreamsError},
};
use super::{
    CellName, Entry, Followed, IN_FLIGHT_BYTES, LogName, Loss, Position, Store, StoreError,
    StoreMeasures, Swap, Version, Versioned, reserve,
};
use crate::{backoff::backoff, config::NatsConfig, lock::lock};
pub(crate) use probe::probe;
pub(crate) use space::FULL_PERCENT;

/// How long a read that fails is repeated.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// The store on NATS JetStream.
pub struct Nats {
    core: Arc<Core>,
    /// Ends the monitor and the followers.
    _end: DropGuard,
}

/// What the handle, the followers and the monitor share.
struct Core {
    names: NatsNames,
    configs: StreamConfigs,
    /// For everything but followers.
    link: Link,
    /// For followers, so that a long replay delays nothing else.
    follow_link: Link,
    availability: watch::Sender<Availability>,
    /// Wakes the monitor.
    check_now: Notify,
    /// Notified after each event and each cell that this process stored.
    has_stored: Notify,
    /// Locked for a whole check of the streams.
    monitor: tokio::sync::Mutex<MonitorState>,
    facts: Mutex<Facts>,
    space: StorageSpace,
    in_flight: Arc<Semaphore>,
    end: CancellationToken,
}

impl Nats {
    /// Connects in the background. Events and retained cells expire after `retention`. Fails only
    /// if the settings are invalid.
    pub async fn open(settings: &NatsConfig, retention: Duration) -> Result<Self, StoreError> {
        let names = NatsNames::new(&settings.prefix);
        let configs = StreamConfigs::new(&names, settings, retention);
        let name = format!("thingspace-gateway {}", settings.prefix);
        let link = Link::new(settings, &names, &name).await?;
        let follow_link = Link::new(settings, &names, &format!("{name} (follower)")).await?;
        let why = StreamsError::away("not connected to NATS yet");
        let end = CancellationToken::new();
        let core = Arc::new(Core {
            names,
            configs,
            link,
            follow_link,
            availability: watch::Sender::new(Availability::unavailable(why)),
            check_now: Notify::new(),
            has_stored: Notify::new(),
            monitor: tokio::sync::Mutex::default(),
            facts: Mutex::default(),
            space: StorageSpace::new(settings.max_bytes),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
            end: end.clone(),
        });
        let monitor = Arc::clone(&core).monitor(settings.url.clone());
        tokio::spawn(end.clone().run_until_cancelled_owned(monitor));
        let keep_current = Arc::clone(&core).keep_record_current();
        tokio::spawn(end.clone().run_until_cancelled_owned(keep_current));
        Ok(Self { core, _end: end.drop_guard() })
    }
}

#[async_trait]
impl Store for Nats {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        let _permit = reserve(&self.core.in_flight, event.len()).await?;
        logs::append(&self.core, log, id, event).await
    }

    async fn read(
        &self,
        log: &LogName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.core.retry_read(|| logs::read(&self.core, log, after, limit)).await
    }

    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed> {
        follower::follow(Arc::clone(&self.core), after)
    }

    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
        self.core.retry_read(|| cells::load(&self.core, cell)).await
    }

    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError> {
        let _permit = reserve(&self.core.in_flight, value.len()).await?;
        cells::swap(&self.core, cell, expected, value).await
    }

    fn exclusive(&self) -> bool {
        false
    }

    fn trouble(&self) -> Option<String> {
        match &*self.core.availability.borrow() {
            Availability::Available(_) => None,
            Availability::Unavailable { why: StreamsError::Away(why), since } => {
                Some(format!("{why}, since {:.0}", since.time))
            }
            Availability::Unavailable { why, .. } => Some(why.to_string()),
        }
    }

    fn loss(&self) -> Option<Loss> {
        self.core.facts().loss.clone()
    }

    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.core.accept_loss(restored).await
    }

    fn has_lost_cells(&self) -> bool {
        self.core.facts().cells_lost
    }

    fn remembers_since(&self) -> Option<Timestamp> {
        self.core.facts().remembers_since
    }

    fn age(&self, _position: Position, time: Timestamp) -> Duration {
        self.core.facts().age(time)
    }

    fn shortage(&self) -> Option<String> {
        self.core.space.shortage()
    }

    fn end(&self) -> Option<Position> {
        self.core.facts().end()
    }

    fn measures(&self) -> StoreMeasures {
        let is_up = |link: &Link| link.state.borrow().connected;
        let (size, room) = self.core.space.size_and_room();
        StoreMeasures {
            end: self.end(),
            size: Some(size),
            room: Some(room),
            connections: vec![
                ("store", is_up(&self.core.link)),
                ("follower", is_up(&self.core.follow_link)),
            ],
        }
    }

    async fn close(&self) {
        let _ = tokio::time::timeout(link::ANSWER, self.core.last_refresh()).await;
        self.core.end.cancel();
        // All permits are free once no write is in flight.
        let all = u32::try_from(IN_FLIGHT_BYTES).expect("it is less than 4 GiB");
        let _ = self.core.in_flight.acquire_many(all).await;
        self.core.in_flight.close();
        for link in [&self.core.link, &self.core.follow_link] {
            // Fails if the connection is down. Then there is nothing to drain.
            let _ = link.client.drain().await;
        }
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("names", &self.core.names)
            .field("availability", &*self.core.availability.borrow())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Handles the acknowledgement of a message. `seen`: the last sequence of the stream that was
    /// known when the message was sent. If the message's sequence is not higher, the stream was put
    /// back to an older copy.
    fn acknowledged(
        &self,
        epoch: u64,
        stream: usize,
        seen: u64,
        ack: &PublishAck,
        id: &str,
    ) -> Result<(), WriteError> {
        let sequence = ack.sequence;
        if ack.duplicate || sequence > seen {
            self.stored(epoch, stream, MessageId { sequence, id: id.to_owned() });
            return Ok(());
        }
        let name = self.names.streams()[stream];
        let what = format!("stream {name} ended at {seen} and then stored a message at {sequence}");
        Err(WriteError::Unknown(self.suspect(&what)))
    }

    /// Remembers a message that this process stored, and wakes the task that writes the record.
    fn stored(&self, epoch: u64, stream: usize, message: MessageId) {
        self.facts().saw(epoch, stream, message);
        self.has_stored.notify_one();
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// Repeats a read while NATS does not answer, for [`READ_WITHIN`].
    async fn retry_read<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let until = Instant::now() + READ_WITHIN;
        let mut failures = 0;
        loop {
            match attempt().await {
                Err(StoreError::Unavailable(why)) if !self.end.is_cancelled() => {
                    let retry_at = Instant::now() + backoff(failures, RETRY_MIN, RETRY_MAX);
                    if retry_at > until || !self.is_available() {
                        return Err(StoreError::Unavailable(why));
                    }
                    failures += 1;
                    tokio::time::sleep_until(retry_at).await;
                }
                done => return done,
            }
        }
    }

    /// Returns the newest message of a subject, from the leader of its stream. `None`: there is no
    /// such message, or no such stream.
    async fn newest_message(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, StoreError> {
        match self.stream(stream).await?.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(StoreError::unavailable(error)),
            },
        }
    }

    /// Returns a handle of a stream, without a request to NATS.
    async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        let stream = self.link.context.get_stream_no_info(name).await;
        stream.map_err(StoreError::unavailable)
    }
}
