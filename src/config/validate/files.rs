//! Compares the configured files: those that the gateway writes must differ from all others, each
//! user must have one spelling, and the pair of callbacks must differ from every user.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

use super::{
    super::{Config, StoreKind, record_path},
    Problems, folder_of, is_set,
};
use crate::secret_file::{self, is_same, is_same_user};

impl Problems {
    /// Checks that the store, its record and the socket do not overwrite another file.
    pub(super) fn written_files_are_distinct(&mut self, config: &Config, file: Option<&Path>) {
        let (written, read) = (written(config), read(config, file));
        for (at, WrittenFile { key, name, path }) in written.iter().enumerate() {
            let written = written[..at].iter().map(|other| (other.name, &other.path));
            let others = written.chain(read.iter().map(|(name, path)| (name.as_str(), path)));
            for (other, _) in others.filter(|(_, other)| is_same_file(path, other)) {
                let which = if name == key { String::new() } else { format!(", {name},") };
                self.push(format!(
                    "{key}: {}{which} is the path of {other}; use a different path",
                    path.display()
                ));
            }
        }
    }

    /// Checks that each user is spelled the same way everywhere. ThingSpace ignores the case of
    /// user names and may end the session of a user at the next login. The gateway would log in
    /// separately for each spelling, and each login would end the session of the other spelling.
    pub(super) fn users_are_spelled_alike(&mut self, config: &Config) {
        let users: Vec<_> = config.credentials.iter().map(|of| secret(&of.username_file)).collect();
        for (later, user) in users.iter().enumerate() {
            let Some(user) = user else { continue };
            let differs = |other: &Option<SecretString>| {
                other.as_ref().is_some_and(|other| {
                    let (user, other) = (user.expose_secret(), other.expose_secret());
                    is_same_user(user, other) && user != other
                })
            };
            if let Some(first) = users[..later].iter().position(differs) {
                self.push(format!(
                    "credentials #{}: username_file: {} holds the user of credentials #{} in \
                     another spelling, so their logins would end each other's sessions; write it \
                     the same way",
                    later + 1,
                    config.credentials[later].username_file.display(),
                    first + 1
                ));
            }
        }
    }

    /// Checks that the pair of callbacks has neither the name nor the password of a user.
    /// ThingSpace refuses the name of a user for callbacks, and it sends the password in every
    /// callback.
    pub(super) fn callback_pair_is_distinct(&mut self, config: &Config) {
        let pair = config.callbacks.pair_files().filter(|_| config.callbacks.enabled);
        let Some((name_file, password_file)) = pair else { return };
        let (name, password) = (secret(name_file), secret(password_file));
        for (number, credentials) in (1..).zip(&config.credentials) {
            let user_name_file = &credentials.username_file;
            let user_password_file = &credentials.password_file;
            if both_match(name.as_ref(), user_name_file, is_same_user) {
                self.push(format!(
                    "callbacks.username_file: {} holds the same user name as {}, the username_file \
                     of credentials #{number}, which ThingSpace refuses for callbacks; write \
                     another one",
                    name_file.display(),
                    user_name_file.display()
                ));
            }
            if both_match(password.as_ref(), user_password_file, is_same) {
                self.push(format!(
                    "callbacks.password_file: {} holds the same password as {}, the password_file \
                     of credentials #{number}, and ThingSpace sends it in every callback; write \
                     another one",
                    password_file.display(),
                    user_password_file.display()
                ));
            }
        }
    }
}

/// Returns whether both secrets can be read and are the same.
fn both_match(one: Option<&SecretString>, file: &Path, same: fn(&str, &str) -> bool) -> bool {
    let both = one.zip(secret(file));
    both.is_some_and(|(one, other)| same(one.expose_secret(), other.expose_secret()))
}

/// A file that the gateway writes.
struct WrittenFile {
    /// The key that determines its path.
    key: &'static str,
    /// How problems name the file.
    name: &'static str,
    path: PathBuf,
}

fn written(config: &Config) -> Vec<WrittenFile> {
    let (key, path) = ("store.path", &config.store.path);
    let mut written = Vec::new();
    if config.store.kind == StoreKind::Embedded && is_set(path) {
        let record = "the record beside the store";
        written.push(WrittenFile { key, name: key, path: path.clone() });
        written.push(WrittenFile { key, name: record, path: record_path(path) });
    }
    let key = "control.socket";
    written.push(WrittenFile { key, name: key, path: config.control_socket() });
    written
}

/// The files that the gateway only reads, with their names.
fn read(config: &Config, file: Option<&Path>) -> Vec<(String, PathBuf)> {
    let callbacks = &config.callbacks;
    let mut files = vec![
        ("the configuration file", file.unwrap_or(Path::new(""))),
        ("telemetry.otlp_headers_file", &config.telemetry.otlp_headers_file),
        ("telemetry.otlp_ca_file", &config.telemetry.otlp_ca_file),
        ("callbacks.tls_cert_file", &callbacks.tls_cert_file),
        ("callbacks.tls_key_file", &callbacks.tls_key_file),
        ("callbacks.username_file", &callbacks.username_file),
        ("callbacks.password_file", &callbacks.password_file),
    ];
    if config.store.kind == StoreKind::Nats {
        let nats = &config.store.nats;
        files.extend([
            ("store.nats.creds_file", nats.creds_file.as_path()),
            ("store.nats.username_file", &nats.username_file),
            ("store.nats.password_file", &nats.password_file),
            ("store.nats.ca_file", &nats.ca_file),
            ("store.nats.cert_file", &nats.cert_file),
            ("store.nats.key_file", &nats.key_file),
        ]);
    }
    let files = files.into_iter().map(|(name, path)| (name.to_owned(), path));
    let secrets = (1..).zip(&config.credentials).flat_map(|(number, credentials)| {
        let name = move |key| format!("{key} of credentials #{number}");
        credentials.files().map(|(key, path)| (name(key), path))
    });
    let files = files.chain(secrets).filter(|(_, path)| is_set(path));
    files.map(|(name, path)| (name, path.to_owned())).collect()
}

/// Returns whether two paths lead to the same file, even if it does not exist.
fn is_same_file(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) {
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    resolve(one) == resolve(other)
}

/// Resolves the symbolic links of a path, or at least those of its folder.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    match (fs::canonicalize(folder_of(path)), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// Returns the secret in a file, or `None` if the file cannot be used. That is reported elsewhere.
fn secret(path: &Path) -> Option<SecretString> {
    secret_file::check(path).ok()
}
