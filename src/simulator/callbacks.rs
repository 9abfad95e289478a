//! The registrations of callbacks, and the callbacks that are to be sent.
//!
//! As on Verizon's pages, an account has at most one URL for each service, a new one never replaces
//! it, and the listing shows the password. Results go to the URL of [`SERVICE`]. Without one, no
//! callback is sent.

mod shape;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

pub use shape::{CallbackShape, Case};

use super::{DeviceResult, Options, error::TextAnswer, order};
use crate::identity::{AccountName, Device, RequestId};

/// The service whose callbacks report the results of profiles.
pub const SERVICE: &str = "DeviceProfileService";

const SERVICES: [&str; 8] = [
    SERVICE,
    "CarrierService",
    "DeviceService",
    "DeviceUsage",
    "DiagnosticsService",
    "NiddService",
    "SMSDeliveryConfirmation",
    "StateService",
];

/// The longest user name and the longest password, in characters.
const SECRET_CHARS: usize = 40;

/// How callbacks are registered and sent.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the types of the other fields are documented")]
pub struct CallbackOptions {
    /// Accept URLs with any port, not only the ports that ThingSpace sends to.
    pub any_port: bool,
    pub service_field: ServiceField,
    pub passwords: Passwords,
    pub retries: CallbackRetries,
    /// How long an attempt may take before the next one begins. The slow attempt stays open.
    pub patience: Duration,
    /// The time after a registration in which callbacks still carry the previous pair of user name
    /// and password, alternating with the new one.
    pub old_pair: Duration,
    /// The most attempts at the same time.
    pub senders: usize,
    pub shape: CallbackShape,
}

/// The field of the listing that names the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceField {
    /// `serviceName`
    #[default]
    ServiceName,
    /// `name`
    Name,
}

/// The passwords in the listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Passwords {
    #[default]
    Shown,
    Masked,
    Omitted,
}

/// The attempts after the first one, until a callback is acknowledged with a 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallbackRetries {
    /// The most attempts after the first one.
    pub times: u32,
    /// The pause before each of them.
    pub interval: Duration,
}

impl Default for CallbackOptions {
    fn default() -> Self {
        Self {
            any_port: false,
            service_field: ServiceField::default(),
            passwords: Passwords::default(),
            // As on Verizon's pages. A user observed one retry, after 1.3 s.
            retries: CallbackRetries { times: 3, interval: Duration::from_mins(5) },
            patience: Duration::from_secs(4),
            old_pair: Duration::ZERO,
            senders: 8,
            shape: CallbackShape::default(),
        }
    }
}

/// The URL of an account's callbacks, and the user name and password that they carry.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of the registration call")]
pub struct SimulatedRegistration {
    pub url: String,
    pub username: String,
    pub password: SecretString,
}

/// The order in which held callbacks are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Sequence {
    AsMade,
    Reversed,
    Shuffled,
}

#[derive(Debug, Clone)]
pub(super) struct SimulatedCallback {
    pub(super) account: AccountName,
    pub(super) request: RequestId,
    pub(super) device: Device,
    pub(super) result: DeviceResult,
    pub(super) shape: CallbackShape,
}

pub(super) enum Delivery {
    Callback(SimulatedCallback),
    /// The callbacks of the devices of a request in [`Mode::Auto`](super::Mode::Auto), each at its
    /// time.
    ResultsOf(RequestId),
}

