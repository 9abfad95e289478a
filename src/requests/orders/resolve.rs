//! What became of orders whose fate is unknown: by evidence, or by an operator's word.
//!
//! The evidence: a callback for a request that is nobody's names a device of the order (a lead),
//! and ThingSpace says that this request has exactly the order's devices, no other order without an
//! outcome may have placed it, too, and nobody heard of it before the order was sent. Anything less
//! changes nothing. An order that is in flight is left alone: its own answer is the best evidence.
//!
//! Here, too, nothing is ever sent again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Orders, key::Key};
use crate::requests::{age, hub::Hub};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage::{self, SettledBy},
    store::{CellName, Store, StoreError},
    thingspace::{self, Client, Purpose, StatusAnswer, StatusClass, StatusLookup},
};

mod settle;
mod strays;

pub use settle::{SettleError, Settlement};

/// Between questions about a lead that could not be followed to its end.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Resolver {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    orders: Arc<Orders>,
    /// How long leads are followed.
    give_up: Duration,
}

/// An order that was sent and of which nobody knows what became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownOrder {
    pub order_id: String,
    pub account: String,
    pub sent_time: Timestamp,
    /// How many.
    pub devices: usize,
}

/// Where an order without an outcome stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    InFlight,
    /// Its key stands for another order, or none: it never left.
    NeverSent,
    Unknown,
}

/// What came of following a lead.
enum Followed {
    Resolved,
    /// It cannot be what became of the order, for this reason.
    Nothing(&'static str),
    /// Ask again later.
    NotYet,
    /// Nothing to do before something else happens.
    Waiting,
}

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Upstream(#[from] thingspace::Error),
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl Resolver {
    pub fn new(
        store: Arc<dyn Store>,
        client: Client,
        hub: Arc<Hub>,
        orders: Arc<Orders>,
        give_up: Duration,
    ) -> Self {
        Self { store, client, hub, orders, give_up }
    }

    /// Follows leads, and looks after orders that nobody waits with, until stopped.
    pub async fn run(&self, stop: CancellationToken) {
        let mut unfinished = true;
        let mut retry = Instant::now();
        let mut tend = tokio::time::interval(self.orders.tend_every());
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.hub.stirred() => {}
                () = tokio::time::sleep_until(retry), if unfinished => {}
                _ = tend.tick() => {
                    if stop.run_until_cancelled(self.orders.tend()).await.is_none() { return; }
                    continue;
                }
            }
            let looked_after = async {
                self.orders.recover().await;
                let unjoined = self.join_strays().await;
                self.follow_leads().await || unjoined
            };
            // What is broken off is done after the next start.
            let Some(more) = stop.run_until_cancelled(looked_after).await else { return };
            unfinished = more;
            retry = Instant::now() + RETRY;
        }
    }

    /// The orders of unknown fate, oldest first.
    pub async fn unknown_orders(&self) -> Result<Vec<UnknownOrder>, StoreError> {
        let undecided = self.hub.undecided(|id, order| {
            let ordered = order.ordered.as_ref()?;
            let unknown = UnknownOrder {
                order_id: id.to_string(),
                account: ordered.account.clone(),
                sent_time: order.sent_time,
                devices: ordered.devices.len(),
            };
            Some((unknown, ordered.key_cell.clone()))
        });
        let mut unknown = Vec::new();
        for (order, key_cell) in undecided {
            if self.fate(&order.order_id, key_cell).await? == Fate::Unknown {
                unknown.push(order);
            }
        }
        unknown.sort_by(|a, b| (a.sent_time, &a.order_id).cmp(&(b.sent_time, &b.order_id)));
        Ok(unknown)
    }

    async fn fate(&self, order_id: &str, key_cell: String) -> Result<Fate, StoreError> {
        if self.orders.is_in_flight(order_id) {
            return Ok(Fate::InFlight);
        }
        let key = Key::load(&*self.store, &CellName::retained(key_cell)).await?;
        Ok(match key.filter(|key| key.order_id() == order_id) {
            None => Fate::NeverSent,
            Some(key) if self.orders.may_be_sending(&key) => Fate::InFlight,
            Some(_) => Fate::Unknown,
        })
    }

    /// True if some lead is worth another question later.
    async fn follow_leads(&self) -> bool {
        let mut unfinished = false;
        for (order_id, request) in self.hub.leads() {
            match self.follow(&order_id, &request).await {
                Ok(Followed::Resolved) => {
                    info!(order.id = &*order_id, request.id = %request, "a callback told what became of an order");
                }
                Ok(Followed::Nothing(reason)) => {
                    info!(order.id = &*order_id, request.id = %request, reason, "not what became of an order");
                    self.hub.drop_lead(&order_id, &request);
                }
                Ok(Followed::NotYet) => unfinished = true,
                Ok(Followed::Waiting) => {}
                Err(error) => {
                    warn!(order.id = &*order_id, request.id = %request, %error, "cannot ask what became of an order yet");
                    unfinished = true;
                }
            }
        }
        unfinished
    }

