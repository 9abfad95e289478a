//! The operations on one account's registration. At most one runs at a time.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OwnedMutexGuard;
use tracing::{error, info};

use super::{
    RegistrarInner, RegistrationError, RegistrationOutcome, RegistrationResult, StopReason,
    UrlOwner, address,
};
use crate::{
    callbacks::secrets::{AccountSecrets, SecretsChange},
    identity::AccountName,
    thingspace::{self, Registration, Target},
};

/// The most changes in one operation: one more after a lost answer, and one more after another
/// system registered first.
const MAX_CHANGES: u32 = 3;

/// Registrations in a row that ThingSpace accepted but did not list. Then no more are sent.
const MAX_UNLISTED: u32 = 2;

pub(super) struct AccountRegistrar {
    pub(super) shared: Arc<RegistrarInner>,
    pub(super) account: AccountName,
    pub(super) state: OwnedMutexGuard<AccountRegistrarState>,
}

/// What this process remembers of an account's registration.
#[derive(Debug, Default)]
pub(super) struct AccountRegistrarState {
    /// The host of another system's URL for which an error was logged.
    logged: Option<String>,
    /// Whether the listing masks passwords: right after a registration, the listed password was not
    /// the registered one.
    passwords_masked: bool,
    /// The URL of this gateway in the last listing that was right.
    listed: Option<SecretString>,
    /// Registrations in a row that were accepted and not listed.
    unlisted: u32,
    /// Why this gateway stopped registering, and the authentication code of the pair at that time.
    stopped: Option<(StopReason, Vec<u8>)>,
}

/// The registration that ThingSpace lists for the service.
struct FoundRegistration {
    owner: UrlOwner,
    registration: Registration,
}

impl AccountRegistrar {
    /// Checks the registration in the background. Logs the host of another system once.
    pub(super) async fn check(&mut self) -> RegistrationResult {
        self.shared.secrets.refresh().await?;
        if self.secrets()?.is_deregistered() {
            return Ok(RegistrationOutcome::Deregistered);
        }
        if let Some(reason) = self.stopped()? {
            return self.check_while_stopped(reason).await;
        }
        let outcome = self.ensure_registered(false).await;
        match &outcome {
            Ok(_) => self.state.logged = None,
            Err(error @ RegistrationError::Taken { host, .. }) => {
                if self.state.logged.as_ref() != Some(host) {
                    error!(account = %self.account, "{error}");
                }
                self.state.logged = Some(host.clone());
            }
            Err(_) => {}
        }
        outcome
    }

    pub(super) async fn register(&mut self, force: bool) -> RegistrationResult {
        self.shared.secrets.refresh().await?;
        if force {
            self.state.stopped = None;
        }
        let outcome = self.ensure_registered(force).await?;
        self.update(SecretsChange::Deregistered(false)).await?;
        self.state.logged = None;
        Ok(outcome)
    }

    pub(super) async fn rotate_pair(&mut self) -> RegistrationResult {
        self.shared.secrets.refresh().await?;
        let before = self.secrets()?;
        self.update(SecretsChange::RotatePair).await?;
        let after = self.secrets()?;
        self.register_rotated(after.code() != before.code() || !after.is_registered()).await
    }

    pub(super) async fn rotate_path(&mut self) -> RegistrationResult {
        self.update(SecretsChange::RotatePath).await?;
        self.register_rotated(true).await
    }

    async fn register_rotated(&mut self, changed: bool) -> RegistrationResult {
        if self.secrets()?.is_deregistered() {
            return Ok(if changed {
                RegistrationOutcome::RotatedOnly
            } else {
                RegistrationOutcome::Unchanged
            });
        }
        match self.ensure_registered(false).await? {
            RegistrationOutcome::Registered if changed => Ok(RegistrationOutcome::Rotated),
            outcome => Ok(outcome),
        }
    }

