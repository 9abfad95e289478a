//! Settles unknown orders, by evidence or by an operator's decision.
//!
//! A callback for a request without an order may name a device of an unknown order. Then the
//! request is a candidate. It settles the order only if ThingSpace lists exactly the order's
//! devices for it, no other order without an outcome fits, and the request was not known before the
//! order was sent. An order in flight is not settled, because its own answer is better evidence.
//!
//! This module never sends an order.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Orders, key::KeyCell};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage::{self, SettledBy},
    requests::{age, hub::Hub},
    store::{CellName, Position, Store, StoreError},
    telemetry::AuditEntry,
    thingspace::{self, Client, Purpose, StatusAnswer, StatusClass, StatusLookup},
};

mod settle;
mod spelling_variants;

pub(crate) use settle::SettleError;
pub use settle::Settlement;

/// The pause before open candidates are checked again.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Resolver {
    pub(in crate::requests) store: Arc<dyn Store>,
    pub(in crate::requests) client: Client,
    pub(in crate::requests) hub: Arc<Hub>,
    pub(in crate::requests) orders: Arc<Orders>,
    /// How long the candidates of an order are checked.
    pub(in crate::requests) give_up: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownOrder {
    pub order_id: String,
    pub account: String,
    pub sent_time: Timestamp,
    pub devices: usize,
    /// The caller that ordered, if it is known.
    pub caller: Option<String>,
    /// The first position of the order's log.
    pub first: Option<Position>,
}

/// The state of an order without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderState {
    InFlight,
    /// Its key belongs to another order or to none: it was not sent.
    NotSent,
    Unknown,
}