    async fn follow(&self, order_id: &str, request: &RequestId) -> Result<Followed, FollowError> {
        let Some(order) = self.hub.undecided_order(order_id) else { return Ok(Followed::Waiting) };
        let age = age(&*self.store, order.first, order.sent_time);
        let Some(ordered) = order.ordered else {
            return Ok(Followed::Nothing("an order of a newer gateway"));
        };
        match self.fate(order_id, ordered.key_cell.clone()).await? {
            // The end of its flight wakes us; elsewhere it does not.
            Fate::InFlight if self.orders.is_in_flight(order_id) => return Ok(Followed::Waiting),
            Fate::InFlight => return Ok(Followed::NotYet),
            Fate::NeverSent => return Ok(Followed::Nothing("the order never left")),
            Fate::Unknown if age > self.give_up => return Ok(Followed::Nothing("given up")),
            Fate::Unknown => {}
        }
        if let Err(SettleError::OtherRequest) =
            self.check_request(order_id, &ordered, request).await
        {
            return Ok(Followed::Nothing("of another order"));
        }
        // Another tool may keep the same devices busy, and ThingSpace repeats what it says.
        if self
            .hub
            .attach(request)
            .await?
            .is_some_and(|(known, _)| known.lock().request.first < order.first)
        {
            return Ok(Followed::Nothing("heard of before the order was sent"));
        }
        let Some(account) =
            AccountName::parse(&ordered.account).ok().filter(|a| self.client.serves(a))
        else {
            return Ok(Followed::Nothing("no credentials for the account"));
        };
        let answer =
            match self.client.request_status(&account, request, Purpose::Elsewhere).await?.0 {
                StatusLookup::Found(answer) => answer,
                StatusLookup::NotKnown => return Ok(Followed::NotYet),
            };
        match fit(&ordered, &answer) {
            Fit::Exact => {}
            Fit::SoFar => return Ok(Followed::NotYet),
            Fit::Not => return Ok(Followed::Nothing("other devices")),
        }
        let rivals = self.hub.undecided(|id, order| {
            let rival = order.ordered.as_ref().filter(|rival| rival.account == ordered.account)?;
            let fit = fit(rival, &answer);
            (&**id != order_id && fit != Fit::Not)
                .then(|| (id.clone(), rival.key_cell.clone(), fit))
        });
        for (rival, key_cell, fit) in rivals {
            match self.fate(&rival, key_cell).await? {
                Fate::NeverSent => {}
                Fate::InFlight => return Ok(Followed::NotYet),
                // It may turn out to be the rival's.
                Fate::Unknown if fit == Fit::SoFar => return Ok(Followed::NotYet),
                Fate::Unknown => return Ok(Followed::Nothing("it fits several orders")),
            }
        }
        let settlement = Settlement::AcceptedAs(request.clone());
        self.append_settled(order_id, &ordered, SettledBy::Evidence, &settlement, false).await?;
        Ok(Followed::Resolved)
    }
}

/// How the devices of a request compare to an order's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Exact,
    /// Some are missing, and the answer may become longer.
    SoFar,
    Not,
}

/// By EID where the answer has it, else by ICCID.
fn fit(ordered: &storage::Ordered, answer: &StatusAnswer) -> Fit {
    if answer.devices.len() > ordered.devices.len() {
        return Fit::Not;
    }
    let mut missing = HashMap::new();
    for (at, device) in ordered.devices.iter().enumerate() {
        missing.insert(device.eid.as_str(), at);
        missing.insert(device.iccid.as_str(), at);
    }
    let mut listed = vec![false; ordered.devices.len()];
    for (device, _) in &answer.devices {
        let name = if device.eid.is_empty() { &device.iccid } else { &device.eid };
        match missing.get(name.as_str()).map(|&at| &mut listed[at]) {
            Some(listed) if !name.is_empty() && !*listed => *listed = true,
            _ => return Fit::Not,
        }
    }
    if answer.devices.len() == ordered.devices.len() {
        Fit::Exact
    } else if matches!(answer.overall, StatusClass::Succeeded | StatusClass::Failed) {
        Fit::Not
    } else {
        Fit::SoFar
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
            (vec![device(1)], pending, Fit::SoFar),
            (vec![], StatusClass::Waiting, Fit::SoFar),
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
