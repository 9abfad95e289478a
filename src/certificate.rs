//! A certificate chain and its private key, from two PEM files.
//!
//! rustls reports neither how long a certificate is valid nor that its X.509 version is too old. So
//! this module reads both from the certificate. No error quotes the content of a file.

mod caller;
mod x509;

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use rustls::{
    Error, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::{reload::MAX_FILE_BYTES, secret_file};
pub(crate) use caller::{caller_name, is_caller_name};
use x509::X509;

/// A certificate should have been replaced when a quarter of its time is left, at most two weeks
/// before its expiry. What renews certificates does so after two thirds of their time or earlier.
const LAST_PART: u32 = 4;
const LONGEST_NOTICE: Duration = Duration::from_hours(24 * 14);

/// Occurs in the PEM of every private key with a passphrase, in the traditional format and in
/// PKCS #8.
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// A chain that can be used now, with its key.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    pub(crate) key: CertifiedKey,
    pub(crate) validity: Validity,
}

/// How long a chain can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    /// The earliest expiry in the chain.
    pub(crate) expires: Timestamp,
    /// When a renewal of the chain is overdue.
    pub(crate) overdue: Timestamp,
}

impl ServerCertificate {
    /// Parses the content of the files. Fails if it cannot be used at `now`.
    pub(crate) fn new(
        cert_file: &Path,
        chain: &[u8],
        key_file: &Path,
        key: &[u8],
        now: Timestamp,
    ) -> Result<Self, String> {
        let chain = certificates(cert_file, chain)?;
        let validity = validity(cert_file, &chain, now)?;
        let key = private_key(key_file, key)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider());
        let key = key.map_err(|error| unusable(cert_file, key_file, &error))?;
        Ok(Self { key, validity })
    }

    pub(crate) fn check(cert_file: &Path, key_file: &Path, now: Timestamp) -> Result<Self, String> {
        let (chain, key) = (read(cert_file)?, read(key_file)?);
        Self::new(cert_file, &chain, key_file, &key, now)
    }
}

/// Explains why rustls does not accept a key with its chain.
pub(crate) fn unusable(cert_file: &Path, key_file: &Path, error: &Error) -> String {
    let (cert_file, key_file) = (cert_file.display(), key_file.display());
    match error {
        Error::InconsistentKeys(_) => format!(
            "the key in {key_file} does not belong to the first certificate in {cert_file}; write \
             the certificate of the server first, then those of its issuers"
        ),
        Error::InvalidCertificate(_) => {
            format!("{cert_file} holds a certificate that cannot be used: {error}")
        }
        _ => format!(
            "{key_file} holds a private key that TLS does not accept here; use RSA with 2048 to \
             8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519"
        ),
    }
}

/// Returns the chain and the key of a client in two files.
pub(crate) fn identity(
    cert_file: &Path,
    key_file: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    Ok((certificates(cert_file, &read(cert_file)?)?, private_key(key_file, &read(key_file)?)?))
}

/// Returns how long a chain can be used. `None`: a certificate cannot be read.
pub(crate) fn chain_validity(chain: &[CertificateDer<'_>]) -> Option<Validity> {
    let each =
        chain.iter().map(|der| X509::parse(der).map(|certificate| Validity::of(&certificate)));
    each.collect::<Option<Vec<_>>>()?.into_iter().reduce(Validity::and)
}

impl Validity {
    fn of(certificate: &X509) -> Self {
        let expires = certificate.not_after;
        let time = expires.duration_since(certificate.not_before).unsigned_abs();
        Self { expires, overdue: expires - (time / LAST_PART).min(LONGEST_NOTICE) }
    }

    fn and(self, other: Self) -> Self {
        let (expires, overdue) = (self.expires.min(other.expires), self.overdue.min(other.overdue));
        Self { expires, overdue }
    }
}

/// Whether a certificate for servers in a file is one of an authority, which clients refuse.
pub(crate) fn is_authority(file: &Path) -> bool {
    let first = read(file).and_then(|pem| certificates(file, &pem));
    let first = first.ok().and_then(|chain| X509::parse(chain.first()?));
    first.is_some_and(|certificate| certificate.is_authority)
}

/// Checks that a file holds a chain that can be used at `now`.
pub(crate) fn check_chain(file: &Path, now: Timestamp) -> Result<(), String> {
    validity(file, &certificates(file, &read(file)?)?, now).map(drop)
}

pub(crate) fn check_key(file: &Path) -> Result<(), String> {
    private_key(file, &read(file)?).map(drop)
}

/// Returns the certificates in a file, at least one.
pub(crate) fn check_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    authorities(file, &read(file)?)
}

