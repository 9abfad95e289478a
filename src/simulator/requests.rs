//! Requests and the results of their devices.

use std::{cell::OnceCell, collections::HashMap, sync::Arc, time::Instant};

use serde::Deserialize;

use super::Mode;
use crate::identity::{AccountName, Device, Digits};

/// When devices finish by themselves, in multiples of [`Mode::Auto`]'s `after`.
pub(super) const TIMES: [u32; 4] = [1, 2, 4, 10];

/// The status of a device in answers and callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of ThingSpace")]
pub enum DeviceResult {
    Pending,
    Success,
    Failed,
    /// Any other word.
    #[serde(skip)]
    Word(#[serde(skip)] &'static str),
}

pub(super) struct SimulatedRequest {
    pub(super) account: AccountName,
    pub(super) devices: Arc<[Device]>,
    pub(super) begun: Instant,
    /// The overall status, if a test set it.
    pub(super) overall: Option<&'static str>,
    /// The result of all devices, if a test set it.
    all: Option<DeviceResult>,
    /// The results of single devices, by EID or ICCID. They take precedence over `all`.
    each: HashMap<Digits, DeviceResult>,
    /// The index of each device, by EID and ICCID.
    indices: OnceCell<HashMap<Digits, usize>>,
}

impl SimulatedRequest {
    pub(super) fn new(account: AccountName, devices: Arc<[Device]>, begun: Instant) -> Self {
        let (overall, all, each, indices) = Default::default();
        Self { account, devices, begun, overall, all, each, indices }
    }

    /// Sets the result of a device. Returns the device if its result changed, and `None` if there
    /// is no such device.
    pub(super) fn finish(
        &mut self,
        id: &str,
        result: DeviceResult,
        mode: Mode,
    ) -> Option<Vec<Device>> {
        let device = self.device(id)?.clone();
        let changed = self.result(&device, mode, Instant::now()) != result;
        self.each.insert(Digits::new(id), result);
        Some(if changed { vec![device] } else { Vec::new() })
    }

    /// Sets the result of all devices. Returns those whose result changed.
    pub(super) fn finish_all(&mut self, result: DeviceResult, mode: Mode) -> Vec<Device> {
        let before = self.results(mode, Instant::now());
        self.each.clear();
        self.all = Some(result);
        let changed = self.devices.iter().zip(before).filter(|(_, before)| *before != result);
        changed.map(|(device, _)| device.clone()).collect()
    }

    /// Returns the device with this EID or ICCID.
    pub(super) fn device(&self, id: &str) -> Option<&Device> {
        let indices = || {
            let ids = |(index, device): (usize, &Device)| {
                [(device.eid.clone(), index), (device.iccid.clone(), index)]
            };
            self.devices.iter().enumerate().flat_map(ids).collect()
        };
        let id = Some(Digits::new(id)).filter(|id| !id.is_empty())?;
        self.indices.get_or_init(indices).get(&id).map(|index| &self.devices[*index])
    }

    /// Returns the devices that finish by themselves at this multiple of `after`.
    pub(super) fn due(&self, times: u32) -> Vec<(Device, DeviceResult)> {
        let by_themselves = self.devices.iter().filter(|device| self.set_by_test(device).is_none());
        by_themselves
            .map(|device| (device, automatic(device)))
            .filter(|(_, (at, _))| *at == times)
            .map(|(device, (_, result))| (device.clone(), result))
            .collect()
    }

    pub(super) fn results(&self, mode: Mode, now: Instant) -> Vec<DeviceResult> {
        self.devices.iter().map(|device| self.result(device, mode, now)).collect()
    }

    fn result(&self, device: &Device, mode: Mode, now: Instant) -> DeviceResult {
        if let Some(result) = self.set_by_test(device) {
            return result;
        }
        let Mode::Auto { after } = mode else { return DeviceResult::Pending };
        let (times, result) = automatic(device);
        if now.duration_since(self.begun) < after * times { DeviceResult::Pending } else { result }
    }

    /// Returns the result that a test set.
    fn set_by_test(&self, device: &Device) -> Option<DeviceResult> {
        self.each.get(&device.eid).or_else(|| self.each.get(&device.iccid)).copied().or(self.all)
    }
}

/// Returns when a device finishes by itself, in multiples of `after`, and its result.
fn automatic(device: &Device) -> (u32, DeviceResult) {
    let id = if device.iccid.is_empty() { &device.eid } else { &device.iccid };
    match id.as_str().as_bytes().last() {
        Some(b'8') => (1, DeviceResult::Failed),
        Some(b'5' | b'6') => (2, DeviceResult::Success),
        Some(b'7') => (4, DeviceResult::Success),
        Some(b'9') => (10, DeviceResult::Success),
        _ => (1, DeviceResult::Success),
    }
}
