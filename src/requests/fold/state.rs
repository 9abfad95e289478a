//! The state of a request, folded from its log and from nothing else.
//!
//! The fold has no clock, no I/O, no logging and no randomness. The same events in the same order
//! give the same transitions on every replica and after every restart. A duplicate, late or
//! contradicting event does not change the visible state.
//!
//! The rules:
//!
//! - A device is found by its EID if the event has one, else by an identifier that exactly one
//!   device of the request has. Since rules 4, a callback whose identifiers match no device applies
//!   to the only device.
//! - A device moves from pending to waiting to a final state, and the first final state stays.
//! - Fault, profile, EID, IMEI and MDN are filled in once, also for a final device. Since rules 3,
//!   so is an ICCID that no other device has.
//! - A request is final when its device set is known and no device is pending. It becomes pending
//!   again only if the acceptance of its order is withdrawn. Then it is an external request.
//! - Later events name the first event of their log. A log with another first event has lost its
//!   beginning. Its request is expired and has no visible state, because the remaining events may
//!   give wrong devices or states.

mod devices;
mod mismatch;
mod observations;
mod shown;
mod size;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::event::{self, Kind};
use crate::{
    identity::{AccountName, Device, Digits, IdentifierKind},
    proto::storage::{self, Event},
    store::Position,
};
pub(crate) use shown::{Applied, Counts, DeviceState, DeviceStatus, RequestState, Transition};

/// Callbacks that are kept until the device set is known: a warning and a result for each of 10,000
/// devices, each sent twice.
const MAX_EARLY: usize = 40_000;

/// A request, folded up to one event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The account in `Accepted` or, without one, in the first status answer.
    pub(crate) account: Option<AccountName>,
    /// The order that placed the request. `None`: an external request.
    pub(crate) order_id: Option<String>,
    /// The caller that placed the order. `None`: an earlier release placed it.
    pub(crate) caller: Option<Arc<str>>,
    /// The position of that order's `Accepted`.
    pub(crate) accepted: Option<Position>,
    /// Whether the device set is complete.
    pub(crate) known: bool,
    pub(crate) devices: Vec<Arc<DeviceStatus>>,
    pub(crate) counts: Counts,
    pub(crate) revision: u64,
    pub(crate) polling_stopped: bool,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    /// The rules of the first event; 0 before it.
    rules: u32,
    pub(crate) first: Option<Position>,
    /// Whether the log has lost its first events.
    expired: bool,
    /// The final overall status of an answer without devices. It applies to every device.
    overall: Option<DeviceState>,
    /// The index of the device with an identifier. `None`: several devices have it.
    index: HashMap<(IdentifierKind, Digits), Option<usize>>,
    /// Callbacks from before the device set was known, at most [`MAX_EARLY`].
    early: Vec<storage::CalledBack>,
    /// The size of faults, profiles and early callbacks in memory, in bytes.
    text_bytes: usize,
}

impl Request {
    pub(crate) fn state(&self) -> RequestState {
        let Counts { total, succeeded, failed } = self.counts;
        if !self.known || self.counts.pending() > 0 {
            RequestState::Pending
        } else if total == 0 {
            match self.overall {
                Some(DeviceState::Succeeded) => RequestState::Succeeded,
                Some(DeviceState::Failed) => RequestState::Failed,
                _ => RequestState::Pending,
            }
        } else if failed == 0 {
            RequestState::Succeeded
        } else if succeeded == 0 {
            RequestState::Failed
        } else {
            RequestState::PartiallySucceeded
        }
    }

    /// Returns the time from the first event to the last change.
    pub(crate) fn duration(&self) -> Duration {
        self.update_time.duration_since(self.create_time).try_into().unwrap_or_default()
    }

    pub(crate) fn is_final(&self) -> bool {
        self.state() != RequestState::Pending
    }

