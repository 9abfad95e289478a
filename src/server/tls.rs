//! TLS 1.2 and 1.3 of a listener.
//!
//! The certificate, its key and the authorities of clients are read again when their files change.
//! New connections use the new files, and open connections live on. Files that cannot be used never
//! replace those in use.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
};
use secrecy::zeroize::Zeroizing;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    certificate::{self, ServerCertificate, Validity},
    reload::{Reloaded, UsedVersion},
};

/// How often the expiry of the certificate is compared with the clock.
const EXPIRY_CHECK: Duration = Duration::from_mins(1);

/// The TLS settings of a listener.
#[derive(Debug, Clone)]
pub(crate) struct TlsOptions {
    /// The listener's name in the log.
    pub(crate) listener: &'static str,
    /// The certificate of the server, then those of its issuers, in PEM.
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    /// `None`: clients are not asked for a certificate.
    pub(crate) clients: Option<ClientCertificates>,
    /// The only protocol of the listener (ALPN, RFC 7301).
    pub(crate) protocol: &'static [u8],
}

/// What the certificates of clients must be.
#[derive(Debug, Clone)]
pub(crate) struct ClientCertificates {
    /// The authorities that verify them, in PEM.
    pub(crate) ca_file: PathBuf,
    /// Whether a client without a certificate is refused.
    pub(crate) required: bool,
}

/// The TLS of a listener. Clones share everything.
#[derive(Clone)]
pub(crate) struct Tls(Arc<TlsInner>);

struct TlsInner {
    listener: &'static str,
    loaded: Reloaded<Loaded>,
}

/// What the files hold.
struct Loaded {
    config: Arc<ServerConfig>,
    validity: Validity,
    /// When the first authority of clients expires. `None`: there is none.
    authorities_expire: Option<Timestamp>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.loaded).finish()
    }
}

impl Tls {
    /// Reads the files. An error names the file that cannot be used, and why.
    pub(crate) async fn load(options: TlsOptions) -> Result<Self, String> {
        let mut files = vec![options.cert_file.clone(), options.key_file.clone()];
        files.extend(options.clients.as_ref().map(|clients| clients.ca_file.clone()));
        let listener = options.listener;
        let loaded =
            Reloaded::load(options.listener, files, move |contents| options.make(contents)).await?;
        Ok(Self(Arc::new(TlsInner { listener, loaded })))
    }

    /// Returns what performs the handshake of a new connection, with the files in use now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.loaded.current().config))
    }

    /// Returns which version of the files is in use.
    pub(crate) fn used(&self) -> UsedVersion {
        self.0.loaded.used()
    }

    /// Returns how long the certificate in use is valid.
    pub(crate) fn validity(&self) -> Validity {
        self.0.loaded.current().validity
    }

    /// Follows the files until `stop`. Warns once about each certificate that was not renewed in
    /// time, and about each authority of clients that expires after the start. The warnings of the
    /// configuration name those that have expired before.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let warn = async {
            let is_past = |expiry: &Timestamp| Timestamp::now() > *expiry;
            let mut warned = None;
            let mut expired = self.0.loaded.current().authorities_expire.filter(is_past);
            loop {
                let (validity, authorities_expire) = {
                    let loaded = self.0.loaded.current();
                    (loaded.validity, loaded.authorities_expire)
                };
                if let Some(expiry) = authorities_expire.filter(is_past)
                    && expired.replace(expiry) != Some(expiry)
                {
                    warn!(
                        listener = self.0.listener,
                        expired = %expiry,
                        "an authority of clients has expired; the certificates that it has issued \
                         are still accepted: replace it"
                    );
                }
                if Timestamp::now() > validity.overdue && warned != Some(validity) {
                    warn!(
                        listener = self.0.listener,
                        expires = %validity.expires,
                        "the certificate of a listener expires soon or has expired; renew its files"
                    );
                    warned = Some(validity);
                }
                sleep(EXPIRY_CHECK).await;
            }
        };
        stop.run_until_cancelled(async { tokio::join!(self.0.loaded.follow(), warn) }).await;
    }
}

impl TlsOptions {
    /// Makes the settings of rustls from the content of the files.
    fn make(&self, contents: &[Zeroizing<Vec<u8>>]) -> Result<Loaded, String> {
        let (cert_file, key_file) = (&self.cert_file, &self.key_file);
        let now = Timestamp::now();
        let ServerCertificate { key, validity } =
            ServerCertificate::new(cert_file, &contents[0], key_file, &contents[1], now)?;
        let provider = Arc::new(default_provider());
        let mut authorities_expire = None;
        let verifier = match &self.clients {
            None => Arc::new(NoClientAuth),
            Some(ClientCertificates { ca_file, required }) => {
                authorities_expire = certificate::authorities_expire(&contents[2]);
                let roots = Arc::new(certificate::client_authorities(ca_file, &contents[2])?);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
                verifier.build().map_err(|error| format!("{} {error}", ca_file.display()))?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![self.protocol.to_vec()];
        if self.clients.is_some() {
            // A resumed session would keep a client certificate without verifying it again, for a
            // day after it has expired. The sessions of a configuration end with it, so that a new
            // file of authorities applies to all new connections.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Loaded { config: Arc::new(config), validity, authorities_expire })
    }
}

#[cfg(test)]
mod tests;
