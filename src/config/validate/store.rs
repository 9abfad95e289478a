//! What `[store]` must be.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use super::{
    super::{Nats, Store, StoreKind},
    Problems, secret_file_is_there,
};

const RETENTION: RangeInclusive<Duration> = Duration::from_hours(1)..=Duration::from_hours(24 * 365);
const REPLICAS: [usize; 3] = [1, 3, 5];
const MAX_BYTES: RangeInclusive<u64> = 16 << 20..=16 << 40;
const MAX_SERVERS: usize = 32;

impl Problems {
    pub(super) fn store(&mut self, store: &Store) {
        self.duration("store.retention", store.retention, &RETENTION);
        let Nats { url, creds_file: _, ca_file: _, cert_file, key_file, replicas, prefix, max_bytes } =
            &store.nats;
        if !url.is_empty() {
            self.servers(&store.nats.servers());
        }
        if cert_file.as_os_str().is_empty() != key_file.as_os_str().is_empty() {
            self.push("store.nats: cert_file and key_file belong together; set both, or neither");
        }
        if !REPLICAS.contains(replicas) {
            self.push(format!("store.nats.replicas: {replicas} is out of bounds; must be 1, 3 or 5"));
        }
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if !(1..=32).contains(&prefix.len()) || !prefix.bytes().all(letters) {
            self.push("store.nats.prefix: must be 1 to 32 of a-z, 0-9, '-' and '_'");
        }
        self.number("store.nats.max_bytes", *max_bytes, &MAX_BYTES);
    }

    /// What the kind of store needs to be opened.
    pub(super) fn store_is_there(&mut self, store: &Store) {
        match store.kind {
            StoreKind::Embedded => {
                if let Err(what) = store_can_be_there(&store.path) {
                    self.push(format!("store.path: {what}"));
                }
            }
            StoreKind::Nats => {
                let Nats { url, creds_file, ca_file, cert_file, key_file, .. } = &store.nats;
                if url.is_empty() {
                    self.push("store.nats.url: is required; write nats://HOST:PORT of the servers");
                }
                let files = [
                    ("creds_file", creds_file),
                    ("ca_file", ca_file),
                    ("cert_file", cert_file),
                    ("key_file", key_file),
                ];
                for (key, path) in files {
                    self.file_if_named(key, path);
                }
            }
        }
    }

    fn file_if_named(&mut self, key: &str, path: &Path) {
        if !path.as_os_str().is_empty()
            && let Err(what) = secret_file_is_there(path)
        {
            self.push(format!("store.nats.{key}: {} {what}", path.display()));
        }
    }

    fn servers(&mut self, servers: &[String]) {
        if servers.len() > MAX_SERVERS {
            self.push(format!("store.nats.url: names more than {MAX_SERVERS} servers"));
        }
        for server in servers {
            let what = match server.parse::<http::Uri>() {
                Ok(uri) if !matches!(uri.scheme_str(), Some("nats" | "tls")) => {
                    "must begin with nats:// or tls://"
                }
                Ok(uri) if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                    "must hold no user or password: it is printed and logged; use a credentials file"
                }
                Ok(uri) if uri.path_and_query().is_some_and(|path| path.as_str() != "/") => {
                    "must have no path"
                }
                Ok(_) => continue,
                Err(_) => "is not a URL; write nats://HOST:PORT",
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!(
            "the folder {} does not exist; make it, or mount a volume there",
            folder.display()
        ));
    }
    Ok(())
}
