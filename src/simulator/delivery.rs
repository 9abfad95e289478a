//! Sends callbacks. Each is a POST that is repeated until it is acknowledged or its retries end.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderValue, header};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    DeviceResult, Mode,
    callbacks::{Delivery, SimulatedCallback},
    requests,
    state::SimulatorShared,
};
use crate::identity::RequestId;

/// The longest time that an attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);

struct CallbackSender {
    shared: Arc<SimulatorShared>,
    client: reqwest::Client,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Sends callbacks until `stop`, then drops the unfinished ones.
pub(super) async fn run(
    shared: Arc<SimulatorShared>,
    mut deliveries: mpsc::UnboundedReceiver<Delivery>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(shared.options.callbacks.senders));
    let sender = CallbackSender { shared, client: client(), permits, stop: stop.clone() };
    let sender = Arc::new(sender);
    let all = async {
        while let Some(delivery) = deliveries.recv().await {
            match delivery {
                Delivery::Callback(callback) => sender.send(callback).await,
                Delivery::ResultsOf(request) => sender.send_results(request),
            }
        }
    };
    stop.run_until_cancelled(all).await;
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .user_agent(HeaderValue::from_static("Verizon's callback service"))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(ATTEMPT_TIMEOUT)
        .tls_certs_only([])
        .build()
        .expect("a client that loads no system certificates can always be built")
}

impl CallbackSender {
    async fn send(self: &Arc<Self>, callback: SimulatedCallback) {
        // Waits here rather than in the task, so that callbacks start in their order.
        let mut permit = self.permit().await;
        let sender = Arc::clone(self);
        self.spawn(async move {
            if callback.shape.warning_first {
                let result = DeviceResult::Word("warning");
                let warning = SimulatedCallback { result, ..callback.clone() };
                sender.deliver(warning, permit).await;
                permit = sender.permit().await;
            }
            sender.deliver(callback, permit).await;
        });
    }

    /// Repeats a callback until it is acknowledged or there are no more retries.
    async fn deliver(self: &Arc<Self>, callback: SimulatedCallback, permit: OwnedSemaphorePermit) {
        let callback = Arc::new(callback);
        let options = &self.shared.options.callbacks;
        let mut permit = Some(permit);
        for count in 1..=options.retries.times + 1 {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => self.permit().await,
            };
            let attempt = Arc::clone(self).attempt(Arc::clone(&callback), count, permit);
            // A task of its own, so that a slow attempt stays open while the next one begins.
            match timeout(options.patience, self.spawn(attempt)).await {
                Err(_slow) => {}
                Ok(Ok(Some(false))) => sleep(options.retries.interval).await,
                Ok(Ok(Some(true) | None) | Err(_)) => return,
            }
        }
    }

    /// Returns true if no further attempt is needed.
    async fn attempt(
        self: Arc<Self>,
        callback: Arc<SimulatedCallback>,
        count: u32,
        _permit: OwnedSemaphorePermit,
    ) -> bool {
        let SimulatedCallback { account, request, device, result, shape } = &*callback;
        let target = self.shared.update(|state| {
            let target = state.callbacks.next_target(account)?;
            state.ledger.called_back(request);
            Some(target)
        });
        // The account has no registration now.
        let Some(target) = target else { return true };
        let threshold = self.shared.options.callbacks.retries.times + 1;
        let pair = (&*target.username, &target.password);
        let body = shape.write(request, device, *result, pair, (count, threshold));
        let post = self.client.post(target.url).header(header::CONTENT_TYPE, "application/json");
        let status = match post.body(body).send().await {
            // The body is read to its end, so that the connection can be used again.
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

    /// Sends the callback of each device when the device finishes by itself.
    fn send_results(self: &Arc<Self>, id: RequestId) {
        let Mode::Auto { after } = self.shared.options.mode else { return };
        let Some(begun) = self.shared.lock().requests.get(&id).map(|request| request.begun) else {
            return;
        };
        let sender = Arc::clone(self);
        self.spawn(async move {
            for times in requests::TIMES {
                sleep_until((begun + after * times).into()).await;
                sender.shared.update(|state| state.call_back_due(&id, times));
            }
        });
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed")
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(task))
    }
}
