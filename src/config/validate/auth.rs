//! Validation of `[auth]`, and of the keys of `[grpc]` that decide who reaches the API.

use std::collections::HashSet;

use jiff::Timestamp;

use super::{
    super::{AllowConfig, AuthConfig, ClientCert, Config, GrpcConfig, JwtConfig, set},
    Problems, is_set, secret_file,
};
use crate::{
    auth::{self, ANY, Method, Pattern},
    certificate,
    identity::AccountName,
};

/// The kinds of callers' names.
const ANONYMOUS: &str = "anonymous";
const TOKEN: &str = "token:";
const JWT: &str = "jwt:";
const SPIFFE: &str = "spiffe://";
const DNS: &str = "dns:";

/// What names in certificates are.
const SPIFFE_FORM: &str = "it is no SPIFFE ID: the trust domain has lower-case letters, digits, \
                           '.', '-' and '_', the path also upper-case letters, and no part of the \
                           path is empty, '.' or '..'";
const DNS_FORM: &str = "it is no DNS name in lower case";

impl Problems {
    pub(super) fn front_door(&mut self, config: &Config) {
        let Config { grpc, auth, .. } = config;
        self.remote_callers(config);
        let key = ("tls_key_file", grpc.tls_key_file.as_path());
        self.both_or_neither("grpc", ("tls_cert_file", &grpc.tls_cert_file), key);
        if is_set(&grpc.client_ca_file) && grpc.tls().is_none() {
            self.push(
                "grpc.client_ca_file: is used only with TLS; set grpc.tls_cert_file and \
                 grpc.tls_key_file",
            );
        }
        if grpc.client_cert == ClientCert::Required && !is_set(&grpc.client_ca_file) {
            self.push(
                "grpc.client_cert: certificates cannot be required without the authorities that \
                 verify them; set grpc.client_ca_file",
            );
        }
        self.jwt(&auth.jwt);
        if config.asks_callers() && auth.allow.is_empty() {
            self.push(
                "auth.allow: there are no entries, so no caller may do anything; add an \
                 [[auth.allow]] section to the configuration file",
            );
        }
        for (number, entry) in (1..).zip(&auth.allow) {
            self.allow_entry(&format!("auth.allow #{number}"), entry, config);
        }
    }

