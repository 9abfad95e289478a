//! Finds the account of a path that another replica may have made.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Error, Secrets};
use crate::identity::AccountName;

/// From one look at the store for unknown paths to the next: anybody can send such.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Characters of the secret in a path.
const PATH_CHARS: usize = 43;

/// The looks at the store for unknown paths.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// When the last one began.
    begun: Option<Instant>,
    /// When the last one began that succeeded.
    done: Option<Instant>,
}

impl Secrets {
    /// Whose secret it is. For one that is not known the store is read again, once for all who
    /// wait.
    pub(in crate::callbacks) async fn find(
        &self,
        segment: &str,
    ) -> Result<Option<AccountName>, Error> {
        let known = self.account_of(segment);
        if known.is_some() || segment.len() != PATH_CHARS {
            return Ok(known);
        }
        let asked = Instant::now();
        let mut looks = self.0.looks.lock().await;
        if looks.done.is_none_or(|done| done < asked) {
            if let Some(begun) = looks.begun {
                sleep_until(begun + LOOK_EVERY).await;
            }
            let now = Instant::now();
            looks.begun = Some(now);
            match self.refresh().await {
                Ok(()) => looks.done = Some(now),
                // A mistake in the files, which says nothing about paths.
                Err(Error::Files(_) | Error::Login { .. }) if self.is_loaded() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.account_of(segment))
    }
}
