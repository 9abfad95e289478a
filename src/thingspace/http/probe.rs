//! Asks the hosts of ThingSpace whether they answer, without credentials. For `doctor`.

use std::time::{Duration, Instant};

use http::header::DATE;
use jiff::{SignedDuration, Timestamp};
use reqwest::Client;

use super::{
    reply::SendError,
    transport::{self, Endpoint, Urls},
};
use crate::{config::ThingSpaceConfig, identity::AccountName, thingspace::BuildError};

/// The answer of a host, with any status.
#[derive(Debug)]
pub(crate) struct HostAnswer {
    pub(crate) took: Duration,
    /// By how much the clock of this machine is ahead of the answer's date. `None`: it has none.
    pub(crate) ahead: Option<SignedDuration>,
}

/// Sends one request without credentials and without effect to each host: it lists the callbacks of
/// an account, which is refused. The errors say why a host does not answer.
pub(crate) async fn probe(
    config: &ThingSpaceConfig,
    account: &AccountName,
) -> Result<Vec<(String, Result<HostAnswer, String>)>, BuildError> {
    let urls = Urls::new(config)?;
    let client = transport::client(config, &urls, Duration::ZERO)?;
    let mut answers = Vec::new();
    let callbacks = transport::below(&urls.base, Endpoint::Callbacks { account }.segments());
    for url in [callbacks, urls.token] {
        let host = transport::host(&url);
        if answers.iter().all(|(known, _)| *known != host) {
            let answer = ask(&client, url, config.call_timeout).await;
            answers.push((host, answer.map_err(why)));
        }
    }
    Ok(answers)
}

fn why(error: SendError) -> String {
    match error {
        SendError::NotConnected(why) | SendError::NoAnswer(why) => why,
        SendError::NoDescriptor => "this process can open no more files".to_owned(),
        SendError::BreakerOpen(_) => "not asked".to_owned(),
    }
}

async fn ask(
    client: &Client,
    url: reqwest::Url,
    timeout: Duration,
) -> Result<HostAnswer, SendError> {
    let began = Instant::now();
    let response = client.get(url).timeout(timeout).send().await;
    let response = response.map_err(|error| SendError::from_reqwest(&error))?;
    let (took, now) = (began.elapsed(), Timestamp::now());
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
    let date = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    // The date is that of about half the round trip, and has whole seconds.
    let middle = took / 2 + Duration::from_millis(500);
    let ahead = date.map(|date| {
        now.duration_since(date.timestamp()) - SignedDuration::try_from(middle).unwrap_or_default()
    });
    Ok(HostAnswer { took, ahead })
}
