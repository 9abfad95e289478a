//! How a token is obtained: the guard permits one request, and its outcome is reported to the
//! guard.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::guard::{
    Later, Report,
    answer::{Answer, to_login, to_token_request},
};
use super::{
    Tokens,
    files::Unread,
    secrets::{Identity, Secrets},
    slot::{Fault, Minted, Pace, Token, TokenId, What},
    standing::{Half, Trouble},
    vault::{Claim, Need, NoTurn, Outlook, Turn, not_yet},
};
use crate::thingspace::{
    Error,
    http::{
        transport::{Endpoint, Failure, Reply},
        wire,
    },
};

/// An attempt that brought nothing.
struct Miss {
    fault: Fault,
    report: Report,
}

impl Tokens {
    pub(super) async fn request_bearer(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Minted, Fault> {
        let secrets = self.secrets().await.map_err(Fault::from)?;
        let turn = self.applications.turn(&secrets.client, last, need).await;
        let claim = match self.heard(Half::Client, &secrets.client, turn)? {
            Turn::Found(minted) => return Ok(self.found(Half::Client, minted)),
            Turn::Ours(claim) => claim,
        };
        let miss = match self.ask_for_bearer(&secrets, &claim).await {
            Ok(Answer::Accepted(bearer)) => {
                tracing::debug!(credentials = self.name(), "bearer received");
                self.standings.set(Half::Client, None, claim.identity().fingerprint);
                let value = sensitive("Bearer ", &bearer.token);
                return Ok(self.applications.accepted(claim, value, bearer.expires_in).await);
            }
            // Nothing is locked by it, so only rejections leave a trace in the guard.
            Ok(Answer::Unclear(reason)) => Miss::void(reason),
            Ok(answer) => Miss::of(answer),
            Err(miss) => miss,
        };
        Err(self.fail(Half::Client, claim, miss).await)
    }

    /// A login that meets a stale bearer is repeated once with a new one: the password was not
    /// looked at.
    pub(super) async fn log_in(
        self: &Arc<Self>,
        last: Option<TokenId>,
        need: Need,
    ) -> Result<Minted, Fault> {
        let mut again = true;
        loop {
            let secrets = self.secrets().await.map_err(Fault::from)?;
            // The bearer is had before anything is claimed, and not at all if there is nothing to
            // claim.
            let found = self.users.wait(&secrets.login, last, need).await;
            if let Some(minted) = self.heard(Half::Login, &secrets.login, found)? {
                return Ok(self.found(Half::Login, minted));
            }
            let bearer = self.bearer().await.map_err(|failed| failed.fault)?;
            let turn = self.users.turn(&secrets.login, last, need).await;
            let claim = match self.heard(Half::Login, &secrets.login, turn)? {
                Turn::Found(minted) => return Ok(self.found(Half::Login, minted)),
                Turn::Ours(claim) => claim,
            };
            let miss = match self.ask_for_session(&secrets, &bearer, &claim).await {
                Ok(Answer::Accepted(session)) => {
                    self.bearer.worked(bearer.id);
                    tracing::info!(credentials = self.name(), "logged in");
                    self.standings.set(Half::Login, None, claim.identity().fingerprint);
                    return Ok(self.users.accepted(claim, sensitive("", &session), None).await);
                }
                Ok(Answer::StaleBearer) => {
                    self.bearer.invalidate(bearer.id);
                    let miss = Miss::void("the login refuses the bearer");
                    if std::mem::take(&mut again) {
                        self.users.failed(claim, miss.report, &miss.fault).await;
                        continue;
                    }
                    miss
                }
                Ok(answer) => Miss::of(answer),
                Err(miss) => miss,
            };
            return Err(self.fail(Half::Login, claim, miss).await);
        }
    }

    async fn ask_for_bearer(
        &self,
        secrets: &Secrets,
        claim: &Claim,
    ) -> Result<Answer<wire::Bearer>, Miss> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, secrets.basic())]);
        let body = Bytes::from_static(b"grant_type=client_credentials");
        let reply = self.ask(Endpoint::Token, headers, body, claim).await?;
        Ok(to_token_request(&reply, wire::bearer))
    }

    async fn ask_for_session(
        &self,
        secrets: &Secrets,
        bearer: &Token,
        claim: &Claim,
    ) -> Result<Answer<SecretString>, Miss> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.value.clone())]);
        let reply = self.ask(Endpoint::Login, headers, secrets.login(), claim).await?;
        Ok(to_login(&reply, wire::session))
    }

    /// The one request for which there is a claim.
    async fn ask(
        &self,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
        claim: &Claim,
    ) -> Result<Reply, Miss> {
        if !claim.is_fresh() {
            return Err(Miss::void("the gateway stood still"));
        }
        self.transport.send(endpoint, headers, body).await.map_err(|failure| match failure {
            Failure::NotConnected(reason) => Miss::void(reason),
            Failure::NoDescriptor => Miss::void(Error::NoDescriptor.to_string()),
            Failure::LeftAlone(wait) => {
                let fault = Fault { what: What::LeftAlone(wait), pace: Pace::QUICK };
                Miss { fault, report: Report::Void }
            }
            // The guard delays the next login, and the slot the next token request.
            Failure::Broken(reason) => Miss::unanswered(reason),
        })
    }

    /// What the guard says, told to whoever looks at the standing.
    fn heard<T>(
        &self,
        half: Half,
        identity: &Identity,
        said: Result<T, NoTurn>,
    ) -> Result<T, Fault> {
        said.map_err(|NoTurn { fault, trouble }| {
            // The keeper sees it, and sees when it is over.
            if let What::Elsewhere(_) = fault.what {
                return fault;
            }
            let trouble = trouble.unwrap_or_else(|| Trouble::Passing(fault.what.to_string()));
            self.standings.set(half, Some(trouble), identity.fingerprint);
            fault
        })
    }

    /// Somebody else was accepted with the same.
    fn found(&self, half: Half, minted: Minted) -> Minted {
        self.standings.set(half, None, minted.token.id.fingerprint);
        minted
    }

    /// Has the outcome stored and told.
    async fn fail(&self, half: Half, claim: Claim, miss: Miss) -> Fault {
        let Miss { mut fault, report } = miss;
        let (vault, identity) = (self.vault(half), Arc::clone(claim.identity()));
        let counts = report != Report::Void;
        vault.failed(claim, report, &fault).await;
        let mut trouble = match &fault.what {
            What::Rejected => Trouble::Rejected,
            what => {
                tracing::warn!(credentials = self.name(), "no token: {what}");
                Trouble::Passing(what.to_string())
            }
        };
        // The caller of the attempt is told its outcome; the next caller, what the guard says then.
        match vault.outlook(&identity).await {
            Ok(Outlook::Stopped(stopped)) if counts => {
                trouble = Trouble::Stopped(stopped);
                fault.pace = Pace::AT_ONCE;
            }
            Ok(Outlook::Later(wait, why @ Later::RejectedOnce)) if counts => {
                tracing::warn!(
                    credentials = self.name(),
                    "ThingSpace rejected the application; it is tried again"
                );
                (fault, trouble) = (not_yet(wait, why).fault, Trouble::RejectedOnce);
            }
            Ok(Outlook::Later(wait, _)) if let What::Unavailable(reason) = &fault.what => {
                fault.what = What::Later(reason.clone(), Instant::now() + wait);
                fault.pace = Pace::RECHECK;
            }
            _ => {}
        }
        self.standings.set(half, Some(trouble), identity.fingerprint);
        fault
    }
}

