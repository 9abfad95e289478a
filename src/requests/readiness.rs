//! Whether calls can be answered, and the state of the store for operators.

use std::time::Duration;

use jiff::Timestamp;
use tracing::debug;

use super::{Requests, lock};
use crate::store::{Loss, StoreError};

/// The pause between attempts to load the key of tokens at the start.
const KEY_RETRY: Duration = Duration::from_millis(500);

/// The interval between checks for a loss of the store.
const LOSS_CHECK: Duration = Duration::from_millis(250);

/// The state of the store, for operators.
#[derive(Debug, Clone)]
pub struct StoreState {
    pub loss: Option<Loss>,
    pub remembers_since: Option<Timestamp>,
    /// Why the store has no room for new orders.
    pub shortage: Option<String>,
    /// Why the next start would not notice an older copy of the store, and what to do.
    pub unprotected: Option<String>,
}

impl Requests {
    /// Waits until calls can be answered. Later, some calls are answered even without the store.
    pub async fn ready(&self) {
        loop {
            self.hub.caught_up().await;
            while let Err(error) = self.token_key().await {
                debug!(%error, "cannot load the key of tokens yet");
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
    pub async fn unready(&self) {
        let lost = async {
            while self.store.loss().is_none() {
                tokio::time::sleep(LOSS_CHECK).await;
            }
        };
        tokio::select! {
            () = self.hub.lost() => {}
            () = lost => {}
        }
    }

    pub fn is_ready(&self) -> bool {
        self.waits_for().is_none()
    }

    /// Returns why calls cannot be answered.
    pub fn waits_for(&self) -> Option<String> {
        if let Some(loss) = self.store.loss() {
            return Some(format!(
                "the store lost something: {}. Nothing is done until an operator accepts that; \
                 see docs/operations.md, and run `thingspace-gateway store accept-loss`",
                loss.what
            ));
        }
        let waits = if self.hub.is_stalled() {
            "the store is no longer followed"
        } else if !self.hub.is_caught_up() {
            "what is stored has not been read yet"
        } else if lock(&self.token_key).is_none() {
            "the key of tokens has not been read yet"
        } else {
            return None;
        };
        Some(
            self.store
                .trouble()
                .map_or_else(|| waits.to_owned(), |trouble| format!("the store: {trouble}")),
        )
    }

    /// Returns the state of the store.
    pub fn store_state(&self) -> StoreState {
        StoreState {
            loss: self.store.loss(),
            remembers_since: self.store.remembers_since(),
            shortage: self.store.shortage(),
            unprotected: self.store.unprotected(),
        }
    }

    /// Returns what a ready gateway cannot do now, for operators. `None`: it can do everything, or
    /// it is not ready.
    pub fn limited(&self) -> Option<String> {
        if !self.is_ready() {
            return None;
        }
        match (self.store.trouble(), self.store.shortage()) {
            (Some(trouble), _) => Some(format!(
                "status calls and watches are answered from memory; orders are refused while the \
                 store cannot be used: {trouble}"
            )),
            (None, Some(shortage)) => {
                Some(format!("known orders go on; new orders are refused: {shortage}"))
            }
            (None, None) => None,
        }
    }

    /// Accepts a loss of the store; see [`crate::store::Store::accept_loss`].
    pub async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.store.accept_loss(restored).await
    }

    /// Returns what is wrong with the store, for operators.
    pub fn store_trouble(&self) -> Option<String> {
        let shortage = || Some(format!("new orders are refused: {}", self.store.shortage()?));
        self.store.trouble().or_else(shortage)
    }
}
