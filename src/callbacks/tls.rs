//! The listener's certificate. Its files are read again at intervals, and only a certificate that
//! can be used replaces it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use aws_lc_rs::digest;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::task::spawn_blocking;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::{
    certificate::{MAX_FILE_BYTES, ServerCertificate},
    lock, secret_file,
};

/// How long before the expiry of the certificate a warning is logged.
const EXPIRY_NOTICE: Duration = Duration::from_hours(24 * 14);

pub(super) struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
    /// The digest of the files in use.
    digest: Vec<u8>,
    current: Arc<CurrentCertificate>,
    pub(super) expires: Timestamp,
    pub(super) acceptor: TlsAcceptor,
    /// The last failure to load the files, which was logged.
    failure: Option<String>,
    /// The expiry about which a warning was logged.
    expiry_logged: Option<Timestamp>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("cert_file", &self.cert_file).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&lock::read(&self.0)))
    }
}

impl Tls {
    /// Loads the files. An error names the file that cannot be used, and why.
    pub(super) async fn load(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let (digest, identity) = read(cert_file, key_file).await?;
        let ServerCertificate { key, expires } = identity?;
        let current = Arc::new(CurrentCertificate(RwLock::new(Arc::new(key))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (cert_file, key_file) = (cert_file.into(), key_file.into());
        let (failure, expiry_logged) = (None, None);
        Ok(Self { cert_file, key_file, digest, current, expires, acceptor, failure, expiry_logged })
    }

    /// Loads the files again. Logs a new certificate, each failure once, and the expiry once.
    pub(super) async fn refresh(&mut self) {
        let reloaded = self.reload().await;
        if reloaded == Ok(true) {
            info!("the callbacks' certificate was replaced");
        }
        let failure = reloaded.err();
        if let (Some(error), true) = (&failure, failure != self.failure) {
            warn!(
                error,
                "cannot load the callbacks' certificate, and the old one stays in use; correct its \
                 files"
            );
        }
        self.failure = failure;
        let expires = self.expires;
        if Timestamp::now() + EXPIRY_NOTICE > expires && self.expiry_logged != Some(expires) {
            warn!(
                %expires,
                "the callbacks' certificate expires soon or has expired; renew its files"
            );
            self.expiry_logged = Some(expires);
        }
    }

    /// Loads the files again. Returns true if they have changed.
    async fn reload(&mut self) -> Result<bool, String> {
        let (digest, identity) = read(&self.cert_file, &self.key_file).await?;
        if digest == self.digest {
            return Ok(false);
        }
        let ServerCertificate { key, expires } = identity?;
        *lock::write(&self.current.0) = Arc::new(key);
        (self.digest, self.expires) = (digest, expires);
        Ok(true)
    }
}

/// Returns a digest of both files, and the certificate in them, or why it cannot be used now.
async fn read(
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Vec<u8>, Result<ServerCertificate, String>), String> {
    let (cert_file, key_file) = (cert_file.to_owned(), key_file.to_owned());
    let read = spawn_blocking(move || {
        let bytes = |file: &Path| {
            let bytes = secret_file::bounded(file, MAX_FILE_BYTES);
            bytes.map_err(|why| format!("{} {why}", file.display()))
        };
        let (chain, key) = (bytes(&cert_file)?, bytes(&key_file)?);
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&chain);
        hash.update(digest::digest(&digest::SHA256, &key).as_ref());
        let identity =
            ServerCertificate::new(&cert_file, &chain, &key_file, &key, Timestamp::now());
        Ok((hash.finish().as_ref().to_vec(), identity))
    });
    read.await.map_err(|_| "the files cannot be read while the gateway stops".to_owned())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        issue_until(folder, name, (2000, 4096))
    }

    fn issue_until(folder: &Path, name: &str, (from, to): (i32, i32)) -> (PathBuf, PathBuf) {
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let issued = params.self_signed(&signing_key).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, issued.pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    fn in_use(tls: &Tls) -> Vec<u8> {
        tls.current.0.read().unwrap().cert[0].to_vec()
    }

    #[tokio::test]
    async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = issue(folder.path(), "one.example");
        let mut tls = Tls::load(&cert, &key).await.unwrap();
        let first = in_use(&tls);
        assert_eq!(tls.reload().await, Ok(false));

        let old_key = std::fs::read(&key).unwrap();
        issue(folder.path(), "two.example");
        let new_key = std::fs::read(&key).unwrap();
        std::fs::write(&key, &old_key).unwrap();
        assert!(tls.reload().await.unwrap_err().contains("does not belong to"));
        std::fs::write(&key, "nothing").unwrap();
        assert!(tls.reload().await.unwrap_err().contains("holds no private key"));
        std::fs::remove_file(&key).unwrap();
        assert!(tls.reload().await.unwrap_err().contains("cannot be read"));
        assert_eq!(in_use(&tls), first);

        std::fs::write(&key, new_key).unwrap();
        assert_eq!(tls.reload().await, Ok(true));
        assert_ne!(in_use(&tls), first);
        assert_eq!(tls.reload().await, Ok(false));
    }

    /// An expired certificate was once accepted, at start and as the replacement of a valid one.
    #[tokio::test]
    async fn a_certificate_that_is_not_valid_now_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (years, why) in
            [((2000, 2001), "expired at 2001-01-01"), ((4000, 4001), "not valid before 4000")]
        {
            let (cert, key) = issue_until(folder.path(), "gateway.example", years);
            let refused = Tls::load(&cert, &key).await.unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let (cert, key) = issue(folder.path(), "gateway.example");
        let mut tls = Tls::load(&cert, &key).await.unwrap();
        let (good, expires) = (in_use(&tls), tls.expires);
        issue_until(folder.path(), "gateway.example", (2000, 2001));
        assert!(tls.reload().await.unwrap_err().contains("expired"));
        assert_eq!((in_use(&tls), tls.expires), (good, expires));
    }

    /// The error of rustls would say that the key does not fit.
    #[tokio::test]
    async fn a_certificate_of_version_1_is_refused_for_that_reason() {
        let folder = tempfile::tempdir().unwrap();
        let (_, key) = issue(folder.path(), "gateway.example");
        let cert = folder.path().join("v1.pem");
        std::fs::write(&cert, include_str!("tls/version-1.pem")).unwrap();
        let refused = Tls::load(&cert, &key).await.unwrap_err();
        assert!(refused.contains("version 1"), "{refused}");
    }
}
