//! Copies callbacks whose request id has another case to their request.

use tracing::{info, warn};

use super::Resolver;
use crate::{
    requests::{
        append,
        fold::event::{self, Kind},
        hub::SpellingVariant,
    },
    store::{LogName, StoreError},
};

impl Resolver {
    /// Returns whether some callbacks could not be copied yet.
    pub(super) async fn copy_spelling_variants(&self) -> bool {
        let mut unfinished = false;
        for variant in self.hub.take_spelling_variants() {
            match self.copy(&variant).await {
                Ok(0) => {}
                Ok(callbacks) => info!(
                    request.id = %variant.to,
                    spelled = %variant.from,
                    callbacks,
                    "callbacks whose request id has another case were added to the request"
                ),
                Err(error) => {
                    warn!(
                        request.id = %variant.to,
                        %error,
                        "cannot add callbacks to their request yet; trying again"
                    );
                    self.hub.add_spelling_variant(variant);
                    unfinished = true;
                }
            }
        }
        unfinished
    }

    /// Returns the number of copied callbacks.
    async fn copy(&self, variant: &SpellingVariant) -> Result<usize, StoreError> {
        let callbacks = self.hub.callbacks_of(variant).await?;
        let (log, first) = (LogName::request(variant.to.as_str()), self.hub.first(&variant.to));
        for called_back in &callbacks {
            let id = event::called_back_id(&variant.to, called_back);
            append(&*self.store, &log, first, id, Kind::CalledBack(called_back.clone())).await?;
        }
        Ok(callbacks.len())
    }
}