    /// Whether the log has lost its first events, so that the state is not known.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired
    }

    /// Returns the first position of the log. `None`: the log is empty, or its beginning is lost.
    pub(crate) fn beginning(&self) -> Option<Position> {
        self.first.filter(|_| !self.expired)
    }

    /// Whether the request needs no polls: it is final, given up or expired, or it is an external
    /// request whose devices are not known.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_final() || self.polling_stopped || !self.known
    }

    /// Folds one event. Each event must be folded once, in the order of the positions.
    pub(crate) fn apply(&mut self, position: Position, time: Timestamp, event: &Event) -> Applied {
        if self.first.is_none() {
            self.first = Some(position);
            self.rules = event.rules;
            self.create_time = time;
            self.update_time = time;
        }
        if event.first_sequence != 0
            && self.first.is_some_and(|first| first.sequence != event.first_sequence)
        {
            self.expire();
        }
        let mut applied = Applied::default();
        let Some(kind) = event.kind.as_ref().filter(|_| self.folds()) else { return applied };
        let before = self.summary();
        let mut step =
            FoldStep { time, changed: Vec::new(), restart: false, applied: &mut applied };
        match kind {
            Kind::Accepted(accepted) => self.accept(accepted, position, &mut step),
            Kind::Observed(observed) => self.observe(observed, &mut step),
            Kind::CalledBack(called_back) => self.call_back(called_back, &mut step),
            Kind::Abandoned(_) => self.polling_stopped |= !self.is_final(),
            Kind::Withdrawn(withdrawn) => self.withdraw(withdrawn, &mut step),
            // Events of order logs.
            Kind::Ordered(_)
            | Kind::Refused(_)
            | Kind::NotSent(_)
            | Kind::AcceptedAs(_)
            | Kind::Settled(_) => {}
        }
        let FoldStep { mut changed, restart, .. } = step;
        if restart || !changed.is_empty() || self.summary() != before {
            changed.sort_unstable();
            changed.dedup();
            self.revision += 1;
            self.update_time = time;
            applied.transition = Some(Transition {
                revision: self.revision,
                position,
                time,
                state: self.state(),
                counts: self.counts,
                polling_stopped: self.polling_stopped,
                devices: changed.into_iter().map(|at| Arc::clone(&self.devices[at])).collect(),
                restart,
            });
        }
        applied
    }

    /// Whether this version knows the rules of the log, and the log is complete.
    fn folds(&self) -> bool {
        !self.expired
            && matches!(self.rules, event::FIRST_RULES | event::ICCID_RULES | event::RULES)
    }

    fn expire(&mut self) {
        let Self { rules, first, create_time, update_time, .. } = *self;
        *self = Self { create_time, update_time, rules, first, expired: true, ..Self::default() };
    }

    /// Returns the visible state without the devices.
    fn summary(&self) -> (Option<AccountName>, RequestState, Counts, bool) {
        (self.account.clone(), self.state(), self.counts, self.polling_stopped)
    }

    fn accept(&mut self, accepted: &storage::Accepted, at: Position, step: &mut FoldStep<'_>) {
        let Ok(account) = AccountName::parse(&accepted.account) else { return };
        if self.order_id.is_some() {
            return;
        }
        self.order_id = Some(accepted.order_id.clone());
        self.caller =
            Some(accepted.caller.as_str()).filter(|name| !name.is_empty()).map(Into::into);
        self.accepted = Some(at);
        if self.account.as_ref().is_some_and(|known| *known != account) {
            // The account of the order is right, so the answers for another account were wrong.
            self.devices.clear();
            (self.known, self.overall) = (false, None);
            self.text_bytes = size::of_early(&self.early);
        }
        self.account = Some(account);
        if self.is_final() && self.overall.is_none() {
            // A final request stays final, so it gets no further devices.
            for device in accepted.devices.iter().map(event::from_stored) {
                self.apply_status(&device, DeviceState::Pending, None, None, step);
            }
            return;
        }
        // Earlier states are kept for the devices of the order.
        let earlier = std::mem::take(&mut self.devices);
        self.index.clear();
        self.text_bytes = size::of_early(&self.early);
        self.counts = Counts::default();
        for device in &accepted.devices {
            self.add(event::from_stored(device), step);
        }
        self.known = true;
        for status in earlier {
            let DeviceStatus { device, state, fault, profile, .. } = &*status;
            self.apply_status(device, *state, fault.as_ref(), profile.as_ref(), step);
        }
        self.apply_to_all(self.overall, step);
        self.fold_early(step);
    }

    /// Drops the devices and their states, because the order was not accepted as this request.
    fn withdraw(&mut self, withdrawn: &storage::Withdrawn, step: &mut FoldStep<'_>) {
        if self.order_id.as_ref() != Some(&withdrawn.order_id) {
            return;
        }
        let Self { rules, first, create_time, revision, .. } = *self;
        *self = Self { revision, create_time, rules, first, ..Self::default() };
        step.restart = true;
    }

    fn observe(&mut self, observed: &storage::Observed, step: &mut FoldStep<'_>) {
        let Ok(account) = AccountName::parse(&observed.account) else { return };
        if !self.is_of(account.as_str()) {
            return;
        }
        self.account = Some(account);
        let unmatched_before = step.applied.unmatched;
        for entry in &observed.devices {
            let device = event::from_stored(&entry.device.clone().unwrap_or_default());
            // An unknown status only says that the device exists.
            let state = DeviceState::of(event::class_from_stored(entry.status))
                .unwrap_or(DeviceState::Pending);
            if self.is_new(&device) {
                self.add(device.clone(), step);
            }
            self.apply_status(&device, state, None, None, step);
        }
        let listed = step.applied.unmatched - unmatched_before < observed.devices.len();
        let overall = DeviceState::of(event::class_from_stored(observed.overall));
        let becomes_known = !self.known && observed.complete && completes(overall, listed);
        self.known |= becomes_known;
        if self.known && observed.overall_only {
            self.apply_to_all(overall, step);
        }
        if becomes_known {
            self.overall = overall.filter(|state| state.is_final() && self.devices.is_empty());
            self.fold_early(step);
        }
    }

    fn call_back(&mut self, called_back: &storage::CalledBack, step: &mut FoldStep<'_>) {
        if !self.known {
            if self.early.len() < MAX_EARLY {
                self.text_bytes += size::of_early(std::slice::from_ref(called_back));
                self.early.push(called_back.clone());
            } else {
                step.applied.unmatched += 1;
            }
        } else if self.is_of(&called_back.account)
            && let Some(state) = DeviceState::of(event::class_from_stored(called_back.status))
        {
            let device = event::from_stored(&called_back.device.clone().unwrap_or_default());
            let (at, device) = match self.find(&device) {
                Some(at) => (Some(at), device),
                // The identifiers may be those of another device, so they are not filled in.
                None => (self.only_device(&device), Device::default()),
            };
            let (fault, profile) = (called_back.fault.as_ref(), called_back.profile.as_ref());
            self.apply_to(at, &device, state, fault, profile, step);
        }
    }

    fn fold_early(&mut self, step: &mut FoldStep<'_>) {
        let early = std::mem::take(&mut self.early);
        self.text_bytes -= size::of_early(&early);
        for called_back in early {
            self.call_back(&called_back, step);
        }
    }

    fn is_of(&self, account: &str) -> bool {
        self.account.as_ref().is_none_or(|known| known.as_str() == account)
    }
}

/// Whether a complete answer makes the device set known. A pending answer does not, because a later
/// one may list more devices. A waiting answer does so only if it lists a device.
fn completes(overall: Option<DeviceState>, listed: bool) -> bool {
    overall.is_some_and(|state| state.is_final() || state == DeviceState::Waiting && listed)
}

/// The effects of one event, collected while it is folded.
struct FoldStep<'a> {
    time: Timestamp,
    /// Indices of changed devices. An index may be there more than once.
    changed: Vec<usize>,
    /// Whether the earlier devices were dropped.
    restart: bool,
    applied: &'a mut Applied,
}

#[cfg(test)]
mod tests;
