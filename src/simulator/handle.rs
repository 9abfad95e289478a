//! Lets tests in Rust control and read the simulator.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use super::{
    CallbackShape, DeviceResult, Sequence, Shape, SimulatedRegistration,
    callbacks::{Delivery, SERVICE, SimulatedCallback},
    faults::Fault,
    ledger::Ledger,
    requests::SimulatedRequest,
    state::SimulatorShared,
};
use crate::identity::{AccountName, Device, RequestId};

/// Controls and reads a simulator. Its methods panic if a request or device is unknown.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<SimulatorShared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<SimulatorShared>) -> Self {
        Self { shared }
    }

    /// Returns the counts and lists since the start.
    pub fn ledger(&self) -> Ledger {
        let mut state = self.shared.lock();
        state.expire_old_sessions(&self.shared.options, Instant::now());
        state.ledger.clone()
    }

    /// Waits until the ledger satisfies a condition. It is checked at every call and change, but
    /// not when a session expires. Panics at the deadline.
    #[track_caller]
    pub fn wait_until(
        &self,
        deadline: Duration,
        holds: impl Fn(&Ledger) -> bool,
    ) -> impl Future<Output = Ledger> {
        let caller = std::panic::Location::caller();
        async move {
            let mut changes = self.shared.changes();
            let check = || Some(&self.shared.lock().ledger).filter(|ledger| holds(ledger)).cloned();
            let wait = async {
                loop {
                    if let Some(ledger) = check() {
                        return ledger;
                    }
                    changes.changed().await.expect("the sender lives as long as this handle");
                }
            };
            let outcome = time::timeout(deadline, wait).await;
            outcome.unwrap_or_else(|_| {
                panic!("at {caller}: not so after {deadline:?}: {:#?}", self.ledger())
            })
        }
    }

    /// Sets the result of one device, named by its EID or ICCID.
    #[track_caller]
    pub fn finish(&self, request: &RequestId, id: &str, result: DeviceResult) {
        self.try_finish(request, Some(id), result).unwrap_or_else(|missing| panic!("{missing}"));
    }

    /// Sets the result of all devices of a request.
    #[track_caller]
    pub fn finish_all(&self, request: &RequestId, result: DeviceResult) {
        self.try_finish(request, None, result).unwrap_or_else(|missing| panic!("{missing}"));
    }

    /// Sets the result of one device (`None`: all) of a request. An error says what is unknown.
    pub(super) fn try_finish(
        &self,
        request: &RequestId,
        device: Option<&str>,
        result: DeviceResult,
    ) -> Result<(), String> {
        let mode = self.shared.options.mode;
        self.shared.update(|state| {
            let Some(known) = state.requests.get_mut(request) else {
                return Err(format!("the simulator has no request {request}"));
            };
            let changed = match device {
                Some(id) => known
                    .finish(id, result, mode)
                    .ok_or_else(|| format!("request {request} has no device {id}"))?,
                None => known.finish_all(result, mode),
            };
            state.call_back(request, changed.into_iter().map(|device| (device, result)));
            Ok(())
        })
    }

    /// Sets the result of the devices of later orders; `None`: the mode decides.
    pub(super) fn set_result(&self, result: Option<DeviceResult>) {
        self.shared.update(|state| state.result = result);
    }

    /// Sets the overall status; `None`: it follows from the devices again.
    #[track_caller]
    pub fn set_overall(&self, request: &RequestId, word: Option<&'static str>) {
        self.with_request(request, |request| request.overall = word);
    }

    #[track_caller]
    fn with_request<T>(&self, id: &RequestId, change: impl Fn(&mut SimulatedRequest) -> T) -> T {
        let outcome = self.shared.update(|state| state.requests.get_mut(id).map(change));
        outcome.unwrap_or_else(|| panic!("the simulator has no request {id}"))
    }

    /// Adds an external request. It is not in the ledger's orders.
    pub fn add_request(
        &self,
        account: AccountName,
        devices: impl IntoIterator<Item = Device>,
    ) -> RequestId {
        let devices = devices.into_iter().collect();
        self.shared.update(|state| state.begin(account, devices, Instant::now()))
    }

    /// Chooses the id of the next request.
    pub fn set_next_id(&self, id: RequestId) {
        self.shared.update(|state| state.next_id = Some(id));
    }

    /// Adds a fault for later calls.
    pub fn inject(&self, fault: Fault) {
        self.shared.update(|state| state.faults.add(fault));
    }

    /// Removes the faults. Calls that already wait at a [`Gate`](super::Gate) still wait.
    pub fn clear_faults(&self) {
        self.shared.update(|state| state.faults.clear());
    }

    /// Sets the form of later status answers.
    pub fn set_shape(&self, shape: Shape) {
        self.shared.update(|state| state.shape = shape);
    }

    /// Sets the form of callbacks for later results.
    pub fn set_callback_shape(&self, shape: CallbackShape) {
        self.shared.update(|state| state.callbacks.shape = shape);
    }

    /// Holds later callbacks back, except those of [`Handle::deliver`].
    pub fn hold_callbacks(&self) {
        self.shared.update(|state| state.callbacks.hold());
    }

    /// Sends the held callbacks. Later ones are sent at once.
    pub fn release_callbacks(&self, sequence: Sequence) {
        self.shared.update(|state| state.callbacks.release(sequence));
    }

    /// Sends a callback with this result for one device, named by its EID or ICCID. The device
    /// keeps its own result.
    #[track_caller]
    pub fn deliver(
        &self,
        request: &RequestId,
        id: &str,
        result: DeviceResult,
        shape: CallbackShape,
    ) {
        let (account, device) =
            self.with_request(request, |known| (known.account.clone(), known.device(id).cloned()));
        let device = device.unwrap_or_else(|| panic!("request {request} has no device {id}"));
        let request = request.clone();
        let callback = SimulatedCallback { account, request, device, result, shape };
        self.shared.lock().callbacks.send(Delivery::Callback(callback));
    }

    /// Returns the registration for the results of profiles.
    pub fn registered(&self, account: &AccountName) -> Option<SimulatedRegistration> {
        self.shared.lock().callbacks.of(account, SERVICE).cloned()
    }

    /// Replaces the registration for the results of profiles.
    pub fn register(&self, account: &AccountName, registration: SimulatedRegistration) {
        let old_pair = self.shared.options.callbacks.old_pair;
        self.shared.update(|state| {
            state.callbacks.remove(account, SERVICE);
            state.callbacks.put(account, SERVICE, registration, old_pair);
        });
    }

    /// Removes the registration for the results of profiles.
    pub fn forget_registration(&self, account: &AccountName) {
        self.shared.update(|state| state.callbacks.remove(account, SERVICE));
    }

    /// Ends the bearer token.
    pub fn expire_bearer(&self) {
        self.shared.update(|state| state.tokens.expire_bearer());
    }

    /// Ends all sessions.
    pub fn expire_sessions(&self) {
        self.shared.update(|state| state.tokens.expire_sessions(&mut state.ledger));
    }

    /// Unlocks the user, as only Verizon's support can.
    pub fn unlock(&self) {
        self.shared.update(|state| {
            state.ledger.locked = false;
            state.ledger.rejected_in_a_row = 0;
        });
    }

    /// Changes the user's password. Sessions stay valid.
    pub fn set_password(&self, password: &str) {
        self.shared.update(|state| state.tokens.password = password.into());
    }
}
