//! What `[store]` must be.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    ops::RangeInclusive,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::Duration,
};

use super::{
    super::{
        NatsConfig, StoreConfig, StoreKind, record_path,
        url::{self, Url},
    },
    Problems, can_be_written, certificate, secret_file,
};

const RETENTION: RangeInclusive<Duration> =
    Duration::from_hours(1)..=Duration::from_hours(24 * 365);
const REPLICAS: [usize; 3] = [1, 3, 5];
const MAX_BYTES: RangeInclusive<u64> = 16 << 20..=16 << 40;
const MAX_SERVERS: usize = 32;

/// The first bytes of every file that redb writes.
const REDB: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

impl Problems {
    pub(super) fn store(&mut self, store: &StoreConfig) {
        self.duration("store.retention", store.retention, &RETENTION);
        let NatsConfig {
            creds_file,
            username_file,
            password_file,
            replicas,
            prefix,
            max_bytes,
            ..
        } = &store.nats;
        self.servers(&store.nats);
        if store.nats.cert_file.as_os_str().is_empty() != store.nats.key_file.as_os_str().is_empty()
        {
            self.push("store.nats: cert_file and key_file belong together; set both, or neither");
        }
        if username_file.as_os_str().is_empty() != password_file.as_os_str().is_empty() {
            self.push(
                "store.nats: username_file and password_file belong together; set both, or neither",
            );
        }
        if !creds_file.as_os_str().is_empty() && !username_file.as_os_str().is_empty() {
            self.push("store.nats.username_file: is for servers that know no creds_file; set one of the two");
        }
        if !REPLICAS.contains(replicas) {
            self.push(format!(
                "store.nats.replicas: {replicas} is out of bounds; must be 1, 3 or 5"
            ));
        }
        let letters =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if !(1..=32).contains(&prefix.len()) || !prefix.bytes().all(letters) {
            self.push("store.nats.prefix: must be 1 to 32 of a-z, 0-9, '-' and '_'");
        }
        self.number("store.nats.max_bytes", *max_bytes, &MAX_BYTES);
    }

    /// What the kind of store needs to be opened.
    pub(super) fn store_is_there(&mut self, store: &StoreConfig) {
        match store.kind {
            StoreKind::Embedded => {
                if let Err(what) = store_can_be_there(&store.path) {
                    self.push(format!("store.path: {what}"));
                }
            }
            StoreKind::Nats => {
                if store.nats.url.is_empty() {
                    self.push("store.nats.url: is required; write nats://HOST:PORT of the servers");
                }
                self.nats_files(&store.nats);
            }
        }
    }

    fn nats_files(&mut self, nats: &NatsConfig) {
        let NatsConfig {
            creds_file,
            username_file,
            password_file,
            ca_file,
            cert_file,
            key_file,
            ..
        } = nats;
        let named = |path: &Path| !path.as_os_str().is_empty();
        let secrets = [
            ("creds_file", creds_file, secret_file::check_lines as fn(&Path) -> _),
            ("username_file", username_file, secret_file::check),
            ("password_file", password_file, secret_file::check),
        ];
        for (key, path, check) in secrets {
            if named(path)
                && let Err(what) = check(path)
            {
                self.push(format!("store.nats.{key}: {}", secret_file::problem(path, &what)));
            }
        }
        if named(ca_file)
            && let Err(what) = certificate::check_authorities(ca_file)
        {
            self.push(format!("store.nats.ca_file: {what}"));
        }
        if named(cert_file) && named(key_file) {
            self.identity("store.nats", ("cert_file", cert_file), ("key_file", key_file));
        }
    }

    fn servers(&mut self, nats: &NatsConfig) {
        if nats.url.is_empty() {
            return;
        }
        let servers = nats.servers();
        if servers.len() > MAX_SERVERS {
            self.push(format!("store.nats.url: names more than {MAX_SERVERS} servers"));
        }
        // With one of these files the connection is not used without TLS.
        let tls = !nats.ca_file.as_os_str().is_empty() || !nats.cert_file.as_os_str().is_empty();
        for server in &servers {
            let what = match Url::parse(server, url::NATS) {
                Ok(server) if server.port == 0 => {
                    "has a port that does not exist; must be 1 to 65535".to_owned()
                }
                Ok(server) if server.path != "/" => "must have no path".to_owned(),
                Ok(server)
                    if server.scheme == "nats"
                        && !tls
                        && !server.is_loopback()
                        && !nats.allow_plaintext =>
                {
                    format!(
                        "nats:// would reach {} in plain text, with everything that is stored. Write tls://, or \
                         accept that risk with store.nats.allow_plaintext = true",
                        server.host
                    )
                }
                Ok(_) => continue,
                Err(what) => what,
            };
            self.push(format!("store.nats.url: {what}"));
        }
    }
}

fn store_can_be_there(path: &Path) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        return Err("is required; name a file on a disk that survives a restart".to_owned());
    }
    if path.is_dir() {
        return Err(format!("{} is a folder; name a file in it", path.display()));
    }
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(format!("{} ends with a slash, so it is no file; name a file", path.display()));
    }
    if !path.exists() && fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return Err(format!(
            "{} is a symbolic link to nothing; remove it, or name the file itself",
            path.display()
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
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!(
            "the folder {} does not exist; make it, or mount a volume there",
            folder.display()
        ));
    }
    if path.exists() {
        is_a_store(path)?;
    }
    can_be_written(folder)
}

/// A gateway that runs has locked the file; that does not hinder reading its first bytes.
fn is_a_store(path: &Path) -> Result<(), String> {
    let unusable = |error: io::Error| {
        format!("{} cannot be written ({error}); let the gateway's user write it", path.display())
    };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(unusable)?;
    let mut begin = Vec::new();
    file.take(REDB.len() as u64).read_to_end(&mut begin).map_err(unusable)?;
    if begin.is_empty() {
        return Err(format!(
            "{} is an empty file; remove it, or name another file",
            path.display()
        ));
    }
    if begin != REDB {
        return Err(format!(
            "{} is no store of a gateway; name another file, or run `thingspace-gateway store restore` if the \
             store is damaged",
            path.display()
        ));
    }
    Ok(())
}
