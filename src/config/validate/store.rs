//! Validates `[store]`.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::{
    super::{
        NatsConfig, StoreConfig, StoreKind, record_path,
        url::{self, Url},
    },
    Problems, certificate, check_folder, folder_of, is_set, secret_file,
};

const REPLICAS: [usize; 3] = [1, 3, 5];
const MAX_SERVERS: usize = 32;

/// The first bytes of every redb file.
const REDB: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

impl Problems {
    pub(super) fn store(&mut self, store: &StoreConfig) {
        self.duration("store.retention", store.retention, ["1h", "365d"]);
        let nats = &store.nats;
        self.servers(nats);
        let key = ("key_file", nats.key_file.as_path());
        self.both_or_neither("store.nats", ("cert_file", &nats.cert_file), key);
        let password = ("password_file", nats.password_file.as_path());
        self.both_or_neither("store.nats", ("username_file", &nats.username_file), password);
        if is_set(&nats.creds_file) && is_set(&nats.username_file) {
            self.push(
                "store.nats.username_file: cannot be used together with creds_file; set one of \
                 the two",
            );
        }
        if !REPLICAS.contains(&nats.replicas) {
            self.push(format!(
                "store.nats.replicas: {} is out of bounds; must be 1, 3 or 5",
                nats.replicas
            ));
        }
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if !(1..=32).contains(&nats.prefix.len()) || !nats.prefix.bytes().all(allowed) {
            self.push("store.nats.prefix: must be 1 to 32 of a-z, 0-9, '-' and '_'");
        }
        self.number("store.nats.max_bytes", nats.max_bytes, 16 << 20..=16 << 40);
    }

    /// Checks the keys and files that are needed to open the store.
    pub(super) fn store_is_usable(&mut self, store: &StoreConfig) {
        match store.kind {
            StoreKind::Embedded => self.check("store.path", check_path(&store.path)),
            StoreKind::Nats => {
                if store.nats.url.is_empty() {
                    self.push("store.nats.url: is required; write nats://HOST:PORT of the servers");
                }
                self.nats_files(&store.nats);
            }
        }
    }

    fn nats_files(&mut self, nats: &NatsConfig) {
        let secrets = [
            ("creds_file", &nats.creds_file, secret_file::check_lines as fn(&Path) -> _),
            ("username_file", &nats.username_file, secret_file::check),
            ("password_file", &nats.password_file, secret_file::check),
        ];
        for (key, path, check) in secrets {
            if is_set(path) {
                self.secret_file(&format!("store.nats.{key}"), path, check);
            }
        }
        if is_set(&nats.ca_file) {
            self.check("store.nats.ca_file", certificate::check_authorities(&nats.ca_file));
        }
        if is_set(&nats.cert_file) && is_set(&nats.key_file) {
            let key = ("key_file", nats.key_file.as_path());
            self.server_certificate("store.nats", ("cert_file", &nats.cert_file), key);
        }
    }

    fn servers(&mut self, nats: &NatsConfig) {
        if nats.url.is_empty() {
            return;
        }
        let servers = nats.servers();
        if servers.len() > MAX_SERVERS {
            self.push(format!("store.nats.url: must name at most {MAX_SERVERS} servers"));
        }
        // Either of these files makes TLS mandatory.
        let allow_plaintext =
            nats.allow_plaintext || is_set(&nats.ca_file) || is_set(&nats.cert_file);
        for server in &servers {
            let checked = Url::parse(server, url::NATS).and_then(Url::with_usable_port);
            let checked = checked.and_then(|server| check_server(&server, allow_plaintext));
            self.check("store.nats.url", checked);
        }
    }
}

fn check_server(server: &Url, allow_plaintext: bool) -> Result<(), String> {
    if server.path != "/" {
        return Err("must have no path".to_owned());
    }
    if server.scheme == "nats" && !server.is_loopback() && !allow_plaintext {
        return Err(format!(
            "nats:// would send everything that is stored to {} in plain text. Write tls://, or \
             accept that risk with store.nats.allow_plaintext = true",
            server.host
        ));
    }
    Ok(())
}

/// Checks that an embedded store can be opened or created at this path.
fn check_path(path: &Path) -> Result<(), String> {
    if !is_set(path) {
        return Err("is required; name a file on a disk that survives a restart".to_owned());
    }
    let shown = path.display();
    if path.is_dir() {
        return Err(format!("{shown} is a folder; name a file in it"));
    }
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(format!("{shown} ends with a slash, so it is not a file; name a file"));
    }
    if !path.exists() && path.is_symlink() {
        return Err(format!(
            "{shown} is a symbolic link to nothing; remove it, or name the file itself"
        ));
    }
    let record = record_path(path);
    for (name, file) in [("", path), ("the record beside the store, ", &record)] {
        if file.exists() && !file.is_file() {
            return Err(format!(
                "{name}{} is not a file; remove it, or name another store",
                file.display()
            ));
        }
    }
    if path.exists() {
        check_format(path)?;
    }
    check_folder(folder_of(path), "make it, or mount a volume there")
}

/// Checks that a file is a store. Works while a gateway has the file locked.
fn check_format(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let unusable = |error: io::Error| {
        format!("{shown} cannot be written ({error}); let the gateway's user write it")
    };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(unusable)?;
    let mut begin = Vec::new();
    file.take(REDB.len() as u64).read_to_end(&mut begin).map_err(unusable)?;
    if begin.is_empty() {
        return Err(format!("{shown} is an empty file; remove it, or name another file"));
    }
    if begin != REDB {
        return Err(format!(
            "{shown} is not a store of a gateway; name another file, or run `thingspace-gateway \
             store restore` if the store is damaged"
        ));
    }
    Ok(())
}