/// Returns the certificates in the content of a file, at least one, to verify servers with them.
pub(crate) fn authorities(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(file, pem)?;
    roots(file, &certificates)?;
    Ok(certificates)
}

/// Checks the authorities of clients in a file.
pub(crate) fn check_client_authorities(file: &Path) -> Result<(), String> {
    client_authorities(file, &read(file)?).map(drop)
}

/// Returns the authorities in the content of a file, to verify certificates of clients with them.
/// Refuses a certificate that is not one of an authority: the owner of its key, such as a client,
/// could issue certificates with any name.
pub(crate) fn client_authorities(file: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let certificates = certificates(file, pem)?;
    let is_authority = |der| X509::parse(der).is_some_and(|certificate| certificate.is_authority);
    if !certificates.iter().all(|der| is_authority(der)) {
        return Err(format!(
            "{} holds a certificate that is not one of an authority (basic constraints CA:TRUE)",
            file.display()
        ));
    }
    roots(file, &certificates)
}

/// Returns when the first authority in the content of a file expires. TLS does not look at this
/// time: it accepts the certificates of clients that an expired authority has issued.
pub(crate) fn authorities_expire(pem: &[u8]) -> Option<Timestamp> {
    let certificates = CertificateDer::pem_slice_iter(pem).flatten();
    certificates.filter_map(|der| X509::parse(&der)).map(|of| of.not_after).min()
}

/// Returns when the first authority in a file has expired. `None`: all are valid at `now`, or the
/// file cannot be read, which [`check_client_authorities`] reports.
pub(crate) fn expired_authority(file: &Path, now: Timestamp) -> Option<Timestamp> {
    authorities_expire(&read(file).ok()?).filter(|expiry| *expiry < now)
}

fn roots(file: &Path, certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|_| format!("{} holds a certificate that cannot be read", file.display()))?;
    }
    Ok(roots)
}

fn read(file: &Path) -> Result<secrecy::zeroize::Zeroizing<Vec<u8>>, String> {
    secret_file::bounded(file, MAX_FILE_BYTES).map_err(|why| format!("{} {why}", file.display()))
}

fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let is_encrypted = pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED);
        let problem = if is_encrypted {
            "holds an encrypted private key, which is not supported; remove its passphrase"
        } else {
            "holds no private key in PEM"
        };
        format!("{} {problem}", file.display())
    })
}

/// Returns the certificates in the content of a file, at least one.
pub(crate) fn certificates(
    file: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|_| format!("{} is no PEM file", file.display()))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM", file.display()));
    }
    Ok(chain)
}

/// Returns how long the chain can be used. Fails if it cannot be used at `now`.
fn validity(file: &Path, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Validity, String> {
    let mut all = Validity { expires: Timestamp::MAX, overdue: Timestamp::MAX };
    for der in chain {
        let problem = match X509::parse(der) {
            None => "a certificate that cannot be read".to_owned(),
            Some(X509 { version, .. }) if version != 3 => format!(
                "an X.509 certificate of version {version}, which TLS libraries refuse; issue one \
                 of version 3, with a subjectAltName"
            ),
            Some(X509 { not_after, .. }) if now > not_after => {
                format!("a certificate that expired at {not_after:.0}")
            }
            Some(X509 { not_before, .. }) if now < not_before => {
                format!("a certificate that is not valid before {not_before:.0}")
            }
            Some(certificate) => {
                all = all.and(Validity::of(&certificate));
                continue;
            }
        };
        return Err(format!("{} holds {problem}", file.display()));
    }
    Ok(all)
}
