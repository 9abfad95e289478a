//! Whether calls can be answered, and the state of the store for operators.

use std::time::Duration;

use jiff::Timestamp;
use tracing::debug;

use super::{Requests, lock};
use crate::store::{Loss, StoreError};

/// The pause between attempts to load the key of resume and page tokens.
const KEY_RETRY: Duration = Duration::from_millis(500);

/// The interval between checks for a loss of the store.
const LOSS_CHECK: Duration = Duration::from_millis(250);

#[derive(Debug, Clone)]
pub(crate) struct StoreState {
    pub(crate) loss: Option<Loss>,
    pub(crate) remembers_since: Option<Timestamp>,
    /// Why the store has no room for new orders.
    pub(crate) shortage: Option<String>,
    /// Why the next start would not notice an older copy of the store, and what to do.
    pub(crate) unprotected: Option<String>,
}

impl Requests {
    /// Waits until calls can be answered. After that, some calls are answered even while the store
    /// cannot be used.
    pub async fn ready(&self) {
        loop {
            self.hub.caught_up().await;
            while let Err(error) = self.token_key().await {
                debug!(%error, "cannot load the key of resume and page tokens yet");
                tokio::time::sleep(KEY_RETRY).await;
            }
            if self.is_ready() {
                return;
            }
            tokio::time::sleep(LOSS_CHECK).await;
        }
    }

    /// Waits until calls can no longer be answered: the store lost something, is read again from
    /// the beginning, or is no longer followed.
    pub(crate) async fn unready(&self) {
        let lost = async {
            while self.store.loss().is_none() {
                tokio::time::sleep(LOSS_CHECK).await;
            }
        };
        tokio::select! {
            () = self.hub.outdated() => {}
            () = lost => {}
        }
    }

    /// Whether calls can be answered.
    pub fn is_ready(&self) -> bool {
        self.waits_for().is_none()
    }

    /// Returns why calls cannot be answered. `None`: they can.
    pub(crate) fn waits_for(&self) -> Option<String> {
        if let Some(loss) = self.store.loss() {
            return Some(format!(
                "the store lost something: {}. Nothing is done until an operator accepts the loss; \
                 see docs/operations.md, and run `thingspace-gateway store accept-loss`",
                loss.what
            ));
        }
        let reason = if self.hub.is_stalled() {
            "the store is no longer followed"
        } else if !self.hub.is_caught_up() {
            "the stored events have not been read yet"
        } else if lock(&self.token_key).is_none() {
            "the key of resume and page tokens has not been read yet"
        } else {
            return None;
        };
        let trouble = self.store.trouble().map(|trouble| format!("the store: {trouble}"));
        Some(trouble.unwrap_or_else(|| reason.to_owned()))
    }

    pub(crate) fn store_state(&self) -> StoreState {
        StoreState {
            loss: self.store.loss(),
            remembers_since: self.store.remembers_since(),
            shortage: self.store.shortage(),
            unprotected: self.store.unprotected(),
        }
    }

    /// Returns what a ready gateway cannot do now. `None`: it can do everything, or is not ready.
    pub(crate) fn limited(&self) -> Option<String> {
        if !self.is_ready() {
            return None;
        }
        match (self.store.trouble(), self.store.shortage()) {
            (Some(trouble), _) => Some(format!(
                "status calls and watches are answered from memory; orders are refused while the \
                 store cannot be used: {trouble}"
            )),
            (None, Some(shortage)) => {
                Some(format!("known orders continue; new orders are refused: {shortage}"))
            }
            (None, None) => None,
        }
    }

    /// Accepts a loss of the store; see [`crate::store::Store::accept_loss`].
    pub async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.store.accept_loss(restored).await
    }

    /// Whether the store can be used, and its last write succeeded.
    pub(crate) fn is_store_usable(&self) -> bool {
        self.store.trouble().is_none()
    }

    /// Returns why the store cannot be used, or takes no new orders.
    pub(crate) fn store_trouble(&self) -> Option<String> {
        let shortage = || Some(format!("new orders are refused: {}", self.store.shortage()?));
        self.store.trouble().or_else(shortage)
    }
}
