//! What operators see of the client: health, and what is measured.

use tokio::sync::watch;

use super::Client;
use crate::{
    identity::AccountName,
    thingspace::{HostHealth, LoginHealth, LoginMeasures},
};

impl Client {
    /// Returns the name of each set of credentials, and the health of its logins.
    pub(crate) fn login_health(
        &self,
    ) -> impl Iterator<Item = (&str, watch::Receiver<LoginHealth>)> {
        self.sets.iter().map(|set| (set.tokens.name(), set.tokens.health()))
    }

    /// Returns what operators measure of each set of credentials.
    pub(crate) fn login_measures(&self) -> impl Iterator<Item = LoginMeasures> {
        self.sets.iter().map(|set| set.tokens.measures())
    }

    /// Returns the accounts with credentials.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.accounts.keys()
    }

    /// Returns the health of the API's host, and of the host for tokens if it is another one.
    pub(crate) fn hosts(&self) -> Vec<HostHealth> {
        self.transport.health()
    }
}
