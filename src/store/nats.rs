//! The store of several replicas: three streams of [NATS JetStream](async_nats::jetstream).
//!
//! Guarantees: what was acknowledged is stored by a majority of the stream's replicas; an append is repeated with the same
//! id until there is a clear answer, for up to `PUBLISH_WITHIN` (10 s); a swap whose answer got lost is settled by its nonce;
//! a cell is always read from the stream's leader; a follower sees every event once, whatever becomes of servers,
//! connections and consumers. Never blocks a start: without NATS, or with streams that are not what they must be, the
//! store says so ([`Store::trouble`]), refuses everything with [`StoreError::Unavailable`] and heals by itself.
//! Never makes a consumer per read, never changes or deletes a stream.

mod cells;
mod follower;
mod link;
mod logs;
mod names;
mod publish;
mod streams;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::stream::Stream;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::{
    link::{Link, backoff},
    names::Names,
    publish::{RETRY_LEAST, RETRY_MOST},
    streams::{Hindrance, Wanted},
};
use super::{
    CellName, Entry, Followed, LogName, MAX_EVENT_BYTES, Position, Store, StoreError, Swap, Version,
    Versioned,
};
use crate::config;

/// How long a read is repeated.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// How long NATS may be away before everything is refused at once instead of waiting for it.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// Between two looks at streams that cannot be used.
const LOOK_LEAST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_secs(5);

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
    /// For everything but followers.
    link: Link,
    /// For followers, so that a long replay holds up nothing.
    follow_link: Link,
    standing: watch::Sender<Standing>,
    /// Asks the keeper to look at the streams again.
    look: Notify,
    /// The largest sequence of an event that is known.
    seen: AtomicU64,
    room: Arc<Semaphore>,
    end: CancellationToken,
}

/// Whether the streams can be used.
#[derive(Debug, Clone)]
enum Standing {
    /// The stream of events was born as this.
    There(u64),
    Not {
        why: Hindrance,
        since: Instant,
    },
}

impl Nats {
    /// Connects in the background; see [`Store::usable`]. Events, and cells that are
    /// [`Retained`](super::CellLife::Retained), go after `retention`. Fails only where the settings make no sense.
    pub async fn open(settings: &config::Nats, retention: Duration) -> Result<Self, StoreError> {
        let names = Names::new(&settings.prefix);
        let wanted = Wanted::new(&names, settings, retention);
        let name = format!("thingspace-gateway {}", settings.prefix);
        let link = Link::new(settings, &names, &name).await?;
        let follow_link = Link::new(settings, &names, &format!("{name} (follower)")).await?;
        let why = Hindrance::Away("not connected to NATS yet".to_owned());
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            names,
            link,
            follow_link,
            standing: watch::Sender::new(Standing::Not { why, since: Instant::now() }),
            look: Notify::new(),
            seen: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(UNDER_WAY_BYTES)),
            end: end.clone(),
        });
        tokio::spawn({
            let (shared, servers) = (Arc::clone(&shared), settings.url.clone());
            async move { shared.end.run_until_cancelled(shared.keep(&wanted, &servers)).await }
        });
        Ok(Self { shared, _end: end.drop_guard() })
    }
}

#[async_trait]
impl Store for Nats {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        let _room = self.shared.room(event.len()).await?;
        logs::append(&self.shared, log, id, event).await
    }

    async fn read(&self, log: &LogName, after: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
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
            Standing::Not { why, .. } => Some(why.to_string()),
        }
    }

    async fn usable(&self) {
        let mut standing = self.shared.standing.subscribe();
        let _ = standing.wait_for(|standing| matches!(standing, Standing::There(_))).await;
    }

    async fn close(&self) {
        self.shared.end.cancel();
        // Whoever is under way has room; that all of it is free again means that all have finished.
        let all = u32::try_from(UNDER_WAY_BYTES).expect("it is less than 4 GiB");
        let _ = self.shared.room.acquire_many(all).await;
        self.shared.room.close();
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
    /// Looks after the streams: each time the connection is made, and when somebody misses them.
    async fn keep(&self, wanted: &Wanted, servers: &str) {
        let mut link = self.link.state.clone();
        let (mut known, mut failures, mut said) = (false, 0, false);
        loop {
            let state = link.borrow_and_update().clone();
            if !state.up {
                if let Some(error) = state.complaint.as_ref().filter(|_| !said) {
                    tracing::warn!(servers, error, "cannot connect to NATS; trying on");
                    said = true;
                }
                let why = state.complaint.map_or_else(String::new, |complaint| format!(": {complaint}"));
                self.stand(Err(Hindrance::Away(format!("not connected to NATS{why}"))));
                if link.changed().await.is_err() {
                    return;
                }
                continue;
            }
            said = false;
            let established = streams::establish(&self.link, wanted, known).await;
            failures = if established.is_ok() { 0 } else { failures + 1 };
            known |= established.is_ok();
            self.stand(established);
            let wait = if failures == 0 { Duration::MAX } else { backoff(failures, LOOK_LEAST, LOOK_MOST) };
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                // Many miss them at once.
                () = self.look.notified() => sleep(LOOK_LEAST).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes note of how the streams are, and says so when that changes.
    fn stand(&self, now: Result<u64, Hindrance>) {
        self.standing.send_modify(|standing| {
            let (before, since) = match standing {
                Standing::There(epoch) => (Ok(*epoch), Instant::now()),
                Standing::Not { why, since } => (Err(why.clone()), *since),
            };
            match (&now, &before) {
                (Ok(epoch), Ok(before)) if epoch != before => {
                    tracing::warn!("the stream of events was replaced by another one");
                }
                (Ok(_), Err(_)) => tracing::info!("the store is there"),
                (Err(Hindrance::Away(why)), Ok(_)) => tracing::warn!(why, "the store is away"),
                (Err(Hindrance::Wrong(why)), before) if before.as_ref().err() != now.as_ref().err() => {
                    tracing::error!(why, "the store cannot be used");
                }
                _ => {}
            }
            *standing = match now {
                Ok(epoch) => {
                    if before != Ok(epoch) {
                        self.seen.store(0, Ordering::Relaxed);
                    }
                    Standing::There(epoch)
                }
                Err(why) => Standing::Not { why, since },
            };
        });
    }

    /// Waits until the streams can be used, a little; what the stream of events was born as.
    async fn there(&self) -> Result<u64, StoreError> {
        let mut standing = self.standing.subscribe();
        loop {
            if self.end.is_cancelled() {
                return Err(StoreError::Unavailable("it was closed".to_owned()));
            }
            let (why, since) = match &*standing.borrow_and_update() {
                Standing::There(epoch) => return Ok(*epoch),
                Standing::Not { why, since } => (why.clone(), *since),
            };
            let patient = matches!(why, Hindrance::Away(_));
            if !patient || timeout_at(since + AWAY_AFTER, standing.changed()).await.is_err() {
                return Err(StoreError::Unavailable(why.to_string()));
            }
        }
    }

    /// Room for a message under way; refuses what is too large.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StoreError> {
        if bytes > MAX_EVENT_BYTES {
            return Err(StoreError::TooLarge(bytes));
        }
        let permits = u32::try_from(bytes + MESSAGE_BYTES).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
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

    /// A stream, whose name is known to be well-formed.
    async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        let stream = self.link.context.get_stream_no_info(name).await;
        stream.map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(why) | Self::Wrong(why)) = self;
        f.write_str(why)
    }
}
