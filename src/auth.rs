//! Who calls the API, and what each caller may do.
//!
//! A caller proves its identity with a token or with the certificate of its connection. Its name is
//! `token:NAME`, `jwt:SUBJECT`, `spiffe://DOMAIN/PATH` or `dns:NAME`. A caller is `anonymous` only
//! if the configuration asks nobody for credentials.
//!
//! - Credentials that are sent and cannot be verified are refused, never ignored.
//! - Nothing is allowed that no entry of the [`Policy`] allows. It is checked before anything is
//!   looked up, so a caller learns nothing about accounts that it may not use.
//! - Files are read again when they change. A file that cannot be used never replaces what is in
//!   use.
//! - No token is logged, stored or printed.

mod authenticator;
mod caller;
mod jwt;
mod keys;
mod policy;
mod tokens;

use std::{collections::HashSet, path::Path};

use crate::{reload, secret_file};
use jwt::Keys;
use tokens::Tokens;

pub(crate) use authenticator::Authenticator;
pub(crate) use caller::Caller;
pub(crate) use jwt::ExpectedClaims;
pub(crate) use keys::{KeySetUrl, KeySource, probe as probe_keys};
pub(crate) use policy::{ANY, Method, Pattern, Policy, Rule};

/// Whether a caller can have this name, without regard to its kind.
pub(crate) fn is_caller_name(name: &str) -> bool {
    Caller::new("", name, None).is_some()
}

/// Returns the names of the callers in a file of tokens, such as `token:orders`.
pub(crate) fn token_names(file: &Path) -> Result<HashSet<String>, String> {
    let content = secret_file::bounded(file, reload::MAX_FILE_BYTES)?;
    Ok(Tokens::parse(&content)?.names().map(str::to_owned).collect())
}

/// Checks that a file holds tokens of callers.
pub(crate) fn check_tokens(file: &Path) -> Result<(), String> {
    check(file, |content| Tokens::parse(content).map(drop))
}

/// Checks that a file holds a key set.
pub(crate) fn check_keys(file: &Path) -> Result<(), String> {
    check(file, |content| Keys::parse(content).map(drop))
}

fn check(file: &Path, parse: impl Fn(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let content = secret_file::bounded(file, reload::MAX_FILE_BYTES);
    content.and_then(|content| parse(&content)).map_err(|why| secret_file::problem(file, &why))
}

/// Why a call has no caller. The text is sent to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error(
        "no credentials; send a token in the metadata (authorization: Bearer TOKEN), or use a \
         client certificate with a SPIFFE ID or a DNS name, whichever the gateway accepts"
    )]
    Missing,
    #[error(
        "the client certificate does not name a caller: it needs exactly one SPIFFE URI, or a DNS \
         name first that is no wildcard, of at most 256 bytes; or send a token in the metadata"
    )]
    Nameless,
    #[error("the metadata authorization is not \"Bearer TOKEN\", exactly once")]
    Malformed,
    #[error("the token is not known")]
    Unknown,
    #[error("the token is not valid: {0}")]
    Invalid(&'static str),
    /// Not the caller's fault, and temporary.
    #[error("tokens cannot be verified yet, because the key set has not been fetched")]
    NoKeys,
}

impl AuthError {
    /// Returns the name of the error in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "no_credentials",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown_token",
            Self::Invalid(_) => "invalid_token",
            Self::NoKeys => "no_keys",
            Self::Nameless => "nameless",
        }
    }
}