    pub(super) async fn deregister(&mut self) -> RegistrationResult {
        // Stored before the calls, so that no replica registers the account again.
        self.update(SecretsChange::Deregistered(true)).await?;
        let mut uncertain = None;
        for _ in 0..MAX_CHANGES {
            let Some(found) = self.find(&self.secrets()?).await? else {
                return Ok(RegistrationOutcome::Deregistered);
            };
            match found.owner {
                UrlOwner::Other => return Err(self.taken(&found)),
                UrlOwner::SameAddress if self.state.listed.is_some() => {
                    return Err(self.contested().into());
                }
                UrlOwner::Ours | UrlOwner::OursBefore | UrlOwner::SameAddress => {}
            }
            uncertain = uncertain_change(self.remove().await)?;
            if uncertain.is_none() {
                info!(account = %self.account, "callbacks are deregistered");
            }
        }
        uncertain.map_or(Ok(RegistrationOutcome::Deregistered), Err)
    }

    /// Lists the registration and changes it, until the listed one is right.
    async fn ensure_registered(&mut self, force: bool) -> RegistrationResult {
        let mut uncertain = None;
        let (mut sent, mut accepted, mut refused) = (false, false, false);
        for changes in 0..=MAX_CHANGES {
            let current = self.secrets()?;
            let found = self.find(&current).await?;
            if let Some(found) = &found
                && self.is_right(found, &current, accepted)
            {
                return self.registered(&current, sent).await;
            }
            // The first unknown URL at this address may be left from a lost store.
            let contested = sent || self.state.listed.is_some();
            match found {
                Some(found) if found.owner == UrlOwner::Other && !force => {
                    return Err(self.taken(&found));
                }
                Some(FoundRegistration { owner: UrlOwner::SameAddress, .. })
                    if contested && (!force || changes == MAX_CHANGES) =>
                {
                    return Err(self.stop(self.contested(), &current));
                }
                None if accepted => return Err(self.not_listed(&current)),
                // ThingSpace refused it although nothing is registered, and would do so again.
                None if refused => break,
                _ if changes == MAX_CHANGES => break,
                Some(found) => {
                    let host = address::host(&found.registration.url);
                    info!(account = %self.account, %host, "replacing a registration of callbacks");
                    if let Some(error) = uncertain_change(self.remove().await)? {
                        (uncertain, refused) = (Some(error), false);
                        continue;
                    }
                }
                None => {}
            }
            sent = true;
            uncertain = uncertain_change(self.add(&current).await)?;
            refused = matches!(
                uncertain,
                Some(RegistrationError::ThingSpace(thingspace::Error::Refused(_)))
            );
            accepted = uncertain.is_none();
            if accepted {
                self.update(SecretsChange::Registered(current.code())).await?;
                info!(account = %self.account, "callbacks are registered");
            }
        }
        match uncertain {
            Some(error) => Err(error),
            None => Err(self.not_listed(&self.secrets()?)),
        }
    }

    /// Remembers that the listed registration is right.
    async fn registered(&mut self, current: &AccountSecrets, sent: bool) -> RegistrationResult {
        if !current.is_registered() {
            self.update(SecretsChange::Registered(current.code())).await?;
        }
        self.state.listed = Some(self.shared.public_url.with(&current.path));
        self.state.unlisted = 0;
        self.state.stopped = None;
        Ok(if sent { RegistrationOutcome::Registered } else { RegistrationOutcome::Unchanged })
    }

    fn is_right(
        &mut self,
        found: &FoundRegistration,
        current: &AccountSecrets,
        accepted: bool,
    ) -> bool {
        let FoundRegistration { owner, registration } = found;
        // ThingSpace ignores the case of user names.
        if *owner != UrlOwner::Ours
            || registration.username.to_lowercase() != current.pair.username.to_lowercase()
        {
            return false;
        }
        let password = registration.has_password(&current.pair.password);
        self.state.passwords_masked |= accepted && password == Some(false);
        match password {
            Some(true) => true,
            Some(false) => current.is_registered() && self.state.passwords_masked,
            None => current.is_registered(),
        }
    }

    /// Returns why this gateway stopped registering. If the pair has changed since, it registers
    /// again.
    fn stopped(&mut self) -> Result<Option<StopReason>, RegistrationError> {
        let current = self.secrets()?;
        if self.state.stopped.take_if(|(_, code)| code != current.code()).is_some() {
            self.state.listed = None;
        }
        Ok(self.state.stopped.as_ref().map(|(reason, _)| reason.clone()))
    }

