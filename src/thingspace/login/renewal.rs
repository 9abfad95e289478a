//! Renews a token: the guard permits one request, and its outcome is reported to the guard.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Tokens,
    error::{LoginError, Problem},
    guard::{
        AttemptOutcome,
        answer::{AttemptFailure, to_login, to_token_request},
    },
    secrets::{CredentialSecrets, Half, HalfIdentity},
    slot::{Token, TokenId},
    vault::{Access, Need, RenewalClaim},
};
use crate::thingspace::{
    Error,
    http::{
        reply::{Reply, SendError},
        transport::Endpoint,
        wire,
    },
};

impl Tokens {
    pub(super) async fn request_bearer(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Token, LoginError> {
        let secrets = self.secrets().await?;
        let claim = match self.claim(Half::Application, &secrets, last, need).await? {
            Access::Token(token) => return Ok(token),
            Access::Renew(claim) => claim,
        };
        let headers = HeaderMap::from_iter([(AUTHORIZATION, secrets.basic())]);
        let body = Bytes::from_static(b"grant_type=client_credentials");
        let reply = self.send(Endpoint::Token, headers, body, &claim).await;
        match reply.and_then(|reply| to_token_request(&reply, wire::bearer)) {
            Ok(bearer) => {
                tracing::debug!(credentials = self.name(), "bearer token received");
                let value = sensitive("Bearer ", &bearer.token);
                Ok(self.report_acceptance(Half::Application, claim, value, bearer.expires_in).await)
            }
            Err(failure) => Err(self.report_failure(Half::Application, claim, failure).await),
        }
    }

    /// Logs in. If the bearer token is refused, repeats the login once with a new one, because
    /// ThingSpace did not check the password.
    pub(super) async fn log_in(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Token, LoginError> {
        let mut repeat = true;
        loop {
            let secrets = self.secrets().await?;
            // Gets the bearer token before the claim, but only if a claim is possible.
            let access = self.user.vault.check(&secrets.user, last, need).await;
            if let Access::Token(token) = self.update_health(Half::User, &secrets.user, access)? {
                return Ok(token);
            }
            let bearer = self.token(Half::Application, Need::Call).await?;
            let claim = match self.claim(Half::User, &secrets, last, need).await? {
                Access::Token(token) => return Ok(token),
                Access::Renew(claim) => claim,
            };
            let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.value.clone())]);
            let reply = self.send(Endpoint::Login, headers, secrets.login_body(), &claim).await;
            let failure = match reply.and_then(|reply| to_login(&reply, wire::session)) {
                Ok(session) => {
                    self.application.slot.worked(bearer.id);
                    tracing::info!(credentials = self.name(), "logged in");
                    let value = sensitive("", &session);
                    return Ok(self.report_acceptance(Half::User, claim, value, None).await);
                }
                Err(failure) => failure,
            };
            if failure == AttemptFailure::StaleBearer {
                self.application.slot.invalidate(bearer.id);
                if std::mem::take(&mut repeat) {
                    let (error, outcome) = failure.into_error(Half::User);
                    self.user.vault.report(claim, outcome, Some(&error)).await;
                    continue;
                }
            }
            return Err(self.report_failure(Half::User, claim, failure).await);
        }
    }

    /// Sends the one request of a claim.
    async fn send(
        &self,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
        claim: &RenewalClaim,
    ) -> Result<Reply, AttemptFailure> {
        if !claim.is_fresh() {
            let reason = "the gateway was suspended for too long".to_owned();
            return Err(AttemptFailure::NotEvaluated(reason));
        }
        self.transport.send(endpoint, headers, body).await.map_err(|failure| match failure {
            SendError::NotConnected(reason) => AttemptFailure::NotEvaluated(reason),
            SendError::NoDescriptor => {
                AttemptFailure::NotEvaluated(Error::NoDescriptor.to_string())
            }
            SendError::BreakerOpen(wait) => AttemptFailure::HostUnavailable(wait),
            SendError::NoAnswer(reason) => AttemptFailure::Unanswered(reason),
        })
    }

    async fn claim(
        &self,
        half: Half,
        secrets: &CredentialSecrets,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Access<RenewalClaim>, LoginError> {
        let identity = secrets.identity(half);
        let access = self.source(half).vault.claim(identity, last, need).await;
        self.update_health(half, identity, access)
    }

    /// Updates the health from an answer of the vault, and returns that answer.
    fn update_health<C>(
        &self,
        half: Half,
        identity: &HalfIdentity,
        access: Result<Access<C>, LoginError>,
    ) -> Result<Access<C>, LoginError> {
        match &access {
            Ok(Access::Token(token)) => self.health.set(half, None, token.id.fingerprint),
            // The keeper notes the beginning and the end of another replica's login.
            Err(error) if error.problem != Problem::Elsewhere => {
                self.health.set(half, Some(error.problem.clone()), identity.fingerprint);
            }
            Ok(Access::Renew(_)) | Err(_) => {}
        }
        access
    }

    async fn report_acceptance(
        &self,
        half: Half,
        claim: RenewalClaim,
        value: HeaderValue,
        expires_in: Option<Duration>,
    ) -> Token {
        self.health.set(half, None, claim.identity.fingerprint);
        self.source(half).vault.accepted(claim, value, expires_in).await
    }

    /// Reports a failed attempt. Returns the error for the callers of this attempt; the guard
    /// decides what the next callers get.
    async fn report_failure(
        &self,
        half: Half,
        claim: RenewalClaim,
        failure: AttemptFailure,
    ) -> LoginError {
        let vault = &self.source(half).vault;
        let identity = Arc::clone(&claim.identity);
        let (mut error, outcome) = failure.into_error(half);
        let counts = outcome != AttemptOutcome::NotEvaluated;
        vault.report(claim, outcome, Some(&error)).await;
        if error.problem != Problem::Rejected {
            tracing::warn!(
                credentials = self.name(),
                "no token; the gateway tries again: {}",
                error.problem
            );
        }
        let mut problem = error.problem.clone();
        let obstacle = vault.check_renewal(&identity).await.err();
        match (obstacle, &error.problem) {
            (Some(LoginError { problem: stopped @ Problem::Stopped(_), .. }), _) if counts => {
                problem = stopped;
                if let Problem::Unavailable(reason) = error.problem {
                    error = Problem::Delayed(reason).into();
                }
            }
            (Some(once @ LoginError { problem: Problem::RejectedOnce, .. }), _) if counts => {
                tracing::warn!(
                    credentials = self.name(),
                    "ThingSpace rejected the application; it is tried again"
                );
                (problem, error) = (Problem::RejectedOnce, once);
            }
            (Some(delayed), Problem::Unavailable(reason)) if delayed.problem.is_delay() => {
                error.problem = Problem::Delayed(reason.clone());
                error.not_before = delayed.not_before;
            }
            _ => {}
        }
        self.health.set(half, Some(problem), identity.fingerprint);
        error
    }
}

