//! Watches one request until it is final, and resumes after any break, as `docs/clients.md` says.
//!
//! ```sh
//! cargo run --example watch -- http://127.0.0.1:50051 0000123456-00001 REQUEST_ID watch.token
//! ```
//!
//! The last argument is a file for the resume token. A second run with the same file continues
//! after the last change that the first one printed.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use std::{env, fs, io, time::Duration};

use anyhow::{Context, bail};
use thingspace_gateway::proto::esim::{
    DeviceState, DeviceStatus, WatchRequestRequest, WatchRequestResponse,
    esim_service_client::EsimServiceClient, watch_request_response::Event,
};
use tokio::time::sleep;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// The first pause before a retry. It doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// After this time without any message, even a heartbeat, the connection counts as dead.
const MAX_SILENCE: Duration = Duration::from_mins(1);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [gateway, account_name, request_id, token_file] = &arguments[..] else {
        bail!("usage: watch GATEWAY ACCOUNT REQUEST_ID TOKEN_FILE");
    };
    let channel = Endpoint::from_shared(gateway.clone())?
        .http2_keep_alive_interval(Duration::from_mins(1))
        .keep_alive_timeout(Duration::from_secs(20))
        .connect_lazy();
    let mut client = EsimServiceClient::new(channel);
    let mut request = WatchRequestRequest {
        account_name: account_name.clone(),
        request_id: request_id.clone(),
        resume_token: read_token(token_file)?,
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(error) = follow(&mut client, &mut request, token_file, &mut pause).await? else {
            return Ok(());
        };
        let details = error.get_error_details();
        let is_ours = |info: &&tonic_types::ErrorInfo| info.domain == "thingspace-gateway";
        let reason = details.error_info().filter(is_ours).map(|info| info.reason.as_str());
        match (reason, error.code()) {
            (Some("INVALID_RESUME_TOKEN"), _) if !request.resume_token.is_empty() => {
                request.resume_token.clear();
            }
            (_, Code::Unavailable)
            // Without a reason the error comes from the network or a proxy.
            | (
                None,
                Code::Cancelled | Code::Unknown | Code::Internal | Code::DeadlineExceeded,
            ) => {}
            _ => bail!("{:?} {}: {}", error.code(), reason.unwrap_or(""), error.message()),
        }
        let delay = details.retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        let wait = delay + pause.mul_f64(fastrand::f64());
        eprintln!("{:?} {}; resuming in {wait:.1?}", error.code(), reason.unwrap_or(""));
        sleep(wait).await;
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

/// Reads one stream until it ends. The inner result has the error if the stream broke.
async fn follow(
    client: &mut EsimServiceClient<Channel>,
    request: &mut WatchRequestRequest,
    token_file: &str,
    pause: &mut Duration,
) -> anyhow::Result<Result<(), Status>> {
    let mut messages = match client.watch_request(request.clone()).await {
        Ok(response) => response.into_inner(),
        Err(error) => return Ok(Err(error)),
    };
    // The parts of one revision. The last one has `more` = false.
    let mut parts = Vec::new();
    loop {
        let message = match tokio::time::timeout(MAX_SILENCE, messages.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Ok(Ok(())),
            Ok(Err(error)) => return Ok(Err(error)),
            Err(_) => return Ok(Err(Status::unknown("no message for a minute"))),
        };
        *pause = FIRST_PAUSE;
        let (is_complete, token) = (!message.more, message.resume_token.clone());
        parts.push(message);
        if is_complete {
            parts.drain(..).for_each(show);
            // Store the token together with the changes, in one transaction if possible.
            fs::write(token_file, &token).with_context(|| format!("cannot write {token_file}"))?;
            request.resume_token = token;
        }
    }
}

fn show(message: WatchRequestResponse) {
    let (kind, state, devices) = match message.event {
        Some(Event::Snapshot(status)) => ("snapshot", status.state(), status.devices),
        Some(Event::Change(change)) => ("change", change.state(), change.devices),
        Some(Event::Heartbeat(_)) | None => return,
    };
    println!("{kind}: {}", state.as_str_name());
    for DeviceStatus { identifiers, state, fault, .. } in devices {
        let iccid = identifiers.map(|ids| ids.iccid).unwrap_or_default();
        let state = DeviceState::try_from(state).unwrap_or_default().as_str_name();
        let reason = fault.map(|fault| fault.message).unwrap_or_default();
        println!("  {iccid} {state} {reason}");
    }
}

/// Returns the token of an earlier run; empty if there was none.
fn read_token(token_file: &str) -> anyhow::Result<String> {
    match fs::read_to_string(token_file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("cannot read {token_file}")),
    }
}
