//! The three streams: looked at, compared with what a gateway needs, made for a new store, never
//! changed.
//!
//! A stream that is not what a gateway needs (one that drops its oldest events, or answers from a
//! replica that lags) would break promises without a word, so that it is refused in one, which
//! names what is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use async_nats::jetstream::{
    self, ErrorCode,
    context::CreateStreamErrorKind,
    response::Response,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use futures_util::try_join;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    link::Link,
    names::Names,
    record::{EVENTS, Streams},
};
use crate::{
    config::NatsConfig,
    store::{Loss, MAX_EVENT_BYTES},
};

/// The oldest server that does all that is needed.
const SERVER: (i64, i64, i64) = (2, 12, 0);

/// What a message is larger than its event: subject and headers.
const AROUND_AN_EVENT: usize = 4 * 1024;

/// How long NATS remembers the ids of events, so that an append may be repeated.
const REMEMBERED: Duration = Duration::from_mins(2);

/// Why the streams cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// It may pass.
    Away(String),
    /// Somebody has to change something.
    Wrong(String),
    /// The streams forgot something. An operator has to accept it.
    Lost(Loss),
}

/// What the streams of a gateway must be.
#[derive(Debug, Clone)]
pub(super) struct Wanted(pub(super) [Config; 3]);

impl Wanted {
    pub(super) fn new(names: &Names, settings: &NatsConfig, retention: Duration) -> Self {
        let common = |name: &String| Config {
            name: name.clone(),
            subjects: vec![names.all_of(name)],
            storage: StorageType::File,
            num_replicas: settings.replicas,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_bytes: -1,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            duplicate_window: REMEMBERED.min(retention),
            ..Config::default()
        };
        let events = Config {
            description: Some("thingspace-gateway: events".to_owned()),
            max_age: retention,
            max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
            // Reads may ask any replica; they ask the leader for what that one has not seen.
            allow_direct: true,
            ..common(&names.events)
        };
        let cells = Config {
            description: Some("thingspace-gateway: cells".to_owned()),
            max_messages_per_subject: 1,
            ..common(&names.cells)
        };
        let keys = Config {
            description: Some("thingspace-gateway: cells that expire".to_owned()),
            max_age: retention,
            max_messages_per_subject: 1,
            ..common(&names.keys)
        };
        Self([events, cells, keys])
    }

    /// How long events and retained cells are kept.
    pub(super) fn keep(&self) -> Duration {
        self.0[EVENTS].max_age
    }
}

/// What a look found of a stream.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) config: Config,
    /// Unix time in nanoseconds.
    pub(super) created_ns: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_sequence: u64,
    pub(super) first_time: Timestamp,
    pub(super) last_sequence: u64,
    pub(super) last_time: Timestamp,
    /// The subjects of its messages, where they were asked for.
    pub(super) subjects: BTreeSet<String>,
    /// When the server answered, by its own clock.
    pub(super) now: Timestamp,
}

/// Which subjects the server lists; `None`: none.
#[derive(Clone, Copy, Serialize)]
struct Question {
    #[serde(skip_serializing_if = "Option::is_none")]
    subjects_filter: Option<&'static str>,
}

/// Permanent cells are listed one by one, because each of them must stay.
const ALL_SUBJECTS: Question = Question { subjects_filter: Some(">") };
const NO_SUBJECTS: Question = Question { subjects_filter: None };

/// The server's answer. The client's own type leaves out its time.
#[derive(Deserialize)]
struct Answer {
    config: Config,
    created: Timestamp,
    state: Held,
    ts: Timestamp,
}

#[derive(Deserialize)]
struct Held {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    first_ts: Timestamp,
    last_seq: u64,
    last_ts: Timestamp,
    /// With the number of messages of each.
    #[serde(default)]
    subjects: BTreeMap<String, u64>,
}

impl From<Answer> for Found {
    fn from(Answer { config, created, state, ts }: Answer) -> Self {
        Self {
            config,
            created_ns: u64::try_from(created.as_nanosecond()).unwrap_or_default(),
            messages: state.messages,
            bytes: state.bytes,
            first_sequence: state.first_seq,
            first_time: state.first_ts,
            last_sequence: state.last_seq,
            last_time: state.last_ts,
            subjects: state.subjects.into_keys().collect(),
            now: ts,
        }
    }
}

/// Whether the servers can do what is needed.
pub(super) fn check_server(link: &Link) -> Result<(), Hindrance> {
    let server = link.client.server_info();
    let (major, minor, patch) = SERVER;
    if !link.client.is_server_compatible(major, minor, patch) {
        let found = server.version;
        return Err(Hindrance::Wrong(format!(
            "NATS server {found} is too old; {major}.{minor}.{patch} is the oldest"
        )));
    }
    let most = MAX_EVENT_BYTES + AROUND_AN_EVENT;
    if server.max_payload < most {
        let found = server.max_payload;
        return Err(Hindrance::Wrong(format!(
            "NATS takes messages of {found} bytes; set max_payload to at least {most}"
        )));
    }
    Ok(())
}

