//! Whether the store can be used, and if not, why and since when.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Core, streams::StreamsError};
use crate::store::StoreError;

/// How long calls wait for NATS after it became unavailable. Later calls are refused at once.
const WAIT_FOR_NATS: Duration = Duration::from_secs(2);

/// Whether the streams can be used. The monitor decides it.
#[derive(Debug, Clone)]
pub(super) enum Availability {
    Available(StoreId),
    Unavailable { why: StreamsError, since: Moment },
}

/// A moment, as an instant and as a time of day.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    instant: Instant,
    pub(super) time: Timestamp,
}

impl Moment {
    fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// Waits until the store can be used. `None`: the store was dropped.
pub(super) async fn until_available(
    availability: &mut watch::Receiver<Availability>,
) -> Option<StoreId> {
    let is_available = |now: &Availability| matches!(now, Availability::Available(_));
    match *availability.wait_for(is_available).await.ok()? {
        Availability::Available(id) => Some(id),
        Availability::Unavailable { .. } => None,
    }
}

impl Availability {
    pub(super) fn unavailable(why: StreamsError) -> Self {
        Self::Unavailable { why, since: Moment::now() }
    }

    /// Returns whether this store can be used, over any connection.
    pub(super) fn is(&self, id: StoreId) -> bool {
        let identity = |id: &StoreId| (id.epoch, id.created_ns);
        matches!(self, Self::Available(now) if identity(now) == identity(&id))
    }
}

/// Which store is used, and over which connection its streams were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreId {
    pub(super) epoch: u64,
    /// When the stream of events was created, Unix time in nanoseconds.
    pub(super) created_ns: u64,
    /// See [`super::link::LinkState::number`].
    pub(super) connection: u64,
}

impl Core {
    pub(super) fn is_available(&self) -> bool {
        matches!(&*self.availability.borrow(), Availability::Available(_))
    }

    /// Sets whether the streams can be used, and logs a change.
    pub(super) fn set_availability(&self, now: Result<StoreId, StreamsError>) {
        self.availability.send_modify(|availability| {
            let (before, since) = match availability {
                Availability::Available(id) => (Ok(*id), Moment::now()),
                Availability::Unavailable { why, since } => (Err(why.clone()), *since),
            };
            match (&now, &before) {
                (Ok(id), Ok(before)) if id.epoch != before.epoch => {
                    tracing::warn!("the store begins a new epoch: an operator accepted a loss");
                }
                (Ok(_), Err(_)) => tracing::info!("the store is available"),
                (Err(StreamsError::Away(why)), Ok(_)) => {
                    tracing::warn!(
                        why,
                        "the store is unavailable; trying again until it is available"
                    );
                }
                (Err(StreamsError::Wrong(why)), before)
                    if before.as_ref().err() != now.as_ref().err() =>
                {
                    tracing::error!(why, "the store cannot be used until that is corrected");
                }
                _ => {}
            }
            *availability = match now {
                Ok(id) => Availability::Available(id),
                Err(why) => Availability::Unavailable { why, since },
            };
        });
    }

    /// Makes the store unavailable until the streams are checked again, because something seems to
    /// be lost. Returns the reason.
    pub(super) fn suspect(&self, what: &str) -> String {
        let why = format!("{what}; checking again");
        self.set_availability(Err(StreamsError::Away(why.clone())));
        self.check_now.notify_one();
        why
    }

    /// Waits until the streams can be used, for up to [`WAIT_FOR_NATS`]. The streams must have been
    /// checked over the current connection.
    pub(super) async fn usable(&self) -> Result<StoreId, StoreError> {
        let mut availability = self.availability.subscribe();
        let began = Instant::now();
        loop {
            if self.end.is_cancelled() {
                return Err(StoreError::closed());
            }
            let connection = self.link.state.borrow().number;
            let (why, since) = match &*availability.borrow_and_update() {
                Availability::Available(id) if id.connection == connection => return Ok(*id),
                Availability::Available(_) => {
                    (StreamsError::away("the connection to NATS is new and not checked yet"), began)
                }
                Availability::Unavailable { why, since } => (why.clone(), since.instant),
            };
            let may_recover = matches!(why, StreamsError::Away(_));
            if !may_recover
                || timeout_at(since + WAIT_FOR_NATS, availability.changed()).await.is_err()
            {
                return Err(why.into());
            }
        }
    }
}
