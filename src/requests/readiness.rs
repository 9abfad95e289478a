//! Whether calls can be answered, and what operators have to know of the store.

use std::time::Duration;

use jiff::Timestamp;
use tracing::debug;

use super::{Requests, lock};
use crate::store::{Loss, StoreError};

/// Between attempts to load the key of tokens at the start.
const KEY_RETRY: Duration = Duration::from_millis(500);

/// How often the store is asked whether it lost something.
const LOSS_CHECK: Duration = Duration::from_millis(250);

/// What operators want to know of the store.
#[derive(Debug, Clone)]
pub struct StoreMemory {
    pub loss: Option<Loss>,
    pub remembers_since: Option<Timestamp>,
    /// Why there is no room for new orders.
    pub shortage: Option<String>,
    /// Why the next start would not notice an older copy of it, and what to do.
    pub unprotected: Option<String>,
}

impl Requests {
    /// Resolves when calls can be answered: from here on also some of those that come while the
    /// store is away.
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

    /// Resolves when calls can no longer be answered: the store lost something, is read anew, or is
    /// no longer followed.
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

    /// Why calls cannot be answered yet.
    pub fn waits_for(&self) -> Option<String> {
        if let Some(loss) = self.store.loss() {
            return Some(format!(
                "the store forgot something: {}. Nothing is done until an operator accepts that; see \
                 docs/operations.md, and run `thingspace-gateway store accept-loss`",
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

    /// What the store forgot, since when it remembers, and whether it has room.
    pub fn store_memory(&self) -> StoreMemory {
        StoreMemory {
            loss: self.store.loss(),
            remembers_since: self.store.remembers_since(),
            shortage: self.store.shortage(),
            unprotected: self.store.unprotected(),
        }
    }

    /// What a gateway that is ready cannot do now, for operators. `None`: it can do everything, or
    /// is not ready.
    pub fn limited(&self) -> Option<String> {
        if !self.is_ready() {
            return None;
        }
        match (self.store.trouble(), self.store.shortage()) {
            (Some(trouble), _) => Some(format!(
                "status calls and watches are answered from memory; orders are refused while the store cannot be \
                 used: {trouble}"
            )),
            (None, Some(shortage)) => {
                Some(format!("known orders go on; new orders are refused: {shortage}"))
            }
            (None, None) => None,
        }
    }

    /// An operator accepts that the store forgot something; see
    /// [`crate::store::Store::accept_loss`].
    pub async fn accept_loss(&self, restored: bool) -> Result<Option<Loss>, StoreError> {
        self.store.accept_loss(restored).await
    }

    /// What is wrong with the store, for people.
    pub fn store_trouble(&self) -> Option<String> {
        let shortage = || Some(format!("new orders are refused: {}", self.store.shortage()?));
        self.store.trouble().or_else(shortage)
    }
}