/// Looks at the streams, and compares their settings.
pub(super) async fn look(link: &Link, wanted: &Wanted) -> Result<Streams, Hindrance> {
    let [events, cells, keys] = &wanted.0;
    let found = try_join!(
        get(link, events, NO_SUBJECTS),
        get(link, cells, ALL_SUBJECTS),
        get(link, keys, NO_SUBJECTS)
    )?;
    let found = [found.0, found.1, found.2];
    for (wanted, found) in wanted.0.iter().zip(&found) {
        if let Some(found) = found {
            compare(wanted, &found.config)?;
        }
    }
    Ok(found)
}

/// Makes the streams that are missing.
pub(super) async fn make(link: &Link, wanted: &Wanted, found: &Streams) -> Result<(), Hindrance> {
    for (wanted, found) in wanted.0.iter().zip(found) {
        if found.is_none() {
            create(link, wanted).await?;
        }
    }
    Ok(())
}

/// What its leader says of a stream.
async fn get(link: &Link, wanted: &Config, question: Question) -> Result<Option<Found>, Hindrance> {
    let name = &wanted.name;
    let asked = link.context.request(format!("STREAM.INFO.{name}"), &question).await;
    match asked.map_err(|error| Hindrance::Away(format!("stream {name}: {error}")))? {
        Response::Ok::<Answer>(answer) => Ok(Some(answer.into())),
        Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Response::Err { error } => Err(Hindrance::Away(format!("stream {name}: {error}"))),
    }
}

async fn create(link: &Link, wanted: &Config) -> Result<(), Hindrance> {
    let name = &wanted.name;
    match link.context.create_stream(wanted.clone()).await {
        Ok(_) => {
            tracing::info!(stream = name, replicas = wanted.num_replicas, "made a stream");
            Ok(())
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(why) if needs_somebody(&why) => {
                Hindrance::Wrong(format!("stream {name} cannot be made: {why}"))
            }
            // Somebody else may have made it in the meantime, with other limits; the next look
            // tells.
            _ => Hindrance::Away(format!("stream {name} cannot be made: {error}")),
        }),
    }
}

fn needs_somebody(error: &jetstream::Error) -> bool {
    matches!(
        error.error_code(),
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
            | ErrorCode::STREAM_SUBJECT_OVERLAP
            | ErrorCode::JETSTREAM_NOT_ENABLED
            | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
            | ErrorCode::STREAM_INVALID_CONFIG
            | ErrorCode::MAXIMUM_STREAMS_LIMIT
            | ErrorCode::STREAM_MAX_BYTES_REQUIRED
            | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::NO_LIMITS
    )
}

/// All that differs and matters, in one error.
fn compare(wanted: &Config, found: &Config) -> Result<(), Hindrance> {
    let mut wrong = Vec::new();
    let mut check = |field: &str, wanted: &dyn fmt::Debug, found: &dyn fmt::Debug, same: bool| {
        if !same {
            wrong.push(format!("{field} is {found:?}, must be {wanted:?}"));
        }
    };
    macro_rules! same {
        ($($field:ident),+) => {$(
            check(stringify!($field), &wanted.$field, &found.$field, wanted.$field == found.$field);
        )+};
    }
    same!(
        subjects,
        storage,
        num_replicas,
        retention,
        discard,
        max_age,
        max_bytes,
        allow_direct,
        sealed,
        no_ack
    );
    same!(
        discard_new_per_subject,
        duplicate_window,
        mirror,
        sources,
        subject_transform,
        allow_message_ttl
    );
    // 0 says the same as -1.
    let unlimited = |limit: i64| if limit <= 0 { -1 } else { limit };
    macro_rules! limit {
        ($($field:ident),+) => {$({
            let (wanted, found) = (unlimited(wanted.$field.into()), unlimited(found.$field.into()));
            check(stringify!($field), &wanted, &found, wanted == found);
        })+};
    }
    limit!(max_messages, max_messages_per_subject, max_consumers, max_message_size);
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Hindrance::Wrong(format!("stream {}: {}", found.name, wrong.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_both_values() {
        let settings = crate::config::Config::defaults().store.nats;
        let names = Names::new(&settings.prefix);
        let Wanted([events, cells, _]) = Wanted::new(&names, &settings, Duration::from_hours(24));
        assert_eq!(compare(&events, &events), Ok(()));
        let lossy = Config { discard: DiscardPolicy::Old, num_replicas: 1, ..events.clone() };
        let Err(Hindrance::Wrong(why)) = compare(&events, &lossy) else { panic!("accepted") };
        assert_eq!(
            why,
            "stream gw_events: num_replicas is 1, must be 3; discard is Old, must be New"
        );
        let unlimited = Config { max_messages: 0, max_message_size: -1, ..cells.clone() };
        assert_eq!(compare(&cells, &unlimited), Ok(()));
        let cached = Config { allow_direct: true, ..cells.clone() };
        assert!(compare(&cells, &cached).is_err());
    }
}
