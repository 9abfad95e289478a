//! Everything the simulator knows, behind one lock that is never held across a wait or the reading of a body.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Options, Shape,
    faults::Faults,
    ledger::{Ledger, PlacedOrder},
    requests::Request,
    tokens::Tokens,
};
use crate::identity::{AccountName, Device, RequestId};

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) tokens: Tokens,
    pub(super) requests: HashMap<RequestId, Request>,
    pub(super) faults: Faults,
    pub(super) shape: Shape,
}

impl State {
    pub(super) fn begin(&mut self, account: AccountName, devices: Arc<[Device]>, now: Instant) -> RequestId {
        let id = RequestId::parse(&Uuid::new_v4().to_string()).expect("a UUID has the shape of a request id");
        self.requests.insert(id.clone(), Request::new(account, devices, now));
        id
    }

    pub(super) fn place(
        &mut self,
        account: AccountName,
        devices: Arc<[Device]>,
        service_plan: Option<Arc<str>>,
        now: Instant,
    ) -> RequestId {
        let request_id = self.begin(account.clone(), Arc::clone(&devices), now);
        let order = PlacedOrder { request_id: request_id.clone(), account, devices, service_plan, time: now };
        self.ledger.orders.push(order);
        request_id
    }

    pub(super) fn sweep(&mut self, options: &Options, now: Instant) {
        self.tokens.sweep(options, &mut self.ledger, now);
    }
}

pub(super) struct Shared {
    pub(super) options: Options,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        let state = State {
            ledger: Ledger::default(),
            tokens: Tokens::new(&options),
            requests: HashMap::new(),
            faults: Faults::default(),
            shape: options.shape,
        };
        Self { options, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// For looking, or for changes that no waiter can see.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A predicate of a test may panic under the lock; it changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes who waits for changes.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut self.lock());
        self.changed.send_replace(());
        outcome
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}
