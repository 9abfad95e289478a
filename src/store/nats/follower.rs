//! A follower reads the stream of events through a consumer that it makes anew after whatever
//! happens: a missed heartbeat, an error, an end, a gap in the deliveries.
//!
//! Nothing is lost or repeated, because only the follower's own position counts: each consumer
//! begins after it, what is not beyond it is dropped, and consumers number their deliveries. Before
//! each one the stream is looked at: one that was made anew, or ends before the position, is
//! another stream, and a consumer would say nothing of it. What a consumer says is left is what its
//! server has, which may lag: that there is nothing more is the leader's word.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::{Info, LastRawMessageErrorKind, State, Stream},
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
    Shared, There, facts, link::backoff, logs::timestamp, newest::id_of, record::EVENTS,
    until_there,
};
use crate::store::{Entry, Followed, Lost, Position};

/// What waits to be folded, in events and in bytes; beyond it NATS is not asked for more.
const WAITING: usize = 256;
const WAITING_BYTES: u32 = 16 * 1024 * 1024;

/// What NATS is asked for at once.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// How long NATS keeps such a question, and how often it says that it is still there.
const ASKED_FOR: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// When NATS forgets a consumer that nobody uses any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// While events are known to be missing, none has to come for so long that the stream is looked at
/// again.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Between two tries.
const RETRY_LEAST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// After so long without one, a failure is the first of a row.
const STEADY: Duration = Duration::from_secs(10);

/// A stream ends before the position only if it does so often: a new leader may not have read all
/// of its own log yet.
const SHORT: usize = 6;

/// What waits to be folded, and its part of [`WAITING_BYTES`].
type Waiting = (Followed, Option<OwnedSemaphorePermit>);

struct Follower {
    shared: Arc<Shared>,
    sender: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    /// Which stream is followed; unknown until it was looked at.
    epoch: Option<u64>,
    /// Up to where everything was delivered.
    position: u64,
    /// Where the stream ended when it was first looked at, until that was delivered.
    catching_up: CatchUp,
    /// Of the last event: times never go back.
    time: Timestamp,
    /// How often in a row the stream ended before the position.
    short: usize,
}

enum CatchUp {
    Unknown,
    To(u64),
    Done,
}

/// Why a follower cannot go on with the consumer it has.
enum End {
    Lost(Lost),
    /// Nobody listens any more.
    Unheard,
    Hiccup(String),
}

pub(super) fn follow(shared: Arc<Shared>, after: Option<Position>) -> BoxStream<'static, Followed> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let follower = Follower {
        shared,
        sender,
        bytes: waiting_bytes(),
        epoch: after.map(|after| after.epoch),
        position: after.map_or(0, |after| after.sequence),
        catching_up: CatchUp::Unknown,
        time: Timestamp::MIN,
        short: 0,
    };
    // In a task of its own: a consumer that is not polled loses its heartbeats.
    tokio::spawn(follower.run());
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?.0, receiver)) })
        .boxed()
}

fn waiting_bytes() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WAITING_BYTES as usize))
}

impl Follower {
    async fn run(mut self) {
        let (closed, unheard) = (self.shared.end.clone(), self.sender.clone());
        tokio::select! {
            () = self.follow() => {}
            () = closed.cancelled() => {}
            () = unheard.closed() => {}
        }
    }

