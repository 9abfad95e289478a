//! The rules of the fold, one by one; what holds for every sequence of events; and the stored
//! bytes, frozen.

mod observations;
mod properties;
mod rules;
mod stored;
mod unknown;

use super::*;
use crate::thingspace::{StatusAnswer, StatusClass};

const ACCOUNT: &str = "0000123456-00001";
const OTHER_ACCOUNT: &str = "0000123456-00002";

/// A log, folded as it grows. The position and the time of each event are one higher.
#[derive(Debug, Clone, Default)]
struct Log {
    request: Request,
    end: u64,
}

impl Log {
    fn of(events: impl IntoIterator<Item = Kind>) -> Self {
        let mut log = Self::default();
        for kind in events {
            log.add(kind);
        }
        log
    }

    fn add(&mut self, kind: Kind) -> Applied {
        self.add_event(&Event { rules: event::RULES, kind: Some(kind), first_sequence: 0 })
    }

    fn add_event(&mut self, event: &Event) -> Applied {
        self.end += 1;
        self.request.apply(position(self.end), time(self.end), event)
    }

    fn states(&self) -> Vec<DeviceState> {
        self.request.devices.iter().map(|status| status.state).collect()
    }
}

fn position(sequence: u64) -> Position {
    Position { epoch: 7, sequence }
}

fn time(sequence: u64) -> Timestamp {
    Timestamp::from_second(sequence.cast_signed()).unwrap()
}

fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

/// All identifiers of device `n`, as long as they get.
fn device(n: usize) -> Device {
    let digits = |width| Digits::new(&format!("{n:0width$}"));
    Device { eid: digits(32), iccid: digits(20), imei: digits(16), mdn: digits(15) }
}

/// The identifiers of device `n` in an order.
fn ordered(n: usize) -> Device {
    only(&device(n), &[IdentifierKind::Eid, IdentifierKind::Iccid])
}

fn only(device: &Device, kinds: &[IdentifierKind]) -> Device {
    let mut named = Device::default();
    for &kind in kinds {
        *named.get_mut(kind) = device.get(kind).clone();
    }
    named
}

fn accepted(devices: impl IntoIterator<Item = Device>) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: "order".to_owned(),
        account: ACCOUNT.to_owned(),
        service_plan: "plan".to_owned(),
        devices: devices.into_iter().map(|device| event::to_stored(&device)).collect(),
        caller: String::new(),
    })
}

/// An answer with these devices, about a request whose device set is known.
fn observed(devices: impl IntoIterator<Item = (Device, StatusClass)>) -> storage::Observed {
    storage::Observed {
        account: ACCOUNT.to_owned(),
        overall: storage::StatusClass::Pending.into(),
        devices: devices
            .into_iter()
            .map(|(device, class)| storage::ObservedDevice {
                device: Some(event::to_stored(&device)),
                status: event::class_to_stored(class).into(),
            })
            .collect(),
        overall_only: false,
        complete: true,
    }
}

/// An answer without sub-requests.
fn overall(class: StatusClass) -> storage::Observed {
    storage::Observed {
        overall: event::class_to_stored(class).into(),
        overall_only: true,
        ..observed([])
    }
}

fn called_back(device: &Device, class: StatusClass) -> storage::CalledBack {
    storage::CalledBack {
        account: ACCOUNT.to_owned(),
        device: Some(event::to_stored(device)),
        status: event::class_to_stored(class).into(),
        fault: None,
        profile: None,
    }
}

fn abandoned() -> Kind {
    Kind::Abandoned(storage::Abandoned {})
}

fn fault(code: &str) -> storage::Fault {
    storage::Fault { code: code.to_owned(), message: format!("{code} happened") }
}

fn profile(state: &str) -> storage::Profile {
    storage::Profile {
        state: state.to_owned(),
        status: "ENABLE".to_owned(),
        role: "LOCAL".to_owned(),
    }
}

fn callback(device: &Device, class: StatusClass) -> Kind {
    Kind::CalledBack(called_back(device, class))
}

fn listed(devices: impl IntoIterator<Item = (Device, StatusClass)>) -> Kind {
    Kind::Observed(observed(devices))
}

/// A complete answer.
fn answered(class: StatusClass, devices: impl IntoIterator<Item = (Device, StatusClass)>) -> Kind {
    Kind::Observed(storage::Observed {
        overall: event::class_to_stored(class).into(),
        ..observed(devices)
    })
}

fn of_account(account: &str, kind: Kind) -> Kind {
    let account = account.to_owned();
    match kind {
        Kind::Observed(o) => Kind::Observed(storage::Observed { account, ..o }),
        Kind::CalledBack(c) => Kind::CalledBack(storage::CalledBack { account, ..c }),
        Kind::Accepted(a) => Kind::Accepted(storage::Accepted { account, ..a }),
        other => other,
    }
}

fn unmatched(unmatched: usize) -> Applied {
    Applied { unmatched, ..Applied::default() }
}

fn contradicted(contradictions: usize) -> Applied {
    Applied { contradictions, ..Applied::default() }
}
