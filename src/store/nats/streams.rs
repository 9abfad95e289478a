//! The three streams. A gateway creates missing ones for a new store or after an accepted loss,
//! inspects them, and compares their settings with those that it needs. It never changes a stream.
//!
//! A stream with other settings is refused, and the error names each difference. Otherwise a stream
//! that drops its oldest events, for example, would break promises unnoticed.

use std::{collections::BTreeMap, fmt, time::Duration};

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
    names::NatsNames,
    record::{EVENTS, Streams},
};
use crate::{
    config::NatsConfig,
    store::{Loss, MAX_EVENT_BYTES, StoreError},
};

/// The oldest version of the NATS server that has all needed features.
const MIN_SERVER: (i64, i64, i64) = (2, 12, 0);

/// What a message has in addition to its event, in bytes: subject and headers.
const MESSAGE_OVERHEAD_BYTES: usize = 4 * 1024;

/// How long NATS remembers message ids. Appends are repeated with the same id for less time.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// Why the streams cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamsError {
    /// They cannot be used now, but may recover without an operator.
    Away(String),
    /// An operator has to change something.
    Wrong(String),
    /// The streams lost something. An operator has to accept it.
    Lost(Loss),
}

impl StreamsError {
    pub(super) fn away(error: impl fmt::Display) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<StoreError> for StreamsError {
    fn from(error: StoreError) -> Self {
        Self::away(error)
    }
}

impl From<StreamsError> for StoreError {
    fn from(error: StreamsError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl fmt::Display for StreamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) | Self::Wrong(why) => f.write_str(why),
            Self::Lost(loss) => write!(f, "it lost something: {}", loss.what),
        }
    }
}

/// The configurations that the streams must have.
#[derive(Debug, Clone)]
pub(super) struct StreamConfigs(pub(super) [Config; 3]);

impl StreamConfigs {
    pub(super) fn new(names: &NatsNames, settings: &NatsConfig, retention: Duration) -> Self {
        let common = |name: &String, kind| Config {
            name: name.clone(),
            description: Some(format!("thingspace-gateway: {kind}")),
            subjects: vec![names.all_of(name)],
            storage: StorageType::File,
            num_replicas: settings.replicas,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_bytes: -1,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            duplicate_window: DUPLICATE_WINDOW.min(retention),
            ..Config::default()
        };
        let events = Config {
            max_age: retention,
            max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
            // Any server with the stream answers reads. The leader is asked for what it may lack.
            allow_direct: true,
            ..common(&names.events, "events")
        };
        let cells = Config { max_messages_per_subject: 1, ..common(&names.cells, "cells") };
        let keys = Config {
            max_age: retention,
            max_messages_per_subject: 1,
            ..common(&names.keys, "cells that expire")
        };
        Self([events, cells, keys])
    }

    /// How long events and retained cells are kept.
    pub(super) fn retention(&self) -> Duration {
        self.0[EVENTS].max_age
    }
}

/// A stream, as its leader describes it. The type of the NATS client lacks the server's time.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Config,
    pub(super) created: Timestamp,
    pub(super) state: StreamState,
    /// The server's time.
    #[serde(rename = "ts")]
    pub(super) now: Timestamp,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    #[serde(rename = "first_ts")]
    pub(super) first_time: Timestamp,
    pub(super) last_seq: u64,
    #[serde(rename = "last_ts")]
    pub(super) last_time: Timestamp,
    /// The number of messages per subject; empty unless [`ALL_SUBJECTS`] were requested.
    #[serde(default)]
    pub(super) subjects: BTreeMap<String, u64>,
}

impl StreamInfo {
    /// Returns when the stream was created, as Unix time in nanoseconds.
    pub(super) fn created_ns(&self) -> u64 {
        u64::try_from(self.created.as_nanosecond()).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Serialize)]
struct InfoRequest {
    /// Which subjects the server lists; `None`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    subjects_filter: Option<&'static str>,
}

/// Used for the stream of permanent cells, because the record lists each of them.
const ALL_SUBJECTS: InfoRequest = InfoRequest { subjects_filter: Some(">") };
const NO_SUBJECTS: InfoRequest = InfoRequest { subjects_filter: None };

