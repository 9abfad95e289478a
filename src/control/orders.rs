//! `orders unknown` and `orders settle`: orders that were sent and of which nobody knows what
//! became.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{Subject, refuse};
use crate::{
    identity::RequestId,
    requests::{SettleError, Settlement},
};

pub(super) const UNKNOWN: &str = "/v1/orders/unknown";
const SETTLE: &str = "/v1/orders/{order}/settle";

pub(super) fn settle_path(order: &str) -> String {
    SETTLE.replace("{order}", order)
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnknownOrder {
    pub(super) order_id: String,
    pub(super) account: String,
    pub(super) sent_time: Timestamp,
    /// How many.
    pub(super) devices: usize,
}

/// What became of the order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// ThingSpace accepted it as this request.
    AcceptedAs(String),
    NotPlaced,
}

/// A settlement.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settle {
    pub(super) outcome: Outcome,
    /// Also if ThingSpace does not confirm it, and in place of an earlier settlement.
    pub(super) force: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settled {
    /// Why ThingSpace did not confirm the settlement, where it was forced.
    pub(super) not_confirmed: Option<String>,
}

pub(super) fn routes() -> Router<Subject> {
    Router::new().route(UNKNOWN, get(unknown)).route(SETTLE, post(settle))
}

async fn unknown(State(subject): State<Subject>) -> Response {
    let shown = |order: crate::requests::UnknownOrder| UnknownOrder {
        order_id: order.order_id,
        account: order.account,
        sent_time: order.sent_time,
        devices: order.devices,
    };
    match subject.requests.unknown_orders().await {
        Ok(orders) => Json(orders.into_iter().map(shown).collect::<Vec<_>>()).into_response(),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

async fn settle(
    State(subject): State<Subject>,
    Path(order): Path<String>,
    Json(Settle { outcome, force }): Json<Settle>,
) -> Response {
    let settlement = match outcome {
        Outcome::NotPlaced => Settlement::NotPlaced,
        Outcome::AcceptedAs(id) => match RequestId::parse(&id) {
            Ok(id) => Settlement::AcceptedAs(id),
            Err(invalid) => {
                return refuse(StatusCode::BAD_REQUEST, &format_args!("the request id {invalid}"));
            }
        },
    };
    match subject.requests.settle_order(&order, &settlement, force).await {
        Ok(not_confirmed) => {
            info!(
                target: "audit",
                { order.id = order, ?settlement, force, not_confirmed },
                "an operator settled an order"
            );
            Json(Settled { not_confirmed }).into_response()
        }
        Err(error) => {
            let status = match &error {
                SettleError::NoSuchOrder => StatusCode::NOT_FOUND,
                SettleError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
                SettleError::InFlight
                | SettleError::NotPlaced
                | SettleError::AcceptedAs(_)
                | SettleError::Settled(_)
                | SettleError::NotConfirmed(_)
                | SettleError::OtherRequest => StatusCode::CONFLICT,
            };
            refuse(status, &error)
        }
    }
}
