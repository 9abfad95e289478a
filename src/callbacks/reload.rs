//! Reads the pairs of the accounts again: their files, and what other replicas have stored.

use std::time::Duration;

use tokio::time::interval;
use tracing::{error, warn};

use super::{Callbacks, secrets::SecretsError};
use crate::{
    lock::lock,
    reload::{REFUSED, WatchedFiles, count_reload},
};

/// What the files of the pair are, for metrics.
const PAIR_FILES: &str = "callback_pair";

/// How often the pairs are read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);

impl Callbacks {
    /// Reads the pairs at intervals. Each failure is logged once.
    pub(super) async fn reload(self) {
        let watched = WatchedFiles::new(PAIR_FILES);
        let mut tick = interval(RELOAD_INTERVAL);
        let mut last_failure = None;
        loop {
            tick.tick().await;
            let failed = self.0.secrets.refresh().await.err();
            let files_refused = failed.as_ref().is_some_and(SecretsError::is_about_files);
            let failure = failed.as_ref().map(ToString::to_string);
            if let (Some(error), true) = (&failure, failure != last_failure) {
                if files_refused {
                    count_reload(PAIR_FILES, REFUSED);
                    error!(
                        error,
                        "cannot use the callbacks' pair, and the old one stays in use; correct its \
                         files"
                    );
                } else {
                    warn!(
                        error,
                        "cannot read the callbacks' pairs from the store, and the known ones stay \
                         in use; they are read again soon"
                    );
                }
            }
            watched.set_refused(files_refused);
            *lock(&self.0.pair_problem) = failure.clone().filter(|_| files_refused);
            last_failure = failure;
        }
    }
}
