//! A certificate chain and its key, from two PEM files, and whether they can be used now.
//!
//! rustls says neither how long a certificate is valid nor why it refuses an old one, so that is
//! read here from the certificate itself.

mod x509;

use std::path::Path;

use jiff::Timestamp;
use rustls::{
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::secret_file;
use x509::X509;

/// The most that a file of certificates or keys may hold.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// In the PEM of every private key with a passphrase, in the old format and in PKCS #8.
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// A chain with its key, and when the first certificate of the chain expires.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) key: CertifiedKey,
    pub(crate) expires: Timestamp,
}

impl Identity {
    /// What the files held, if it can be used at `now`. A parser's error may quote its input, so
    /// none is passed on.
    pub(crate) fn new(
        cert_file: &Path,
        chain: &[u8],
        key_file: &Path,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Self, String> {
        let chain = certificates(cert_file, chain)?;
        let expires = usable(cert_file, &chain, now)?;
        let key = private_key(key_file, key)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|_| {
            format!(
                "the key in {} is not that of the first certificate in {}; the certificate of the server comes first, \
                 then those of its issuers",
                key_file.display(),
                cert_file.display()
            )
        })?;
        Ok(Self { key, expires })
    }

    /// Reads the files.
    pub(crate) fn check(cert_file: &Path, key_file: &Path, now: Timestamp) -> Result<Self, String> {
        let (chain, key) = (bytes(cert_file)?, bytes(key_file)?);
        Self::new(cert_file, &chain, key_file, &key, now)
    }
}

/// Whether a file holds a chain that can be used at `now`.
pub(crate) fn check_chain(file: &Path, now: Timestamp) -> Result<(), String> {
    usable(file, &check_authorities(file)?, now).map(drop)
}

/// Whether a file holds a private key.
pub(crate) fn check_key(file: &Path) -> Result<(), String> {
    private_key(file, &bytes(file)?).map(drop)
}

/// Whether a file holds at least one certificate.
pub(crate) fn check_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates(file, &bytes(file)?)
}

fn bytes(file: &Path) -> Result<secrecy::zeroize::Zeroizing<Vec<u8>>, String> {
    secret_file::bounded(file, MAX_FILE_BYTES).map_err(|why| format!("{} {why}", file.display()))
}

fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let is_encrypted = pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED);
        let what = if is_encrypted {
            "holds an encrypted private key, which is not supported; write it there without a passphrase"
        } else {
            "holds no private key in PEM"
        };
        format!("{} {what}", file.display())
    })
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|_| format!("{} is no PEM file", file.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM", file.display()));
    }
    Ok(chain)
}

/// When the first certificate of the chain expires; or why it cannot be used.
fn usable(file: &Path, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Timestamp, String> {
    let mut expires = Timestamp::MAX;
    for der in chain {
        let certificate = X509::parse(der)
            .ok_or_else(|| format!("{} holds a certificate that cannot be read", file.display()))?;
        let X509 { version, not_before, not_after } = certificate;
        if version != 3 {
            return Err(format!(
                "{} holds an X.509 certificate of version {version}, which TLS libraries refuse; issue one of \
                 version 3, with a subjectAltName",
                file.display()
            ));
        }
        if now > not_after {
            return Err(format!(
                "{} holds a certificate that expired at {not_after:.0}",
                file.display()
            ));
        }
        if now < not_before {
            return Err(format!(
                "{} holds a certificate that is not valid before {not_before:.0}",
                file.display()
            ));
        }
        expires = expires.min(not_after);
    }
    Ok(expires)
}
