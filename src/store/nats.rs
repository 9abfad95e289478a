//! The store of several replicas: three streams of [NATS JetStream](async_nats::jetstream).
//!
//! Guarantees: what was acknowledged is stored by a majority of the stream's replicas; an append is
//! repeated with the same id until there is a clear answer, for up to `PUBLISH_WITHIN` (10 s); a
//! swap whose answer got lost is settled by its nonce; a cell is always read from the stream's
//! leader; a follower sees every event once, whatever becomes of servers, connections and
//! consumers. Never blocks a start: without NATS, or with streams that are not what they must be,
//! the store says so ([`Store::trouble`]), refuses everything with [`StoreError::Unavailable`] and
//! heals by itself. Never makes a consumer per read, never changes or deletes a stream.
//!
//! Streams that forgot something are noticed: see `keeper` and `record`. Until an operator accepts
//! the loss ([`Store::accept_loss`]), everything is refused, and no stream is made anew.

mod cells;
mod facts;
mod follower;
mod keeper;
mod link;
mod logs;
mod names;
mod newest;
mod publish;
mod record;
mod reports;
mod room;
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
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::{
    facts::{Facts, Message},
    keeper::Memory,
    link::{Link, backoff},
    names::Names,
    publish::{Failure, RETRY_LEAST, RETRY_MOST},
    room::Room,
    streams::{Hindrance, Wanted},
};
use super::{
    CellName, Entry, Followed, LogName, Loss, MAX_EVENT_BYTES, Position, Store, StoreError, Swap,
    Version, Versioned,
};
use crate::{config::NatsConfig, lock::lock};

/// How long a read is repeated.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// How long NATS may be away before everything is refused at once instead of waiting for it.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// How much may be under way, in bytes; callers beyond it wait for room.
const UNDER_WAY_BYTES: usize = 16 * 1024 * 1024;

/// What a message costs of [`UNDER_WAY_BYTES`] beside its payload: at most 4,096 are under way.
const MESSAGE_BYTES: usize = 4 * 1024;

/// See the module's documentation.
pub struct Nats {
    shared: Arc<Shared>,
    /// Ends the keeper and the followers.
    _end: DropGuard,
}

/// What the handle, its followers and the keeper have in common.
struct Shared {
    names: Names,
    wanted: Wanted,
    /// For everything but followers.
    link: Link,
    /// For followers, so that a long replay holds up nothing.
    follow_link: Link,
    standing: watch::Sender<Standing>,
    /// Asks the keeper to look at the streams again.
    look: Notify,
    /// What is known of the streams; taken for whole looks.
    memory: tokio::sync::Mutex<Memory>,
    /// What of it everybody needs at any time.
    facts: Mutex<Facts>,
    room: Room,
    under_way: Arc<Semaphore>,
    end: CancellationToken,
}

/// Whether the streams can be used.
#[derive(Debug, Clone)]
enum Standing {
    There(There),
    Not { why: Hindrance, since: Since },
}

/// A moment, for measuring and for people.
#[derive(Debug, Clone, Copy)]
struct Since {
    instant: Instant,
    time: Timestamp,
}

impl Since {
    fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// Waits until the store can be used; `None`: it never will be.
async fn until_there(standing: &mut watch::Receiver<Standing>) -> Option<There> {
    let standing = standing.wait_for(|now| matches!(now, Standing::There(_))).await.ok()?;
    match *standing {
        Standing::There(there) => Some(there),
        Standing::Not { .. } => None,
    }
}

impl Standing {
    fn is(&self, there: There) -> bool {
        let incarnation = |there: &There| (there.epoch, there.created_ns);
        matches!(self, Self::There(now) if incarnation(now) == incarnation(&there))
    }
}

/// Which incarnation of the store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct There {
    epoch: u64,
    /// When its stream of events was created, Unix time in nanoseconds.
    created_ns: u64,
    /// Over which connection the streams were looked at; see [`link::State::made`].
    connection: u64,
}

