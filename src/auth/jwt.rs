//! Verifies JSON Web Tokens (RFC 7519) with the public keys of a set (RFC 7517). Never asks the
//! issuer about a token.
//!
//! A token is valid if a key of the set signed it with an algorithm of that key, the issuer and the
//! audience are those of the configuration, and the time is between `nbf` and `exp`. Algorithms
//! with a shared secret, and `none`, are never accepted.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::Caller;

/// How much the clocks of the issuer and of the gateway may differ.
const LEEWAY: Duration = Duration::from_mins(1);

/// The longest token, in bytes. Projected Kubernetes tokens have about 1 KiB.
const MAX_TOKEN: usize = 8 << 10;

/// The most keys of a set.
const MAX_KEYS: usize = 100;

/// The length of an RSA modulus in bytes with which signatures can be verified: 2048 to 8192 bits.
const RSA_MODULUS: RangeInclusive<usize> = 256..=1024;

const EXPIRED: &str = "it has expired";

/// Why a token is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JwtError {
    /// No key of the set has the token's key id. The set may be old.
    UnknownKey,
    /// Completes "the token is not valid: …".
    Invalid(&'static str),
}

/// The public keys of an issuer.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    /// Seconds since 1970, which may have a fraction.
    #[serde(default)]
    exp: f64,
}

impl Keys {
    /// Parses a set. Keys that cannot verify a signature are left out, as RFC 7517 §5 wants it. A
    /// set without other keys is refused. An error completes "FILE …" or "URL …".
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let KeySet { keys } = serde_json::from_slice(json)
            // The text of the error could quote the content.
            .map_err(|error| {
                let (line, column) = (error.line(), error.column());
                format!("holds no set of JSON Web Keys (line {line}, column {column})")
            })?;
        let keys: Vec<_> = keys.into_iter().filter_map(Key::parse).take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err("holds no key that can verify signatures: RSA with 2048 to 8192 bits, EC \
                        with P-256 or P-384, or Ed25519"
                .to_owned());
        }
        Ok(Self(keys))
    }

    /// Returns the key for a token. A token without a key id is verified with the only key that has
    /// its algorithm.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, JwtError> {
        let mut fitting = self.0.iter().filter(|key| key.algorithms.contains(&algorithm));
        let Some(id) = id else {
            return match (fitting.next(), fitting.next()) {
                (Some(key), None) => Ok(key),
                _ => Err(JwtError::Invalid("it has no key id (kid), and no single key fits")),
            };
        };
        if let Some(key) = fitting.find(|key| key.id.as_deref() == Some(id)) {
            return Ok(key);
        }
        if self.0.iter().any(|key| key.id.as_deref() == Some(id)) {
            return Err(JwtError::Invalid("its algorithm is not that of its key"));
        }
        Err(JwtError::UnknownKey)
    }
}

impl Key {
    fn parse(json: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        let usage = jwk.common.public_key_use.as_ref();
        let operations = jwk.common.key_operations.as_ref();
        if usage.is_some_and(|usage| *usage != PublicKeyUse::Signature)
            || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
        {
            return None;
        }
        let public = DecodingKey::from_jwk(&jwk).ok()?;
        let named = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string().parse());
        let possible = algorithms(&jwk.algorithm, &public)?;
        let algorithms: Vec<Algorithm> = match named {
            Some(Ok(algorithm)) if possible.contains(&algorithm) => vec![algorithm],
            Some(_) => return None,
            None => possible,
        };
        Some(Self { id: jwk.common.key_id, algorithms, public })
    }
}

/// Returns the algorithms with which a key can verify signatures. `None`: there are none, because
/// its type or curve is not supported, or it is no valid key.
fn algorithms(parameters: &AlgorithmParameters, public: &DecodingKey) -> Option<Vec<Algorithm>> {
    let is_valid = |algorithm: &'static dyn VerificationAlgorithm| {
        let bytes = public.try_get_as_bytes();
        bytes.is_ok_and(|bytes| ParsedPublicKey::new(algorithm, bytes).is_ok())
    };
    let (is_valid, algorithms) = match parameters {
        AlgorithmParameters::RSA(key) => {
            let modulus = BASE64_URL_SAFE_NO_PAD.decode(&key.n).ok()?;
            (RSA_MODULUS.contains(&modulus.len()), public.family().algorithms().to_vec())
        }
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => (is_valid(&ECDSA_P256_SHA256_FIXED), vec![Algorithm::ES256]),
            EllipticCurve::P384 => (is_valid(&ECDSA_P384_SHA384_FIXED), vec![Algorithm::ES384]),
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (is_valid(&ED25519), vec![Algorithm::EdDSA])
        }
        _ => return None,
    };
    is_valid.then_some(algorithms)
}

/// What every token must say.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedClaims {
    /// The value of `iss`.
    pub(crate) issuer: String,
    /// The value of `aud`, or one of its values.
    pub(crate) audience: String,
}

impl ExpectedClaims {
    /// Returns the caller of a token, whose name is `jwt:` and the subject.
    pub(super) fn verify(&self, keys: &Keys, token: &str) -> Result<Caller, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Invalid("it is longer than 8 KiB"));
        }
        let header = decode_header(token)
            .map_err(|_| JwtError::Invalid("it is no signed JWT with a usable algorithm"))?;
        // None of the extensions that a token may require is supported (RFC 7515 §4.1.11).
        if header.crit.is_some() {
            return Err(JwtError::Invalid("it requires an extension (crit)"));
        }
        let key = keys.find(header.kid.as_deref(), header.alg)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let Claims { sub, exp } = decode::<Claims>(token, &key.public, &validation)
            .map_err(|error| JwtError::Invalid(explain(error.kind())))?
            .claims;
        let expires = expiry(exp);
        // The comparison above is in whole seconds. A watch would end in its first moment.
        if expires.is_some_and(|expires| expires <= Instant::now()) {
            return Err(JwtError::Invalid(EXPIRED));
        }
        Caller::new("jwt:", &sub, expires).ok_or(JwtError::Invalid(
            "its subject (sub) is empty, longer than 250 bytes, or not printable ASCII without *",
        ))
    }
}

fn explain(error: &ErrorKind) -> &'static str {
    match error {
        ErrorKind::ExpiredSignature => EXPIRED,
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss, aud and sub",
        _ => "its signature or its claims cannot be verified",
    }
}

/// Returns when a token is not accepted any more. `None`: in a time that no clock reaches.
fn expiry(exp: f64) -> Option<Instant> {
    let end = Duration::try_from_secs_f64(exp).ok()?.checked_add(LEEWAY)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Instant::now().checked_add(end.saturating_sub(now))
}

#[cfg(test)]
mod tests;