impl From<Unread> for Fault {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Unreadable(_) => Self { what: What::Unreadable, pace: Pace::RECHECK },
            Unread::Passing(reason) => {
                Self { what: What::Unavailable(reason.to_owned()), pace: Pace::QUICK }
            }
        }
    }
}

impl Miss {
    fn of<T>(answer: Answer<T>) -> Self {
        match answer {
            Answer::Throttled(retry_after) => {
                let fault = Fault { what: What::Throttled(retry_after), pace: Pace::QUICK };
                Self { fault, report: Report::Void }
            }
            Answer::NotEvaluated(reason) => Self::void(reason),
            Answer::Unclear(reason) => Self::unanswered(reason),
            Answer::Rejected | Answer::StaleBearer | Answer::Accepted(_) => {
                let fault = Fault { what: What::Rejected, pace: Pace::RECHECK };
                Self { fault, report: Report::Rejected }
            }
        }
    }

    /// It may have been rejected.
    fn unanswered(reason: impl Into<String>) -> Self {
        let fault = Fault { what: What::Unavailable(reason.into()), pace: Pace::QUICK };
        Self { fault, report: Report::Unanswered }
    }

    /// Nothing that counts has happened.
    fn void(reason: impl Into<String>) -> Self {
        Self {
            fault: Fault { what: What::Unavailable(reason.into()), pace: Pace::QUICK },
            report: Report::Void,
        }
    }
}

fn sensitive(prefix: &str, secret: &SecretString) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose_secret()))
        .expect("a token was checked to be visible ASCII");
    value.set_sensitive(true);
    value
}
