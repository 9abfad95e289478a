//! The client of ThingSpace: one send path, one function per endpoint.
//!
//! It owns the two tokens: nobody outside this module sees one, and nobody renews one but `session`. It decides what
//! a failure means, where the knowledge is, as one [`Error`] of a closed list; its callers match on that alone.
//!
//! It never sends an order twice on its own: [`Client::place_order`] repeats only what ThingSpace certainly turned
//! away before execution (one renewal for each kind of token).

mod client;
mod code;
mod error;
mod limit;
mod session;
mod transport;
mod trouble;
mod verdict;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use code::shown as shown_code;

pub use client::{BuildError, Client, OrderPermit, Purpose, StatusLookup};
pub use error::{Error, Refusal, RefusalKind};

use crate::identity::Device;

/// What an order says upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub account: crate::identity::AccountName,
    pub devices: Vec<Device>,
    /// Empty: left out.
    pub service_plan: String,
}

/// ThingSpace's words for a status, reduced to what they mean (`Success`, `Failed`, `Failure`, `Queued`, …; any case).
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
