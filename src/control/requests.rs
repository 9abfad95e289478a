//! `requests list` and `requests show`: what is open, and the history of a request.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator},
};
use crate::{
    identity::{AccountName, Digits, RequestId},
    requests::inspect::{OpenItem, OpenState, RequestDetails},
    telemetry::AuditEntry,
};

pub(super) const LIST: &str = "/v1/requests";
const SHOW: &str = "/v1/requests/{id}";

/// The maximum number of items that are listed.
const MAX_LISTED: usize = 10_000;

pub(super) fn show_path(id: &RequestId) -> String {
    SHOW.replace("{id}", id.as_str())
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListRequest {
    /// `None`: all accounts.
    pub(super) account: Option<AccountName>,
    pub(super) min_age_seconds: u64,
    /// The number of items, at most [`MAX_LISTED`].
    pub(super) limit: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShowRequest {
    /// Show the complete identities of devices.
    pub(super) reveal: bool,
}

/// What is open and was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OpenList {
    /// All of it, by account and state.
    pub(super) totals: Vec<OpenTotal>,
    /// Oldest first.
    pub(super) items: Vec<OpenItem>,
    /// The number of items beyond the limit.
    pub(super) left_out: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OpenTotal {
    pub(super) account: Option<String>,
    pub(super) state: OpenState,
    pub(super) count: usize,
    pub(super) devices: usize,
    pub(super) oldest_seconds: u64,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new().route(LIST, post(list)).route(SHOW, post(show))
}

async fn list(
    State(parts): State<GatewayParts>,
    Json(ListRequest { account, min_age_seconds, limit }): Json<ListRequest>,
) -> Result<Json<OpenList>, CommandError> {
    let mut items = parts.requests.open().await?;
    if let Some(account) = account {
        items.retain(|item| item.account.as_deref() == Some(account.as_str()));
        // Requests of an account that was removed from the configuration are still listed.
        if items.is_empty() && !parts.client.serves(&account) {
            let message = format_args!(
                "nothing is open, and account {account} is in no [[credentials]] section"
            );
            return Err(CommandError::new(StatusCode::NOT_FOUND, &message));
        }
    }
    items.retain(|item| item.age_seconds >= min_age_seconds);
    let totals = totals(&items);
    let left_out = items.len().saturating_sub(limit.min(MAX_LISTED));
    items.truncate(items.len() - left_out);
    Ok(Json(OpenList { totals, items, left_out }))
}

fn totals(items: &[OpenItem]) -> Vec<OpenTotal> {
    let mut totals = BTreeMap::<_, OpenTotal>::new();
    for item in items {
        let total = totals.entry((&item.account, item.state)).or_insert_with(|| OpenTotal {
            account: item.account.clone(),
            state: item.state,
            count: 0,
            devices: 0,
            oldest_seconds: 0,
        });
        total.count += 1;
        total.devices += item.devices;
        total.oldest_seconds = total.oldest_seconds.max(item.age_seconds);
    }
    totals.into_values().collect()
}

async fn show(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(id): Path<String>,
    Json(ShowRequest { reveal }): Json<ShowRequest>,
) -> Result<Json<RequestDetails>, CommandError> {
    if !reveal {
        return find(&parts, &id, false).await.map(Json);
    }
    // What is no known request may be the identity of a device.
    let masked = Digits::new(&id).to_string();
    let about = AuditEntry { request_id: Some(masked), ..AuditEntry::default() };
    let mut command = operator.begin("requests show", &[("--reveal", true)], about);
    let found = find(&parts, &id, true).await;
    if let Ok(details) = &found {
        command.about().request_id = Some(id);
        command.about().account.clone_from(&details.account);
        command.about().devices = Some(details.devices_total);
        command.about().order_id.clone_from(&details.order_id);
    }
    command.end(found.map(Json), |_| DONE)
}

async fn find(
    parts: &GatewayParts,
    id: &str,
    reveal: bool,
) -> Result<RequestDetails, CommandError> {
    let parsed = RequestId::parse(id)
        .map_err(|invalid| CommandError::new(StatusCode::BAD_REQUEST, &invalid))?;
    parts.requests.details(&parsed, reveal).await?.ok_or_else(|| {
        // Without the id, because the audit log has this reason.
        let message = "the store has no request with this id; it was never placed or watched here, \
                       or it is older than store.retention";
        CommandError::new(StatusCode::NOT_FOUND, &message)
    })
}
