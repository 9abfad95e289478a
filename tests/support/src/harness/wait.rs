//! Waits that fail the test when they take too long.

use std::{
    fmt::Debug,
    future::Future,
    panic::Location,
    time::{Duration, Instant},
};

use thingspace_gateway::store::Store;

/// The limit of every wait in a test. It is shorter than the limit of nextest, so that a stuck test
/// says where it is stuck.
pub const DEADLINE: Duration = Duration::from_secs(45);

/// Waits until a condition holds.
#[track_caller]
pub fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut is_true: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let deadline = Instant::now() + DEADLINE;
        while !is_true().await {
            assert!(Instant::now() < deadline, "not in time ({caller}): {what}");
            tick.tick().await;
        }
    }
}

/// Waits until a store can be used.
pub async fn usable(store: &dyn Store) {
    eventually("the store can be used", async || store.trouble().is_none()).await;
}

/// Repeats an operation until it succeeds, as a client does.
#[track_caller]
pub fn eventually_ok<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let deadline = Instant::now() + DEADLINE;
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => {
                    assert!(Instant::now() < deadline, "not in time ({caller}): {what}: {error:?}");
                }
            }
            tick.tick().await;
        }
    }
}

/// Waits for a future.
#[track_caller]
pub fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        let output = tokio::time::timeout(DEADLINE, future).await;
        output.unwrap_or_else(|_| panic!("not in time ({caller}): {what}"))
    }
}
