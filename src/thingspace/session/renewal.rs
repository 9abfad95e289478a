//! How a token is had: the guard's word, one request, and the report of what came of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Tokens,
    secrets::{Identity, Secrets},
    slot::{Fault, Minted, Pace, Token, TokenId, What},
    standing::{Half, Trouble},
    vault::{Claim, Need, NoTurn, Turn},
};
use crate::thingspace::{
    code,
    guard::Report,
    transport::{Endpoint, Failure},
    verdict::{Stale, Verdict, judge},
    wire,
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
        let secrets = self.secrets().await?;
        let turn = self.applications.turn(&secrets.client, last, need).await;
        let claim = match self.heard(Half::Client, &secrets.client, turn)? {
            Turn::Found(minted) => return Ok(self.found(Half::Client, minted)),
            Turn::Ours(claim) => claim,
        };
        let miss = match self.ask_for_bearer(&secrets, &claim).await {
            Ok(Verdict::Done(bearer)) => {
                tracing::debug!(credentials = self.name(), "bearer received");
                self.standings.set(Half::Client, None, claim.identity().fingerprint);
                let value = sensitive("Bearer ", &bearer.token);
                return Ok(self.applications.accepted(claim, value, bearer.expires_in).await);
            }
            Ok(verdict) => Miss::of(verdict, Pace::QUICK),
            Err(miss) => miss,
        };
        Err(self.fail(Half::Client, claim, miss).await)
    }

    /// A login that meets a stale bearer is repeated once with a new one: the password was not looked at.
    pub(super) async fn log_in(self: &Arc<Self>, last: Option<TokenId>, need: Need) -> Result<Minted, Fault> {
        for _ in 0..2 {
            let secrets = self.secrets().await?;
            // The bearer is had before anything is claimed, and not at all if there is nothing to claim.
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
                Ok(Verdict::Done(session)) => {
                    tracing::info!(credentials = self.name(), "logged in");
                    self.standings.set(Half::Login, None, claim.identity().fingerprint);
                    return Ok(self.users.accepted(claim, sensitive("", &session), None).await);
                }
                Ok(Verdict::Stale(Stale::BEARER)) => {
                    self.bearer.invalidate(bearer.id);
                    let miss = Miss::void("the login refuses the bearer", self.careful);
                    self.users.failed(claim, miss.report, &miss.fault).await;
                    continue;
                }
                Ok(verdict) => Miss::of(verdict, self.careful),
                Err(miss) => miss,
            };
            return Err(self.fail(Half::Login, claim, miss).await);
        }
        let miss = Miss::void("the login refuses a new bearer", self.careful);
        tracing::warn!(credentials = self.name(), "no token: {}", miss.fault.what);
        Err(miss.fault)
    }

    async fn ask_for_bearer(&self, secrets: &Secrets, claim: &Claim) -> Result<Verdict<wire::Bearer>, Miss> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, secrets.basic())]);
        let body = Bytes::from_static(b"grant_type=client_credentials");
        self.ask(Endpoint::Token, headers, body, claim, Pace::QUICK, wire::bearer).await
    }

    async fn ask_for_session(
        &self,
        secrets: &Secrets,
        bearer: &Token,
        claim: &Claim,
    ) -> Result<Verdict<SecretString>, Miss> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.value.clone())]);
        self.ask(Endpoint::Login, headers, secrets.login(), claim, self.careful, wire::session).await
    }

    /// The one request for which there is a claim.
    async fn ask<T>(
        &self,
        endpoint: Endpoint<'_>,
        headers: HeaderMap,
        body: Bytes,
        claim: &Claim,
        pace: Pace,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Verdict<T>, Miss> {
        if !claim.is_fresh() {
            return Err(Miss::void("the gateway stood still", Pace::QUICK));
        }
        match self.transport.send(endpoint, headers, body).await {
            Ok(reply) => Ok(match judge(&reply, parse) {
                // No bearer was sent: the API manager cannot look at anybody's.
                Verdict::Stale(_)
                    if matches!(endpoint, Endpoint::Token) && reply.status.is_server_error() =>
                {
                    let status = reply.status.as_u16();
                    Verdict::Unclear { status, reason: format!("HTTP {status}, which blames a bearer") }
                }
                verdict => verdict,
            }),
            Err(Failure::NotConnected(reason)) => Err(Miss::void(reason, Pace::QUICK)),
            Err(Failure::LeftAlone(wait)) => {
                let fault = Fault { what: What::LeftAlone(wait), pace: Pace::QUICK };
                Err(Miss { fault, report: Report::Void })
            }
            Err(Failure::Broken(reason)) => {
                let fault = Fault { what: What::Unavailable(reason), pace };
                Err(Miss { fault, report: Report::Unanswered })
            }
        }
    }

    /// The secrets as the files hold them now.
    async fn secrets(&self) -> Result<Arc<Secrets>, Fault> {
        self.files.secrets().await.map_err(|reason| {
            tracing::warn!(credentials = self.name(), "no token: {reason}");
            Fault { what: What::Unavailable(reason), pace: Pace::QUICK }
        })
    }

    /// What the guard says, told to whoever looks at the standing.
    fn heard<T>(&self, half: Half, identity: &Identity, said: Result<T, NoTurn>) -> Result<T, Fault> {
        said.map_err(|NoTurn { fault, trouble }| {
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
        // Who made the attempt hears what came of it; who comes next, that it was the last.
        if counts && let Ok(Some(stopped)) = vault.stopped(&identity).await {
            trouble = stopped;
            fault.pace = Pace::AT_ONCE;
        }
        self.standings.set(half, Some(trouble), identity.fingerprint);
        fault
    }
}

impl Miss {
    /// What a failed attempt means. Whatever could be a rejection is taken for one, since five of them lock the user out;
    /// only a failure of the API manager, of the path or of the server is not.
    fn of<T>(verdict: Verdict<T>, pace: Pace) -> Self {
        match verdict {
            Verdict::Throttled(retry_after) => {
                let fault = Fault { what: What::Throttled(retry_after), pace };
                Self { fault, report: Report::Void }
            }
            Verdict::Refused(refusal) if code::is_by_api_manager(&refusal) => {
                Self::void(refusal.to_string(), pace)
            }
            // The answer to a success, or to a time-out: nobody knows.
            Verdict::Unclear { status: 200..=299 | 408, reason } => {
                Self { fault: Fault { what: What::Unavailable(reason), pace }, report: Report::Unanswered }
            }
            Verdict::Unclear { status, reason } if !matches!(status, 400 | 401 | 403) => {
                Self::void(reason, pace)
            }
            _ => {
                let fault = Fault { what: What::Rejected, pace: Pace::RECHECK };
                Self { fault, report: Report::Rejected }
            }
        }
    }

    /// Nothing that counts has happened.
    fn void(reason: impl Into<String>, pace: Pace) -> Self {
        Self { fault: Fault { what: What::Unavailable(reason.into()), pace }, report: Report::Void }
    }
}

fn sensitive(prefix: &str, secret: &SecretString) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose_secret()))
        .expect("a token was checked to be visible ASCII");
    value.set_sensitive(true);
    value
}
