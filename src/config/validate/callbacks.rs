//! Validation of `[callbacks]`.

use std::ops::RangeInclusive;

use secrecy::{ExposeSecret, SecretString};

use super::{
    super::{CallbacksConfig, MAX_PAIR_CHARS, Network},
    Problems, secret_file,
};

/// The ports that ThingSpace calls.
const PORTS: [RangeInclusive<u16>; 5] =
    [80..=80, 443..=443, 9001..=9006, 50_551..=50_559, 28_200..=28_220];

impl Problems {
    pub(super) fn callbacks(&mut self, callbacks: &CallbacksConfig) {
        if !callbacks.public_url.is_empty() {
            self.public_url(callbacks);
        }
        if callbacks.register && !callbacks.enabled {
            self.push(
                "callbacks.register: there is no listener to register; set callbacks.enabled \
                 = true",
            );
        }
        if callbacks.register && callbacks.public_url.is_empty() {
            self.push(
                "callbacks.public_url: is required to register; write the URL at which ThingSpace \
                 reaches the listener",
            );
        }
        self.check("callbacks.networks", Network::parse_list(&callbacks.networks));
        let service = &callbacks.service;
        if !(1..=64).contains(&service.len()) || !service.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            self.push("callbacks.service: must be 1 to 64 letters and digits");
        }
        let CallbacksConfig { tls_cert_file, tls_key_file, .. } = callbacks;
        let key = ("tls_key_file", tls_key_file.as_path());
        self.both_or_neither("callbacks", ("tls_cert_file", tls_cert_file), key);
        let CallbacksConfig { username_file, password_file, .. } = callbacks;
        let password = ("password_file", password_file.as_path());
        self.both_or_neither("callbacks", ("username_file", username_file), password);
        self.duration("callbacks.grace", callbacks.grace, ["0s", "5m"]);
        let password_grace = callbacks.password_grace;
        self.duration("callbacks.password_grace", password_grace, ["0s", "30d"]);
        self.duration("callbacks.recheck", callbacks.recheck, ["1s", "1d"]);
    }

    fn public_url(&mut self, callbacks: &CallbacksConfig) {
        let Some(url) = self.url("callbacks.public_url", &callbacks.public_url) else { return };
        if !PORTS.iter().any(|ports| ports.contains(&url.port)) {
            self.push(format!(
                "callbacks.public_url: ThingSpace does not call port {}; use 443, 80, 9001 to \
                 9006, 50551 to 50559, or 28200 to 28220",
                url.port
            ));
        }
        if !has_plain_segments(&url.path) {
            self.push(
                "callbacks.public_url: the path may have only letters, digits, '-', '_', '.' and \
                 '~', and no segment that is empty or consists of dots",
            );
        }
        if url.scheme == "http" && !url.is_loopback() && !callbacks.allow_plaintext {
            self.push(
                "callbacks.public_url: with http:// the path secret, the password and the devices \
                 cross the internet in plain text. Write https://, or accept that risk with \
                 callbacks.allow_plaintext = true",
            );
        }
    }

    /// Checks the files that the listener reads.
    pub(super) fn callback_files(&mut self, callbacks: &CallbacksConfig) {
        if !callbacks.enabled {
            return;
        }
        if let Some((cert, key)) = callbacks.tls() {
            self.server_certificate("callbacks", ("tls_cert_file", cert), ("tls_key_file", key));
        }
        let Some((username, password)) = callbacks.pair_files() else { return };
        for (key, path) in [("username_file", username), ("password_file", password)] {
            self.secret_file(&format!("callbacks.{key}"), path, |path| {
                secret_file::check(path).and_then(|secret| check_length(&secret))
            });
        }
    }
}

/// Whether the path has only segments that no proxy rewrites. ThingSpace must list the URL exactly
/// as it was registered.
fn has_plain_segments(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let fits =
        |segment: &str| segment.bytes().all(plain) && !segment.bytes().all(|byte| byte == b'.');
    match path.strip_prefix('/') {
        None | Some("") => true,
        Some(path) => path.strip_suffix('/').unwrap_or(path).split('/').all(fits),
    }
}

fn check_length(secret: &SecretString) -> Result<(), String> {
    if secret.expose_secret().chars().count() > MAX_PAIR_CHARS {
        return Err(format!(
            "holds more than {MAX_PAIR_CHARS} characters, which ThingSpace does not accept"
        ));
    }
    Ok(())
}
