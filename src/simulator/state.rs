//! The state of the simulator, behind one lock. The lock is never held across an await.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::{
    DeviceResult, Mode, Options, Shape,
    callbacks::{CallbackState, Delivery, SERVICE, SimulatedCallback},
    faults::Faults,
    ledger::{Ledger, PlacedOrder},
    requests::SimulatedRequest,
    tokens::SimulatedTokens,
};
use crate::{
    identity::{AccountName, Device, RequestId},
    lock::lock,
};

pub(super) struct SimulatorState {
    pub(super) ledger: Ledger,
    pub(super) tokens: SimulatedTokens,
    pub(super) requests: HashMap<RequestId, SimulatedRequest>,
    /// The id of the next request, if a test chose it.
    pub(super) next_id: Option<RequestId>,
    /// The result of new requests; `None`: the mode decides.
    pub(super) result: Option<DeviceResult>,
    pub(super) faults: Faults,
    pub(super) shape: Shape,
    pub(super) callbacks: CallbackState,
}

impl SimulatorState {
    pub(super) fn begin(
        &mut self,
        account: AccountName,
        devices: Arc<[Device]>,
        now: Instant,
    ) -> RequestId {
        let id = self.next_id.take().unwrap_or_else(|| {
            RequestId::parse(&Uuid::new_v4().to_string())
                .expect("a UUID has the shape of a request id")
        });
        let mut request = SimulatedRequest::new(account, devices, now);
        // In `Manual` all devices of a new request are pending, so each of them changes.
        let finished = self.result.map(|result| (request.finish_all(result, Mode::Manual), result));
        self.requests.insert(id.clone(), request);
        self.callbacks.send(Delivery::ResultsOf(id.clone()));
        if let Some((devices, result)) = finished {
            self.call_back(&id, devices.into_iter().map(|device| (device, result)));
        }
        id
    }

    pub(super) fn place(
        &mut self,
        account: AccountName,
        devices: Arc<[Device]>,
        service_plan: Option<Arc<str>>,
        time: Instant,
    ) -> RequestId {
        let request_id = self.begin(account.clone(), Arc::clone(&devices), time);
        let id = request_id.clone();
        self.ledger.orders.push(PlacedOrder { request_id, account, devices, service_plan, time });
        id
    }

    /// Sends a callback for each of these results that is not pending, if callbacks are registered.
    pub(super) fn call_back(
        &mut self,
        id: &RequestId,
        results: impl IntoIterator<Item = (Device, DeviceResult)>,
    ) {
        let Some(account) = self.requests.get(id).map(|request| request.account.clone()) else {
            return;
        };
        if self.callbacks.of(&account, SERVICE).is_none() {
            return;
        }
        for (device, result) in
            results.into_iter().filter(|(_, result)| *result != DeviceResult::Pending)
        {
            let (account, request, shape) = (account.clone(), id.clone(), self.callbacks.shape);
            let callback = SimulatedCallback { account, request, device, result, shape };
            self.callbacks.send_or_hold(callback);
        }
    }

    /// Sends callbacks for the devices that finish by themselves now.
    pub(super) fn call_back_due(&mut self, id: &RequestId, times: u32) {
        let due = self.requests.get(id).map(|request| request.due(times)).unwrap_or_default();
        self.call_back(id, due);
    }

    pub(super) fn expire_old_sessions(&mut self, options: &Options, now: Instant) {
        self.tokens.expire_old_sessions(options, &mut self.ledger, now);
    }
}

pub(super) struct SimulatorShared {
    pub(super) options: Options,
    state: Mutex<SimulatorState>,
    changed: watch::Sender<()>,
}

impl SimulatorShared {
    pub(super) fn new(options: Options, outbox: mpsc::UnboundedSender<Delivery>) -> Self {
        let state = SimulatorState {
            ledger: Ledger::default(),
            tokens: SimulatedTokens::new(&options),
            requests: HashMap::new(),
            next_id: None,
            result: None,
            faults: Faults::default(),
            shape: options.shape,
            callbacks: CallbackState::new(options.callbacks.shape, outbox),
        };
        Self { options, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// Locks the state, for reading and for changes that [`Handle::wait_until`] need not notice.
    ///
    /// [`Handle::wait_until`]: super::Handle::wait_until
    pub(super) fn lock(&self) -> MutexGuard<'_, SimulatorState> {
        lock(&self.state)
    }

    /// Changes the state and wakes the receivers of `changes`.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut SimulatorState) -> T) -> T {
        let outcome = change(&mut self.lock());
        self.changed.send_replace(());
        outcome
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl fmt::Debug for SimulatorShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatorShared").field("options", &self.options).finish_non_exhaustive()
    }
}
