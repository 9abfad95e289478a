//! One thing done to one account's registration, while nothing else is.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OwnedMutexGuard;
use tracing::{error, info};

use super::{Error, Inner, Outcome, Taken, Whose, address, stop::Stop};
use crate::{
    callbacks::secrets::Current,
    identity::AccountName,
    thingspace::{self, Target},
};

/// Changes for one answer: the second settles an answer that was lost, the third somebody who was
/// faster.
const ROUNDS: u32 = 3;

/// Registrations in a row that ThingSpace accepted and did not list, after which no more are made.
const MAX_UNLISTED: u32 = 2;

pub(super) struct Turn {
    pub(super) inner: Arc<Inner>,
    pub(super) account: AccountName,
    pub(super) memory: OwnedMutexGuard<Memory>,
}

/// What this process knows of an account's registration.
#[derive(Default)]
pub(super) struct Memory {
    /// Whose URL the log has complained about.
    complained: Option<String>,
    /// After a registration another password than ours was listed: the listing does not show
    /// passwords.
    passwords_hidden: bool,
    /// The URL of ours that was last seen registered.
    held: Option<SecretString>,
    /// Registrations in a row that were accepted and not listed.
    unlisted: u32,
    /// Why nothing is registered before an operator acts, and the code of the pair at that time.
    stopped: Option<(Stop, Vec<u8>)>,
}

/// What is registered for our service.
struct Found {
    whose: Whose,
    registration: thingspace::Registration,
}

impl Turn {
    /// What the background does. Another's URL is an error in the log, once, and no reason to
    /// hurry.
    pub(super) async fn look_after(&mut self) -> Result<Outcome, Error> {
        self.inner.secrets.refresh().await?;
        if self.inner.secrets.is_unwanted(&self.account) {
            return Ok(Outcome::Deregistered);
        }
        if let Some(stop) = self.stopped()? {
            return self.look_while_stopped(stop).await;
        }
        let outcome = self.settle(false).await;
        match &outcome {
            Ok(_) => self.memory.complained = None,
            Err(Error::Taken(taken)) => {
                if self.memory.complained.as_ref() != Some(&taken.host) {
                    error!(account = %self.account, "{taken}");
                }
                self.memory.complained = Some(taken.host.clone());
            }
            Err(_) => {}
        }
        outcome
    }

    pub(super) async fn register(&mut self, force: bool) -> Result<Outcome, Error> {
        self.inner.secrets.refresh().await?;
        if force {
            self.memory.stopped = None;
        }
        let outcome = self.settle(force).await?;
        self.inner.secrets.want(&self.account, true).await?;
        self.memory.complained = None;
        Ok(outcome)
    }

    pub(super) async fn rotate_pair(&mut self) -> Result<Outcome, Error> {
        self.inner.secrets.refresh().await?;
        let before = self.current()?.code;
        self.inner.secrets.rotate(&self.account).await?;
        let changed = self.current()?.code != before || !self.current()?.registered;
        self.rotated(changed).await
    }

    pub(super) async fn rotate_path(&mut self) -> Result<Outcome, Error> {
        self.inner.secrets.rotate_path(&self.account).await?;
        self.rotated(true).await
    }

    async fn rotated(&mut self, changed: bool) -> Result<Outcome, Error> {
        if self.inner.secrets.is_unwanted(&self.account) {
            return Ok(if changed { Outcome::RotatedOnly } else { Outcome::Unchanged });
        }
        match self.settle(false).await? {
            Outcome::Registered if changed => Ok(Outcome::Rotated),
            outcome => Ok(outcome),
        }
    }

    pub(super) async fn deregister(&mut self) -> Result<(), Error> {
        // Before it is gone: no replica shall put it back.
        self.inner.secrets.want(&self.account, false).await?;
        let mut doubt = None;
        for _ in 0..ROUNDS {
            let Some(found) = self.look(&self.current()?).await? else { return Ok(()) };
            match found.whose {
                Whose::Another => return Err(self.taken(&found)),
                Whose::SameAddress if self.memory.held.is_some() => {
                    return Err(self.contested().into());
                }
                Whose::Ours | Whose::Former | Whose::SameAddress => {}
            }
            doubt = in_doubt(self.remove().await)?;
            if doubt.is_none() {
                info!(account = %self.account, "callbacks are deregistered");
            }
        }
        doubt.map_or(Ok(()), Err)
    }

    /// Makes the registration what it should be, and looks again until it is.
    async fn settle(&mut self, force: bool) -> Result<Outcome, Error> {
        let mut doubt = None;
        let (mut added, mut accepted, mut refused) = (false, false, false);
        for round in 0..=ROUNDS {
            let current = self.current()?;
            let found = self.look(&current).await?;
            if let Some(found) = &found
                && self.is_right(found, &current, accepted)
            {
                return self.is_registered(&current, added).await;
            }
            // The first one at our address may be left of a store that is gone.
            let contested = added || self.memory.held.is_some();
            match found {
                Some(found) if found.whose == Whose::Another && !force => {
                    return Err(self.taken(&found));
                }
                Some(Found { whose: Whose::SameAddress, .. })
                    if contested && (!force || round == ROUNDS) =>
                {
                    return Err(self.stop(self.contested(), current.code));
                }
                None if accepted => return Err(self.not_listed(current.code)),
                // Not because somebody was faster.
                None if refused => break,
                _ if round == ROUNDS => break,
                Some(found) => {
                    let host = address::host(&found.registration.url);
                    info!(account = %self.account, %host, "replacing a registration of callbacks");
                    if let Some(error) = in_doubt(self.remove().await)? {
                        (doubt, refused) = (Some(error), false);
                        continue;
                    }
                }
                None => {}
            }
            added = true;
            doubt = in_doubt(self.add(&current).await)?;
            refused = matches!(doubt, Some(Error::ThingSpace(thingspace::Error::Refused(_))));
            accepted = doubt.is_none();
            if accepted {
                self.inner.secrets.registered(&self.account, &current.code).await?;
                info!(account = %self.account, "callbacks are registered");
            }
        }
        match doubt {
            Some(error) => Err(error),
            None => Err(self.not_listed(self.current()?.code)),
        }
    }

