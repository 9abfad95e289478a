//! `orders unknown` and `orders settle`: orders with an unknown outcome.

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::{get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    CommandError, GatewayParts,
    audit::{DONE, Operator},
};
use crate::{
    identity::RequestId,
    requests::{SettleError, Settlement, UnknownOrder},
    telemetry::AuditEntry,
};

pub(super) const UNKNOWN: &str = "/v1/orders/unknown";
const SETTLE: &str = "/v1/orders/{order}/settle";

pub(super) fn settle_path(order: &str) -> String {
    SETTLE.replace("{order}", order)
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UnknownOrderItem {
    pub(crate) order_id: String,
    pub(crate) account: String,
    pub(crate) sent_time: Timestamp,
    /// The number of devices.
    pub(crate) devices: usize,
}

impl From<UnknownOrder> for UnknownOrderItem {
    fn from(order: UnknownOrder) -> Self {
        let UnknownOrder { order_id, account, sent_time, devices, .. } = order;
        Self { order_id, account, sent_time, devices }
    }
}

/// The outcome of an order, as the operator found it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SettledOutcome {
    /// ThingSpace accepted the order as this request.
    AcceptedAs(String),
    NotPlaced,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SettleRequest {
    pub(super) outcome: SettledOutcome,
    /// Settle even if ThingSpace does not confirm it, or replace an earlier settlement.
    pub(super) force: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SettleResponse {
    /// Why ThingSpace did not confirm a forced settlement.
    pub(super) not_confirmed: Option<String>,
}

pub(super) fn routes() -> Router<GatewayParts> {
    Router::new().route(UNKNOWN, get(unknown)).route(SETTLE, post(settle))
}

async fn unknown(
    State(parts): State<GatewayParts>,
) -> Result<Json<Vec<UnknownOrderItem>>, CommandError> {
    let orders = parts.requests.unknown_orders().await?.into_iter();
    Ok(Json(orders.map(UnknownOrderItem::from).collect()))
}

async fn settle(
    ConnectInfo(operator): ConnectInfo<Operator>,
    State(parts): State<GatewayParts>,
    Path(order): Path<String>,
    Json(SettleRequest { outcome, force }): Json<SettleRequest>,
) -> Result<Json<SettleResponse>, CommandError> {
    let settlement = match outcome {
        SettledOutcome::NotPlaced => Settlement::NotPlaced,
        SettledOutcome::AcceptedAs(id) => {
            Settlement::AcceptedAs(RequestId::parse(&id).map_err(|invalid| {
                let message = format_args!("the request id {invalid}");
                CommandError::new(StatusCode::BAD_REQUEST, &message)
            })?)
        }
    };
    let (account, devices) = parts.requests.ordered(&order).await.unzip();
    let (is_placed, request_id) = match &settlement {
        Settlement::NotPlaced => (false, None),
        Settlement::AcceptedAs(id) => (true, Some(id.to_string())),
    };
    let about = AuditEntry {
        account,
        devices,
        order_id: Some(order.clone()),
        request_id,
        ..AuditEntry::default()
    };
    let flags = [("--request-id", is_placed), ("--not-placed", !is_placed), ("--force", force)];
    let command = operator.begin("orders settle", &flags, about);
    let settled = parts.requests.settle_order(&order, &settlement, force).await;
    let settled = settled.map(|not_confirmed| Json(SettleResponse { not_confirmed }));
    command.end(settled.map_err(to_error), |_| DONE)
}

fn to_error(error: SettleError) -> CommandError {
    match error {
        SettleError::NoSuchOrder => CommandError::new(StatusCode::NOT_FOUND, &error),
        SettleError::Store(error) => error.into(),
        SettleError::InFlight
        | SettleError::NotPlaced
        | SettleError::AcceptedAs(_)
        | SettleError::Settled(_)
        | SettleError::NotConfirmed(_)
        | SettleError::OtherRequest => CommandError::conflict(&error),
    }
}
