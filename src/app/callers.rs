//! Sets up the authentication of callers.

use anyhow::{Context, anyhow};

use crate::{
    auth::{Authenticator, ExpectedClaims, KeySetUrl, KeySource, Policy, Rule},
    config::{AuthConfig, JwtConfig, set},
};

/// Reads the files that `[auth]` names.
pub(super) async fn authenticator(config: &AuthConfig) -> anyhow::Result<Authenticator> {
    let rules = config.allow.iter();
    let rules = rules.map(|entry| Rule::new(&entry.callers, &entry.methods, &entry.accounts));
    let policy = Policy::new(rules.collect());
    let jwt = if config.jwt.is_used() {
        Some(jwt(&config.jwt).await.map_err(|why| anyhow!(why)).context("auth.jwt")?)
    } else {
        None
    };
    let authenticator = Authenticator::new(set(&config.tokens_file), jwt, policy).await;
    authenticator.map_err(|why| anyhow!(why)).context("auth.tokens_file")
}

async fn jwt(config: &JwtConfig) -> Result<(ExpectedClaims, KeySource), String> {
    let JwtConfig { issuer, audience, jwks_url, jwks_file, jwks_ca_file, jwks_token_file } = config;
    let keys = if jwks_url.is_empty() {
        KeySource::file(jwks_file.clone()).await?
    } else {
        let (ca_file, token_file) = (set(jwks_ca_file), set(jwks_token_file));
        KeySource::url(KeySetUrl { url: jwks_url.clone(), ca_file, token_file })?
    };
    Ok((ExpectedClaims { issuer: issuer.clone(), audience: audience.clone() }, keys))
}