/// Fails if the server lacks a feature or accepts only small messages.
pub(super) fn check_server(link: &Link) -> Result<(), StreamsError> {
    let server = link.client.server_info();
    let (major, minor, patch) = MIN_SERVER;
    if !link.client.is_server_compatible(major, minor, patch) {
        let found = server.version;
        return Err(StreamsError::Wrong(format!(
            "NATS server {found} is too old; at least {major}.{minor}.{patch} is needed"
        )));
    }
    let min = MAX_EVENT_BYTES + MESSAGE_OVERHEAD_BYTES;
    if server.max_payload < min {
        let found = server.max_payload;
        return Err(StreamsError::Wrong(format!(
            "NATS accepts messages of up to {found} bytes; set max_payload to at least {min}"
        )));
    }
    Ok(())
}

/// Returns the state of the streams. Fails if one has other settings than it must have.
pub(super) async fn inspect(link: &Link, configs: &StreamConfigs) -> Result<Streams, StreamsError> {
    let [events, cells, keys] = &configs.0;
    let found = try_join!(
        info(link, events, NO_SUBJECTS),
        info(link, cells, ALL_SUBJECTS),
        info(link, keys, NO_SUBJECTS)
    )?;
    let found = [found.0, found.1, found.2];
    for (wanted, found) in configs.0.iter().zip(&found) {
        if let Some(found) = found {
            compare(wanted, &found.config)?;
        }
    }
    Ok(found)
}

pub(super) async fn make_missing(
    link: &Link,
    configs: &StreamConfigs,
    found: &Streams,
) -> Result<(), StreamsError> {
    for (config, found) in configs.0.iter().zip(found) {
        if found.is_none() {
            create(link, config).await?;
        }
    }
    Ok(())
}

async fn info(
    link: &Link,
    config: &Config,
    request: InfoRequest,
) -> Result<Option<StreamInfo>, StreamsError> {
    let name = &config.name;
    let away = |error: &dyn fmt::Display| StreamsError::Away(format!("stream {name}: {error}"));
    let response = link.context.request(format!("STREAM.INFO.{name}"), &request).await;
    match response.map_err(|error| away(&error))? {
        Response::Ok(info) => Ok(Some(info)),
        Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Response::Err { error } => Err(away(&error)),
    }
}

async fn create(link: &Link, config: &Config) -> Result<(), StreamsError> {
    let name = &config.name;
    match link.context.create_stream(config.clone()).await {
        Ok(_) => {
            tracing::info!(stream = name, replicas = config.num_replicas, "created a stream");
            Ok(())
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(why) if needs_operator(&why) => {
                StreamsError::Wrong(format!("stream {name} cannot be created: {why}"))
            }
            // Another replica may just have created it. The next check finds it.
            _ => StreamsError::Away(format!("stream {name} cannot be created: {error}")),
        }),
    }
}

fn needs_operator(error: &jetstream::Error) -> bool {
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

/// Fails if settings that matter differ. The error names all of them.
fn compare(wanted: &Config, found: &Config) -> Result<(), StreamsError> {
    let (wanted, found) = (with_plain_limits(wanted), with_plain_limits(found));
    let mut wrong = Vec::new();
    macro_rules! same {
        ($($field:ident)+) => {$(
            if wanted.$field != found.$field {
                let (field, wanted, found) = (stringify!($field), &wanted.$field, &found.$field);
                wrong.push(format!("{field} is {found:?}, must be {wanted:?}"));
            }
        )+};
    }
    same!(
        subjects storage num_replicas retention discard max_age max_bytes allow_direct sealed no_ack
        discard_new_per_subject duplicate_window mirror sources subject_transform allow_message_ttl
        max_messages max_messages_per_subject max_consumers max_message_size
    );
    if wrong.is_empty() {
        return Ok(());
    }
    Err(StreamsError::Wrong(format!("stream {}: {}", found.name, wrong.join("; "))))
}

/// Returns the same configuration with -1 for each limit of 0 or less, because all mean unlimited.
fn with_plain_limits(config: &Config) -> Config {
    let mut config = config.clone();
    macro_rules! plain {
        ($($limit:ident)+) => {$(if config.$limit <= 0 { config.$limit = -1 })+};
    }
    plain!(max_messages max_messages_per_subject max_consumers max_message_size);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_both_values() {
        let settings = crate::config::Config::defaults().store.nats;
        let names = NatsNames::new(&settings.prefix);
        let StreamConfigs([events, cells, _]) =
            StreamConfigs::new(&names, &settings, Duration::from_hours(24));
        assert_eq!(compare(&events, &events), Ok(()));
        let lossy = Config { discard: DiscardPolicy::Old, num_replicas: 1, ..events.clone() };
        let Err(StreamsError::Wrong(why)) = compare(&events, &lossy) else { panic!("accepted") };
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
