//! The commands `doctor` and `check --online`: whether a gateway with this configuration can work
//! here, and whether the running one does.
//!
//! - Each finding is ok, a warning or a failure, with what to do. A check that cannot be made from
//!   here says so.
//! - It never logs in and sends no credentials to ThingSpace: it asks the running gateway, through
//!   the control socket, about tokens, the login guard and registrations. Without a gateway it
//!   fetches the key set of callers, with `auth.jwt.jwks_token_file` if that is set.
//! - It changes nothing.

mod callers;
mod configuration;
mod network;
mod report;
mod running;
mod store;

use std::{io::Write, path::Path};

pub use report::Level;
use report::Report;

use crate::{cli::ReportFormat, config::Config};

/// Makes all checks and prints the findings. Returns the worst one.
pub async fn run(
    config: &Path,
    format: ReportFormat,
    out: &mut dyn Write,
) -> anyhow::Result<Level> {
    let mut report = Report::default();
    let (config, problems, is_readable) = Config::load_with_problems(Some(config));
    configuration::problems(&mut report, &config, &problems);
    if is_readable {
        configuration::check(&mut report, &config);
        let running = running::check(&mut report, &config).await;
        if running.is_none() {
            callers::check(&mut report, &config).await;
        }
        store::check(&mut report, &config, running.as_ref()).await;
        network::thingspace(&mut report, &config).await;
        network::callbacks(&mut report, &config, running.is_some()).await;
    }
    match format {
        ReportFormat::Text => report.write_text(out)?,
        ReportFormat::Json => report.write_json(out)?,
        ReportFormat::Prometheus => report.write_prometheus(out)?,
    }
    Ok(report.worst())
}
