//! Everything the simulator knows, behind one lock that is never held across a wait or the reading
//! of a body.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::{
    Mode, Options, Shape,
    callbacks::{Callback, Callbacks, Errand, SERVICE},
    faults::Faults,
    ledger::{Ledger, PlacedOrder},
    requests::{Outcome, Request},
    tokens::Tokens,
};
use crate::{
    identity::{AccountName, Device, RequestId},
    lock::lock,
};

pub(super) struct State {
    pub(super) ledger: Ledger,
    pub(super) tokens: Tokens,
    pub(super) requests: HashMap<RequestId, Request>,
    /// The id of the next request, if it was chosen.
    pub(super) next_id: Option<RequestId>,
    /// What becomes of new requests; `None`: the mode decides.
    pub(super) outcome: Option<Outcome>,
    pub(super) faults: Faults,
    pub(super) shape: Shape,
    pub(super) callbacks: Callbacks,
}

impl State {
    pub(super) fn begin(
        &mut self,
        account: AccountName,
        devices: Arc<[Device]>,
        now: Instant,
    ) -> RequestId {
        let any = || {
            RequestId::parse(&Uuid::new_v4().to_string())
                .expect("a UUID has the shape of a request id")
        };
        let id = self.next_id.take().unwrap_or_else(any);
        let mut request = Request::new(account, devices, now);
        // No device of a new request has finished by itself.
        let news = self.outcome.map(|outcome| (request.finish_all(outcome, Mode::Manual), outcome));
        self.requests.insert(id.clone(), request);
        self.callbacks.send(Errand::Mind(id.clone()));
        if let Some((news, outcome)) = news {
            self.tell(&id, news.into_iter().map(|device| (device, outcome)));
        }
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
        let order = PlacedOrder {
            request_id: request_id.clone(),
            account,
            devices,
            service_plan,
            time: now,
        };
        self.ledger.orders.push(order);
        request_id
    }

    /// A callback for each of these devices of a request, if somebody wants to know.
    pub(super) fn tell(
        &mut self,
        id: &RequestId,
        news: impl IntoIterator<Item = (Device, Outcome)>,
    ) {
        let Some(account) = self.requests.get(id).map(|request| request.account.clone()) else {
            return;
        };
        if self.callbacks.of(&account, SERVICE).is_none() {
            return;
        }
        for (device, outcome) in
            news.into_iter().filter(|(_, outcome)| *outcome != Outcome::Pending)
        {
            let (account, request, shape) = (account.clone(), id.clone(), self.callbacks.shape);
            self.callbacks.post(Callback { account, request, device, outcome, shape });
        }
    }

    /// The same for those that finish by themselves now.
    pub(super) fn tell_due(&mut self, id: &RequestId, times: u32) {
        let due = self.requests.get(id).map(|request| request.due(times)).unwrap_or_default();
        self.tell(id, due);
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
    pub(super) fn new(options: Options, outbox: mpsc::UnboundedSender<Errand>) -> Self {
        let state = State {
            ledger: Ledger::default(),
            tokens: Tokens::new(&options),
            requests: HashMap::new(),
            next_id: None,
            outcome: None,
            faults: Faults::default(),
            shape: options.shape,
            callbacks: Callbacks::new(options.callbacks.shape, outbox),
        };
        Self { options, state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    /// For looking, or for changes that no waiter can see.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A predicate of a test may panic under the lock; it changes nothing.
        lock(&self.state)
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
