//! Finds the account of a path secret, which another replica may have created.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{CallbackSecrets, SecretsError};
use crate::identity::AccountName;

/// The shortest time between two reads of the store for unknown path secrets.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// The length of a path secret.
const PATH_CHARS: usize = 43;

/// The reads of the store for unknown path secrets.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    /// When the last read began.
    last: Option<Instant>,
    /// When the last successful read began.
    last_success: Option<Instant>,
}

impl CallbackSecrets {
    /// Returns the account with this path secret. Reads the store for an unknown secret, once for
    /// all callers that wait.
    pub(in crate::callbacks) async fn find(
        &self,
        segment: &str,
    ) -> Result<Option<AccountName>, SecretsError> {
        let known = self.account_of(segment);
        if known.is_some() || segment.len() != PATH_CHARS {
            return Ok(known);
        }
        let start = Instant::now();
        let mut lookups = self.0.lookups.lock().await;
        if lookups.last_success.is_none_or(|last| last < start) {
            if let Some(last) = lookups.last {
                sleep_until(last + READ_INTERVAL).await;
            }
            let now = Instant::now();
            lookups.last = Some(now);
            match self.refresh().await {
                Ok(()) => lookups.last_success = Some(now),
                // The path secrets were read. The files of the pair do not matter here.
                Err(SecretsError::Files(_) | SecretsError::SharedWithUser { .. })
                    if self.is_loaded() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.account_of(segment))
    }
}
