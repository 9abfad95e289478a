//! Sets up the authentication of callers, and the TLS of the API.

use anyhow::{Context, anyhow};

use super::GRPC;
use crate::{
    auth::{Authenticator, ExpectedClaims, KeySetUrl, KeySource, Policy, Rule},
    config::{ClientCert, Config, GrpcConfig, JwtConfig, set},
    server::tls::{ClientCertificates, Tls, TlsOptions},
};

/// Reads the certificate of the API. Returns `None` without TLS.
pub(super) async fn tls(config: &GrpcConfig) -> anyhow::Result<Option<Tls>> {
    let Some((cert_file, key_file)) = config.tls() else { return Ok(None) };
    let options = TlsOptions {
        listener: GRPC,
        cert_file: cert_file.to_owned(),
        key_file: key_file.to_owned(),
        clients: set(&config.client_ca_file).map(|ca_file| ClientCertificates {
            ca_file,
            required: config.client_cert == ClientCert::Required,
        }),
        protocol: b"h2",
    };
    let tls = Tls::load(options).await.map_err(|why| anyhow!(why));
    tls.map(Some).context("the TLS of grpc.listen")
}

/// Reads the files that `[auth]` names.
pub(super) async fn authenticator(config: &Config) -> anyhow::Result<Authenticator> {
    let certificates = set(&config.grpc.client_ca_file).is_some();
    let config = &config.auth;
    let rules = config.allow.iter();
    let rules = rules.map(|entry| Rule::new(&entry.callers, &entry.methods, &entry.accounts));
    let policy = Policy::new(rules.collect());
    let jwt = if config.jwt.is_used() {
        Some(jwt(&config.jwt).await.map_err(|why| anyhow!(why)).context("auth.jwt")?)
    } else {
        None
    };
    let authenticator =
        Authenticator::new(set(&config.tokens_file), jwt, certificates, policy).await;
    authenticator.map_err(|why| anyhow!(why)).context("auth.tokens_file")
}

async fn jwt(config: &JwtConfig) -> Result<(ExpectedClaims, KeySource), String> {
    let JwtConfig { issuer, audience, jwks_url, jwks_file, .. } = config;
    let keys = if jwks_url.is_empty() {
        KeySource::file(jwks_file.clone()).await?
    } else {
        KeySource::url(key_set_url(config)).await?
    };
    Ok((ExpectedClaims { issuer: issuer.clone(), audience: audience.clone() }, keys))
}

/// Returns where the key set is fetched.
pub(crate) fn key_set_url(config: &JwtConfig) -> KeySetUrl {
    let JwtConfig { jwks_url, jwks_ca_file, jwks_token_file, .. } = config;
    let (ca_file, token_file) = (set(jwks_ca_file), set(jwks_token_file));
    KeySetUrl { url: jwks_url.clone(), ca_file, token_file }
}
