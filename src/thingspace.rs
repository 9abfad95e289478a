//! The client of ThingSpace: one send path, one function per endpoint.
//!
//! - [`client`]: one function per endpoint, with the limits and the retries of each call.
//! - [`login`]: the two tokens and the guard that stops logins before ThingSpace locks the user.
//! - [`mod@http`]: one HTTP request, and what its answer means.
//!
//! `client` uses `login`, and both use `http`; nothing points back.
//!
//! It owns the two tokens: nobody outside this module sees one, and nobody renews one but
//! `login`. It decides what a failure means, where the knowledge is, as one [`Error`] of a closed
//! list; its callers match on that alone.
//!
//! It never sends an order twice on its own: [`Client::place_order`] repeats only what ThingSpace
//! certainly turned away before execution (one renewal for each kind of token). Calls without
//! effect are tried again by [`client`]'s pace, and a host that does not answer is left alone by
//! its breaker ([`http`]).

mod client;
mod error;
mod http;
mod login;

#[cfg(test)]
mod tests;

pub use self::http::HostHealth;
pub(crate) use self::http::{Object, Parts, shown_code};
pub use client::{BuildError, Client, OrderPermit, PollPermit, Purpose, Retries, StatusLookup};
pub use error::{Error, Refusal, RefusalKind};
pub use login::{
    CallbackPasswords, LoginStanding, UnblockMode, UnblockOutcome, UnblockRefusal, Unblocked,
};

use aws_lc_rs::digest;
use secrecy::{ExposeSecret, SecretString};

use crate::identity::Device;
use http::wire;

/// What an order says upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub account: crate::identity::AccountName,
    pub devices: Vec<Device>,
    /// Empty: left out.
    pub service_plan: String,
}

/// ThingSpace's words for a status, reduced to what they mean (`Success`, `Failed`, `Failure`,
/// `Queued`, …; any case).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusClass {
    Pending,
    /// Warning or on hold: not final.
    Waiting,
    Succeeded,
    /// Failed or cancelled.
    Failed,
    /// A word we do not know. Never final, changes nothing.
    Unknown,
}

impl StatusClass {
    /// What a word means, in any case and with any punctuation (`In Progress`, `IN_PROGRESS`).
    pub fn of(word: &str) -> Self {
        wire::class(word)
    }
}

/// A status answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusAnswer {
    pub overall: StatusClass,
    /// One per sub-request. Identifiers of unknown kinds or shapes are left out.
    pub devices: Vec<(Device, StatusClass)>,
}

/// A URL that is registered for the callbacks of a service. Whoever knows the URL may post to it:
/// it is not printed.
#[derive(Debug, Clone)]
pub struct Registration {
    pub service: String,
    pub url: SecretString,
    pub username: String,
    /// SHA-256 of what is listed as the password; whatever it is, it is not kept.
    password: Option<[u8; digest::SHA256_OUTPUT_LEN]>,
}

impl Registration {
    /// Whether this password is listed; `None`: none is.
    pub fn has_password(&self, password: &SecretString) -> Option<bool> {
        self.password.map(|listed| listed == sha256(password.expose_secret()))
    }
}

fn sha256(text: &str) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What to register: where callbacks go, and what they carry to prove where they come from.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub url: &'a SecretString,
    pub username: &'a str,
    pub password: &'a SecretString,
}