impl Nats {
    /// Connects in the background; see [`Store::usable`]. Events, and cells that are
    /// [`Retained`](super::CellLife::Retained), go after `retention`. Fails only where the settings
    /// make no sense.
    pub async fn open(settings: &NatsConfig, retention: Duration) -> Result<Self, StoreError> {
        let names = Names::new(&settings.prefix);
        let wanted = Wanted::new(&names, settings, retention);
        let name = format!("thingspace-gateway {}", settings.prefix);
        let link = Link::new(settings, &names, &name).await?;
        let follow_link = Link::new(settings, &names, &format!("{name} (follower)")).await?;
        let why = Hindrance::Away("not connected to NATS yet".to_owned());
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            names,
            wanted,
            link,
            follow_link,
            standing: watch::Sender::new(Standing::Not { why, since: Since::now() }),
            look: Notify::new(),
            memory: tokio::sync::Mutex::default(),
            facts: Mutex::default(),
            room: Room::new(settings.max_bytes),
            under_way: Arc::new(Semaphore::new(UNDER_WAY_BYTES)),
            end: end.clone(),
        });
        let keeper = Arc::clone(&shared).keep(settings.url.clone());
        tokio::spawn(end.clone().run_until_cancelled_owned(keeper));
        Ok(Self { shared, _end: end.drop_guard() })
    }
}

