//! Counts the devices of orders in flight against the limits of open devices.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{Error, Orders, lock};

/// Keeps an order in [`Orders::in_flight`] until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    order_id: String,
    orders: Arc<Mutex<HashMap<String, DevicesInFlight>>>,
}

/// The limits of the devices of open requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenDeviceLimits {
    pub(crate) total: usize,
    pub(crate) of_caller: usize,
}

/// The devices of an order in flight.
#[derive(Debug)]
pub(super) struct DevicesInFlight {
    caller: String,
    devices: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.orders).remove(&self.order_id);
    }
}

impl Orders {
    /// The number of orders that this process is placing.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.in_flight).len()
    }

    /// Registers an order as in flight, if its devices do not exceed the limits of open devices.
    pub(super) fn reserve(
        &self,
        order_id: String,
        caller: &str,
        devices: usize,
    ) -> Result<InFlight, Error> {
        let (by_all, by_caller) = {
            let mut in_flight = lock(&self.in_flight);
            let own = DevicesInFlight { caller: caller.to_owned(), devices };
            in_flight.insert(order_id.clone(), own);
            let of_caller = in_flight.values().filter(|order| order.caller == caller);
            let by_caller: usize = of_caller.map(|order| order.devices).sum();
            (in_flight.values().map(|order| order.devices).sum::<usize>(), by_caller)
        };
        let reserved = InFlight { order_id, orders: Arc::clone(&self.in_flight) };
        let OpenDeviceLimits { total, of_caller } = self.max_open_devices;
        if self.hub.open_devices_of(caller) + by_caller > of_caller {
            return Err(Error::Overloaded { limit: "limits.caller_open_devices" });
        }
        if self.hub.open_devices() + by_all > total {
            return Err(Error::Overloaded { limit: "limits.open_devices" });
        }
        Ok(reserved)
    }
}
