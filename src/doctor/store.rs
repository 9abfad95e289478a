//! Checks of the store: whether it can be reached, its size, and the room for it. Changes nothing.

use super::report::Report;
use crate::{
    app::retention,
    config::{Config, StoreKind},
    control::status::StatusResponse,
    store::{embedded, nats},
};

pub(super) async fn check(report: &mut Report, config: &Config, running: Option<&StatusResponse>) {
    if let Some(status) = running {
        state(report, status);
    }
    match config.store.kind {
        StoreKind::Nats => servers(report, config).await,
        StoreKind::Embedded => file(report, config, running.is_some()),
    }
}

/// The state of the store as the running gateway sees it.
fn state(report: &mut Report, status: &StatusResponse) {
    // `issues` reports trouble only if nothing worse hides it.
    match &status.store_trouble {
        Some(_) if report.has("store", "in use") => {}
        Some(trouble) => report.failure("store", "in use", trouble.as_str(), ""),
        None => report.ok("store", "in use", format!("{}; the last write succeeded", status.store)),
    }
}

async fn servers(report: &mut Report, config: &Config) {
    let settings = &config.store.nats;
    match nats::probe(settings, retention(config)).await {
        Err(why) => {
            let action = "Check store.nats, the servers, and the firewall.";
            report.failure("nats", "", why, action);
        }
        Ok(probe) => {
            let took = probe.took.as_millis();
            report.ok("nats", "", format!("NATS {} answers after {took} ms", probe.version));
            let Some(used) = probe.used_bytes else {
                report.skipped(
                    "store",
                    "size",
                    "the streams do not exist yet; the gateway makes them",
                );
                return;
            };
            let percent = used * 100 / settings.max_bytes.max(1);
            let found = format!("{} MiB, {percent} % of store.nats.max_bytes", used >> 20);
            if percent >= nats::FULL_PERCENT {
                let action = "Raise store.nats.max_bytes, or shorten store.retention.";
                report.failure("store", "size", found, action);
            } else {
                report.ok("store", "size", found);
            }
        }
    }
}

fn file(report: &mut Report, config: &Config, is_running: bool) {
    let path = &config.store.path;
    let shown = path.display().to_string();
    let probe = match embedded::probe(path, !is_running) {
        Ok(Some(probe)) => probe,
        Ok(None) => {
            let found = "there is no file yet; the gateway makes it when it starts";
            report.warning("store", &shown, found, "If there was one, restore a backup.");
            return;
        }
        Err(why) => {
            let action = "See \"Back up the embedded store\" in docs/operations.md.";
            report.failure("store", &shown, why, action);
            return;
        }
    };
    let mib = |bytes: u64| bytes >> 20;
    let found = format!(
        "{} MiB; {} MiB of its disk are free, and {} MiB are kept for known orders",
        mib(probe.bytes),
        mib(probe.free),
        mib(probe.reserve)
    );
    if probe.free < probe.reserve {
        let action = "Free space on the disk, or enlarge it. Until then new orders are refused.";
        report.failure("store", "size", found, action);
    } else {
        report.ok("store", "size", found);
    }
}
