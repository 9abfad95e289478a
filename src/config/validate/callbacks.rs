//! What `[callbacks]` must be.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use super::{
    super::{CallbacksConfig, MAX_PAIR_CHARS, Network},
    DAY, Problems, secret_file,
};

/// The ports that ThingSpace calls.
const PORTS: [RangeInclusive<u16>; 5] =
    [80..=80, 443..=443, 9001..=9006, 50_551..=50_559, 28_200..=28_220];

const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(5);
const PASSWORD_GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 30);
const RECHECK: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;

impl Problems {
    pub(super) fn callbacks(&mut self, callbacks: &CallbacksConfig) {
        if !callbacks.public_url.is_empty() {
            self.public_url(callbacks);
        }
        if callbacks.register && !callbacks.enabled {
            self.push("callbacks.register: there is no listener to register; set callbacks.enabled = true");
        }
        if callbacks.register && callbacks.public_url.is_empty() {
            self.push(
                "callbacks.public_url: is required to register; write where ThingSpace reaches the listener",
            );
        }
        if let Err(what) = Network::parse_list(&callbacks.networks) {
            self.push(format!("callbacks.networks: {what}"));
        }
        let service = &callbacks.service;
        if !(1..=64).contains(&service.len()) || !service.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            self.push("callbacks.service: must be 1 to 64 letters and digits");
        }
        self.both_or_none(
            "tls_cert_file",
            &callbacks.tls_cert_file,
            "tls_key_file",
            &callbacks.tls_key_file,
        );
        self.both_or_none(
            "username_file",
            &callbacks.username_file,
            "password_file",
            &callbacks.password_file,
        );
        self.duration("callbacks.grace", callbacks.grace, &GRACE);
        self.duration("callbacks.password_grace", callbacks.password_grace, &PASSWORD_GRACE);
        self.duration("callbacks.recheck", callbacks.recheck, &RECHECK);
    }

    fn public_url(&mut self, callbacks: &CallbacksConfig) {
        let Some(url) = self.url("callbacks.public_url", &callbacks.public_url) else { return };
        if !PORTS.iter().any(|ports| ports.contains(&url.port)) {
            self.push(format!(
                "callbacks.public_url: ThingSpace does not call port {}; use 443, 80, 9001 to 9006, 50551 to \
                 50559, or 28200 to 28220",
                url.port
            ));
        }
        if !has_plain_segments(&url.path) {
            self.push(
                "callbacks.public_url: the path may have only letters, digits, '-', '_', '.' and '~', and no segment \
                 that is empty or consists of dots",
            );
        }
        if url.scheme == "http" && !url.is_loopback() && !callbacks.allow_plaintext {
            self.push(
                "callbacks.public_url: with http:// the secret, the password and the devices of callbacks cross the \
                 internet in plain text. Write https://, or accept that risk with callbacks.allow_plaintext = true",
            );
        }
    }

    /// The files, where callbacks are taken at all.
    pub(super) fn callback_files(&mut self, callbacks: &CallbacksConfig) {
        if !callbacks.enabled {
            return;
        }
        if let Some((cert, key)) = callbacks.tls() {
            self.identity("callbacks", ("tls_cert_file", cert), ("tls_key_file", key));
        }
        let Some((username, password)) = callbacks.pair_files() else { return };
        for (key, path) in [("username_file", username), ("password_file", password)] {
            if let Err(what) = secret_file::check(path).and_then(|secret| short_enough(&secret)) {
                self.push(format!("callbacks.{key}: {}", secret_file::problem(path, &what)));
            }
        }
    }

    fn both_or_none(&mut self, one_key: &str, one: &Path, other_key: &str, other: &Path) {
        let (missing, given) = match (one.as_os_str().is_empty(), other.as_os_str().is_empty()) {
            (true, false) => (one_key, other_key),
            (false, true) => (other_key, one_key),
            _ => return,
        };
        self.push(format!("callbacks.{missing}: is required beside {given}; give both or none"));
    }
}

/// Whether nothing on the way rewrites a path, so that ThingSpace lists what was registered.
fn has_plain_segments(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let fits =
        |segment: &str| segment.bytes().all(plain) && !segment.bytes().all(|byte| byte == b'.');
    match path.strip_prefix('/') {
        None | Some("") => true,
        Some(path) => path.strip_suffix('/').unwrap_or(path).split('/').all(fits),
    }
}

fn short_enough(secret: &SecretString) -> Result<(), String> {
    if secret.expose_secret().chars().count() <= MAX_PAIR_CHARS {
        Ok(())
    } else {
        Err(format!(
            "holds more than {MAX_PAIR_CHARS} characters, which is all that ThingSpace takes"
        ))
    }
}
