//! Finds out who calls, from the headers of a call and the certificate of its connection.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, header::AUTHORIZATION};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    AuthError, Caller, Policy,
    jwt::{ExpectedClaims, JwtError},
    keys::KeySource,
    tokens::Tokens,
};
use crate::{
    reload::{Reloaded, UsedVersion},
    server::PeerCertificate,
};

/// Verifies credentials. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Authenticator(Arc<AuthenticatorInner>);

#[derive(Debug)]
struct AuthenticatorInner {
    tokens: Option<Reloaded<Tokens>>,
    jwt: Option<(ExpectedClaims, KeySource)>,
    /// Whether TLS verifies the certificates of clients.
    certificates: bool,
    policy: Policy,
}

impl Authenticator {
    /// Reads the file with static tokens. An error says why it cannot be used. Without a file, an
    /// issuer and a verification of certificates, every caller is anonymous.
    pub(crate) async fn new(
        tokens_file: Option<PathBuf>,
        jwt: Option<(ExpectedClaims, KeySource)>,
        certificates: bool,
        policy: Policy,
    ) -> Result<Self, String> {
        let tokens = match tokens_file {
            Some(file) => Some(Reloaded::load_one("tokens", file, tokens()).await?),
            None => None,
        };
        Ok(Self(Arc::new(AuthenticatorInner { tokens, jwt, certificates, policy })))
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// Returns the configuration key of each file or URL with credentials, and which version is in
    /// use.
    pub(crate) fn used(&self) -> Vec<(&'static str, UsedVersion)> {
        let tokens = self.0.tokens.as_ref().map(|tokens| ("auth.tokens_file", tokens.used()));
        let keys = self.0.jwt.as_ref().map(|(_, keys)| keys.used());
        tokens.into_iter().chain(keys).collect()
    }

    /// Whether the file with static tokens has none, so that it admits nobody.
    pub(crate) fn lacks_tokens(&self) -> bool {
        self.0.tokens.as_ref().is_some_and(|tokens| tokens.current().is_empty())
    }

    /// Returns why no caller can be authenticated yet. `None`: some can. If there are other
    /// credentials than JSON Web Tokens, their callers do not wait for the key set.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let keys = self.only_keys().filter(|keys| keys.current().is_none())?;
        let why = keys.used().1.problem.map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!("the key set of the callers' tokens has not been fetched yet{why}"))
    }

    /// Waits until a caller can be authenticated.
    pub(crate) async fn ready(&self) {
        if let Some(keys) = self.only_keys() {
            keys.ready().await;
        }
    }

    /// The key set, if JSON Web Tokens are the only credentials.
    fn only_keys(&self) -> Option<&KeySource> {
        let AuthenticatorInner { tokens, jwt, certificates, policy: _ } = &*self.0;
        let keys = jwt.as_ref().map(|(_, keys)| keys);
        keys.filter(|_| tokens.is_none() && !certificates)
    }

    /// Follows the files and the key set until `stop`.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let tokens = async {
            if let Some(tokens) = &self.0.tokens {
                tokens.follow().await;
            }
        };
        let keys = async {
            if let Some((_, keys)) = &self.0.jwt {
                keys.follow().await;
            }
        };
        stop.run_until_cancelled(async { tokio::join!(tokens, keys) }).await;
    }

    /// Returns the caller with these headers. `certificate` is that of the connection. A token in
    /// the headers decides, even if it is wrong.
    pub(crate) async fn caller(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
    ) -> Result<Caller, AuthError> {
        let AuthenticatorInner { tokens, jwt, certificates, policy: _ } = &*self.0;
        let mut sent = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = sent.next() else {
            return match certificate {
                Some(PeerCertificate { name }) => {
                    let caller = name.as_deref().and_then(Caller::with_certificate);
                    caller.ok_or(AuthError::Nameless)
                }
                None if tokens.is_none() && jwt.is_none() && !certificates => {
                    Ok(Caller::anonymous())
                }
                None => Err(AuthError::Missing),
            };
        };
        // A proxy that adds a header and a gateway that reads the other one would disagree.
        if sent.next().is_some() {
            return Err(AuthError::Malformed);
        }
        let token = header.to_str().ok().and_then(bearer).ok_or(AuthError::Malformed)?;
        if let Some(caller) = tokens.as_ref().and_then(|all| all.current().find(token)) {
            return Ok(caller);
        }
        // Of a token that is no JWT (RFC 7515 §7.1) only the static ones are known.
        let is_jwt = token.split('.').count() == 3;
        let Some((expected, source)) = jwt.as_ref().filter(|_| is_jwt) else {
            return Err(AuthError::Unknown);
        };
        let keys = source.current().ok_or(AuthError::NoKeys)?;
        let mut verified = expected.verify(&keys, token);
        if verified == Err(JwtError::UnknownKey)
            && let Some(newer) = source.newer_than(&keys).await
        {
            verified = expected.verify(&newer, token);
        }
        verified.map_err(|error| match error {
            JwtError::Invalid(why) => AuthError::Invalid(why),
            JwtError::UnknownKey => AuthError::Invalid("it is signed with an unknown key"),
        })
    }
}

/// Returns a function that parses each version of the file, and warns if a later one removes all
/// tokens. The warnings of the configuration are about the first version.
fn tokens() -> impl Fn(&[u8]) -> Result<Tokens, String> {
    let is_loaded = AtomicBool::new(false);
    move |content| {
        let tokens = Tokens::parse(content)?;
        if is_loaded.swap(true, Ordering::Relaxed) && tokens.is_empty() {
            warn!("auth.tokens_file has no tokens any more, so nobody can call with one");
        }
        Ok(tokens)
    }
}

/// Returns the token in `Bearer TOKEN` (RFC 6750 §2.1). The scheme has any case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
