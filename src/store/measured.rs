//! A store whose operations are measured.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    CellName, Entry, Followed, LogName, Loss, Position, Store, StoreError, StoreMeasures, Swap,
    Version, Versioned,
};
use crate::telemetry::{attribute, metrics, names};

/// Measures the time of each operation, and passes everything on.
#[derive(Debug)]
struct Measured<S>(S);

/// Measures an operation. One that its caller does not wait for to the end is not counted.
async fn measured<T>(
    operation: &'static str,
    result: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let result = result.await;
    let outcome = if result.is_ok() { "ok" } else { "failed" };
    metrics().store_duration.record(
        began.elapsed(),
        &[attribute(names::OPERATION, operation), attribute(names::OUTCOME, outcome)],
    );
    result
}

#[async_trait]
impl<S: Store> Store for Measured<S> {
    async fn append(&self, log: &LogName, id: Uuid, event: Bytes) -> Result<Position, StoreError> {
        measured("append", self.0.append(log, id, event)).await
    }

    async fn read(
        &self,
        log: &LogName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        measured("read", self.0.read(log, after, limit)).await
    }

    fn follow(&self, after: Option<Position>) -> BoxStream<'static, Followed> {
        self.0.follow(after)
    }

    async fn load(&self, cell: &CellName) -> Result<Option<Versioned>, StoreError> {
        measured("load", self.0.load(cell)).await
    }

    async fn swap(
        &self,
        cell: &CellName,
        expected: Option<Version>,
        value: Bytes,
    ) -> Result<Swap, StoreError> {
        measured("swap", self.0.swap(cell, expected, value)).await
    }

    fn exclusive(&self) -> bool {
        self.0.exclusive()
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }

    fn loss(&self) -> Option<Loss> {
        self.0.loss()
    }

    async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.0.accept_loss(restored).await
    }

    fn has_lost_cells(&self) -> bool {
        self.0.has_lost_cells()
    }

    fn remembers_since(&self) -> Option<Timestamp> {
        self.0.remembers_since()
    }

    fn age(&self, position: Position, time: Timestamp) -> Duration {
        self.0.age(position, time)
    }

    fn shortage(&self) -> Option<String> {
        self.0.shortage()
    }

    fn end(&self) -> Option<Position> {
        self.0.end()
    }

    fn unprotected(&self) -> Option<String> {
        self.0.unprotected()
    }

    fn measures(&self) -> StoreMeasures {
        self.0.measures()
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// Returns the store with its operations measured.
pub(crate) fn measure(store: impl Store + 'static) -> Arc<dyn Store> {
    Arc::new(Measured(store))
}