/// The result of checking a candidate.
enum CandidateResult {
    Settled,
    /// The request cannot belong to the order, for this reason.
    Wrong(&'static str),
    /// The candidate must be checked again after [`RETRY`].
    NotYet,
    /// The candidate must be checked again when the resolver is woken.
    Waiting,
}

#[derive(Debug, thiserror::Error)]
enum CandidateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Upstream(#[from] thingspace::Error),
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl Resolver {
    /// Checks candidates and reconciles orders without a caller, until stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut unfinished = true;
        let mut retry = Instant::now();
        let mut reconcile = tokio::time::interval(self.orders.reconcile_every());
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hub.resolver_woken() => {}
                () = tokio::time::sleep_until(retry), if unfinished => {}
                _ = reconcile.tick() => {
                    if stop.run_until_cancelled(self.orders.reconcile()).await.is_none() { return; }
                    continue;
                }
            }
            let round = async {
                self.orders.complete_accepted().await;
                let has_variants = self.copy_spelling_variants().await;
                self.check_candidates().await || has_variants
            };
            // An interrupted round is repeated after the next start.
            let Some(more) = stop.run_until_cancelled(round).await else { return };
            unfinished = more;
            retry = Instant::now() + RETRY;
        }
    }

    /// Returns the unknown orders, oldest first.
    pub(crate) async fn unknown_orders(&self) -> Result<Vec<UnknownOrder>, StoreError> {
        let orders = self.orders_without_outcome().await?.into_iter();
        let mut unknown: Vec<_> =
            orders.filter(|(_, is_unknown)| *is_unknown).map(|(order, _)| order).collect();
        unknown.sort_by(|a, b| (a.sent_time, &a.order_id).cmp(&(b.sent_time, &b.order_id)));
        Ok(unknown)
    }

    /// Returns the orders that are in flight (`false`) or unknown (`true`).
    pub(crate) async fn orders_without_outcome(
        &self,
    ) -> Result<Vec<(UnknownOrder, bool)>, StoreError> {
        let open = self.hub.orders_without_outcome(|id, order| {
            let ordered = order.ordered.as_ref()?;
            let unknown = UnknownOrder {
                order_id: id.to_string(),
                account: ordered.account.clone(),
                sent_time: order.sent_time,
                devices: ordered.devices.len(),
                caller: Some(ordered.caller.clone()).filter(|name| !name.is_empty()),
                first: order.first,
            };
            Some((unknown, ordered.key_cell.clone()))
        });
        let mut orders = Vec::new();
        for (order, key_cell) in open {
            match self.order_state(&order.order_id, key_cell).await? {
                OrderState::InFlight => orders.push((order, false)),
                OrderState::Unknown => orders.push((order, true)),
                OrderState::NotSent => {}
            }
        }
        Ok(orders)
    }

    async fn order_state(
        &self,
        order_id: &str,
        key_cell: String,
    ) -> Result<OrderState, StoreError> {
        if self.orders.is_in_flight(order_id) {
            return Ok(OrderState::InFlight);
        }
        let key = KeyCell::load(&*self.store, &CellName::retained(key_cell)).await?;
        Ok(match key.filter(|key| key.order_id == order_id) {
            None => OrderState::NotSent,
            Some(key) if self.orders.may_be_sending(&key) => OrderState::InFlight,
            Some(_) => OrderState::Unknown,
        })
    }

    /// Checks all candidates. Returns whether one must be checked again.
    async fn check_candidates(&self) -> bool {
        let mut unfinished = false;
        for (order_id, request) in self.hub.candidates() {
            match self.check_candidate(&order_id, &request).await {
                Ok(CandidateResult::Wrong(reason)) => {
                    info!(
                        order.id = &*order_id,
                        request.id = %request,
                        reason,
                        "a request does not belong to an unknown order"
                    );
                    self.hub.drop_candidate(&order_id, &request);
                }
                Ok(CandidateResult::NotYet) => unfinished = true,
                Ok(CandidateResult::Settled | CandidateResult::Waiting) => {}
                Err(error) => {
                    warn!(
                        order.id = &*order_id,
                        request.id = %request,
                        %error,
                        "cannot check yet whether a request belongs to an unknown order; trying \
                         again"
                    );
                    unfinished = true;
                }
            }
        }
        unfinished
    }

    async fn check_candidate(
        &self,
        order_id: &str,
        request: &RequestId,
    ) -> Result<CandidateResult, CandidateError> {
        let Some(order) = self.hub.order_without_outcome(order_id) else {
            return Ok(CandidateResult::Waiting);
        };
        let age = age(&*self.store, order.first, order.sent_time);
        let Some(ordered) = order.ordered else {
            return Ok(CandidateResult::Wrong("a newer gateway wrote the order"));
        };
        match self.order_state(order_id, ordered.key_cell.clone()).await? {
            // The resolver is woken when an order of this process ends, but not by other replicas.
            OrderState::InFlight if self.orders.is_in_flight(order_id) => {
                return Ok(CandidateResult::Waiting);
            }
            OrderState::InFlight => return Ok(CandidateResult::NotYet),
            OrderState::NotSent => return Ok(CandidateResult::Wrong("the order was not sent")),
            OrderState::Unknown if age > self.give_up => {
                return Ok(CandidateResult::Wrong("the order is too old"));
            }
            OrderState::Unknown => {}
        }
        if let Err(SettleError::OtherRequest) =
            self.check_request(order_id, &ordered, request).await
        {
            return Ok(CandidateResult::Wrong("it belongs to another order"));
        }
        // An older external request may have the same devices.
        let known = self.hub.attach(request).await?;
        if known.is_some_and(|(known, _)| known.lock().request.first < order.first) {
            return Ok(CandidateResult::Wrong("it was known before the order was sent"));
        }
        let Some(account) =
            AccountName::parse(&ordered.account).ok().filter(|a| self.client.serves(a))
        else {
            return Ok(CandidateResult::Wrong("there are no credentials for the account"));
        };
        let answer = match self.client.request_status(&account, request, Purpose::External).await?.0
        {
            StatusLookup::Found(answer) => answer,
            StatusLookup::NotKnown => return Ok(CandidateResult::NotYet),
        };
        match fit(&ordered, &answer) {
            Fit::Exact => {}
            Fit::Partial => return Ok(CandidateResult::NotYet),
            Fit::Not => return Ok(CandidateResult::Wrong("it has other devices")),
        }
        let candidates = self.hub.orders_without_outcome(|id, order| {
            let candidate =
                order.ordered.as_ref().filter(|candidate| candidate.account == ordered.account)?;
            let fit = fit(candidate, &answer);
            (&**id != order_id && fit != Fit::Not)
                .then(|| (id.clone(), candidate.key_cell.clone(), fit))
        });
        for (candidate, key_cell, fit) in candidates {
            match self.order_state(&candidate, key_cell).await? {
                OrderState::NotSent => {}
                OrderState::InFlight => return Ok(CandidateResult::NotYet),
                // The request may belong to the other order.
                OrderState::Unknown if fit == Fit::Partial => return Ok(CandidateResult::NotYet),
                OrderState::Unknown => return Ok(CandidateResult::Wrong("it fits several orders")),
            }
        }
        let settlement = Settlement::AcceptedAs(request.clone());
        self.append_settled(order_id, &ordered, SettledBy::Evidence, &settlement, false).await?;
        let entry = AuditEntry {
            caller: Some("gateway".to_owned()),
            account: Some(ordered.account),
            devices: Some(ordered.devices.len()),
            order_id: Some(order_id.to_owned()),
            request_id: Some(request.to_string()),
            ..AuditEntry::default()
        };
        entry.write("a callback settled an order of unknown outcome", "accepted", None);
        Ok(CandidateResult::Settled)
    }
}