    /// Checks that an address which other machines reach has authentication and TLS, or that the
    /// operator accepts each risk.
    fn remote_callers(&mut self, config: &Config) {
        let grpc = &config.grpc;
        let listen = grpc.listen;
        if listen.ip().is_loopback() {
            return;
        }
        if !config.asks_callers() && !grpc.allow_unauthenticated_remote_callers {
            self.push(format!(
                "grpc.listen: {listen} is not loopback, and callers are not authenticated: every \
                 client that reaches the port can place orders on your account. Set \
                 auth.tokens_file, auth.jwt or grpc.client_ca_file, listen on 127.0.0.1, or accept \
                 that risk with grpc.allow_unauthenticated_remote_callers = true"
            ));
        }
        if grpc.tls().is_none() && !grpc.allow_plaintext {
            self.push(format!(
                "grpc.listen: {listen} is not loopback, and without TLS the tokens of callers and \
                 the devices cross the network in plain text. Set grpc.tls_cert_file and \
                 grpc.tls_key_file, listen on 127.0.0.1, or accept that risk with \
                 grpc.allow_plaintext = true, for example behind a mesh that encrypts"
            ));
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
        {
            if !url.is_loopback() {
                self.push(
                    "auth.jwt.jwks_url: http:// to another machine lets anybody on the way \
                     replace the keys; use https://",
                );
            }
            if is_set(jwks_ca_file) {
                self.push(
                    "auth.jwt.jwks_ca_file: is used only with https://, and auth.jwt.jwks_url \
                     begins with http://",
                );
            }
        }
    }

    fn allow_entry(&mut self, name: &str, entry: &AllowConfig, config: &Config) {
        let AllowConfig { callers, methods, accounts } = entry;
        for (key, list) in [("callers", callers), ("methods", methods), ("accounts", accounts)] {
            if list.is_empty() {
                self.push(format!("{name}: {key}: there are none, so the entry allows nothing"));
            }
        }
        for caller in callers {
            if let Err(why) = check_caller(caller, config) {
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
        let known: HashSet<_> = config
            .credentials
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

    /// Warns about callers that cannot call now, and about authorities that have expired. Both can
    /// change with the next version of a file.
    pub(super) fn front_door_warnings(&mut self, config: &Config) {
        let Config { grpc, auth, .. } = config;
        let names = set(&auth.tokens_file).and_then(|file| auth::token_names(&file).ok());
        if names.as_ref().is_some_and(HashSet::is_empty) {
            self.push(format!(
                "auth.tokens_file: {} has no tokens, so nobody can call with one; add one, or \
                 leave auth.tokens_file empty",
                auth.tokens_file.display()
            ));
        }
        for (number, entry) in (1..).zip(&auth.allow) {
            let Some(names) = &names else { continue };
            for caller in entry.callers.iter().filter(|caller| caller.starts_with(TOKEN)) {
                let pattern = Pattern::new(caller);
                if !names.iter().any(|name| pattern.matches(name)) {
                    self.push(format!(
                        "auth.allow #{number}: callers: {caller:?} cannot call, because \
                         auth.tokens_file ({}) has no token of that name; add one, or correct the \
                         name",
                        auth.tokens_file.display()
                    ));
                }
            }
        }
        self.authority_as_server("grpc.tls_cert_file", grpc.tls());
        let expired = set(&grpc.client_ca_file)
            .and_then(|file| certificate::expired_authority(&file, Timestamp::now()));
        if let Some(expiry) = expired {
            self.push(format!(
                "grpc.client_ca_file: {} holds an authority that expired at {expiry:.0}; the \
                 certificates of clients that it has issued are still accepted: replace it",
                grpc.client_ca_file.display()
            ));
        }
    }

    /// Checks the files that authenticate the gateway and its callers.
    pub(super) fn front_door_files(&mut self, grpc: &GrpcConfig, auth: &AuthConfig) {
        if let Some((cert, key)) = grpc.tls() {
            self.server_certificate("grpc", ("tls_cert_file", cert), ("tls_key_file", key));
        }
        if is_set(&grpc.client_ca_file) {
            let authorities = certificate::check_client_authorities(&grpc.client_ca_file);
            self.check("grpc.client_ca_file", authorities);
        }
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

/// Checks the name of a caller, or the beginning of names before a `*`. An error completes the
/// sentence that begins with the name.
fn check_caller(pattern: &str, config: &Config) -> Result<(), String> {
    let prefix = pattern.strip_suffix(ANY).unwrap_or(pattern);
    if prefix.contains(ANY) {
        return Err("has a * that is not at its end".to_owned());
    }
    let Config { grpc, auth, .. } = config;
    let (is_possible, missing) = match pattern {
        ANONYMOUS if config.asks_callers() => {
            return Err("never calls, because callers are asked for credentials".to_owned());
        }
        ANY | ANONYMOUS => return Ok(()),
        _ if prefix.starts_with(TOKEN) => (is_set(&auth.tokens_file), "auth.tokens_file"),
        _ if prefix.starts_with(JWT) => (auth.jwt.is_used(), "auth.jwt"),
        _ if prefix.starts_with(SPIFFE) || prefix.starts_with(DNS) => {
            (is_set(&grpc.client_ca_file), "grpc.client_ca_file")
        }
        _ => {
            return Err("is no name of a caller; write token:NAME, jwt:SUBJECT, \
                        spiffe://DOMAIN/PATH, dns:NAME or anonymous"
                .to_owned());
        }
    };
    if !is_possible {
        return Err(format!("never calls, because {missing} is not set"));
    }
    let kinds = [TOKEN, JWT, SPIFFE, DNS];
    if kinds.contains(&pattern) {
        return Err("has no name after its kind".to_owned());
    }
    // "spiffe://example.org*" would also match other trust domains, such as example.org.evil.
    if let Some(id) = prefix.strip_prefix(SPIFFE)
        && pattern.ends_with(ANY)
        && !id.contains('/')
    {
        return Err("has a * in the trust domain; write it after a slash".to_owned());
    }
    // A name that begins with the prefix.
    let name = pattern.replace(ANY, "a");
    let (is_name, form) = if name.starts_with(SPIFFE) {
        (certificate::is_caller_name(&name), SPIFFE_FORM)
    } else if name.starts_with(DNS) {
        (certificate::is_caller_name(&name), DNS_FORM)
    } else {
        (true, "")
    };
    if !is_name {
        return Err(format!("never calls, because {form}"));
    }
    if !auth::is_caller_name(&name) {
        return Err("never calls, because names of callers have at most 256 bytes, all of them \
                    printable ASCII without blanks"
            .to_owned());
    }
    Ok(())
}
