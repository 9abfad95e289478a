//! Copies callbacks whose request id has another case to their request.

use tracing::{info, warn};

use super::Resolver;
use crate::{
    requests::{
        append,
        fold::event::{self, Kind},
        hub::Stray,
    },
    store::{LogName, StoreError},
};

impl Resolver {
    /// Returns whether some callbacks could not be copied yet.
    pub(super) async fn join_strays(&self) -> bool {
        let mut unfinished = false;
        for stray in self.hub.take_strays() {
            match self.join(&stray).await {
                Ok(0) => {}
                Ok(callbacks) => info!(
                    request.id = %stray.to,
                    spelled = %stray.from,
                    callbacks,
                    "callbacks whose request id has another case were added to the request"
                ),
                Err(error) => {
                    warn!(
                        request.id = %stray.to,
                        %error,
                        "cannot add callbacks to their request yet; trying again"
                    );
                    self.hub.add_stray(stray);
                    unfinished = true;
                }
            }
        }
        unfinished
    }

    async fn join(&self, stray: &Stray) -> Result<usize, StoreError> {
        let callbacks = self.hub.stray_callbacks(stray).await?;
        let (log, first) = (LogName::request(stray.to.as_str()), self.hub.first(&stray.to));
        for called_back in &callbacks {
            let id = event::called_back_id(&stray.to, called_back);
            append(&*self.store, &log, first, id, Kind::CalledBack(called_back.clone())).await?;
        }
        Ok(callbacks.len())
    }
}
