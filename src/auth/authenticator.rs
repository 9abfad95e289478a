//! Finds out who calls, from the headers of a call.

use std::{path::PathBuf, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};
use tokio_util::sync::CancellationToken;

use super::{
    AuthError, Caller, Policy,
    jwt::{ExpectedClaims, JwtError},
    keys::KeySource,
    tokens::Tokens,
};
use crate::reload::Reloaded;

/// Verifies credentials. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Authenticator(Arc<AuthenticatorInner>);

#[derive(Debug)]
struct AuthenticatorInner {
    tokens: Option<Reloaded<Tokens>>,
    jwt: Option<(ExpectedClaims, KeySource)>,
    policy: Policy,
}

impl Authenticator {
    /// Reads the file with static tokens. An error says why it cannot be used. Without a file and
    /// without an issuer, every caller is anonymous.
    pub(crate) async fn new(
        tokens_file: Option<PathBuf>,
        jwt: Option<(ExpectedClaims, KeySource)>,
        policy: Policy,
    ) -> Result<Self, String> {
        let tokens = match tokens_file {
            Some(file) => Some(Reloaded::load_one(file, Tokens::parse).await?),
            None => None,
        };
        Ok(Self(Arc::new(AuthenticatorInner { tokens, jwt, policy })))
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
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

    /// Returns the caller with these headers.
    pub(crate) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        let Some(sent) = headers.get(AUTHORIZATION) else {
            return match (&self.0.tokens, &self.0.jwt) {
                (None, None) => Ok(Caller::anonymous()),
                _ => Err(AuthError::Missing),
            };
        };
        let token = sent.to_str().ok().and_then(bearer).ok_or(AuthError::Malformed)?;
        if let Some(caller) = self.0.tokens.as_ref().and_then(|all| all.current().find(token)) {
            return Ok(caller);
        }
        let Some((expected, source)) = &self.0.jwt else { return Err(AuthError::Unknown) };
        let keys = source.current().ok_or(AuthError::NoKeys)?;
        match expected.verify(&keys, token) {
            Ok(caller) => Ok(caller),
            Err(JwtError::Invalid(why)) => Err(AuthError::Invalid(why)),
            Err(JwtError::UnknownKey) => {
                const UNKNOWN: AuthError = AuthError::Invalid("it is signed with an unknown key");
                if !source.look_for_new().await {
                    return Err(UNKNOWN);
                }
                let keys = source.current().ok_or(AuthError::NoKeys)?;
                expected.verify(&keys, token).map_err(|error| match error {
                    JwtError::Invalid(why) => AuthError::Invalid(why),
                    JwtError::UnknownKey => UNKNOWN,
                })
            }
        }
    }
}

/// Returns the token in `Bearer TOKEN` (RFC 6750 §2.1). The scheme has any case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
