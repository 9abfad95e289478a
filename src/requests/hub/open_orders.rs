//! Orders without an outcome, or whose request does not know of them yet, and what callbacks hint
//! at about them.
//!
//! A callback for a request that is nobody's, about a device of an order without an outcome, is a
//! *lead*: that request may be what became of the order. Leads are only kept here; whoever follows
//! them asks ThingSpace (`requests::orders::resolve`). What foreign callbacks cost while there is no such
//! order is one look into an empty map.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::is_same;
use crate::{
    identity::{Digits, RequestId},
    proto::storage::{self, Event},
    requests::fold::order::{Order, OrderOutcome},
    store::Entry,
};

/// Leads of an order, followed ones too; further ones are not taken. Other tools may keep the
/// devices of an order busy while its fate is unknown, and every lead costs a question.
const MAX_LEADS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct OpenOrders {
    orders: HashMap<Arc<str>, Open>,
    /// The orders without an outcome, by the EIDs and ICCIDs of their devices.
    by_device: HashMap<Digits, Vec<Arc<str>>>,
}

#[derive(Debug, Default)]
struct Open {
    order: Order,
    leads: HashSet<RequestId>,
    followed: HashSet<RequestId>,
}

impl OpenOrders {
    pub(super) fn contains(&self, id: &str) -> bool {
        self.orders.contains_key(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Order)> {
        self.orders.iter().map(|(id, open)| (id, &open.order))
    }

    pub(super) fn get(&self, id: &str) -> Option<&Order> {
        self.orders.get(id).map(|open| &open.order)
    }

    /// Folds an event into an order, which may begin with it.
    pub(super) fn apply(&mut self, id: &str, entry: &Entry, event: &Event) {
        self.change(id, |order| order.apply(entry.position, entry.time, event));
    }

    /// Takes an order as its log says that it is.
    pub(super) fn insert(&mut self, id: &str, order: Order) {
        self.change(id, |old| *old = order);
    }

    /// Forgets an order, and returns the requests that were its leads.
    pub(super) fn remove(&mut self, id: &str) -> HashSet<RequestId> {
        let Some(open) = self.orders.remove(id) else { return HashSet::new() };
        self.forget_devices(id, &open.order);
        let Open { mut leads, followed, .. } = open;
        leads.extend(followed);
        leads
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Order)) {
        let known = self.orders.remove_entry(id);
        let was_open = known.as_ref().is_some_and(|(_, open)| open.order.outcome.is_none());
        let (id, mut open) = known.unwrap_or_else(|| (id.into(), Open::default()));
        change(&mut open.order);
        match (was_open, open.order.outcome.is_none()) {
            (false, true) => {
                for digits in names(&open.order) {
                    self.by_device.entry(digits).or_default().push(Arc::clone(&id));
                }
            }
            (true, false) => self.forget_devices(&id, &open.order),
            _ => {}
        }
        if open.order.outcome.is_some() {
            // Up to 10,000 devices: whoever still needs them reads the log.
            open.order.ordered = None;
        }
        if open.order.outcome != Some(OrderOutcome::NotPlaced) {
            self.orders.insert(id, open);
        }
    }

    fn forget_devices(&mut self, id: &str, order: &Order) {
        for digits in names(order) {
            if let Some(orders) = self.by_device.get_mut(&digits) {
                orders.retain(|order| &**order != id);
                if orders.is_empty() {
                    self.by_device.remove(&digits);
                }
            }
        }
    }

    /// Keeps a callback as a lead of the orders that have its device; true if there is a new one.
    pub(super) fn lead(&mut self, request: &RequestId, called_back: &storage::CalledBack) -> bool {
        for open in self.orders.values_mut() {
            // The acceptance of this order is about to reach its request, which the callback spells
            // in another case.
            let is_spelling =
                |accepted: &RequestId| accepted != request && is_same(accepted, request);
            if matches!(&open.order.outcome, Some(OrderOutcome::AcceptedAs(accepted)) if is_spelling(accepted))
                && open.leads.len() + open.followed.len() < MAX_LEADS
            {
                open.leads.insert(request.clone());
            }
        }
        if self.by_device.is_empty() {
            return false;
        }
        let device = called_back.device.clone().unwrap_or_default();
        let name = if device.eid.is_empty() { device.iccid } else { device.eid };
        let orders = self.by_device.get(&Digits::new(&name)).cloned().unwrap_or_default();
        let mut new = false;
        for id in orders {
            let Some(open) = self.orders.get_mut(&id) else { continue };
            let of_account =
                open.order.ordered.as_ref().is_some_and(|o| o.account == called_back.account);
            if of_account
                && !open.followed.contains(request)
                && open.leads.len() + open.followed.len() < MAX_LEADS
            {
                new |= open.leads.insert(request.clone());
            }
        }
        new
    }

    /// What is worth a question: each lead that has not been followed to its end.
    pub(super) fn leads(&self) -> Vec<(Arc<str>, RequestId)> {
        let orders_without_outcome =
            self.orders.iter().filter(|(_, open)| open.order.outcome.is_none());
        orders_without_outcome
            .flat_map(|(id, open)| {
                open.leads.iter().map(|request| (Arc::clone(id), request.clone()))
            })
            .collect()
    }

    /// A lead came to nothing.
    pub(super) fn drop_lead(&mut self, id: &str, request: &RequestId) {
        if let Some(open) = self.orders.get_mut(id)
            && let Some(request) = open.leads.take(request)
        {
            open.followed.insert(request);
        }
    }

    /// The orders without an outcome.
    pub(super) fn orders_without_outcome(&self) -> impl Iterator<Item = (&Arc<str>, &Order)> {
        self.iter().filter(|(_, order)| order.outcome.is_none())
    }
}

fn names(order: &Order) -> impl Iterator<Item = Digits> {
    let each = |device: &storage::Device| [Digits::new(&device.eid), Digits::new(&device.iccid)];
    let devices = order.ordered.iter().flat_map(|ordered| &ordered.devices);
    devices.flat_map(each).filter(|digits| !digits.is_empty())
}
