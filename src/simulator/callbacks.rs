//! Where results are to be sent: the registrations, and the three calls that look after them.
//!
//! As on Verizon's pages: one URL per service and account, none over another, the password shown in
//! clear to everybody who may list. Results go to the URL of [`SERVICE`]; without one they are
//! lost, as they are there.

mod deliver;
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

pub use deliver::{Retries, Sequence};
pub use shape::{CallbackShape, Case, Ids, Kinds, Sender};

pub(super) use deliver::{Callback, Errand, run};

use super::{Options, refusal::Refusal};
use crate::identity::AccountName;

/// The service whose callbacks tell how profiles get on.
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

/// Of a username and of a password.
const SECRET_CHARS: usize = 40;

/// How callbacks are registered and delivered.
#[derive(Debug, Clone)]
pub struct CallbackOptions {
    /// Take a URL with any port, not only with one of those that ThingSpace sends to.
    pub any_port: bool,
    /// What the listing calls a service: `serviceName`, or `name`.
    pub names: Names,
    /// What the listing shows of passwords.
    pub passwords: Passwords,
    pub retries: Retries,
    /// An attempt without an answer for this long is followed by the next copy at once, while the
    /// first is still open.
    pub patience: Duration,
    /// How long after a registration the pair of the one before it still comes, in turn with the
    /// new.
    pub old_pair: Duration,
    /// Copies of each callback, sent at the same moment.
    pub copies: u32,
    /// Attempts under way at once.
    pub senders: usize,
    /// Whose certificates `https` URLs may show, PEM; empty: nobody's.
    pub trusted_ca: String,
    pub shape: CallbackShape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    #[default]
    ServiceName,
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passwords {
    #[default]
    Shown,
    Masked,
    Omitted,
}

impl Default for CallbackOptions {
    fn default() -> Self {
        Self {
            any_port: false,
            names: Names::default(),
            passwords: Passwords::default(),
            retries: Retries::documented(),
            patience: Duration::from_secs(4),
            old_pair: Duration::ZERO,
            copies: 1,
            senders: 8,
            trusted_ca: String::new(),
            shape: CallbackShape::default(),
        }
    }
}

/// A URL that is registered for a service of an account.
#[derive(Debug, Clone)]
pub struct Registered {
    pub url: String,
    pub username: String,
    pub password: SecretString,
}

pub(super) struct Callbacks {
    registered: BTreeMap<(AccountName, String), Registered>,
    /// The pair of the registration before, and until when it still comes.
    former: BTreeMap<(AccountName, String), (Registered, Option<Instant>)>,
    /// Callbacks that wait for a test to let them go.
    held: Option<Vec<Callback>>,
    pub(super) shape: CallbackShape,
    outbox: mpsc::UnboundedSender<Errand>,
    turn: u64,
}

impl Callbacks {
    pub(super) fn new(shape: CallbackShape, outbox: mpsc::UnboundedSender<Errand>) -> Self {
        Self {
            registered: BTreeMap::new(),
            former: BTreeMap::new(),
            held: None,
            shape,
            outbox,
            turn: 0,
        }
    }

    pub(super) fn of(&self, account: &AccountName, service: &str) -> Option<&Registered> {
        self.registered.get(&(account.clone(), service.to_owned()))
    }

    /// As if somebody had registered it.
    pub(super) fn put(
        &mut self,
        account: &AccountName,
        service: &str,
        registered: Registered,
        old: Duration,
    ) {
        let key = (account.clone(), service.to_owned());
        if let Some((_, until)) = self.former.get_mut(&key) {
            *until = Some(Instant::now() + old);
        }
        self.registered.insert(key, registered);
    }

    pub(super) fn remove(&mut self, account: &AccountName, service: &str) -> bool {
        let key = (account.clone(), service.to_owned());
        let removed = self.registered.remove(&key);
        removed.is_some_and(|removed| {
            self.former.insert(key, (removed, None));
            true
        })
    }

