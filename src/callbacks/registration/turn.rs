//! One thing done to one account's registration, while nothing else is.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use tracing::{error, info};

use super::{Error, Inner, Outcome, Whose, address};
use crate::{
    callbacks::secrets::Pair,
    identity::AccountName,
    thingspace::{self, Target},
};

/// Looks for one answer: the second settles an answer that was lost, the third somebody who was faster.
const ROUNDS: u32 = 3;

pub(super) struct Turn {
    pub(super) inner: Arc<Inner>,
    pub(super) account: AccountName,
    pub(super) memory: OwnedMutexGuard<Memory>,
}

/// What this process knows of an account's registration.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Whose URL the log has complained about.
    complained: Option<String>,
    /// After a registration another password than ours was listed: the listing does not show passwords.
    passwords_hidden: bool,
}

/// What is registered for our service.
struct Found {
    whose: Whose,
    registration: thingspace::Registration,
}

impl Turn {
    /// What the background does. Another's URL is an error in the log, once, and no reason to hurry.
    pub(super) async fn look_after(&mut self) -> Result<(), Error> {
        self.inner.secrets.refresh().await?;
        if self.inner.secrets.is_unwanted(&self.account) {
            return Ok(());
        }
        match self.settle(false).await {
            Ok(_) => self.memory.complained = None,
            Err(Error::Taken(taken)) => {
                if self.memory.complained.as_ref() != Some(&taken.host) {
                    error!(account = %self.account, "{taken}");
                }
                self.memory.complained = Some(taken.host);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) async fn register(&mut self, force: bool) -> Result<Outcome, Error> {
        self.inner.secrets.refresh().await?;
        let outcome = self.settle(force).await?;
        self.inner.secrets.want(&self.account, true).await?;
        self.memory.complained = None;
        Ok(outcome)
    }

    pub(super) async fn rotate(&mut self) -> Result<Outcome, Error> {
        self.inner.secrets.rotate(&self.account).await?;
        self.settle(false).await
    }

    pub(super) async fn deregister(&mut self) -> Result<(), Error> {
        // Before it is gone: no replica shall put it back.
        self.inner.secrets.want(&self.account, false).await?;
        let mut doubt = None;
        for _ in 0..ROUNDS {
            match self.look().await? {
                None => return Ok(()),
                Some(found) if found.whose == Whose::Another => return Err(self.taken(&found)),
                Some(_) => doubt = in_doubt(self.remove().await)?,
            }
            if doubt.is_none() {
                info!(account = %self.account, "callbacks are deregistered");
            }
        }
        doubt.map_or(Ok(()), Err)
    }

    /// Makes the registration what it should be, and looks again whenever it cannot know that it is.
    async fn settle(&mut self, force: bool) -> Result<Outcome, Error> {
        let Some(pair) = self.inner.secrets.pair(&self.account) else {
            return Err(Error::NotConfigured(self.account.clone()));
        };
        let (mut doubt, mut added) = (None, false);
        for _ in 0..ROUNDS {
            match self.look().await? {
                Some(found) if self.is_right(&found, &pair, added) => {
                    return Ok(if added { Outcome::Registered } else { Outcome::Unchanged });
                }
                Some(found) if found.whose == Whose::Another && !force => return Err(self.taken(&found)),
                Some(found) => {
                    let host = address::host(&found.registration.url);
                    info!(account = %self.account, %host, "replacing a registration of callbacks");
                    if let Some(error) = in_doubt(self.remove().await)? {
                        doubt = Some(error);
                        continue;
                    }
                }
                // Refused, and not because somebody was faster.
                None if matches!(doubt, Some(Error::ThingSpace(thingspace::Error::Refused(_)))) => break,
                None => {}
            }
            added = true;
            doubt = in_doubt(self.add(&pair).await)?;
            if doubt.is_none() {
                info!(account = %self.account, "callbacks are registered");
            }
        }
        doubt.map_or(Ok(Outcome::Registered), Err)
    }

    fn is_right(&mut self, found: &Found, pair: &Pair, added: bool) -> bool {
        let Found { whose, registration } = found;
        // User names are the same in any case: replacing a registration loses what comes in between.
        if *whose != Whose::Ours || registration.username.to_lowercase() != pair.username.to_lowercase() {
            return false;
        }
        let password = registration.has_password(&pair.password);
        // Shown wrong right after it was registered: it is not what is shown.
        self.memory.passwords_hidden |= added && password == Some(false);
        password != Some(false) || self.memory.passwords_hidden
    }

    async fn look(&self) -> Result<Option<Found>, Error> {
        let Inner { client, public, secrets, service, .. } = &*self.inner;
        let listed = client.callbacks(&self.account).await?;
        let ours = listed.into_iter().find(|registration| registration.service.eq_ignore_ascii_case(service));
        let secret = secrets.path(&self.account);
        Ok(ours.map(|registration| Found { whose: public.whose(&registration.url, &secret), registration }))
    }

    async fn add(&self, pair: &Pair) -> Result<(), thingspace::Error> {
        let Inner { client, public, secrets, service, .. } = &*self.inner;
        let url = public.with(&secrets.path(&self.account));
        let target = Target { url: &url, username: &pair.username, password: &pair.password };
        client.register_callback(&self.account, service, &target).await
    }

    async fn remove(&self) -> Result<(), thingspace::Error> {
        self.inner.client.deregister_callback(&self.account, &self.inner.service).await
    }

    fn taken(&self, found: &Found) -> Error {
        Error::Taken(super::Taken {
            account: self.account.clone(),
            service: self.inner.service.clone(),
            host: address::host(&found.registration.url),
        })
    }
}

/// What another look can settle: an answer that was lost, and a refusal because somebody was faster.
fn in_doubt(outcome: Result<(), thingspace::Error>) -> Result<Option<Error>, Error> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error @ (thingspace::Error::Ambiguous { .. } | thingspace::Error::Refused(_))) => {
            Ok(Some(error.into()))
        }
        Err(error) => Err(error.into()),
    }
}
