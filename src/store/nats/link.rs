//! Connections to NATS: how they are made, what is known about them, and what is said about them,
//! once per change.
//!
//! A connection is made and made again for ever, in the background. Files are read for each
//! attempt, so that credentials and certificates may change under a gateway.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event,
    jetstream::{Context, context::ContextBuilder},
};
use secrecy::ExposeSecret;
use tokio::sync::watch;

use super::names::Names;
use crate::{config::NatsConfig, secret_file, store::StoreError};

pub(super) use crate::backoff::backoff;

/// How long NATS may take for one answer, and for letting us in.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// A connection on which three in a row are not answered is given up: a frozen server holds its
/// clients no longer.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Between two attempts at connecting.
const RECONNECT_LEAST: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_secs(2);

/// A connection, whatever becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) state: watch::Receiver<State>,
}

/// Whether it is up, and the last thing NATS complained about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) up: bool,
    /// How often it was made: whatever was known of the streams before counts no more.
    pub(super) made: u64,
    pub(super) complaint: Option<String>,
}

impl Link {
    /// Returns at once, connected or not. `name` is what NATS shows of the connection.
    pub(super) async fn new(
        settings: &NatsConfig,
        names: &Names,
        name: &str,
    ) -> Result<Self, StoreError> {
        let (told, state) = watch::channel(State::default());
        let told = Arc::new(told);
        let mut options = identified(settings);
        if !settings.ca_file.as_os_str().is_empty() {
            options = options.add_root_certificates(settings.ca_file.clone()).require_tls(true);
        }
        if !settings.cert_file.as_os_str().is_empty() {
            options = options
                .add_client_certificate(settings.cert_file.clone(), settings.key_file.clone())
                .require_tls(true);
        }
        let client = options
            .name(name)
            .custom_inbox_prefix(names.inbox())
            .retry_on_initial_connect()
            .connection_timeout(ANSWER)
            .request_timeout(Some(ANSWER))
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(reconnect_after)
            .event_callback(move |event| {
                told.send_if_modified(|state| state.hear(&event));
                async {}
            })
            .connect(settings.servers())
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let context = ContextBuilder::new().timeout(ANSWER).build(client.clone());
        Ok(Self { client, context, state })
    }

    /// Waits until it is up.
    pub(super) async fn up(&self) {
        // The sender lives as long as the client.
        let _ = self.state.clone().wait_for(|state| state.up).await;
    }
}

impl State {
    /// True if it is news.
    fn hear(&mut self, event: &Event) -> bool {
        let before = self.clone();
        match event {
            Event::Connected => *self = Self { up: true, made: self.made + 1, complaint: None },
            Event::Disconnected | Event::Closed => self.up = false,
            Event::LameDuckMode => {
                tracing::info!("a NATS server is about to stop; going to another one");
            }
            Event::Draining => {}
            Event::SlowConsumer(_) => tracing::warn!("NATS sends more than is taken"),
            Event::ServerError(error) => self.complaint = Some(error.to_string()),
            Event::ClientError(error) => self.complaint = Some(error.to_string()),
        }
        let news = *self != before;
        if news
            && self.up
            && let Some(complaint) = &self.complaint
        {
            tracing::warn!(error = complaint, "NATS complains");
        }
        news
    }
}

/// Options with whatever proves who we are.
fn identified(settings: &NatsConfig) -> ConnectOptions {
    let named = |file: &Path| (!file.as_os_str().is_empty()).then(|| Arc::<Path>::from(file));
    if let Some(file) = named(&settings.creds_file) {
        return ConnectOptions::with_auth_callback(move |nonce| prove(Arc::clone(&file), nonce));
    }
    match named(&settings.username_file).zip(named(&settings.password_file)) {
        Some((username, password)) => ConnectOptions::with_auth_callback(move |_| {
            introduce(Arc::clone(&username), Arc::clone(&password))
        }),
        None => ConnectOptions::new(),
    }
}

/// User name and password, for servers that know users.
async fn introduce(username: Arc<Path>, password: Arc<Path>) -> Result<Auth, AuthError> {
    let secret = async |file: &Path| {
        let secret = secret_file::read(file).await.map_err(AuthError::new)?;
        Ok::<_, AuthError>(secret.expose_secret().to_owned())
    };
    let mut auth = Auth::new();
    auth.username = Some(secret(&username).await?);
    auth.password = Some(secret(&password).await?);
    Ok(auth)
}

/// Who we are, from a credentials file: its token, and the proof that we have the key that belongs
/// to it.
async fn prove(file: Arc<Path>, nonce: Vec<u8>) -> Result<Auth, AuthError> {
    let text = secret_file::read_lines(&file).await.map_err(AuthError::new)?;
    let (token, seed) = credentials(text.expose_secret())
        .ok_or_else(|| AuthError::new(format!("{} holds no NATS credentials", file.display())))?;
    let key = nkeys::KeyPair::from_seed(seed).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.jwt = Some(token.to_owned());
    auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
    Ok(auth)
}

/// Token and seed: what stands between the first and the second pair of ruled lines.
fn credentials(text: &str) -> Option<(&str, &str)> {
    let mut inside = text.lines().map(str::trim).scan(0, |rules, line| {
        let rule = line.starts_with("---");
        *rules += i32::from(rule);
        Some((!rule && *rules % 2 == 1 && !line.is_empty()).then_some(line))
    });
    Some((inside.find_map(|line| line)?, inside.find_map(|line| line)?))
}

fn reconnect_after(attempt: usize) -> Duration {
    if attempt <= 1 {
        Duration::ZERO
    } else {
        backoff(attempt - 2, RECONNECT_LEAST, RECONNECT_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_what_nsc_writes() {
        let file = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.c2ln\n------END NATS USER JWT------\n\n\
                    ************************* IMPORTANT *************************\nNKEYs are secrets.\n\n\
                    -----BEGIN USER NKEY SEED-----\r\nSUAIO3\r\n------END USER NKEY SEED------\n";
        assert_eq!(credentials(file), Some(("eyJ0.eyJq.c2ln", "SUAIO3")));
        assert_eq!(credentials("SUAIO3"), None);
    }

    #[test]
    fn the_first_reconnect_is_at_once() {
        assert_eq!(reconnect_after(1), Duration::ZERO);
    }
}