pub(super) struct CallbackState {
    registered: BTreeMap<(AccountName, String), SimulatedRegistration>,
    /// The previous registration, and until when its pair is still sent. The time is absent until
    /// there is a new registration.
    previous: BTreeMap<(AccountName, String), (SimulatedRegistration, Option<Instant>)>,
    /// Callbacks that wait until a test releases them; `None`: callbacks are sent at once.
    held: Option<Vec<SimulatedCallback>>,
    pub(super) shape: CallbackShape,
    outbox: mpsc::UnboundedSender<Delivery>,
    /// Counts callbacks, so that the pairs alternate.
    sent: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistrationBody {
    name: String,
    url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl CallbackState {
    pub(super) fn new(shape: CallbackShape, outbox: mpsc::UnboundedSender<Delivery>) -> Self {
        let (registered, previous, held, sent) = Default::default();
        Self { registered, previous, held, shape, outbox, sent }
    }

    pub(super) fn of(
        &self,
        account: &AccountName,
        service: &str,
    ) -> Option<&SimulatedRegistration> {
        self.registered.get(&(account.clone(), service.to_owned()))
    }

    pub(super) fn put(
        &mut self,
        account: &AccountName,
        service: &str,
        registration: SimulatedRegistration,
        old_pair: Duration,
    ) {
        let key = (account.clone(), service.to_owned());
        if let Some((_, until)) = self.previous.get_mut(&key) {
            *until = Some(Instant::now() + old_pair);
        }
        self.registered.insert(key, registration);
    }

    pub(super) fn remove(&mut self, account: &AccountName, service: &str) -> bool {
        let key = (account.clone(), service.to_owned());
        let removed = self.registered.remove(&key);
        removed.is_some_and(|removed| {
            self.previous.insert(key, (removed, None));
            true
        })
    }

    /// Returns the URL and the pair of the next callback.
    pub(super) fn next_target(&mut self, account: &AccountName) -> Option<SimulatedRegistration> {
        let key = (account.clone(), SERVICE.to_owned());
        let current = self.registered.get(&key)?;
        self.sent += 1;
        match self.previous.get(&key) {
            Some((previous, Some(until))) if Instant::now() < *until && self.sent % 2 == 1 => {
                Some(SimulatedRegistration { url: current.url.clone(), ..previous.clone() })
            }
            _ => Some(current.clone()),
        }
    }

    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    pub(super) fn release(&mut self, sequence: Sequence) {
        let mut held = self.held.take().unwrap_or_default();
        match sequence {
            Sequence::AsMade => {}
            Sequence::Reversed => held.reverse(),
            Sequence::Shuffled => held.sort_by_cached_key(|_| Uuid::new_v4()),
        }
        for callback in held {
            self.send(Delivery::Callback(callback));
        }
    }

    /// Sends a callback, or keeps it while callbacks are held.
    pub(super) fn send_or_hold(&mut self, callback: SimulatedCallback) {
        match &mut self.held {
            Some(held) => held.push(callback),
            None => self.send(Delivery::Callback(callback)),
        }
    }

    pub(super) fn send(&self, delivery: Delivery) {
        // Fails only after the simulator has stopped.
        let _ = self.outbox.send(delivery);
    }

    pub(super) fn register(
        &mut self,
        account: &AccountName,
        body: &[u8],
        options: &Options,
    ) -> Result<Value, TextAnswer> {
        let RegistrationBody { name, url, username, password } = order::read_json(body)?;
        let error = |code: &str, message| Err(TextAnswer::uws(code, message));
        if !SERVICES.contains(&name.as_str()) {
            return error("INPUT_INVALID.ServiceName.Invalid", "There is no such service.");
        }
        if !is_url(&url, options.callbacks.any_port) {
            return error("INPUT_INVALID.Url.Invalid", "The URL or its port is not allowed.");
        }
        let is_long = |text: &str| text.chars().count() > SECRET_CHARS;
        if is_long(&username) || is_long(&password) || username == options.username {
            let message = "The username or the password is not allowed.";
            return error("INPUT_INVALID.Credentials.Invalid", message);
        }
        // The real code is not documented.
        if self.of(account, &name).is_some() {
            let message = "The service is registered. Deregister it first.";
            return error("REQUEST_FAILED.CallbackService.AlreadyRegistered", message);
        }
        let registration = SimulatedRegistration { url, username, password: password.into() };
        self.put(account, &name, registration, options.callbacks.old_pair);
        Ok(json!({"accountName": account.as_str(), "serviceName": name}))
    }

    pub(super) fn list(&self, account: &AccountName, options: &CallbackOptions) -> Value {
        let name = match options.service_field {
            ServiceField::ServiceName => "serviceName",
            ServiceField::Name => "name",
        };
        let of_account = self.registered.iter().filter(|((owner, _), _)| owner == account);
        of_account
            .map(|((_, service), SimulatedRegistration { url, username, password })| {
                let mut listed = json!({
                    "accountName": account.as_str(), name: service, "url": url,
                    "username": username,
                });
                match options.passwords {
                    Passwords::Shown => listed["password"] = password.expose_secret().into(),
                    Passwords::Masked => listed["password"] = "********".into(),
                    Passwords::Omitted => {}
                }
                listed
            })
            .collect()
    }

    pub(super) fn deregister(
        &mut self,
        account: &AccountName,
        service: &str,
    ) -> Result<Value, TextAnswer> {
        if !self.remove(account, service) {
            let code = "REQUEST_FAILED.CallbackService.NotFound";
            return Err(TextAnswer::uws(code, "The service is not registered."));
        }
        Ok(json!({"accountName": account.as_str(), "serviceName": service}))
    }
}

fn is_url(text: &str, any_port: bool) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let allowed = |port| {
        any_port || matches!(port, 80 | 443 | 9001..=9006 | 50_551..=50_559 | 28_200..=28_220)
    };
    matches!(url.scheme(), "http" | "https") && url.port_or_known_default().is_some_and(allowed)
}
