//! Files that must not be the same: the socket and anything else, and the passwords that ThingSpace
//! sends to others.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use secrecy::zeroize::Zeroizing;
use subtle::ConstantTimeEq;

use super::{
    super::{Config, StoreKind, record_path},
    Problems,
};
use crate::secret_file::is_same_user;

/// The longest secret that the gateway reads from a file, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;

impl Problems {
    /// The store, its record and the socket are written, so none of them may have the path of
    /// another file.
    pub(super) fn written_files_are_apart(&mut self, config: &Config, file: Option<&Path>) {
        let (written, read) = (written(config), read(config, file));
        for (at, Written { key, name, path }) in written.iter().enumerate() {
            let written = written[..at].iter().map(|other| (other.name, &other.path));
            let others = written.chain(read.iter().map(|(name, path)| (name.as_str(), path)));
            for (other, _) in others.filter(|(_, other)| same(path, other)) {
                let which = if name == key { String::new() } else { format!(", {name},") };
                self.push(format!(
                    "{key}: {}{which} is the path of {other}; name a file of its own",
                    path.display()
                ));
            }
        }
    }

    /// ThingSpace knows a user in any spelling and may end a user's session at the next login. Two
    /// spellings would log in separately, so their sets of credentials would end each other's
    /// sessions.
    pub(super) fn users_are_spelled_alike(&mut self, config: &Config) {
        let names: Vec<_> = config.credentials.iter().map(|of| text(&of.username_file)).collect();
        for (later, name) in names.iter().enumerate() {
            let Some(name) = name else { continue };
            let differs = |other: &&Option<String>| {
                other.as_ref().is_some_and(|other| is_same_user(name, other) && name != other)
            };
            if let Some(first) = names[..later].iter().position(|other| differs(&other)) {
                self.push(format!(
                    "credentials #{}: username_file: {} holds the user of credentials #{} in another spelling, so \
                     their logins would end each other's sessions; write it the same way",
                    later + 1,
                    config.credentials[later].username_file.display(),
                    first + 1
                ));
            }
        }
    }

    /// ThingSpace sends the callbacks' pair in every callback, so nothing of it may log in. It
    /// refuses the user name of a login by itself.
    pub(super) fn pairs_are_apart(&mut self, config: &Config) {
        let Some((name, callbacks)) =
            config.callbacks.pair_files().filter(|_| config.callbacks.enabled)
        else {
            return;
        };
        for (index, credentials) in config.credentials.iter().enumerate() {
            let user = &credentials.username_file;
            if text(name).zip(text(user)).is_some_and(|(name, user)| is_same_user(&name, &user)) {
                self.push(format!(
                    "callbacks.username_file: {} holds the same user name as {}, the username_file of credentials #{}, \
                     which ThingSpace refuses for callbacks; write another one",
                    name.display(),
                    user.display(),
                    index + 1
                ));
            }
        }
        // A file that cannot be read is reported elsewhere.
        let Some(password) = secret(callbacks) else { return };
        for (index, credentials) in config.credentials.iter().enumerate() {
            let login = &credentials.password_file;
            if secret(login).is_some_and(|login| bool::from(login.as_slice().ct_eq(&password))) {
                self.push(format!(
                    "callbacks.password_file: {} holds the same password as {}, the password_file of credentials #{}, \
                     and ThingSpace sends it in every callback; write another one",
                    callbacks.display(),
                    login.display(),
                    index + 1
                ));
            }
        }
    }
}

/// A file that the gateway writes.
struct Written {
    /// The key that decides its path.
    key: &'static str,
    name: &'static str,
    path: PathBuf,
}

fn written(config: &Config) -> Vec<Written> {
    let mut written = Vec::new();
    let mut add = |key, name, path: PathBuf| {
        if !path.as_os_str().is_empty() {
            written.push(Written { key, name, path });
        }
    };
    if config.store.kind == StoreKind::Embedded && !config.store.path.as_os_str().is_empty() {
        add("store.path", "store.path", config.store.path.clone());
        add("store.path", "the record beside the store", record_path(&config.store.path));
    }
    add("control.socket", "control.socket", config.control_socket());
    written
}

/// The files that the gateway only reads.
fn read(config: &Config, file: Option<&Path>) -> Vec<(String, PathBuf)> {
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    let mut add = |what: &str, path: &Path| {
        if !path.as_os_str().is_empty() {
            named.push((what.to_owned(), path.to_owned()));
        }
    };
    if let Some(file) = file {
        add("the configuration file", file);
    }
    if config.store.kind == StoreKind::Nats {
        let nats = &config.store.nats;
        add("store.nats.creds_file", &nats.creds_file);
        add("store.nats.username_file", &nats.username_file);
        add("store.nats.password_file", &nats.password_file);
        add("store.nats.ca_file", &nats.ca_file);
        add("store.nats.cert_file", &nats.cert_file);
        add("store.nats.key_file", &nats.key_file);
    }
    add("telemetry.otlp_ca_file", &config.telemetry.otlp_ca_file);
    let callbacks = &config.callbacks;
    add("callbacks.tls_cert_file", &callbacks.tls_cert_file);
    add("callbacks.tls_key_file", &callbacks.tls_key_file);
    add("callbacks.username_file", &callbacks.username_file);
    add("callbacks.password_file", &callbacks.password_file);
    for (index, credentials) in config.credentials.iter().enumerate() {
        let of = |key: &str| format!("{key} of credentials #{}", index + 1);
        add(&of("key_file"), &credentials.key_file);
        add(&of("secret_file"), &credentials.secret_file);
        add(&of("username_file"), &credentials.username_file);
        add(&of("password_file"), &credentials.password_file);
    }
    named
}

/// Whether two paths lead to one file, which need not exist.
fn same(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) {
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    resolved(one) == resolved(other)
}

/// A path without symbolic links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn text(path: &Path) -> Option<String> {
    secret(path).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
}

/// The secret in a file, without the line break at its end.
fn secret(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path).ok()?.take(MAX_SECRET_BYTES).read_to_end(&mut bytes).ok()?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}
