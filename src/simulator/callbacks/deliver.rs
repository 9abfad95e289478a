//! The way out: each callback is one POST, and another while it is not acknowledged.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderValue, header};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::CallbackShape;
use crate::{
    identity::{AccountName, Device, RequestId},
    simulator::{Mode, Outcome, requests, state::Shared},
};

/// How long an attempt is open at most.
const OPEN: Duration = Duration::from_mins(1);

/// What becomes of a callback that is not acknowledged with a 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// After the first attempt.
    pub times: u32,
    pub interval: Duration,
}

impl Retries {
    /// As Verizon's pages say.
    pub const fn documented() -> Self {
        Self { times: 3, interval: Duration::from_mins(5) }
    }

    /// As a user of the service measured.
    pub const fn measured() -> Self {
        Self { times: 1, interval: Duration::from_millis(1_300) }
    }
}

/// In which order callbacks that were held back set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    AsMade,
    Reversed,
    Shuffled,
}

impl Sequence {
    pub(super) fn arrange(self, mut callbacks: Vec<Callback>) -> Vec<Callback> {
        match self {
            Self::AsMade => {}
            Self::Reversed => callbacks.reverse(),
            Self::Shuffled => callbacks.sort_by_cached_key(|_| Uuid::new_v4()),
        }
        callbacks
    }
}

pub(in crate::simulator) enum Errand {
    Deliver(Callback),
    /// The devices of a request that finish by themselves are to be told of when they do.
    Mind(RequestId),
}

#[derive(Debug, Clone)]
pub(in crate::simulator) struct Callback {
    pub(in crate::simulator) account: AccountName,
    pub(in crate::simulator) request: RequestId,
    pub(in crate::simulator) device: Device,
    pub(in crate::simulator) outcome: Outcome,
    pub(in crate::simulator) shape: CallbackShape,
}

struct Courier {
    shared: Arc<Shared>,
    client: reqwest::Client,
    senders: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Runs errands until `stop`; then whatever is under way is dropped.
pub(in crate::simulator) async fn run(
    shared: Arc<Shared>,
    mut errands: mpsc::UnboundedReceiver<Errand>,
    stop: CancellationToken,
) {
    let senders = Arc::new(Semaphore::new(shared.options.callbacks.senders));
    let client = client(&shared.options.callbacks.trusted_ca);
    let courier = Arc::new(Courier { shared, client, senders, stop: stop.clone() });
    let all = async {
        while let Some(errand) = errands.recv().await {
            match errand {
                Errand::Deliver(callback) => courier.send_out(Arc::new(callback)).await,
                Errand::Mind(request) => courier.mind(request),
            }
        }
    };
    stop.run_until_cancelled(all).await;
}

fn client(trusted_ca: &str) -> reqwest::Client {
    let trusted = reqwest::Certificate::from_pem_bundle(trusted_ca.as_bytes());
    reqwest::Client::builder()
        .user_agent(HeaderValue::from_static("Verizon's callback service"))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(OPEN)
        .tls_certs_only(trusted.expect("the option holds certificates in PEM"))
        .build()
        .expect("a client without the system's certificates needs nothing of the system")
}

impl Courier {
    async fn send_out(self: &Arc<Self>, callback: Arc<Callback>) {
        for _ in 0..self.shared.options.callbacks.copies {
            // Waited for here, so that callbacks set off in their order and a flood waits in the
            // queue.
            let permit = self.permit().await;
            let (courier, callback) = (Arc::clone(self), Arc::clone(&callback));
            self.spawn(async move {
                if callback.shape.warning_first {
                    let warning =
                        Callback { outcome: Outcome::Word("warning"), ..(*callback).clone() };
                    courier.deliver(Arc::new(warning), permit).await;
                    let permit = courier.permit().await;
                    courier.deliver(callback, permit).await;
                } else {
                    courier.deliver(callback, permit).await;
                }
            });
        }
    }

    /// Until it is acknowledged or was sent often enough.
    async fn deliver(self: &Arc<Self>, callback: Arc<Callback>, permit: OwnedSemaphorePermit) {
        let options = &self.shared.options.callbacks;
        let mut permit = Some(permit);
        for count in 1..=options.retries.times + 1 {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => self.permit().await,
            };
            let attempt = Arc::clone(self).attempt(Arc::clone(&callback), count, permit);
            // In a task of its own: one that is slow stays open beside the next.
            match timeout(options.patience, self.spawn(attempt)).await {
                Err(_slow) => {}
                Ok(Ok(Some(false))) => sleep(options.retries.interval).await,
                Ok(Ok(Some(true) | None) | Err(_)) => return,
            }
        }
    }

    /// True when there is nothing more to do.
    async fn attempt(
        self: Arc<Self>,
        callback: Arc<Callback>,
        count: u32,
        _permit: OwnedSemaphorePermit,
    ) -> bool {
        let Callback { account, request, device, outcome, shape } = &*callback;
        let address = self.shared.update(|state| {
            let address = state.callbacks.address(account)?;
            state.ledger.called_back(request);
            Some(address)
        });
        // Nobody wants to know any more.
        let Some((url, pair)) = address else { return true };
        let threshold = self.shared.options.callbacks.retries.times + 1;
        let body = shape.write(request, device, *outcome, &pair, count, threshold);
        let call =
            self.client.post(url).header(header::CONTENT_TYPE, "application/json").body(body);
        let status = match call.send().await {
            // Read to its end, so that the connection can be used again.
            Ok(answer) => {
                let status = answer.status().as_u16();
                let _ = answer.bytes().await;
                Some(status)
            }
            Err(_) => None,
        };
        self.shared.update(|state| state.ledger.callback_answered(request, status));
        matches!(status, Some(200..=299))
    }

    /// Tells of each device when its time has come.
    fn mind(self: &Arc<Self>, id: RequestId) {
        let Mode::Auto { after } = self.shared.options.mode else { return };
        let Some(begun) = self.shared.lock().requests.get(&id).map(|request| request.begun) else {
            return;
        };
        let courier = Arc::clone(self);
        self.spawn(async move {
            for times in requests::TIMES {
                sleep_until((begun + after * times).into()).await;
                courier.shared.update(|state| state.tell_due(&id, times));
            }
        });
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.senders).acquire_owned().await.expect("the semaphore is never closed")
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(task))
    }
}
