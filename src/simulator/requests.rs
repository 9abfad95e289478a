//! Requests and how their devices get on.

use std::{cell::OnceCell, collections::HashMap, sync::Arc, time::Instant};

use super::Mode;
use crate::identity::{AccountName, Device, Digits};

/// When devices finish by themselves, in multiples of [`Mode::Auto`]'s time.
pub(super) const TIMES: [u32; 4] = [1, 2, 4, 10];

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
    /// Where each device is, by EID and ICCID.
    known: OnceCell<HashMap<Digits, usize>>,
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

    /// Sets a device, and gives it back if that is news; `None`: there is no such device.
    pub(super) fn finish(&mut self, id: &str, outcome: Outcome, mode: Mode) -> Option<Vec<Device>> {
        let device = self.devices[self.place(id)?].clone();
        let news = self.outcome(&device, mode, Instant::now()) != outcome;
        self.each.insert(Digits::new(id), outcome);
        Some(if news { vec![device] } else { Vec::new() })
    }

    /// Sets all devices, and gives back those of which that is news.
    pub(super) fn finish_all(&mut self, outcome: Outcome, mode: Mode) -> Vec<Device> {
        let before = self.outcomes(mode, Instant::now());
        self.each.clear();
        self.all = Some(outcome);
        let news = self.devices.iter().zip(before).filter(|(_, before)| *before != outcome);
        news.map(|(device, _)| device.clone()).collect()
    }

    /// Where the device with this EID or ICCID is.
    fn place(&self, id: &str) -> Option<usize> {
        let places = || {
            let ids = |(place, device): (usize, &Device)| {
                [(device.eid.clone(), place), (device.iccid.clone(), place)]
            };
            self.devices.iter().enumerate().flat_map(ids).collect()
        };
        let id = Digits::new(id);
        if id.is_empty() { None } else { self.known.get_or_init(places).get(&id).copied() }
    }

    pub(super) fn device(&self, id: &str) -> Option<&Device> {
        self.place(id).map(|place| &self.devices[place])
    }

    /// The devices that finish by themselves at this multiple of the time, and how.
    pub(super) fn due(&self, times: u32) -> Vec<(Device, Outcome)> {
        let fates = self
            .devices
            .iter()
            .filter(|device| self.poked(device).is_none())
            .map(|device| (device, fate(device)));
        fates
            .filter(|(_, (t, _))| *t == times)
            .map(|(device, (_, outcome))| (device.clone(), outcome))
            .collect()
    }

    pub(super) fn outcomes(&self, mode: Mode, now: Instant) -> Vec<Outcome> {
        self.devices.iter().map(|device| self.outcome(device, mode, now)).collect()
    }

    fn outcome(&self, device: &Device, mode: Mode, now: Instant) -> Outcome {
        self.poked(device).unwrap_or_else(|| self.by_itself(device, mode, now))
    }

    fn poked(&self, device: &Device) -> Option<Outcome> {
        self.each.get(&device.eid).or_else(|| self.each.get(&device.iccid)).copied().or(self.all)
    }

    fn by_itself(&self, device: &Device, mode: Mode, now: Instant) -> Outcome {
        let Mode::Auto { after } = mode else { return Outcome::Pending };
        let (times, outcome) = fate(device);
        if now.duration_since(self.begun) < after * times { Outcome::Pending } else { outcome }
    }
}

/// After how many times the time, and how.
fn fate(device: &Device) -> (u32, Outcome) {
    let id = if device.iccid.is_empty() { &device.eid } else { &device.iccid };
    match id.as_str().as_bytes().last() {
        Some(b'8') => (1, Outcome::Failed),
        Some(b'5' | b'6') => (2, Outcome::Success),
        Some(b'7') => (4, Outcome::Success),
        Some(b'9') => (10, Outcome::Success),
        _ => (1, Outcome::Success),
    }
}
