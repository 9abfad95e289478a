//! Files that must not be the same: the socket and anything else, and the passwords that ThingSpace sends to others.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use secrecy::zeroize::Zeroizing;
use subtle::ConstantTimeEq;

use super::{
    super::{Config, StoreKind},
    Problems,
};
use crate::secret_file::is_same_user;

/// The longest secret that the gateway reads from a file, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;

/// What the embedded store consists of.
const STORE: [&str; 2] = ["store.path", "the record beside the store"];

impl Problems {
    /// The socket is made anew at each start, so it must not have the path of anything else.
    pub(super) fn socket_is_apart(&mut self, config: &Config, file: Option<&Path>) {
        let socket = config.control_socket();
        if socket.as_os_str().is_empty() {
            return;
        }
        for (what, path) in named(config, file) {
            if same(&socket, &path) {
                self.push(format!(
                    "control.socket: {} is the path of {what}; name a file of its own",
                    socket.display()
                ));
            }
        }
        if let Ok(found) = fs::symlink_metadata(&socket)
            && !is_socket(&found)
        {
            self.push(format!(
                "control.socket: {} exists and is no socket; name another file, or remove it",
                socket.display()
            ));
        }
    }

    /// The store and its record are written, so they must not have the path of anything else.
    pub(super) fn store_is_apart(&mut self, config: &Config, file: Option<&Path>) {
        let named = named(config, file);
        let (store, others): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(what, _)| STORE.contains(&&**what));
        for (part, path) in &store {
            for (what, _) in others.iter().filter(|(_, other)| same(path, other)) {
                self.push(format!(
                    "store.path: {}, {part}, is the path of {what}; name a file of its own",
                    path.display()
                ));
            }
        }
    }

    /// ThingSpace sends the callbacks' pair in every callback, so nothing of it may log in. It refuses the user name of a
    /// login by itself.
    pub(super) fn pairs_are_apart(&mut self, config: &Config) {
        let Some((name, callbacks)) = config.callbacks.pair_files().filter(|_| config.callbacks.enabled)
        else {
            return;
        };
        let text = |path| secret(path).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
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

/// Every other file that the configuration names.
fn named(config: &Config, file: Option<&Path>) -> Vec<(String, PathBuf)> {
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    let mut add = |what: &str, path: &Path| {
        if !path.as_os_str().is_empty() {
            named.push((what.to_owned(), path.to_owned()));
        }
    };
    if let Some(file) = file {
        add("the configuration file", file);
    }
    match config.store.kind {
        StoreKind::Embedded => {
            let mut record = config.store.path.clone().into_os_string();
            record.push(".record");
            add(STORE[0], &config.store.path);
            add(STORE[1], Path::new(&record));
        }
        StoreKind::Nats => {
            let nats = &config.store.nats;
            add("store.nats.creds_file", &nats.creds_file);
            add("store.nats.username_file", &nats.username_file);
            add("store.nats.password_file", &nats.password_file);
            add("store.nats.ca_file", &nats.ca_file);
            add("store.nats.cert_file", &nats.cert_file);
            add("store.nats.key_file", &nats.key_file);
        }
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn is_socket(found: &fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())
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
