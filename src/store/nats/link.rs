//! Connections to NATS.
//!
//! A connection is made in the background, and made again when it breaks. The files with
//! credentials are read for each attempt, so they may change while the gateway runs. A problem is
//! logged once, until it changes.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event,
    jetstream::{Context, context::ContextBuilder},
};
use secrecy::ExposeSecret;
use tokio::sync::watch;

use super::names::NatsNames;
use crate::{backoff::backoff, config::NatsConfig, secret_file, store::StoreError};

/// The time limit for one answer of NATS, and for connecting.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// The interval of pings. After three pings in a row without an answer, the connection is closed,
/// so a server that hangs does not block its clients.
const PING_EVERY: Duration = Duration::from_secs(2);

/// The back-off between two attempts to connect.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// A connection to NATS that is made again when it breaks.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) state: watch::Receiver<LinkState>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) connected: bool,
    /// The number of this connection, from 1. What was known of the streams over an earlier one may
    /// be outdated.
    pub(super) number: u64,
    /// The last error that NATS reported.
    pub(super) error: Option<String>,
}

impl Link {
    /// Returns at once, connected or not. NATS shows `name` for the connection.
    pub(super) async fn new(
        settings: &NatsConfig,
        names: &NatsNames,
        name: &str,
    ) -> Result<Self, StoreError> {
        let (sender, state) = watch::channel(LinkState::default());
        let sender = Arc::new(sender);
        let mut options = authenticated(settings);
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
                sender.send_if_modified(|state| state.update(&event));
                async {}
            })
            .connect(settings.servers())
            .await
            .map_err(StoreError::unavailable)?;
        let context = ContextBuilder::new().timeout(ANSWER).build(client.clone());
        Ok(Self { client, context, state })
    }

    /// Waits until NATS is connected.
    pub(super) async fn connected(&self) {
        // Fails only if the client is gone.
        let _ = self.state.clone().wait_for(|state| state.connected).await;
    }
}

impl LinkState {
    /// Returns whether anything changed.
    fn update(&mut self, event: &Event) -> bool {
        let before = self.clone();
        match event {
            Event::Connected => {
                *self = Self { connected: true, number: self.number + 1, error: None };
            }
            Event::Disconnected | Event::Closed => self.connected = false,
            Event::LameDuckMode => {
                tracing::info!("a NATS server is about to stop; connecting to another one");
            }
            Event::Draining => {}
            Event::SlowConsumer(_) => {
                tracing::warn!(
                    "NATS sends messages faster than the gateway reads them; check whether the \
                     gateway has enough CPU"
                );
            }
            Event::ServerError(error) => self.error = Some(error.to_string()),
            Event::ClientError(error) => self.error = Some(error.to_string()),
        }
        let changed = *self != before;
        if changed
            && self.connected
            && let Some(error) = &self.error
        {
            tracing::warn!(
                error,
                "NATS reports an error; check the gateway's permissions and the servers' logs"
            );
        }
        changed
    }
}

/// Returns options with the configured credentials.
fn authenticated(settings: &NatsConfig) -> ConnectOptions {
    let file = |path: &Path| (!path.as_os_str().is_empty()).then(|| Arc::<Path>::from(path));
    if let Some(creds) = file(&settings.creds_file) {
        return ConnectOptions::with_auth_callback(move |nonce| sign(Arc::clone(&creds), nonce));
    }
    match file(&settings.username_file).zip(file(&settings.password_file)) {
        Some((username, password)) => ConnectOptions::with_auth_callback(move |_| {
            username_and_password(Arc::clone(&username), Arc::clone(&password))
        }),
        None => ConnectOptions::new(),
    }
}

async fn username_and_password(
    username: Arc<Path>,
    password: Arc<Path>,
) -> Result<Auth, AuthError> {
    let secret = async |file: &Path| {
        let secret = secret_file::read(file).await.map_err(AuthError::new)?;
        Ok::<_, AuthError>(secret.expose_secret().to_owned())
    };
    let mut auth = Auth::new();
    auth.username = Some(secret(&username).await?);
    auth.password = Some(secret(&password).await?);
    Ok(auth)
}

/// Returns the token of a credentials file, and the nonce signed with its key.
async fn sign(file: Arc<Path>, nonce: Vec<u8>) -> Result<Auth, AuthError> {
    let text = secret_file::read_lines(&file).await.map_err(AuthError::new)?;
    let (token, seed) = credentials(text.expose_secret())
        .ok_or_else(|| AuthError::new(format!("{} holds no NATS credentials", file.display())))?;
    let key = nkeys::KeyPair::from_seed(seed).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.jwt = Some(token.to_owned());
    auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
    Ok(auth)
}

/// Returns the token and the seed of a credentials file. They are the first lines inside the first
/// and the second pair of lines that begin with `---`.
fn credentials(text: &str) -> Option<(&str, &str)> {
    let mut inside = text.lines().map(str::trim).scan(0, |delimiters, line| {
        let is_delimiter = line.starts_with("---");
        *delimiters += i32::from(is_delimiter);
        Some((!is_delimiter && *delimiters % 2 == 1 && !line.is_empty()).then_some(line))
    });
    Some((inside.find_map(|line| line)?, inside.find_map(|line| line)?))
}

fn reconnect_after(attempt: usize) -> Duration {
    match attempt.checked_sub(2) {
        Some(failures) => backoff(failures, RECONNECT_MIN, RECONNECT_MAX),
        None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_what_nsc_writes() {
        let file = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.c2ln\n\
                    ------END NATS USER JWT------\n\n\
                    ************************* IMPORTANT *************************\n\
                    NKEYs are secrets.\n\n-----BEGIN USER NKEY SEED-----\r\nSUAIO3\r\n\
                    ------END USER NKEY SEED------\n";
        assert_eq!(credentials(file), Some(("eyJ0.eyJq.c2ln", "SUAIO3")));
        assert_eq!(credentials("SUAIO3"), None);
    }

    #[test]
    fn the_first_reconnect_is_at_once() {
        assert_eq!(reconnect_after(1), Duration::ZERO);
        assert!(reconnect_after(99) >= RECONNECT_MAX / 2);
    }
}
