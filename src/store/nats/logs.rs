//! Logs: a subject each in the stream of events.
//!
//! An append is repeated with its id until NATS says that it is stored, or that it is not. A read
//! takes a page from any replica, in one request, and what that one may not have seen yet from the
//! leader; what any of them has stored is a beginning of the same log.

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
    Shared,
    facts::Seen,
    link::ANSWER,
    publish::{Failure, publish, settle},
    record::EVENTS,
};
use crate::store::{Entry, LogName, MAX_READ, Position, StoreError};

/// Header of an event: what its sender had seen of all streams. It tells a gateway that starts
/// whether the cells are as old as the events.
pub(super) const SEEN: &str = "Gateway-Seen";

/// After so many bytes a page ends.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How long a page may take altogether, while each of its messages arrives within [`ANSWER`] after
/// the one before. It admits a connection of about 140 kB/s.
const PAGE_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn append(
    shared: &Shared,
    log: &LogName,
    id: Uuid,
    event: Bytes,
) -> Result<Position, StoreError> {
    let subject = shared.names.log(log);
    // The same id in two logs is two events.
    let id = format!("{subject}/{id}");
    settle(shared, || async {
        let epoch = shared.there().await.map_err(Failure::Away)?.epoch;
        let seen = shared.facts().seen;
        let message = PublishMessage::build().payload(event.clone()).message_id(&id);
        let message = message.header(SEEN, seen.to_string());
        let stored = publish(shared, subject.clone(), message, event.len()).await?;
        shared.acknowledged(epoch, EVENTS, seen.in_epoch(epoch)[EVENTS], &stored, &id)?;
        Ok(Position { epoch, sequence: stored.sequence })
    })
    .await
}

pub(super) async fn read(
    shared: &Shared,
    log: &LogName,
    after: u64,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let epoch = shared.there().await?.epoch;
    let subject = shared.names.log(log);
    let limit = limit.min(MAX_READ);
    let Some(mut next) = after.checked_add(1).filter(|_| limit > 0) else { return Ok(Vec::new()) };

    let Page { mut messages, more } = page(shared, &subject, next, limit).await?;
    let stream = shared.stream(&shared.names.events).await?;
    let mut bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    while !more && messages.len() < limit && bytes < PAGE_BYTES {
        next = messages.last().map_or(next, |last| last.sequence + 1);
        match stream.raw_message_builder().sequence(next).next_by_subject(&subject).send().await {
            Ok(message) => {
                bytes += message.payload.len();
                messages.push(message);
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => break,
            Err(error) => return Err(StoreError::Unavailable(error.to_string())),
        }
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

/// What the sender of the newest event had seen.
pub(super) async fn seen_by_newest(shared: &Shared) -> Result<Option<Seen>, StoreError> {
    let events = &shared.names.events;
    let newest = shared.newest_message(events, &shared.names.all_of(events)).await?;
    Ok(newest.and_then(|newest| newest.headers.get(SEEN)?.as_str().parse().ok()))
}

/// The status of the answer after the last message.
const END_OF_BATCH: u16 = 204;

/// What one replica has of a log.
struct Page {
    messages: Vec<StreamMessage>,
    /// It has more.
    more: bool,
}

/// A batch of direct gets, which the client has no function for: one request, an answer per message
/// and one at the end.
async fn page(shared: &Shared, subject: &str, from: u64, limit: usize) -> Result<Page, StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
    let client = &shared.link.client;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
    let question = serde_json::json!({
        "seq": from, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES,
    });
    let service = format!("$JS.API.DIRECT.GET.{}", shared.names.events);
    let asked = client.publish_with_reply(service, inbox, question.to_string().into()).await;
    asked.map_err(|error| unavailable(&error))?;

    let mut messages = Vec::new();
    let until = Instant::now() + PAGE_WITHIN;
    loop {
        let answer = timeout_at(until.min(Instant::now() + ANSWER), answers.next()).await;
        let answer = answer.map_err(|_| unavailable(&"NATS did not answer in time"))?;
        let answer = answer.ok_or_else(|| unavailable(&"the connection was closed"))?;
        match answer.status {
            None => {
                messages
                    .push(StreamMessage::try_from(answer).map_err(|error| unavailable(&error))?);
            }
            Some(status) if status.as_u16() == END_OF_BATCH => {
                let left =
                    answer.headers.as_ref().and_then(|headers| headers.get("Nats-Num-Pending"));
                let more = !messages.is_empty() && left.is_some_and(|left| left.as_str() != "0");
                return Ok(Page { messages, more });
            }
            Some(StatusCode::NOT_FOUND) => return Ok(Page { messages, more: false }),
            Some(status) => {
                let why = answer.description.as_deref().unwrap_or_default();
                return Err(unavailable(&format_args!("reading was refused: {status} {why}")));
            }
        }
    }
}