/// How the devices of a request compare with those of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Exact,
    /// Some devices are missing, and a later answer may list them.
    Partial,
    Not,
}

/// Compares the devices of an answer with those of an order: by the EID if the answer has it, else
/// by the ICCID.
fn fit(ordered: &storage::Ordered, answer: &StatusAnswer) -> Fit {
    if answer.devices.len() > ordered.devices.len() {
        return Fit::Not;
    }
    let mut by_name = HashMap::new();
    for (index, device) in ordered.devices.iter().enumerate() {
        by_name.insert(device.eid.as_str(), index);
        by_name.insert(device.iccid.as_str(), index);
    }
    let mut listed = vec![false; ordered.devices.len()];
    for (device, _) in &answer.devices {
        let name = if device.eid.is_empty() { &device.iccid } else { &device.eid };
        match by_name.get(name.as_str()).map(|&index| &mut listed[index]) {
            Some(listed) if !name.is_empty() && !*listed => *listed = true,
            _ => return Fit::Not,
        }
    }
    if answer.devices.len() == ordered.devices.len() {
        Fit::Exact
    } else if matches!(answer.overall, StatusClass::Succeeded | StatusClass::Failed) {
        Fit::Not
    } else {
        Fit::Partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Device, Digits},
        requests::fold::event,
    };

    fn device(n: usize) -> Device {
        let digits = |length| Digits::new(&format!("{n:0length$}"));
        Device { eid: digits(32), iccid: digits(20), ..Device::default() }
    }

    fn by_iccid(n: usize) -> Device {
        Device { iccid: device(n).iccid, ..Device::default() }
    }

    #[test]
    fn only_exactly_the_devices_of_an_order_fit() {
        let ordered = storage::Ordered {
            devices: [1, 2].map(|n| event::to_stored(&device(n))).to_vec(),
            ..storage::Ordered::default()
        };
        let swapped = Device { iccid: device(2).iccid, ..device(3) };
        let (pending, done) = (StatusClass::Pending, StatusClass::Succeeded);
        let table = [
            (vec![device(1), device(2)], pending, Fit::Exact),
            (vec![device(2), by_iccid(1)], done, Fit::Exact),
            (vec![device(1)], pending, Fit::Partial),
            (vec![], StatusClass::Waiting, Fit::Partial),
            (vec![device(1)], done, Fit::Not),
            (vec![], StatusClass::Failed, Fit::Not),
            (vec![device(1), by_iccid(1)], done, Fit::Not),
            (vec![device(1), swapped], done, Fit::Not),
            (vec![device(1), Device::default()], pending, Fit::Not),
            (vec![device(1), device(2), device(3)], done, Fit::Not),
        ];
        for (devices, overall, expected) in table {
            let answer = StatusAnswer {
                overall,
                devices: devices.into_iter().map(|d| (d, overall)).collect(),
            };
            assert_eq!(fit(&ordered, &answer), expected, "{answer:?}");
        }
    }
}
