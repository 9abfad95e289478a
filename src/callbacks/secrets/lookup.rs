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
    /// When the last one began.
    begun: Option<Instant>,
    /// When the last successful one began.
    succeeded: Option<Instant>,
}

impl CallbackSecrets {
    /// Returns the account with this path secret. Reads the store for an unknown one, once for all
    /// callers that wait.
    pub(in crate::callbacks) async fn find(
        &self,
        segment: &str,
    ) -> Result<Option<AccountName>, SecretsError> {
        let known = self.account_of(segment);
        if known.is_some() || segment.len() != PATH_CHARS {
            return Ok(known);
        }
        let asked = Instant::now();
        let mut lookups = self.0.lookups.lock().await;
        if lookups.succeeded.is_none_or(|begun| begun < asked) {
            if let Some(begun) = lookups.begun {
                sleep_until(begun + READ_INTERVAL).await;
            }
            let now = Instant::now();
            lookups.begun = Some(now);
            match self.refresh().await {
                Ok(()) => lookups.succeeded = Some(now),
                // Files that cannot be used do not matter for path secrets.
                Err(SecretsError::Files(_) | SecretsError::SharedWithUser { .. })
                    if self.is_loaded() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.account_of(segment))
    }
}
