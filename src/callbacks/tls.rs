//! The listener's certificate, read again when its files change. What cannot be used never replaces what is in use.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::digest;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use secrecy::zeroize::Zeroizing;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;

/// Of each file.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(super) struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
    /// Digest of the files' bytes that are in use.
    seen: Vec<u8>,
    current: Arc<Current>,
    pub(super) acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("cert_file", &self.cert_file).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// Or which file cannot be used, and why.
    pub(super) async fn load(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let (seen, certificate) = read(cert_file, key_file).await?;
        let current = Arc::new(Current(RwLock::new(Arc::new(certificate?))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { cert_file: cert_file.into(), key_file: key_file.into(), seen, current, acceptor })
    }

    /// Takes what the files hold now; true if it is something new.
    pub(super) async fn reload(&mut self) -> Result<bool, String> {
        let (seen, certificate) = read(&self.cert_file, &self.key_file).await?;
        if seen == self.seen {
            return Ok(false);
        }
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate?);
        self.seen = seen;
        Ok(true)
    }
}

/// The digest of both files' bytes, and what they hold, if they fit together.
async fn read(cert_file: &Path, key_file: &Path) -> Result<(Vec<u8>, Result<CertifiedKey, String>), String> {
    let (chain, key) = (bytes(cert_file).await?, bytes(key_file).await?);
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&chain);
    hash.update(digest::digest(&digest::SHA256, &key).as_ref());
    Ok((hash.finish().as_ref().to_vec(), certified(cert_file, &chain, key_file, &key)))
}

// A parser's error may quote its input.
fn certified(cert_file: &Path, chain: &[u8], key_file: &Path, key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("{} is no PEM file", cert_file.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate", cert_file.display()));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| format!("{} holds no private key in PEM", key_file.display()))?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|_| {
        format!("the key in {} is not that of the certificate in {}", key_file.display(), cert_file.display())
    })
}

async fn bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(&error))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).await.map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(&format_args!("more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, issued.cert.pem()).unwrap();
        std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    fn in_use(tls: &Tls) -> Vec<u8> {
        tls.current.0.read().unwrap().cert[0].to_vec()
    }

    #[tokio::test]
    async fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = issue(folder.path(), "one.example");
        let mut tls = Tls::load(&cert, &key).await.unwrap();
        let first = in_use(&tls);
        assert_eq!(tls.reload().await, Ok(false));

        let old_key = std::fs::read(&key).unwrap();
        issue(folder.path(), "two.example");
        let new_key = std::fs::read(&key).unwrap();
        std::fs::write(&key, &old_key).unwrap();
        assert!(tls.reload().await.unwrap_err().contains("is not that of"));
        std::fs::write(&key, "nothing").unwrap();
        assert!(tls.reload().await.unwrap_err().contains("holds no private key"));
        std::fs::remove_file(&key).unwrap();
        assert!(tls.reload().await.unwrap_err().contains("cannot read"));
        assert_eq!(in_use(&tls), first);

        std::fs::write(&key, new_key).unwrap();
        assert_eq!(tls.reload().await, Ok(true));
        assert_ne!(in_use(&tls), first);
        assert_eq!(tls.reload().await, Ok(false));
    }
}
