//! Checks of what callers need, if no gateway runs: the key set of their tokens, and the
//! certificates of the listeners. A running gateway reports the ones that it uses.

use jiff::Timestamp;

use super::report::Report;
use crate::{
    app, auth,
    certificate::ServerCertificate,
    config::Config,
    control::status::issues::{CALLBACKS_CERTIFICATE, GRPC_CERTIFICATE},
};

pub(super) async fn check(report: &mut Report, config: &Config) {
    key_set(report, config).await;
    let now = Timestamp::now();
    let callbacks = config.callbacks.tls().filter(|_| config.callbacks.enabled);
    for (key, files) in [(GRPC_CERTIFICATE, config.grpc.tls()), (CALLBACKS_CERTIFICATE, callbacks)]
    {
        // A certificate that cannot be used is a problem of the configuration.
        let found = files.and_then(|(chain, key)| ServerCertificate::check(chain, key, now).ok());
        let Some(ServerCertificate { validity, .. }) = found else { continue };
        let found = format!("it expires {:.0}", validity.expires);
        if validity.overdue < now {
            report.warning("certificate", key, found, "Replace it.");
        } else {
            report.ok("certificate", key, found);
        }
    }
}

/// Checks that the key set can be fetched and used.
async fn key_set(report: &mut Report, config: &Config) {
    let jwt = &config.auth.jwt;
    if !jwt.is_used() {
        return;
    }
    if jwt.jwks_url.is_empty() {
        // A file that cannot be used is a problem of the configuration.
        if auth::check_keys(&jwt.jwks_file).is_ok() {
            report.ok("callers", "auth.jwt.jwks_file", "it holds a usable key");
        }
        return;
    }
    match auth::probe_keys(app::key_set_url(jwt)).await {
        Ok(()) => report.ok("callers", "auth.jwt.jwks_url", "it answers with a usable key"),
        Err(why) => report.failure(
            "callers",
            "auth.jwt.jwks_url",
            why,
            "Check the URL, auth.jwt.jwks_ca_file and jwks_token_file, and that this network \
             reaches it. Without the key set, calls with JSON Web Tokens fail.",
        ),
    }
}
