//! The poking and reading side.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use uuid::Uuid;

use super::{
    CallbackShape, Registered, Sequence, Shape,
    callbacks::{Callback, Errand, SERVICE},
    faults::Fault,
    ledger::Ledger,
    requests::{Outcome, Request},
    state::Shared,
};
use crate::identity::{AccountName, Device, Digits, RequestId};

/// Changes what the simulator does next and reads what it did. Naming a request or a device that
/// does not exist is a mistake in the test and panics.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What happened so far.
    pub fn ledger(&self) -> Ledger {
        let mut state = self.shared.lock();
        state.sweep(&self.shared.options, Instant::now());
        state.ledger.clone()
    }

    /// Waits until the ledger is so, looking at every change; panics at the deadline. The passing
    /// of time alone (a session that expires unused) is no change.
    #[track_caller]
    pub fn wait_until(
        &self,
        deadline: Duration,
        holds: impl Fn(&Ledger) -> bool,
    ) -> impl Future<Output = Ledger> {
        let caller = std::panic::Location::caller();
        async move {
            let mut changes = self.shared.changes();
            let look = || Some(&self.shared.lock().ledger).filter(|ledger| holds(ledger)).cloned();
            let wait = async {
                loop {
                    if let Some(ledger) = look() {
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

    /// Sets one device, named by its EID or ICCID.
    #[track_caller]
    pub fn finish(&self, request: &RequestId, id: &str, outcome: Outcome) {
        self.try_finish(request, Some(id), outcome).unwrap_or_else(|missing| panic!("{missing}"));
    }

    /// Sets all devices of a request.
    #[track_caller]
    pub fn finish_all(&self, request: &RequestId, outcome: Outcome) {
        self.try_finish(request, None, outcome).unwrap_or_else(|missing| panic!("{missing}"));
    }

    /// Sets one device (`None`: all) of a request; an error says what does not exist.
    pub(super) fn try_finish(
        &self,
        request: &RequestId,
        device: Option<&str>,
        outcome: Outcome,
    ) -> Result<(), String> {
        let mode = self.shared.options.mode;
        self.shared.update(|state| {
            let Some(known) = state.requests.get_mut(request) else {
                return Err(format!("the simulator has no request {request}"));
            };
            let news = match device {
                Some(id) => known
                    .finish(id, outcome, mode)
                    .ok_or_else(|| format!("request {request} has no device {id}"))?,
                None => known.finish_all(outcome, mode),
            };
            state.tell(request, news.into_iter().map(|device| (device, outcome)));
            Ok(())
        })
    }

    /// What becomes of the devices of orders from now on; `None`: the mode decides.
    pub(super) fn set_outcome(&self, outcome: Option<Outcome>) {
        self.shared.update(|state| state.outcome = outcome);
    }

    /// Sets the overall status, whatever the devices say; `None`: it follows from them again.
    #[track_caller]
    pub fn set_overall(&self, request: &RequestId, word: Option<&'static str>) {
        self.request(request, |r| r.overall = word);
    }

    #[track_caller]
    fn request<T>(&self, id: &RequestId, change: impl FnOnce(&mut Request) -> T) -> T {
        let outcome = self.shared.update(|state| state.requests.get_mut(id).map(change));
        outcome.unwrap_or_else(|| panic!("the simulator has no request {id}"))
    }

    /// A request made elsewhere. It is in no ledger of orders.
    pub fn add_request(
        &self,
        account: AccountName,
        devices: impl IntoIterator<Item = Device>,
    ) -> RequestId {
        let devices = devices.into_iter().collect();
        self.shared.update(|state| state.begin(account, devices, Instant::now()))
    }

    /// The next request, made here or elsewhere, has this id.
    pub fn set_next_id(&self, id: RequestId) {
        self.shared.update(|state| state.next_id = Some(id));
    }

    pub fn inject(&self, fault: Fault) {
        self.shared.update(|state| state.faults.add(fault));
    }

    /// Forgets the faults that were not met. Calls that wait in one go on waiting.
    pub fn clear_faults(&self) {
        self.shared.update(|state| state.faults.clear());
    }

    pub fn set_shape(&self, shape: Shape) {
        self.shared.update(|state| state.shape = shape);
    }

    pub fn set_callback_shape(&self, shape: CallbackShape) {
        self.shared.update(|state| state.callbacks.shape = shape);
    }

    /// Callbacks wait from now on, but for those of [`Handle::deliver`] and
    /// [`Handle::deliver_foreign`].
    pub fn hold_callbacks(&self) {
        self.shared.update(|state| state.callbacks.hold());
    }

    /// Those that wait set off, and no more wait.
    pub fn release_callbacks(&self, sequence: Sequence) {
        self.shared.update(|state| state.callbacks.release(sequence));
    }

    /// One callback for one device, named by its EID or ICCID, whatever the status endpoint says.
    #[track_caller]
    pub fn deliver(&self, request: &RequestId, id: &str, outcome: Outcome, shape: CallbackShape) {
        let device = self
            .request(request, |r| r.device(id).map(|device| (r.account.clone(), device.clone())));
        let (account, device) =
            device.unwrap_or_else(|| panic!("request {request} has no device {id}"));
        let callback = Callback { account, request: request.clone(), device, outcome, shape };
        self.shared.lock().callbacks.send(Errand::Deliver(callback));
    }

    /// Results of as many requests that nobody here knows, each with a device of its own.
    pub fn deliver_foreign(&self, account: &AccountName, count: usize) -> Vec<RequestId> {
        let state = self.shared.lock();
        let ids = (0..count).map(|_| {
            let id = Uuid::new_v4();
            let request =
                RequestId::parse(&id.to_string()).expect("a UUID has the shape of a request id");
            let eid = Digits::new(&format!("{:032}", id.as_u128() % 10_u128.pow(32)));
            let callback = Callback {
                account: account.clone(),
                request: request.clone(),
                device: Device { eid, ..Device::default() },
                outcome: Outcome::Success,
                shape: state.callbacks.shape,
            };
            state.callbacks.send(Errand::Deliver(callback));
            request
        });
        ids.collect()
    }

    /// What is registered for the results of profiles.
    pub fn registered(&self, account: &AccountName) -> Option<Registered> {
        self.shared.lock().callbacks.of(account, SERVICE).cloned()
    }

    /// Somebody registers for the results of profiles, in place of whoever did.
    pub fn register(&self, account: &AccountName, registered: Registered) {
        let old_pair = self.shared.options.callbacks.old_pair;
        self.shared.update(|state| {
            state.callbacks.remove(account, SERVICE);
            state.callbacks.put(account, SERVICE, registered, old_pair);
        });
    }

    /// The registration for the results of profiles is gone.
    pub fn forget_registration(&self, account: &AccountName) {
        self.shared.update(|state| state.callbacks.remove(account, SERVICE));
    }

    pub fn expire_bearer(&self) {
        self.shared.update(|state| state.tokens.expire_bearer());
    }

    pub fn expire_sessions(&self) {
        self.shared.update(|state| state.tokens.expire_sessions(&mut state.ledger));
    }

    /// What only Verizon's support can do.
    pub fn unlock(&self) {
        self.shared.update(|state| {
            state.ledger.locked = false;
            state.ledger.strikes = 0;
        });
    }

    pub fn set_password(&self, password: &str) {
        self.shared.update(|state| state.tokens.password = password.into());
    }
}