    /// Checks whether the registration has become right. Changes nothing.
    async fn check_while_stopped(&mut self, reason: StopReason) -> RegistrationResult {
        let current = self.secrets()?;
        let found = self.find(&current).await?;
        if let Some(found) = found
            && self.is_right(&found, &current, false)
        {
            info!(account = %self.account, "callbacks are registered again");
            return self.registered(&current, false).await;
        }
        Err(reason.into())
    }

    fn stop(&mut self, reason: StopReason, current: &AccountSecrets) -> RegistrationError {
        if self.state.stopped.is_none() {
            error!(account = %self.account, "{reason}");
        }
        self.state.stopped = Some((reason.clone(), current.code().to_vec()));
        reason.into()
    }

    fn not_listed(&mut self, current: &AccountSecrets) -> RegistrationError {
        self.state.unlisted += 1;
        let (account, service) = (self.account.clone(), self.shared.service.clone());
        if self.state.unlisted < MAX_UNLISTED {
            return RegistrationError::NotListed { account, service };
        }
        self.stop(StopReason::NotListed { account, service }, current)
    }

    fn secrets(&self) -> Result<AccountSecrets, RegistrationError> {
        let secrets = self.shared.secrets.of(&self.account);
        secrets.ok_or_else(|| RegistrationError::NotConfigured(self.account.clone()))
    }

    async fn update(&self, change: SecretsChange<'_>) -> Result<(), RegistrationError> {
        self.shared.secrets.update(&self.account, change).await?;
        Ok(())
    }

    async fn find(
        &self,
        current: &AccountSecrets,
    ) -> Result<Option<FoundRegistration>, RegistrationError> {
        let RegistrarInner { client, public_url, secrets, service, .. } = &*self.shared;
        let listed = client.callbacks(&self.account).await;
        let listed = listed.map_err(RegistrationError::NotListable)?;
        let found = listed.into_iter().find(|one| one.service.eq_ignore_ascii_case(service));
        let Some(registration) = found else { return Ok(None) };
        let last = self.state.listed.as_ref().map(ExposeSecret::expose_secret);
        let is_own = |secret: &str| {
            secrets.is_own_path(&self.account, secret)
                || last.is_some_and(|last| last == public_url.with(secret).expose_secret())
        };
        let owner = public_url.owner(&registration.url, &current.path, is_own);
        Ok(Some(FoundRegistration { owner, registration }))
    }

    async fn add(&self, current: &AccountSecrets) -> Result<(), thingspace::Error> {
        let RegistrarInner { client, public_url, service, .. } = &*self.shared;
        let AccountSecrets { pair, path, .. } = current;
        let url = public_url.with(path);
        let target = Target { url: &url, username: &pair.username, password: &pair.password };
        client.register_callback(&self.account, service, &target).await
    }

    async fn remove(&self) -> Result<(), thingspace::Error> {
        self.shared.client.deregister_callback(&self.account, &self.shared.service).await
    }

    fn taken(&self, found: &FoundRegistration) -> RegistrationError {
        let host = address::host(&found.registration.url);
        RegistrationError::Taken {
            account: self.account.clone(),
            service: self.shared.service.clone(),
            is_own_host: host == self.shared.public_url.url().host,
            host,
        }
    }

    fn contested(&self) -> StopReason {
        let (account, service) = (self.account.clone(), self.shared.service.clone());
        StopReason::Contested { account, service }
    }
}

/// Returns the error of a change if the next listing shows whether it was made: its answer was
/// lost, or ThingSpace refused it, for example because another system had registered. Other errors
/// are final.
fn uncertain_change(
    outcome: Result<(), thingspace::Error>,
) -> Result<Option<RegistrationError>, RegistrationError> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error @ (thingspace::Error::OutcomeUnknown { .. } | thingspace::Error::Refused(_))) => {
            Ok(Some(error.into()))
        }
        Err(error) => Err(error.into()),
    }
}