#[async_trait]
impl Store for Nats {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        let _room = self.shared.room(event.len()).await?;
        logs::append(&self.shared, log, id, event).await
    }

    async fn read(
        &self,
        log: &LogName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.shared.persist(READ_WITHIN, || logs::read(&self.shared, log, after, limit)).await
    }

    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed> {
        follower::follow(Arc::clone(&self.shared), after)
    }

    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
        self.shared.persist(READ_WITHIN, || cells::load(&self.shared, cell)).await
    }

    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError> {
        let _room = self.shared.room(value.len()).await?;
        cells::swap(&self.shared, cell, expected, value).await
    }

    fn exclusive(&self) -> bool {
        false
    }

    fn trouble(&self) -> Option<String> {
        match &*self.shared.standing.borrow() {
            Standing::There(_) => None,
            Standing::Not { why: Hindrance::Away(why), since } => {
                Some(format!("{why}, since {:.0}", since.time))
            }
            Standing::Not { why, .. } => Some(why.to_string()),
        }
    }

    fn loss(&self) -> Option<Loss> {
        self.shared.facts().loss.clone()
    }

    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.shared.accept_loss(restored).await
    }

    fn has_lost_cells(&self) -> bool {
        self.shared.facts().cells_lost
    }

    fn remembers_since(&self) -> Option<Timestamp> {
        self.shared.facts().remembers_since
    }

    fn age(&self, _position: Position, time: Timestamp) -> Duration {
        self.shared.facts().age(time)
    }

    fn shortage(&self) -> Option<String> {
        self.shared.room.shortage()
    }

    fn end(&self) -> Option<Position> {
        self.shared.facts().end()
    }

    async fn usable(&self) {
        until_there(&mut self.shared.standing.subscribe()).await;
    }

    async fn close(&self) {
        let _ = tokio::time::timeout(link::ANSWER, self.shared.last_refresh()).await;
        self.shared.end.cancel();
        // Whoever is under way has room; that all of it is free again means that all have finished.
        let all = u32::try_from(UNDER_WAY_BYTES).expect("it is less than 4 GiB");
        let _ = self.shared.under_way.acquire_many(all).await;
        self.shared.under_way.close();
        for link in [&self.shared.link, &self.shared.follow_link] {
            // What is left of it are subscriptions; a connection that is down has none.
            let _ = link.client.drain().await;
        }
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("names", &self.shared.names)
            .field("standing", &*self.shared.standing.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes note of how the streams are, and says so when that changes.
    fn stand(&self, now: Result<There, Hindrance>) {
        self.standing.send_modify(|standing| {
            let (before, since) = match standing {
                Standing::There(there) => (Ok(*there), Since::now()),
                Standing::Not { why, since } => (Err(why.clone()), *since),
            };
            match (&now, &before) {
                (Ok(there), Ok(before)) if there.epoch != before.epoch => {
                    tracing::warn!("the store begins a new epoch: an operator accepted a loss");
                }
                (Ok(_), Err(_)) => tracing::info!("the store is there"),
                (Err(Hindrance::Away(why)), Ok(_)) => tracing::warn!(why, "the store is away"),
                (Err(Hindrance::Wrong(why)), before)
                    if before.as_ref().err() != now.as_ref().err() =>
                {
                    tracing::error!(why, "the store cannot be used");
                }
                _ => {}
            }
            *standing = match now {
                Ok(there) => Standing::There(there),
                Err(why) => Standing::Not { why, since },
            };
        });
    }

    /// Something looks as if it was lost: nothing is done until the streams were looked at again.
    /// Returns why.
    fn suspect(&self, what: &str) -> String {
        let why = format!("{what}; looking again");
        self.stand(Err(Hindrance::Away(why.clone())));
        self.look.notify_one();
        why
    }

    /// Waits until the streams can be used, a little. What was found before the servers were away
    /// counts no more.
    async fn there(&self) -> Result<There, StoreError> {
        let mut standing = self.standing.subscribe();
        let began = Instant::now();
        loop {
            if self.end.is_cancelled() {
                return Err(StoreError::Unavailable("it was closed".to_owned()));
            }
            let connection = self.link.state.borrow().made;
            let (why, since) = match &*standing.borrow_and_update() {
                Standing::There(there) if there.connection == connection => return Ok(*there),
                Standing::There(_) => {
                    (Hindrance::Away("the connection to NATS was made anew".to_owned()), began)
                }
                Standing::Not { why, since } => (why.clone(), since.instant),
            };
            let patient = matches!(why, Hindrance::Away(_));
            if !patient || timeout_at(since + AWAY_AFTER, standing.changed()).await.is_err() {
                return Err(StoreError::Unavailable(why.to_string()));
            }
        }
    }

    /// A message was stored. A sequence that was given before is one of a stream that went back.
    /// `seen`: the last sequence that was known when it was sent.
    fn acknowledged(
        &self,
        epoch: u64,
        stream: usize,
        seen: u64,
        stored: &PublishAck,
        id: &str,
    ) -> Result<(), Failure> {
        let sequence = stored.sequence;
        if stored.duplicate || sequence > seen {
            self.facts().saw(epoch, stream, Message { sequence, id: id.to_owned() });
            return Ok(());
        }
        let name = self.names.streams()[stream];
        let why = self
            .suspect(&format!("stream {name} ended at {seen} and stored something at {sequence}"));
        Err(Failure::Unknown(why))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// Room for a message under way; refuses what is too large.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StoreError> {
        if bytes > MAX_EVENT_BYTES {
            return Err(StoreError::TooLarge(bytes));
        }
        let permits = u32::try_from(bytes + MESSAGE_BYTES).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.under_way).acquire_many_owned(permits).await;
        room.map_err(|_| StoreError::Unavailable("it was closed".to_owned()))
    }

    /// Repeats what changes nothing while it fails because NATS is not there.
    async fn persist<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        within: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let until = Instant::now() + within;
        let mut failures = 0;
        loop {
            match attempt().await {
                Err(StoreError::Unavailable(why)) if !self.end.is_cancelled() => {
                    let again = Instant::now() + backoff(failures, RETRY_LEAST, RETRY_MOST);
                    if again > until || matches!(&*self.standing.borrow(), Standing::Not { .. }) {
                        return Err(StoreError::Unavailable(why));
                    }
                    failures += 1;
                    tokio::time::sleep_until(again).await;
                }
                done => return done,
            }
        }
    }

    /// A stream, whose name is known to be well-formed. The newest message of a subject, from the
    /// leader of its stream; `None` also where there is no stream.
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
                _ => Err(StoreError::Unavailable(error.to_string())),
            },
        }
    }

    async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        let stream = self.link.context.get_stream_no_info(name).await;
        stream.map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) | Self::Wrong(why) => f.write_str(why),
            Self::Lost(loss) => write!(f, "it forgot something: {}", loss.what),
        }
    }
}
