//! Appends to logs and reads them. Each log is one subject in the stream of events.
//!
//! An append is repeated with its id until it is known whether it is stored. A read requests a page
//! from any server that has the stream. That server may lack the last events of the log, but no
//! others, so the read gets the rest from the leader.

use std::time::Duration;

use async_nats::{
    StatusCode,
    jetstream::{
        message::{PublishMessage, StreamMessage},
        stream::LastRawMessageErrorKind,
    },
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{
    Core,
    link::ANSWER,
    publish::{WriteError, publish, retry_until_known},
    record::EVENTS,
    reports::SEEN,
};
use crate::store::{Entry, LogName, MAX_READ, Position, StoreError};

/// The size at which a page ends.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The time limit for a page. Each of its messages must also arrive within [`ANSWER`] after the one
/// before. A connection of 140 kB/s is fast enough.
const PAGE_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn append(
    core: &Core,
    log: &LogName,
    id: Uuid,
    event: Bytes,
) -> Result<Position, StoreError> {
    let subject = core.names.log(log);
    // The same id in two logs names two events.
    let id = format!("{subject}/{id}");
    retry_until_known(core, || async {
        let epoch = core.usable().await.map_err(WriteError::Unavailable)?.epoch;
        let seen = core.facts().seen;
        let message = PublishMessage::build().payload(event.clone()).message_id(&id);
        let message = message.header(SEEN, seen.to_string());
        let ack = publish(core, subject.clone(), message, event.len()).await?;
        core.acknowledged(epoch, EVENTS, seen.in_epoch(epoch)[EVENTS], &ack, &id)?;
        Ok(Position { epoch, sequence: ack.sequence })
    })
    .await
}

pub(super) async fn read(
    core: &Core,
    log: &LogName,
    after: u64,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let epoch = core.usable().await?.epoch;
    let subject = core.names.log(log);
    let limit = limit.min(MAX_READ);
    let Some(mut next) = after.checked_add(1).filter(|_| limit > 0) else { return Ok(Vec::new()) };

    let LogPage { mut messages, more } = page(core, &subject, next, limit).await?;
    let mut bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    while !more && messages.len() < limit && bytes < PAGE_BYTES {
        next = messages.last().map_or(next, |last| last.sequence + 1);
        let Some(message) = core.next_event(next, &subject).await? else { break };
        bytes += message.payload.len();
        messages.push(message);
    }
    let mut latest = Timestamp::MIN;
    let entry = |message: StreamMessage| {
        latest = latest.max(timestamp(message.time.unix_timestamp_nanos())?);
        let position = Position { epoch, sequence: message.sequence };
        Ok(Entry { position, time: latest, event: message.payload })
    };
    messages.into_iter().map(entry).collect()
}

pub(super) fn timestamp(nanoseconds: i128) -> Result<Timestamp, StoreError> {
    Timestamp::from_nanosecond(nanoseconds).map_err(|error| StoreError::Corrupt(error.to_string()))
}

impl Core {
    /// Returns the age of the newest message in the stream of events. `None`: the stream has none.
    pub(super) async fn age_of_newest_event(&self) -> Result<Option<Duration>, StoreError> {
        let events = &self.names.events;
        let Some(newest) = self.newest_message(events, &self.names.all_of(events)).await? else {
            return Ok(None);
        };
        let time = timestamp(newest.time.unix_timestamp_nanos())?;
        Ok(Some(self.facts().age(time)))
    }

    /// Returns the first event that matches a subject and has at least this sequence, from the
    /// leader.
    pub(super) async fn next_event(
        &self,
        sequence: u64,
        subject: &str,
    ) -> Result<Option<StreamMessage>, StoreError> {
        let stream = self.stream(&self.names.events).await?;
        let builder = stream.raw_message_builder().sequence(sequence).next_by_subject(subject);
        match builder.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StoreError::unavailable(error)),
        }
    }
}

/// The status of the message that ends a page.
const END_OF_BATCH: u16 = 204;

/// Messages of a log from one server.
struct LogPage {
    messages: Vec<StreamMessage>,
    /// The server has more of them.
    more: bool,
}

/// Reads a page by direct get, for which the client has no function. NATS answers one request with
/// a message for each event and a last one for the end.
async fn page(core: &Core, subject: &str, from: u64, limit: usize) -> Result<LogPage, StoreError> {
    let client = &core.link.client;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(StoreError::unavailable)?;
    let request = serde_json::json!({
        "seq": from, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES,
    });
    let service = format!("$JS.API.DIRECT.GET.{}", core.names.events);
    let result = client.publish_with_reply(service, inbox, request.to_string().into()).await;
    result.map_err(StoreError::unavailable)?;

    let mut messages = Vec::new();
    let until = Instant::now() + PAGE_WITHIN;
    loop {
        let answer = timeout_at(until.min(Instant::now() + ANSWER), answers.next()).await;
        let answer = answer.map_err(|_| StoreError::unavailable("NATS did not answer in time"))?;
        let answer = answer.ok_or_else(|| StoreError::unavailable("the connection was closed"))?;
        match answer.status {
            None => {
                let message = StreamMessage::try_from(answer);
                messages.push(message.map_err(StoreError::unavailable)?);
            }
            Some(status) if status.as_u16() == END_OF_BATCH => {
                let left =
                    answer.headers.as_ref().and_then(|headers| headers.get("Nats-Num-Pending"));
                let more = !messages.is_empty() && left.is_some_and(|left| left.as_str() != "0");
                return Ok(LogPage { messages, more });
            }
            Some(StatusCode::NOT_FOUND) => return Ok(LogPage { messages, more: false }),
            Some(status) => {
                let why = answer.description.as_deref().unwrap_or_default();
                let why = format_args!("reading was refused: {status} {why}");
                return Err(StoreError::unavailable(why));
            }
        }
    }
}
