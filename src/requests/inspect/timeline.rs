//! The events of a request and of its order, in words.

use std::{collections::VecDeque, fmt::Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    identity::{Device, Digits},
    proto::storage::{self, Event, SettledBy},
    requests::fold::event::{self, Kind},
    store::Entry,
    thingspace::StatusClass,
};

/// The events that are shown: the first and the last ones of a longer history.
const FIRST_EVENTS: usize = 20;
const LAST_EVENTS: usize = 180;

/// The devices of one event that are named.
const NAMED_DEVICES: usize = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TimelineEvent {
    /// By the store's clock.
    pub(crate) time: Timestamp,
    /// The kind of the event, for example `accepted`.
    pub(crate) event: String,
    /// The event in words.
    pub(crate) text: String,
}

/// Collects events in the order of their logs.
#[derive(Debug)]
pub(super) struct Timeline {
    reveal: bool,
    first: Vec<(u64, TimelineEvent)>,
    last: VecDeque<(u64, TimelineEvent)>,
    left_out: usize,
}

impl Timeline {
    pub(super) fn new(reveal: bool) -> Self {
        Self { reveal, first: Vec::new(), last: VecDeque::new(), left_out: 0 }
    }

    pub(super) fn add(&mut self, entry: &Entry, event: Event) {
        let (kind, text) = describe(event.kind, self.reveal);
        let event = TimelineEvent { time: entry.time, event: kind.to_owned(), text };
        let event = (entry.position.sequence, event);
        if self.first.len() < FIRST_EVENTS {
            self.first.push(event);
            return;
        }
        self.last.push_back(event);
        if self.last.len() > LAST_EVENTS {
            self.last.pop_front();
            self.left_out += 1;
        }
    }

    /// Returns the events in the order in which they were stored, and the number of those that are
    /// left out.
    pub(super) fn end(self) -> (Vec<TimelineEvent>, usize) {
        let mut events: Vec<_> = self.first.into_iter().chain(self.last).collect();
        events.sort_by_key(|(sequence, _)| *sequence);
        (events.into_iter().map(|(_, event)| event).collect(), self.left_out)
    }
}

/// Returns the kind of an event and its text.
fn describe(kind: Option<Kind>, reveal: bool) -> (&'static str, String) {
    let Some(kind) = kind else {
        return ("unknown", "a newer version of the gateway wrote this event".to_owned());
    };
    match kind {
        Kind::Ordered(ordered) => (
            "ordered",
            format!("{} ordered {}", caller(&ordered.caller), devices(&ordered.devices, reveal))
                + &plan(&ordered.service_plan),
        ),
        Kind::Refused(refused) => (
            "refused",
            format!(
                "ThingSpace refused the order with HTTP {} and the code {:?}",
                refused.http_status, refused.code
            ),
        ),
        Kind::NotSent(_) => ("not_sent", "the order was not sent".to_owned()),
        Kind::AcceptedAs(accepted) => (
            "accepted_as",
            format!("ThingSpace accepted the order as request {}", accepted.request_id),
        ),
        Kind::Accepted(accepted) => (
            "accepted",
            format!(
                "the request belongs to order {} for {}",
                accepted.order_id,
                devices(&accepted.devices, reveal)
            ),
        ),
        Kind::Observed(observed) => ("observed", observation(&observed, reveal)),
        Kind::CalledBack(called_back) => ("called_back", callback(&called_back, reveal)),
        Kind::Abandoned(_) => {
            ("given_up", "the gateway gave the request up; it is not polled any more".to_owned())
        }
        Kind::Settled(settled) => ("settled", settlement(&settled)),
        Kind::Withdrawn(withdrawn) => (
            "withdrawn",
            format!(
                "it was withdrawn that order {} was accepted as request {}",
                withdrawn.order_id, withdrawn.request_id
            ),
        ),
    }
}

fn plan(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" with the service plan {name:?}") }
}

fn caller(name: &str) -> &str {
    if name.is_empty() { "a caller" } else { name }
}

fn observation(observed: &storage::Observed, reveal: bool) -> String {
    let overall = class(observed.overall);
    if observed.devices.is_empty() {
        return format!("a status answer says {overall} for the whole request");
    }
    let statuses = observed.devices.iter().map(|device| {
        let shown = device.device.as_ref().map(event::from_stored).unwrap_or_default();
        format!("{} {}", show_device(&shown, reveal), class(device.status))
    });
    format!(
        "a status answer says {overall}, with news about {}",
        list(statuses, observed.devices.len())
    )
}

fn callback(called_back: &storage::CalledBack, reveal: bool) -> String {
    let device = called_back.device.as_ref().map(event::from_stored).unwrap_or_default();
    let mut text = format!(
        "a callback says {} for {}",
        class(called_back.status),
        show_device(&device, reveal)
    );
    if let Some(fault) = &called_back.fault {
        let _ = write!(text, ", with the code {:?}", fault.code);
    }
    text
}

fn settlement(settled: &storage::Settled) -> String {
    let by = match settled.by() {
        SettledBy::Operator => "an operator",
        SettledBy::Evidence => "evidence",
        SettledBy::Unspecified => "something",
    };
    if settled.request_id.is_empty() {
        return format!("{by} settled the order: it was not placed");
    }
    format!("{by} settled the order: it was accepted as request {}", settled.request_id)
}

fn class(stored: i32) -> &'static str {
    match event::class_from_stored(stored) {
        StatusClass::Pending => "pending",
        StatusClass::Waiting => "waiting",
        StatusClass::Succeeded => "succeeded",
        StatusClass::Failed => "failed",
        StatusClass::Unknown => "unknown",
    }
}

fn devices(devices: &[storage::Device], reveal: bool) -> String {
    let shown = devices.iter().map(|device| show_device(&event::from_stored(device), reveal));
    list(shown, devices.len())
}

/// Lists the first [`NAMED_DEVICES`].
fn list(items: impl Iterator<Item = String>, count: usize) -> String {
    let shown: Vec<_> = items.take(NAMED_DEVICES).collect();
    let noun = if count == 1 { "device" } else { "devices" };
    let rest = count - shown.len();
    let rest = if rest > 0 { format!("; and {rest} more") } else { String::new() };
    format!("{count} {noun} ({}{rest})", shown.join("; "))
}

/// Shows the identifiers of a device, with their last four digits or completely.
pub(super) fn show_device(device: &Device, reveal: bool) -> String {
    let show = |digits: &Digits| {
        if reveal { digits.as_str().to_owned() } else { digits.to_string() }
    };
    let shown: Vec<_> = device
        .present()
        .map(|(kind, digits)| format!("{} {}", kind.as_str(), show(digits)))
        .collect();
    if shown.is_empty() { "a device without a name".to_owned() } else { shown.join(", ") }
}
