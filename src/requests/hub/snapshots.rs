//! Snapshots that are sent in several messages.
//!
//! A watch holds no devices between two messages. The devices of an unfinished snapshot are held
//! here, are shared by the watches that send the same revision, and are bounded in bytes. A reader
//! that stands still loses its snapshot. When it reads on, the snapshot is made again if the
//! request has not changed; if it has changed, the watch ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{Hub, UNDISTURBED};
use crate::requests::{fold::state::DeviceStatus, lock};

/// The devices of a request at one revision.
pub type Devices = Arc<Vec<Arc<DeviceStatus>>>;

/// What unfinished snapshots may take in memory, in bytes. One that was read from within
/// [`UNDISTURBED`] stays in any case.
const MAX_BYTES: usize = 32 << 20;

/// A snapshot from which nothing was read for this long leaves in any case.
pub(super) const STALLED: Duration = Duration::from_secs(30);

/// A device without its texts, in bytes.
const DEVICE_BYTES: usize = 400;

/// The unfinished snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Vec<Held>>);

#[derive(Debug)]
struct Held {
    devices: Devices,
    bytes: usize,
    used: Instant,
}

impl Snapshots {
    fn hold(&self, devices: &Devices) {
        let mut held = lock(&self.0);
        let now = Instant::now();
        if let Some(known) = held.iter_mut().find(|held| Arc::ptr_eq(&held.devices, devices)) {
            known.used = now;
            return;
        }
        let bytes = devices.iter().map(|device| DEVICE_BYTES + device.text_bytes()).sum();
        held.push(Held { devices: Arc::clone(devices), bytes, used: now });
        drop(held);
        self.drop_unused(STALLED);
    }

    /// Drops the snapshots that were not used for a while, and those that are too much.
    pub(super) fn drop_unused(&self, idle: Duration) {
        let mut held = lock(&self.0);
        let mut gone: Vec<_> = held.extract_if(.., |held| held.used.elapsed() >= idle).collect();
        let mut bytes: usize = held.iter().map(|held| held.bytes).sum();
        while bytes > MAX_BYTES
            && let Some((oldest, _)) = held.iter().enumerate().min_by_key(|(_, held)| held.used)
            && held[oldest].used.elapsed() >= UNDISTURBED
        {
            let oldest = held.swap_remove(oldest);
            bytes -= oldest.bytes;
            gone.push(oldest);
        }
        // Dropping 10,000 devices takes a while.
        drop(held);
        drop(gone);
    }
}

impl Hub {
    /// Keeps a snapshot in memory of which a reader has taken a part.
    pub fn hold_snapshot(&self, devices: &Devices) {
        self.snapshots.hold(devices);
    }
}
