//! Counts the calls, logins, orders and callbacks of the simulator.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Instant,
};

use super::faults::Endpoint;
use crate::identity::{AccountName, Device, RequestId};

/// The most calls of unknown paths that are listed.
const MAX_UNEXPECTED: usize = 100;

/// Counts and lists since the start. A call is counted when its whole body has arrived, with any
/// outcome.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Bearer tokens that were issued. A token that is returned again is not counted.
    pub bearers_issued: u64,
    /// Logins that began a session.
    pub logins_accepted: u64,
    /// Logins that were rejected, also those of a locked or unknown user.
    pub logins_rejected: u64,
    /// Wrong passwords of the user since the last accepted login.
    pub rejected_in_a_row: u32,
    /// Whether the user is locked: its logins are rejected until [`unlock`](super::Handle::unlock).
    pub locked: bool,
    /// Sessions that have expired.
    pub session_expiries: u64,
    /// The accepted orders, oldest first.
    pub orders: Vec<PlacedOrder>,
    /// Calls of unknown paths, as `METHOD path`.
    pub unexpected: Vec<String>,
    calls: BTreeMap<Endpoint, u64>,
    in_flight: BTreeMap<Endpoint, u64>,
    peaks: BTreeMap<Endpoint, u64>,
    polls: HashMap<RequestId, u64>,
    callbacks: Attempts,
    callbacks_of: HashMap<RequestId, Attempts>,
}

/// The attempts to send callbacks, and their answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Attempts that began.
    pub sent: u64,
    /// Attempts that were answered with a 2xx.
    pub acknowledged: u64,
    /// Attempts that were answered with another status, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Attempts without an answer.
    pub broken: u64,
}

impl Attempts {
    fn answered(&mut self, status: Option<u16>) {
        match status {
            Some(200..=299) => self.acknowledged += 1,
            Some(status) => *self.refused.entry(status).or_default() += 1,
            None => self.broken += 1,
        }
    }
}

/// An order that the simulator accepted.
#[derive(Clone)]
#[expect(missing_docs, reason = "the fields are those of the order")]
pub struct PlacedOrder {
    pub request_id: RequestId,
    pub account: AccountName,
    pub devices: Arc<[Device]>,
    pub service_plan: Option<Arc<str>>,
    /// When it was accepted.
    pub time: Instant,
}

impl Ledger {
    /// Returns the number of calls of an endpoint.
    pub fn calls(&self, endpoint: Endpoint) -> u64 {
        self.calls.get(&endpoint).copied().unwrap_or(0)
    }

    /// Returns `calls(Endpoint::Token)`.
    pub fn token_requests(&self) -> u64 {
        self.calls(Endpoint::Token)
    }

    /// Returns `calls(Endpoint::Login)`.
    pub fn logins(&self) -> u64 {
        self.calls(Endpoint::Login)
    }

    /// Returns `calls(Endpoint::Status)`.
    pub fn polls(&self) -> u64 {
        self.calls(Endpoint::Status)
    }

    /// Returns the number of status queries about a request.
    pub fn polls_of(&self, request: &RequestId) -> u64 {
        self.polls.get(request).copied().unwrap_or(0)
    }

    /// Returns the attempts to send callbacks, of all requests.
    pub fn callbacks(&self) -> &Attempts {
        &self.callbacks
    }

    /// Returns the attempts to send callbacks of a request.
    pub fn callbacks_of(&self, request: &RequestId) -> Attempts {
        self.callbacks_of.get(request).cloned().unwrap_or_default()
    }

    /// Returns the number of calls that are being executed, also for callers that went away.
    pub fn in_flight(&self, endpoint: Endpoint) -> u64 {
        self.in_flight.get(&endpoint).copied().unwrap_or(0)
    }

    /// Returns the most calls that were in flight at once.
    pub fn peak(&self, endpoint: Endpoint) -> u64 {
        self.peaks.get(&endpoint).copied().unwrap_or(0)
    }

    /// Returns the number of orders for the device with this EID.
    pub fn times_ordered(&self, eid: &str) -> usize {
        let has =
            |order: &&PlacedOrder| order.devices.iter().any(|device| device.eid.as_str() == eid);
        self.orders.iter().filter(has).count()
    }

    pub(super) fn arrived(&mut self, endpoint: Endpoint) {
        *self.calls.entry(endpoint).or_default() += 1;
        let now = self.in_flight.entry(endpoint).or_default();
        *now += 1;
        let peak = self.peaks.entry(endpoint).or_default();
        *peak = (*peak).max(*now);
    }

    pub(super) fn answered(&mut self, endpoint: Endpoint) {
        *self.in_flight.entry(endpoint).or_default() -= 1;
    }

    pub(super) fn polled(&mut self, request: RequestId) {
        *self.polls.entry(request).or_default() += 1;
    }

    pub(super) fn called_back(&mut self, request: &RequestId) {
        self.callbacks.sent += 1;
        self.callbacks_of.entry(request.clone()).or_default().sent += 1;
    }

    pub(super) fn callback_answered(&mut self, request: &RequestId, status: Option<u16>) {
        self.callbacks.answered(status);
        self.callbacks_of.entry(request.clone()).or_default().answered(status);
    }

    pub(super) fn unexpected(&mut self, call: String) {
        if self.unexpected.len() < MAX_UNEXPECTED {
            self.unexpected.push(call);
        }
    }
}

impl fmt::Debug for PlacedOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request_id, account, devices, .. } = self;
        write!(f, "{request_id} of {account} for {} devices", devices.len())
    }
}
