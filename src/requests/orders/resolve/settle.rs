//! Settles an unknown order, and corrects an earlier settlement by an operator.
//!
//! ThingSpace must confirm the request by listing exactly the order's devices. A settlement never
//! overrides ThingSpace's answer to the order, and a request never belongs to two orders.

use std::{fmt::Display, time::Duration};

use uuid::Uuid;

use super::{Fit, OrderState, Resolver, fit};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage::{self, SettledBy},
    requests::{
        append,
        fold::{
            event::{self, Kind},
            order::{Order, OrderOutcome, Source},
        },
    },
    store::{CellName, LogName, StoreError},
    thingspace::{Purpose, StatusLookup},
};

/// How long an operator waits for a call that uses the order's key.
const KEY_WAIT: Duration = Duration::from_secs(2);

/// How long an operator waits for ThingSpace to confirm a settlement.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// The outcome that an operator states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// ThingSpace accepted the order as this request.
    AcceptedAs(RequestId),
    /// ThingSpace did not execute the order.
    NotPlaced,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SettleError {
    #[error("no such order")]
    NoSuchOrder,
    #[error("the order is still in progress")]
    InFlight,
    #[error("it is known already that the order was not placed")]
    NotPlaced,
    #[error("it is known already that the order was accepted as request {0}")]
    AcceptedAs(RequestId),
    #[error(
        "an operator has settled the order already, as {0}; to correct that, repeat the command \
         with --force"
    )]
    Settled(String),
    #[error("the request belongs to another order or another account")]
    OtherRequest,
    /// ThingSpace does not confirm the request.
    #[error("{0}; if you are sure, repeat the command with --force")]
    NotConfirmed(String),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl Resolver {
    /// Settles an unknown order. With `force`, it also corrects an earlier settlement, and settles
    /// an order although ThingSpace does not confirm the request. Returns why it did not confirm
    /// it.
    pub(crate) async fn settle(
        &self,
        order_id: &str,
        settlement: &Settlement,
        force: bool,
    ) -> Result<Option<String>, SettleError> {
        let ordered = self.may_settle(order_id, force).await?;
        let mut not_confirmed = None;
        if let Settlement::AcceptedAs(request) = settlement {
            self.check_request(order_id, &ordered, request).await?;
            not_confirmed = self.confirm(&ordered, request).await.err();
        }
        if let Some(not_confirmed) = not_confirmed.clone().filter(|_| !force) {
            return Err(SettleError::NotConfirmed(not_confirmed));
        }
        self.append_settled(order_id, &ordered, SettledBy::Operator, settlement, force).await?;
        Ok(not_confirmed)
    }

    /// Returns the account and the number of devices of an order, if it can be read.
    pub(crate) async fn ordered(&self, order_id: &str) -> Option<(String, usize)> {
        Uuid::parse_str(order_id).ok()?;
        let ordered = self.hub.order(order_id).await.ok()?.ordered?;
        Some((ordered.account, ordered.devices.len()))
    }

    /// Checks that ThingSpace lists exactly the order's devices for a request. The error says why
    /// not.
    async fn confirm(&self, ordered: &storage::Ordered, request: &RequestId) -> Result<(), String> {
        let account = &ordered.account;
        let parsed = AccountName::parse(account).ok().filter(|account| self.client.serves(account));
        let Some(served) = parsed else {
            return Err(format!("there are no credentials for account {account}"));
        };
        let query = self.client.request_status(&served, request, Purpose::External);
        let failure =
            |why: &dyn Display| format!("the status query about request {request} failed: {why}");
        let answer = match tokio::time::timeout(CONFIRM_WITHIN, query).await {
            Ok(Ok((StatusLookup::Found(answer), _))) => answer,
            Ok(Ok((StatusLookup::NotKnown, _))) => {
                return Err(format!("ThingSpace knows no request {request} on account {account}"));
            }
            Ok(Err(error)) => return Err(failure(&error)),
            Err(_) => return Err(failure(&format_args!("no answer within {CONFIRM_WITHIN:?}"))),
        };
        match fit(ordered, &answer) {
            Fit::Exact => Ok(()),
            Fit::Partial => {
                Err(format!("ThingSpace does not list all devices of request {request} yet"))
            }
            Fit::Not => Err(format!("the devices of request {request} are not the order's")),
        }
    }

    pub(super) async fn append_settled(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        by: SettledBy,
        settlement: &Settlement,
        force: bool,
    ) -> Result<(), SettleError> {
        let cell = CellName::retained(ordered.key_cell.clone());
        if self.order_state(order_id, ordered.key_cell.clone()).await? == OrderState::InFlight {
            return Err(SettleError::InFlight);
        }
        let key_lock = tokio::time::timeout(KEY_WAIT, self.orders.lock_key(&cell)).await;
        let _key_lock = key_lock.map_err(|_| SettleError::InFlight)?;
        // Checked again, because the outcome may have been stored before the key was locked.
        self.may_settle(order_id, force).await?;
        let (request_id, outcome) = match settlement {
            Settlement::AcceptedAs(request) => {
                (request.to_string(), OrderOutcome::AcceptedAs(request.clone()))
            }
            Settlement::NotPlaced => (String::new(), OrderOutcome::NotPlaced),
        };
        let id = match (by, settlement) {
            (SettledBy::Evidence, Settlement::AcceptedAs(request)) => {
                event::evidence_id(order_id, request)
            }
            _ => Uuid::now_v7(),
        };
        let settled = Kind::Settled(storage::Settled { by: by.into(), request_id });
        let position = append(&*self.store, &LogName::order(order_id), None, id, settled).await?;
        // Another replica may have settled the order first.
        let order = self.hub.order(order_id).await?;
        match &order.outcome {
            Some(decided) if *decided == outcome => {}
            Some(OrderOutcome::AcceptedAs(other)) => {
                return Err(SettleError::AcceptedAs(other.clone()));
            }
            Some(OrderOutcome::NotPlaced) => return Err(SettleError::NotPlaced),
            None => return Err(SettleError::OtherRequest),
        }
        let finished = self.orders.finish(order_id, &order).await?;
        self.hub.wait_until_folded(position).await;
        if finished { Ok(()) } else { Err(SettleError::OtherRequest) }
    }

    /// Returns an order that may be settled: it has no outcome, or an operator decided its outcome
    /// and `force` is set.
    async fn may_settle(
        &self,
        order_id: &str,
        force: bool,
    ) -> Result<storage::Ordered, SettleError> {
        Uuid::parse_str(order_id).map_err(|_| SettleError::NoSuchOrder)?;
        let Order { outcome, source, ordered, .. } = self.hub.order(order_id).await?;
        match (outcome, source) {
            (None, _) => {}
            (Some(_), Some(Source::Operator)) if force => {}
            (Some(OrderOutcome::NotPlaced), Some(Source::Operator)) => {
                return Err(SettleError::Settled("not placed".to_owned()));
            }
            (Some(OrderOutcome::AcceptedAs(request)), Some(Source::Operator)) => {
                return Err(SettleError::Settled(format!("request {request}")));
            }
            (Some(OrderOutcome::NotPlaced), _) => return Err(SettleError::NotPlaced),
            (Some(OrderOutcome::AcceptedAs(request)), _) => {
                return Err(SettleError::AcceptedAs(request));
            }
        }
        ordered.ok_or(SettleError::NoSuchOrder)
    }

    /// Checks that a request does not belong to another order or another account.
    pub(super) async fn check_request(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
    ) -> Result<(), SettleError> {
        if self.belongs_to_another_order(order_id, ordered, request).await? {
            return Err(SettleError::OtherRequest);
        }
        let Some((tracked, _)) = self.hub.attach(request).await? else { return Ok(()) };
        let request = &tracked.lock().request;
        let another_order = request.order_id.as_ref().is_some_and(|of| of != order_id);
        let another_account =
            request.account.as_ref().is_some_and(|of| of.as_str() != ordered.account);
        if another_order || another_account { Err(SettleError::OtherRequest) } else { Ok(()) }
    }

    /// Returns whether a request belongs to another order by its id in another case.
    async fn belongs_to_another_order(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
    ) -> Result<bool, StoreError> {
        for spelling in self.hub.other_spellings(request).await? {
            let other = self.hub.ownership(&spelling, Some(ordered)).await?;
            // Other devices show that ThingSpace means two requests.
            if !other.contradicts && other.order_id.is_some_and(|owner| owner != order_id) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
