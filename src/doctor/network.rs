//! Checks over the network: names, ThingSpace, the clock, and the address for callbacks. Sends no
//! credentials.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::{net::lookup_host, time::timeout};

use super::report::Report;
use crate::{
    certificate::Validity,
    config::{
        Config,
        url::{self, Url},
    },
    control::client,
    thingspace::{self, HostAnswer},
    tls_client,
};

/// How long a name server may take.
const DNS_ANSWER: Duration = Duration::from_secs(5);

/// A clock that is wrong by more than this is reported: tokens of callers may be refused.
const CLOCK_WARNING: Duration = Duration::from_secs(5);

/// A clock that is wrong by more than this fails: certificates and tokens of callers are judged
/// wrongly.
const CLOCK_FAILURE: Duration = Duration::from_mins(1);

/// Checks the hosts of ThingSpace and the clock.
pub(super) async fn thingspace(report: &mut Report, config: &Config) {
    let of = &config.thingspace;
    // A proxy resolves the names of ThingSpace's hosts.
    let urls = if of.proxy_url.is_empty() {
        vec![&of.base_url, &of.token_url]
    } else {
        vec![&of.proxy_url]
    };
    let mut resolved = Vec::new();
    for url in urls.into_iter().filter_map(|text| Url::parse(text, url::WEB).ok()) {
        if !resolved.contains(&url.host) {
            resolve(report, &url).await;
            resolved.push(url.host);
        }
    }
    let Some(account) = config.credentials.iter().flat_map(|set| &set.accounts).next() else {
        report.skipped("thingspace", "", "not asked, because no account is configured");
        return;
    };
    let answers = match thingspace::probe(of, account).await {
        Ok(answers) => answers,
        Err(error) => {
            report.failure("thingspace", "", error.to_string(), "");
            return;
        }
    };
    let mut clock = None;
    for (host, answer) in answers {
        match answer {
            Ok(HostAnswer { took, ahead }) => {
                report.ok("thingspace", &host, format!("it answers after {} ms", took.as_millis()));
                clock = clock.or(ahead);
            }
            Err(why) => report.failure(
                "thingspace",
                &host,
                why,
                "Check firewall and proxy (thingspace.proxy_url), and the CA certificates of this \
                 system.",
            ),
        }
    }
    match clock {
        Some(ahead) => check_clock(report, ahead),
        None => report.skipped("clock", "", "not checked, because ThingSpace sent no date"),
    }
}

fn check_clock(report: &mut Report, ahead: SignedDuration) {
    let (seconds, off) = (ahead.as_secs_f64(), ahead.unsigned_abs());
    let side = if ahead.is_negative() { "behind" } else { "ahead of" };
    let found = format!("{:.1} s {side} ThingSpace's", seconds.abs());
    let action = "Synchronise the clock of this machine (NTP).";
    if off > CLOCK_FAILURE {
        report.failure("clock", "", found, action);
    } else if off > CLOCK_WARNING {
        report.warning("clock", "", found, action);
    } else {
        report.ok("clock", "", found);
    }
}

/// Looks up the addresses of a host. Returns whether there are some.
async fn resolve(report: &mut Report, url: &Url) -> bool {
    let host = url.host.trim_matches(['[', ']']);
    let found = match timeout(DNS_ANSWER, lookup_host((host, url.port))).await {
        Ok(Ok(addresses)) => {
            let count = addresses.count();
            report.ok("dns", host, format!("{count} addresses"));
            return true;
        }
        Ok(Err(error)) => format!("it has no address: {error}"),
        Err(_) => "the name server does not answer in time".to_owned(),
    };
    report.failure("dns", host, found, "Check the name, and the name servers of this machine.");
    false
}

/// Checks the public address for callbacks. `is_running`: a gateway can say whether it leads there.
pub(super) async fn callbacks(report: &mut Report, config: &Config, is_running: bool) {
    let callbacks = &config.callbacks;
    if !callbacks.enabled || callbacks.public_url.is_empty() {
        report.skipped(
            "callbacks",
            "",
            "callbacks.public_url is not set or callbacks are disabled",
        );
        return;
    }
    let Ok(url) = Url::parse(&callbacks.public_url, url::WEB) else { return };
    // Tests let the gateway choose the port.
    if url.port != 0 && resolve(report, &url).await {
        public_address(report, &url).await;
    }
    if !is_running {
        report.skipped("callbacks", "leads here", "not checked, because no gateway runs");
        return;
    }
    for account in config.credentials.iter().flat_map(|set| &set.accounts) {
        let subject = format!("leads here, {account}");
        match client::probe_callbacks(&config.control_socket(), account).await {
            Ok(probe) if probe.leads_here => {
                report.ok("callbacks", &subject, "the public address leads to this gateway");
            }
            Ok(probe) => report.failure(
                "callbacks",
                &subject,
                probe.found,
                "Check DNS, load balancer and path of callbacks.public_url. If this machine cannot \
                 reach its own public address, check from another one.",
            ),
            Err(error) => report.warning("callbacks", &subject, format!("{error:#}"), ""),
        }
    }
}

/// Checks from here that something answers at the public address, and its certificate.
async fn public_address(report: &mut Report, url: &Url) {
    let subject = format!("{}:{}", url.host, url.port);
    match tls_client::get(url, &url.path).await {
        Ok(answer) => {
            report.ok("callbacks", &subject, format!("it answers with HTTP {}", answer.status));
            if let Some(validity) = answer.certificate {
                certificate(report, &subject, validity);
            }
        }
        Err(why) => report.warning(
            "callbacks",
            &subject,
            why,
            "If this machine cannot reach its own public address, check from another one.",
        ),
    }
}

fn certificate(report: &mut Report, subject: &str, validity: Validity) {
    let found = format!("a public authority signed it, and it expires {:.0}", validity.expires);
    if validity.overdue < Timestamp::now() {
        report.warning("certificate", subject, found, "Replace it.");
    } else {
        report.ok("certificate", subject, found);
    }
}