impl AttemptFailure {
    /// Returns the error for callers, and the outcome for the guard. The guard ignores a token
    /// request without an answer, because it cannot lock a user.
    fn into_error(self, half: Half) -> (LoginError, AttemptOutcome) {
        let not_evaluated = AttemptOutcome::NotEvaluated;
        match self {
            Self::Rejected => (Problem::Rejected.into(), AttemptOutcome::Rejected),
            Self::StaleBearer => (
                LoginError::unavailable("the login was refused because of its bearer token"),
                not_evaluated,
            ),
            Self::Throttled(wait) => {
                (LoginError::new(Problem::Throttled, wait.unwrap_or_default()), not_evaluated)
            }
            Self::HostUnavailable(wait) => {
                (LoginError::new(Problem::HostUnavailable, wait), not_evaluated)
            }
            Self::Unanswered(reason) if half == Half::User => {
                (LoginError::unavailable(reason), AttemptOutcome::Unanswered)
            }
            // The guard does not delay the next token request, but the slot does.
            Self::NotEvaluated(reason) | Self::Unanswered(reason) => {
                (LoginError::unavailable(reason), not_evaluated)
            }
        }
    }
}

fn sensitive(prefix: &str, secret: &SecretString) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose_secret()))
        .expect("a token was checked to be visible ASCII");
    value.set_sensitive(true);
    value
}
