//! Whether the servers can be reached, and the size of the store. For `doctor`. Creates nothing.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{
    link::{ANSWER, Link},
    names::NatsNames,
    record::EVENTS,
    streams::{self, StreamConfigs},
};
use crate::config::NatsConfig;

/// The time for a connection: two attempts and their answers.
const CONNECT: Duration = Duration::from_secs(5);

/// What NATS answered.
#[derive(Debug)]
pub(crate) struct NatsProbe {
    pub(crate) version: String,
    /// The time for a question about the streams.
    pub(crate) took: Duration,
    /// The size of the stream of events. `None`: it does not exist.
    pub(crate) used_bytes: Option<u64>,
}

/// Connects, and asks for the streams. The error is a sentence without a full stop.
pub(crate) async fn probe(settings: &NatsConfig, retention: Duration) -> Result<NatsProbe, String> {
    let names = NatsNames::new(&settings.prefix);
    let configs = StreamConfigs::new(&names, settings, retention);
    let link = Link::new(settings, &names, "thingspace-gateway doctor").await;
    let link = link.map_err(|error| error.to_string())?;
    if timeout(CONNECT, link.connected()).await.is_err() {
        let error = link.state.borrow().error.clone();
        return Err(error.unwrap_or_else(|| format!("no connection to {}", settings.url)));
    }
    streams::check_server(&link).map_err(|error| error.to_string())?;
    let began = Instant::now();
    let found = timeout(ANSWER, streams::inspect(&link, &configs)).await;
    let found = found.map_err(|_| "JetStream does not answer in time".to_owned())?;
    let found = found.map_err(|error| error.to_string())?;
    Ok(NatsProbe {
        version: link.client.server_info().version,
        took: began.elapsed(),
        used_bytes: found[EVENTS].as_ref().map(|events| events.state.bytes),
    })
}
