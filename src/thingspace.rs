//! The client of ThingSpace.
//!
//! - [`client`]: one function per endpoint, with the limits and the retries of each call.
//! - [`login`]: the two tokens and the guard that stops logins before ThingSpace locks the user.
//! - [`mod@http`]: one HTTP request, and what its answer means.
//!
//! `client` uses `login`, and both use `http`, never the other way.
//!
//! Guarantees: no other module sees a token. Each failure is one [`Error`] of a closed list.
//! [`Client::place_order`] repeats an order only if ThingSpace certainly refused it because of a
//! token, at most twice for each kind of token. Never resends an order whose outcome is unknown,
//! and never calls a host while its breaker is open.

mod client;
mod error;
mod http;
mod login;

#[cfg(test)]
mod tests;

pub(crate) use self::http::{DeviceParts, HostAnswer, HostHealth, Object, probe, shown_code};
pub use client::{BuildError, Client, PollPermit};
pub(crate) use client::{OrderPermit, Purpose, Retries, StatusLookup};
pub use error::{Error, Refusal, RefusalKind};
pub(crate) use login::{
    CallbackPasswords, LoginHealth, LoginMeasures, LoginState, TokenMeasures, UnblockMode,
    UnblockOutcome, UnblockRefusal, Unblocked,
};

use aws_lc_rs::digest;
use secrecy::{ExposeSecret, SecretString};

use crate::identity::Device;

/// An order for profile downloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The account that the order is charged to.
    pub account: crate::identity::AccountName,
    /// 1 to 10,000 devices, each with EID and ICCID.
    pub devices: Vec<Device>,
    /// If empty, the order names no plan.
    pub service_plan: String,
}

/// The meaning of a status word of ThingSpace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusClass {
    /// Queued or in progress.
    Pending,
    /// A warning, or on hold. Not final.
    Waiting,
    /// Final.
    Succeeded,
    /// Failed or cancelled. Final.
    Failed,
    /// Another word, or contradictory entries. Not final, and changes nothing.
    Unknown,
}

impl StatusClass {
    /// Returns the class of a word in any case and punctuation (`In Progress`, `IN_PROGRESS`).
    pub(crate) fn of(word: &str) -> Self {
        let letters: String = word
            .chars()
            .filter(char::is_ascii_alphabetic)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        match letters.as_str() {
            "success" | "succeeded" | "successful" | "complete" | "completed" => Self::Succeeded,
            "failed" | "failure" | "fail" | "error" | "cancelled" | "canceled" => Self::Failed,
            "pending" | "queued" | "inprogress" | "processing" | "submitted" => Self::Pending,
            "warning" | "onhold" | "requestonhold" => Self::Waiting,
            _ => Self::Unknown,
        }
    }
}

/// The answer to a status query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusAnswer {
    /// The status of the whole request.
    pub overall: StatusClass,
    /// One for each sub-request. Identifiers of unknown kinds or forms are left out.
    pub devices: Vec<(Device, StatusClass)>,
}

/// The registration of a URL for the callbacks of a service. The URL is a secret.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) service: String,
    pub(crate) url: SecretString,
    pub(crate) username: String,
    /// SHA-256 of the listed password. The password itself is not kept.
    password: Option<[u8; digest::SHA256_OUTPUT_LEN]>,
}

impl Registration {
    /// Returns whether this is the listed password. `None`: no password is listed.
    pub(crate) fn has_password(&self, password: &SecretString) -> Option<bool> {
        self.password.map(|listed| listed == sha256(password.expose_secret()))
    }
}

fn sha256(text: &str) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The target of a registration: where callbacks go, and the pair that proves their sender.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) url: &'a SecretString,
    pub(crate) username: &'a str,
    pub(crate) password: &'a SecretString,
}