    async fn follow(&mut self) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let why = match self.consume().await {
                End::Unheard => return,
                End::Lost(lost) => {
                    let _ = self.send(Followed::Lost(lost)).await;
                    return;
                }
                End::Hiccup(why) => why,
            };
            if began.elapsed() > STEADY {
                failures = 0;
            }
            // The first of a row is common, and mended at once.
            if failures == 1 {
                tracing::warn!(why, "a follower waits for NATS");
            } else {
                tracing::debug!(why, "a follower begins anew");
            }
            sleep(backoff(failures, RETRY_LEAST, RETRY_MOST)).await;
            failures += 1;
        }
    }

    /// Looks at the stream, makes a consumer and delivers what it gives, until something happens.
    async fn consume(&mut self) -> End {
        match self.try_consume().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_consume(&mut self) -> Result<std::convert::Infallible, End> {
        let hiccup = |error: &dyn std::fmt::Display| End::Hiccup(error.to_string());
        let link = self.shared.follow_link.clone();
        link.up().await;
        let mut standing = self.shared.standing.subscribe();
        let there = until_there(&mut standing).await.ok_or(End::Unheard)?;
        let stream = link.context.get_stream(&self.shared.names.events).await.map_err(|error| {
            // It may be gone.
            self.shared.look.notify_one();
            hiccup(&error)
        })?;
        self.check(there, created_ns(stream.cached_info()), &stream.cached_info().state)?;
        if self.shared.is_other(&stream, there.epoch).await.map_err(|error| hiccup(&error))? {
            self.shared.look.notify_one();
            return Err(hiccup(&"the stream holds another event than before"));
        }
        if stream.cached_info().state.messages == 0 {
            self.caught_up().await?;
        }

        let consumer = stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position + 1 },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: FORGOTTEN_AFTER,
            ..pull::Config::default()
        });
        let consumer = consumer.await.map_err(|error| hiccup(&error))?;
        if consumer.cached_info().num_pending == 0 && self.is_at_the_end(&stream).await? {
            self.caught_up().await?;
        }
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch(BATCH_BYTES)
            .heartbeat(HEARTBEAT)
            .expires(ASKED_FOR)
            .messages();
        let mut messages = messages.await.map_err(|error| hiccup(&error))?;
        let mut deliveries = 0;
        loop {
            let catching_up = !matches!(self.catching_up, CatchUp::Done);
            let message = tokio::select! {
                message = messages.next() => message,
                () = sleep(STALLED_AFTER), if catching_up => return Err(hiccup(&"no event comes")),
                // The store may begin a new epoch, or may have lost something.
                changed = standing.wait_for(|now| !now.is(there)) => {
                    drop(changed);
                    return Err(hiccup(&"the store is looked at"));
                }
            };
            let message = message
                .ok_or_else(|| hiccup(&"the consumer ended"))?
                .map_err(|error| hiccup(&error))?;
            self.deliver(message, &mut deliveries).await?;
        }
    }

    /// Is it the store that was followed before, and has it what comes next?
    fn check(&mut self, there: There, created_ns: u64, state: &State) -> Result<(), End> {
        if created_ns != there.created_ns {
            self.shared.look.notify_one();
            return Err(End::Hiccup("the stream was made anew".to_owned()));
        }
        if *self.epoch.get_or_insert(there.epoch) != there.epoch {
            return Err(End::Lost(Lost::Replaced));
        }
        if state.last_sequence < self.position {
            self.short += 1;
            self.shared.look.notify_one();
            return Err(if self.short < SHORT {
                End::Hiccup("the stream ends before what was read".to_owned())
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

    /// Whether nothing is to come before the end: it was delivered, has expired, or was deleted.
    /// The leader knows.
    async fn is_at_the_end(&self, stream: &Stream) -> Result<bool, End> {
        let CatchUp::To(end) = self.catching_up else { return Ok(true) };
        if self.position >= end {
            return Ok(true);
        }
        let events = self.shared.names.all_of(&self.shared.names.events);
        match stream
            .raw_message_builder()
            .sequence(self.position + 1)
            .next_by_subject(events)
            .send()
            .await
        {
            Ok(next) => Ok(next.sequence > end),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(true),
            Err(error) => Err(End::Hiccup(error.to_string())),
        }
    }

    /// No event is to come before the end: says so, once. The position stays: it says what was
    /// delivered, and nothing else does.
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
        let info = message.info().map_err(|error| End::Hiccup(error.to_string()))?;
        *deliveries += 1;
        if info.consumer_sequence != *deliveries {
            return Err(End::Hiccup("the consumer skipped a delivery".to_owned()));
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
            if let Some(epoch) = self.epoch {
                let id = id_of(message.headers.as_ref()).to_owned();
                self.shared.facts().saw(epoch, EVENTS, facts::Message { sequence, id });
            }
            let names = &self.shared.names;
            let position = Position { epoch: self.epoch.unwrap_or_default(), sequence };
            if let Some(log) = names.to_log(&message.subject) {
                let entry = Entry { position, time: self.time, event: message.message.payload };
                self.send(Followed::Event(log, entry)).await?;
            } else {
                if *message.subject != names.report() {
                    tracing::warn!(sequence, "an event in no log; it is not one of ours");
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
        let room = match &followed {
            Followed::Event(_, entry) => {
                let bytes = u32::try_from(entry.event.len()).unwrap_or(u32::MAX).min(WAITING_BYTES);
                let room = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
                Some(room.map_err(|_| End::Unheard)?)
            }
            Followed::CaughtUp(_) | Followed::Skipped(_) | Followed::Lost(_) => None,
        };
        self.sender.send((followed, room)).await.map_err(|_| End::Unheard)
    }
}

fn created_ns(info: &Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{config::Config, store::nats::Nats};

    /// One that follows a stream that ends at 3, whose consumer's server has only 1 so far.
    async fn follower() -> (Nats, Follower, mpsc::Receiver<Waiting>) {
        let mut settings = Config::defaults().store.nats;
        settings.url = "nats://127.0.0.1:1".to_owned();
        let store = Nats::open(&settings, Duration::from_hours(1)).await.unwrap();
        let (sender, receiver) = mpsc::channel(WAITING);
        let follower = Follower {
            shared: Arc::clone(&store.shared),
            sender,
            bytes: waiting_bytes(),
            epoch: Some(1),
            position: 0,
            catching_up: CatchUp::To(3),
            time: Timestamp::MIN,
            short: 0,
        };
        (store, follower, receiver)
    }

    fn message(follower: &Follower, sequence: u64, delivery: u64, left: u64) -> Message {
        let reply = format!("$JS.ACK.gw_events.c.1.{sequence}.{delivery}.1000.{left}");
        let subject: async_nats::Subject = "gw.ev.r.1".into();
        let message = async_nats::Message {
            subject,
            reply: Some(reply.into()),
            payload: sequence.to_string().into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        Message { message, context: follower.shared.follow_link.context.clone() }
    }

    fn sequences(receiver: &mut mpsc::Receiver<Waiting>) -> Vec<String> {
        let said = std::iter::from_fn(|| receiver.try_recv().ok());
        said.map(|(said, _)| match said {
            Followed::Event(_, entry) => entry.position.sequence.to_string(),
            Followed::CaughtUp(position) => format!("caught up at {}", position.sequence),
            Followed::Skipped(position) => format!("skipped {}", position.sequence),
            Followed::Lost(lost) => format!("{lost:?}"),
        })
        .collect()
    }

    #[tokio::test]
    async fn what_a_lagging_server_has_not_got_yet_comes_later_and_is_not_skipped() {
        let (_store, mut follower, mut receiver) = follower().await;
        let mut deliveries = 0;
        for (sequence, left) in [(1, 0), (2, 0), (3, 0), (4, 0)] {
            let message = message(&follower, sequence, deliveries + 1, left);
            assert!(follower.deliver(message, &mut deliveries).await.is_ok());
        }
        assert_eq!(sequences(&mut receiver), ["1", "2", "3", "caught up at 3", "4"]);
    }

    /// A slow reader costs as many bytes, however large the events are.
    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes() {
        const LARGE: usize = 760_000;
        let (_store, mut follower, mut receiver) = follower().await;
        let mut deliveries = 0;
        let mut sequence = 0;
        loop {
            sequence += 1;
            let mut large = message(&follower, sequence, sequence, 0);
            large.message.payload = vec![0; LARGE].into();
            if follower.deliver(large, &mut deliveries).now_or_never().is_none() {
                break;
            }
        }
        let waiting: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        let events =
            waiting.iter().filter(|(waiting, _)| matches!(waiting, Followed::Event(..))).count();
        assert_eq!(events, WAITING_BYTES as usize / LARGE);
        // What was taken makes room.
        drop(waiting);
        let next = message(&follower, sequence + 1, sequence + 1, 0);
        assert!(follower.deliver(next, &mut deliveries).await.is_ok());
    }

    #[tokio::test]
    async fn a_skipped_delivery_begins_anew() {
        let (_store, mut follower, mut receiver) = follower().await;
        let mut deliveries = 0;
        let first = message(&follower, 1, 1, 2);
        assert!(follower.deliver(first, &mut deliveries).await.is_ok());
        let third = message(&follower, 3, 3, 0);
        assert!(matches!(follower.deliver(third, &mut deliveries).await, Err(End::Hiccup(_))));
        assert_eq!(sequences(&mut receiver), ["1"]);
        assert_eq!(follower.position, 1);
    }
}
