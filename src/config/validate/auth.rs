//! Validation of `[auth]`: the sources of callers, and the policy.

use std::collections::HashSet;

use super::{
    super::{AllowConfig, AuthConfig, CredentialsConfig, JwtConfig},
    Problems, is_set, secret_file,
};
use crate::{
    auth::{self, ANY, Method},
    certificate,
    identity::AccountName,
};

/// The kinds of callers' names.
const ANONYMOUS: &str = "anonymous";
const TOKEN: &str = "token:";
const JWT: &str = "jwt:";

impl Problems {
    pub(super) fn auth(&mut self, auth: &AuthConfig, credentials: &[CredentialsConfig]) {
        self.jwt(&auth.jwt);
        if auth.asks() && auth.allow.is_empty() {
            self.push(
                "auth.allow: there are no entries, so no caller may do anything; add an \
                 [[auth.allow]] section to the configuration file",
            );
        }
        for (number, entry) in (1..).zip(&auth.allow) {
            self.allow_entry(&format!("auth.allow #{number}"), entry, auth, credentials);
        }
    }

    fn jwt(&mut self, jwt: &JwtConfig) {
        let JwtConfig { issuer, audience, jwks_url, jwks_file, jwks_ca_file, jwks_token_file } =
            jwt;
        if !jwks_url.is_empty() && is_set(jwks_file) {
            self.push("auth.jwt.jwks_file: auth.jwt.jwks_url is set, too; set only one of them");
        }
        let names = [("issuer", issuer), ("audience", audience)];
        for (key, value) in names {
            if jwt.is_used() && value.is_empty() {
                self.push(format!("auth.jwt.{key}: is required to verify tokens"));
            }
            if !jwt.is_used() && !value.is_empty() {
                self.push(format!(
                    "auth.jwt.{key}: no key set verifies the tokens; set auth.jwt.jwks_url or \
                     auth.jwt.jwks_file"
                ));
            }
        }
        for (key, file) in [("jwks_ca_file", jwks_ca_file), ("jwks_token_file", jwks_token_file)] {
            if jwks_url.is_empty() && is_set(file) {
                self.push(format!("auth.jwt.{key}: is used only with auth.jwt.jwks_url"));
            }
        }
        if !jwks_url.is_empty()
            && let Some(url) = self.url("auth.jwt.jwks_url", jwks_url)
            && url.scheme == "http"
            && !url.is_loopback()
        {
            self.push(
                "auth.jwt.jwks_url: http:// to another machine lets anybody on the way replace \
                 the keys; use https://",
            );
        }
    }

    fn allow_entry(
        &mut self,
        name: &str,
        entry: &AllowConfig,
        auth: &AuthConfig,
        credentials: &[CredentialsConfig],
    ) {
        let AllowConfig { callers, methods, accounts } = entry;
        for (key, list) in [("callers", callers), ("methods", methods), ("accounts", accounts)] {
            if list.is_empty() {
                self.push(format!("{name}: {key}: there are none, so the entry allows nothing"));
            }
        }
        for caller in callers {
            if let Err(why) = check_caller(caller, auth) {
                self.push(format!("{name}: callers: {caller:?} {why}"));
            }
        }
        for method in methods {
            if method != ANY && Method::parse(method).is_none() {
                let known = Method::ALL.map(Method::name).join(", ");
                self.push(format!(
                    "{name}: methods: there is no method {method:?}; use {known} or *"
                ));
            }
        }
        let known: HashSet<_> = credentials
            .iter()
            .flat_map(|section| &section.accounts)
            .map(AccountName::as_str)
            .collect();
        for account in accounts {
            if account != ANY && !known.contains(account.as_str()) {
                self.push(format!(
                    "{name}: accounts: {account:?} is in no [[credentials]] section"
                ));
            }
        }
    }

    /// Checks the files of `[auth]`.
    pub(super) fn auth_files(&mut self, auth: &AuthConfig) {
        let AuthConfig { tokens_file, jwt, allow: _ } = auth;
        if is_set(tokens_file) {
            self.check("auth.tokens_file", auth::check_tokens(tokens_file));
        }
        if is_set(&jwt.jwks_file) {
            self.check("auth.jwt.jwks_file", auth::check_keys(&jwt.jwks_file));
        }
        if is_set(&jwt.jwks_ca_file) {
            let authorities = certificate::check_authorities(&jwt.jwks_ca_file);
            self.check("auth.jwt.jwks_ca_file", authorities);
        }
        if is_set(&jwt.jwks_token_file) {
            self.secret_file("auth.jwt.jwks_token_file", &jwt.jwks_token_file, secret_file::check);
        }
    }
}

fn check_caller(pattern: &str, auth: &AuthConfig) -> Result<(), &'static str> {
    let prefix = pattern.strip_suffix(ANY).unwrap_or(pattern);
    if prefix.contains(ANY) {
        return Err("has a * that is not at its end");
    }
    let is_asked = match pattern {
        ANY => return Ok(()),
        ANONYMOUS => !auth.asks(),
        _ if prefix.starts_with(TOKEN) => is_set(&auth.tokens_file),
        _ if prefix.starts_with(JWT) => auth.jwt.is_used(),
        _ => return Err("is no name of a caller; write token:NAME, jwt:SUBJECT or anonymous"),
    };
    if is_asked {
        Ok(())
    } else if pattern == ANONYMOUS {
        Err("never calls, because callers need a token (auth.tokens_file or auth.jwt)")
    } else {
        Err("never calls, because such tokens are not accepted; set auth.tokens_file or auth.jwt")
    }
}
