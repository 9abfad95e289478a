//! The drain: the orderly stop of a gateway.
//!
//! 1. New work is refused: the gateway reports that it is not ready, accepts no connection and
//!    admits no call. Watches end with their token, and calls that wait for a permit end.
//! 2. Calls and orders in progress finish, and callbacks are still accepted.
//! 3. Callbacks are no longer accepted, and the background tasks end.
//! 4. The store closes.
//!
//! Each step has a time limit, and a part of `grpc.drain` is reserved for the last two steps. So
//! the drain ends in time, even if a step does not finish. Every event is durable before it is
//! acknowledged, so the drain cannot lose an acknowledged event.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use super::health;
use crate::{admin::Admin, control::GatewayParts, shutdown::Stop, store::Store};

/// The most time that is reserved for ending background tasks, closing the store and flushing
/// telemetry. It is at most a quarter of the drain.
const RESERVED: Duration = Duration::from_secs(5);

/// How long the follower may take to end. Before it ends, it raises the low-water mark.
const FOLLOWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a server may take to close its idle connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of a running gateway.
pub(super) struct Running {
    pub(super) admin: Admin,
    pub(super) health: HealthReporter,
    pub(super) parts: GatewayParts,
    pub(super) store: Arc<dyn Store>,
    /// Calls in progress.
    pub(super) calls: TaskTracker,
    /// Orders and status queries in progress.
    pub(super) tasks: TaskTracker,
    /// Cancelled to refuse new work.
    pub(super) drain: CancellationToken,
    /// Cancelled to end background tasks and the listener for callbacks.
    pub(super) background: CancellationToken,
    pub(super) grpc: JoinHandle<()>,
    /// Follows the store, polls and settles orders.
    pub(super) follower: JoinHandle<()>,
    pub(super) control: JoinHandle<()>,
    pub(super) callbacks: Option<JoinHandle<()>>,
    /// How long the drain may take.
    pub(super) time: Duration,
}

impl Running {
    /// Drains. A second request to stop skips the wait for calls and orders. Fails if orders are
    /// still in progress at the end.
    pub(super) async fn drain(self, stop: &Stop) -> anyhow::Result<()> {
        let began = Instant::now();
        info!("draining");
        self.refuse_new_work().await;
        self.finish_work(began + time_for_work(self.time), stop).await;
        self.background.cancel();
        let end = began + self.time;
        let within = |limit: Duration| end.min(Instant::now() + limit);
        // Nobody waits for peers after the second signal, and a short drain has no time for them.
        let close = if stop.hard.is_cancelled() { Duration::ZERO } else { self.time / 16 };
        let close = close.min(CLOSE_TIMEOUT);
        finish("follower", self.follower, within(FOLLOWER_TIMEOUT)).await;
        finish("gRPC server", self.grpc, within(close)).await;
        if let Some(callbacks) = self.callbacks {
            finish("callback listener", callbacks, within(close)).await;
        }
        finish("control socket", self.control, within(RESERVED)).await;
        let cut = self.parts.requests.orders_in_flight();
        if timeout_at(within(RESERVED), self.store.close()).await.is_err() {
            warn!("the store did not close in time; everything that was acknowledged is stored");
        }
        self.admin.end().await;
        info!(took = ?began.elapsed(), "drained");
        ensure!(
            cut == 0,
            "orders were in progress when the gateway had to end: {cut}; after the next start \
             `orders unknown` lists those whose outcome is unknown"
        );
        Ok(())
    }

    async fn refuse_new_work(&self) {
        self.admin.draining();
        health::set(&self.health, false).await;
        self.drain.cancel();
        self.parts.requests.drain();
        self.calls.close();
        self.tasks.close();
    }

    async fn finish_work(&self, deadline: Instant, stop: &Stop) {
        let (calls, tasks) = (&self.calls, &self.tasks);
        let finished = async {
            calls.wait().await;
            tasks.wait().await;
        };
        tokio::select! {
            () = finished => {}
            () = sleep_until(deadline) => warn!(
                calls = calls.len(),
                tasks = tasks.len(),
                "time is up; calls and orders that are still in progress are ended; \
                 a longer grpc.drain gives them more time"
            ),
            () = stop.hard.cancelled() => warn!(
                calls = calls.len(),
                tasks = tasks.len(),
                "told to stop at once; calls and orders that are still in progress are ended"
            ),
        }
    }
}

/// Returns how long calls and orders may take in a drain of this length.
fn time_for_work(drain: Duration) -> Duration {
    drain.saturating_sub((drain / 4).min(RESERVED))
}

/// Waits for a task, and aborts it at `deadline`.
async fn finish<T>(name: &str, task: JoinHandle<T>, deadline: Instant) {
    let abort = task.abort_handle();
    match timeout_at(deadline, task).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => warn!(task = name, %error, "a task panicked; report it"),
        Err(_) => abort.abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A restart while ThingSpace is slow must not make the outcome of orders unknown.
    #[test]
    fn by_default_an_order_in_progress_can_finish_in_a_drain() {
        let Config { grpc, thingspace, .. } = Config::defaults();
        let order = thingspace.connect_timeout + thingspace.order_timeout;
        assert!(
            time_for_work(grpc.drain) >= order,
            "{:?} for an order that takes {order:?}",
            grpc.drain
        );
    }
}
