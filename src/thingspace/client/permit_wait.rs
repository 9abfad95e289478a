//! Measures how long calls wait for their permits, also those whose callers stop waiting.

use tokio::time::Instant;

use super::{
    CredentialSet,
    limit::{Class, Permit},
};
use crate::{
    telemetry::{attribute, metrics, names},
    thingspace::Error,
};

/// Measures the wait for a permit when it is dropped.
struct PermitWait<'a> {
    began: Instant,
    credentials: &'a str,
    class: Class,
    outcome: &'static str,
}

impl Drop for PermitWait<'_> {
    fn drop(&mut self) {
        let attributes = [
            attribute(names::CREDENTIALS, self.credentials.to_owned()),
            attribute(names::CLASS, self.class.name()),
            attribute(names::OUTCOME, self.outcome),
        ];
        metrics().permit_wait.record(self.began.elapsed(), &attributes);
    }
}

impl CredentialSet {
    /// Waits for a permit of this class, and measures that.
    pub(super) async fn measured(
        &self,
        class: Class,
        issued: impl Future<Output = Result<Permit, Error>>,
    ) -> Result<Permit, Error> {
        let credentials = self.tokens.name();
        // A caller that stops waiting drops it.
        let mut wait =
            PermitWait { began: Instant::now(), credentials, class, outcome: "abandoned" };
        let issued = issued.await;
        wait.outcome = if issued.is_ok() { "issued" } else { "refused" };
        issued
    }
}
