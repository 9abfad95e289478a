//! Requests and how their devices get on.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::Mode;
use crate::identity::{AccountName, Device, Digits};

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Success,
    Failed,
    /// This word, as it is.
    Word(&'static str),
}

pub(super) struct Request {
    pub(super) account: AccountName,
    pub(super) devices: Arc<[Device]>,
    pub(super) begun: Instant,
    /// The overall status, if it was set by hand.
    pub(super) overall: Option<&'static str>,
    all: Option<Outcome>,
    /// By EID or ICCID; beats `all`.
    each: HashMap<Digits, Outcome>,
    known: OnceCell<HashSet<Digits>>,
}

impl Request {
    pub(super) fn new(account: AccountName, devices: Arc<[Device]>, begun: Instant) -> Self {
        Self {
            account,
            devices,
            begun,
            overall: None,
            all: None,
            each: HashMap::new(),
            known: OnceCell::new(),
        }
    }

    /// Whether there is such a device.
    pub(super) fn finish(&mut self, id: &str, outcome: Outcome) -> bool {
        let ids =
            || self.devices.iter().flat_map(|device| [device.eid.clone(), device.iccid.clone()]).collect();
        let id = Digits::new(id);
        let known = !id.is_empty() && self.known.get_or_init(ids).contains(&id);
        if known {
            self.each.insert(id, outcome);
        }
        known
    }

    pub(super) fn finish_all(&mut self, outcome: Outcome) {
        self.each.clear();
        self.all = Some(outcome);
    }

    pub(super) fn outcomes(&self, mode: Mode, now: Instant) -> Vec<Outcome> {
        let outcome = |device: &Device| {
            let poked = self.each.get(&device.eid).or_else(|| self.each.get(&device.iccid)).copied();
            poked.or(self.all).unwrap_or_else(|| self.by_itself(device, mode, now))
        };
        self.devices.iter().map(outcome).collect()
    }

    fn by_itself(&self, device: &Device, mode: Mode, now: Instant) -> Outcome {
        let Mode::Auto { after } = mode else { return Outcome::Pending };
        let id = if device.iccid.is_empty() { &device.eid } else { &device.iccid };
        let (times, outcome) = match id.as_str().as_bytes().last() {
            Some(b'8') => (1, Outcome::Failed),
            Some(b'5' | b'6') => (2, Outcome::Success),
            Some(b'7') => (4, Outcome::Success),
            Some(b'9') => (10, Outcome::Success),
            _ => (1, Outcome::Success),
        };
        if now.duration_since(self.begun) < after * times { Outcome::Pending } else { outcome }
    }
}