    async fn is_registered(&mut self, current: &Current, added: bool) -> Result<Outcome, Error> {
        if !current.registered {
            self.inner.secrets.registered(&self.account, &current.code).await?;
        }
        self.memory.held = Some(self.inner.public.with(&current.path));
        self.memory.unlisted = 0;
        self.memory.stopped = None;
        Ok(if added { Outcome::Registered } else { Outcome::Unchanged })
    }

    fn is_right(&mut self, found: &Found, current: &Current, accepted: bool) -> bool {
        let Found { whose, registration } = found;
        let Current { pair, registered, .. } = current;
        // User names are the same in any case: replacing a registration loses what comes in
        // between.
        if *whose != Whose::Ours
            || registration.username.to_lowercase() != pair.username.to_lowercase()
        {
            return false;
        }
        let password = registration.has_password(&pair.password);
        // Shown wrong right after it was registered: it is not what is shown.
        self.memory.passwords_hidden |= accepted && password == Some(false);
        match password {
            Some(true) => true,
            Some(false) => *registered && self.memory.passwords_hidden,
            None => *registered,
        }
    }

    /// Why nothing is registered. A pair that has changed since is registered once.
    fn stopped(&mut self) -> Result<Option<Stop>, Error> {
        let code = self.current()?.code;
        if self.memory.stopped.take_if(|(_, of)| *of != code).is_some() {
            self.memory.held = None;
        }
        Ok(self.memory.stopped.as_ref().map(|(stop, _)| stop.clone()))
    }

    /// Whether it has become right by itself. Nothing is changed.
    async fn look_while_stopped(&mut self, stop: Stop) -> Result<Outcome, Error> {
        let current = self.current()?;
        let found = self.look(&current).await?;
        if let Some(found) = found
            && self.is_right(&found, &current, false)
        {
            info!(account = %self.account, "callbacks are registered again");
            return self.is_registered(&current, false).await;
        }
        Err(stop.into())
    }

    /// Nothing more is registered before an operator acts.
    fn stop(&mut self, stop: Stop, code: Vec<u8>) -> Error {
        if self.memory.stopped.is_none() {
            error!(account = %self.account, "{stop}");
        }
        self.memory.stopped = Some((stop.clone(), code));
        stop.into()
    }

    fn not_listed(&mut self, code: Vec<u8>) -> Error {
        self.memory.unlisted += 1;
        let (account, service) = (self.account.clone(), self.inner.service.clone());
        if self.memory.unlisted < MAX_UNLISTED {
            return Error::NotListed { account, service };
        }
        self.stop(Stop::NotListed { account, service }, code)
    }

    fn current(&self) -> Result<Current, Error> {
        let current = self.inner.secrets.current(&self.account);
        current.ok_or_else(|| Error::NotConfigured(self.account.clone()))
    }

    async fn look(&self, current: &Current) -> Result<Option<Found>, Error> {
        let Inner { client, public, secrets, service, .. } = &*self.inner;
        let listed = client.callbacks(&self.account).await?;
        let ours = listed
            .into_iter()
            .find(|registration| registration.service.eq_ignore_ascii_case(service));
        let Some(registration) = ours else { return Ok(None) };
        let held = self.memory.held.as_ref().map(ExposeSecret::expose_secret);
        let is_own = |secret: &str| {
            secrets.is_own_path(&self.account, secret)
                || held.is_some_and(|held| held == public.with(secret).expose_secret())
        };
        let whose = public.whose(&registration.url, &current.path, is_own);
        Ok(Some(Found { whose, registration }))
    }

    async fn add(&self, current: &Current) -> Result<(), thingspace::Error> {
        let Inner { client, public, service, .. } = &*self.inner;
        let Current { pair, path, .. } = current;
        let url = public.with(path);
        let target = Target { url: &url, username: &pair.username, password: &pair.password };
        client.register_callback(&self.account, service, &target).await
    }

    async fn remove(&self) -> Result<(), thingspace::Error> {
        self.inner.client.deregister_callback(&self.account, &self.inner.service).await
    }

    fn taken(&self, found: &Found) -> Error {
        Error::Taken(Taken {
            account: self.account.clone(),
            service: self.inner.service.clone(),
            host: address::host(&found.registration.url),
        })
    }

    fn contested(&self) -> Stop {
        Stop::Contested { account: self.account.clone(), service: self.inner.service.clone() }
    }
}

/// What another look can settle: an answer that was lost, and a refusal because somebody was
/// faster.
fn in_doubt(outcome: Result<(), thingspace::Error>) -> Result<Option<Error>, Error> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error @ (thingspace::Error::Ambiguous { .. } | thingspace::Error::Refused(_))) => {
            Ok(Some(error.into()))
        }
        Err(error) => Err(error.into()),
    }
}