    /// Where a callback goes now, and with whose pair.
    fn address(&mut self, account: &AccountName) -> Option<(String, Registered)> {
        let key = (account.clone(), SERVICE.to_owned());
        let current = self.registered.get(&key)?;
        self.turn += 1;
        let old = self
            .former
            .get(&key)
            .filter(|(_, until)| until.is_some_and(|until| Instant::now() < until));
        let pair = old.filter(|_| self.turn % 2 == 1).map_or(current, |(old, _)| old);
        Some((current.url.clone(), pair.clone()))
    }

    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    pub(super) fn release(&mut self, sequence: Sequence) {
        let held = sequence.arrange(self.held.take().unwrap_or_default());
        for callback in held {
            self.send(Errand::Deliver(callback));
        }
    }

    /// Sends it when its turn comes, or keeps it while callbacks are held.
    pub(super) fn post(&mut self, callback: Callback) {
        match &mut self.held {
            Some(held) => held.push(callback),
            None => self.send(Errand::Deliver(callback)),
        }
    }

    pub(super) fn send(&self, errand: Errand) {
        // Nobody listens once the simulator has stopped: then nothing is sent any more.
        let _ = self.outbox.send(errand);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

pub(super) fn register(
    callbacks: &mut Callbacks,
    account: &AccountName,
    body: &[u8],
    options: &Options,
) -> Result<Value, Refusal> {
    if body.iter().any(|byte| b"'<\\".contains(byte)) {
        let code = "INPUT_INVALID.Request.InvalidCharacter";
        return Err(Refusal::uws(code, "The request has an invalid character."));
    }
    let body: Body = serde_json::from_slice(body)
        .map_err(|_| Refusal::uws("DeserializationFailed", "The request could not be read."))?;
    if !SERVICES.contains(&body.name.as_str()) {
        return Err(Refusal::uws("INPUT_INVALID.ServiceName.Invalid", "There is no such service."));
    }
    if !is_url(&body.url, options.callbacks.any_port) {
        return Err(Refusal::uws(
            "INPUT_INVALID.Url.Invalid",
            "The URL or its port is not allowed.",
        ));
    }
    let long = |text: &str| text.chars().count() > SECRET_CHARS;
    if long(&body.username) || long(&body.password) || body.username == options.username {
        let code = "INPUT_INVALID.Credentials.Invalid";
        return Err(Refusal::uws(code, "The username or the password is not allowed."));
    }
    // What the real code is, nobody wrote down.
    if callbacks.of(account, &body.name).is_some() {
        let code = "REQUEST_FAILED.CallbackService.AlreadyRegistered";
        return Err(Refusal::uws(code, "The service is registered. Deregister it first."));
    }
    let registered =
        Registered { url: body.url, username: body.username, password: body.password.into() };
    callbacks.put(account, &body.name, registered, options.callbacks.old_pair);
    Ok(json!({"accountName": account.as_str(), "serviceName": body.name}))
}

pub(super) fn list(
    callbacks: &Callbacks,
    account: &AccountName,
    options: &CallbackOptions,
) -> Value {
    let name = match options.names {
        Names::ServiceName => "serviceName",
        Names::Name => "name",
    };
    let of_account = callbacks.registered.iter().filter(|((owner, _), _)| owner == account);
    of_account
        .map(|((_, service), Registered { url, username, password })| {
            let mut listed = json!({
                "accountName": account.as_str(), name: service, "url": url, "username": username,
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
    callbacks: &mut Callbacks,
    account: &AccountName,
    service: &str,
) -> Result<Value, Refusal> {
    if !callbacks.remove(account, service) {
        let code = "REQUEST_FAILED.CallbackService.NotFound";
        return Err(Refusal::uws(code, "The service is not registered."));
    }
    Ok(json!({"accountName": account.as_str(), "serviceName": service}))
}

fn is_url(text: &str, any_port: bool) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let allowed = |port| {
        any_port || matches!(port, 80 | 443 | 9001..=9006 | 50_551..=50_559 | 28_200..=28_220)
    };
    matches!(url.scheme(), "http" | "https") && url.port_or_known_default().is_some_and(allowed)
}
