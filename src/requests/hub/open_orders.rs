//! Orders without an outcome, and accepted orders whose acceptance is not in the request's log yet.
//!
//! A callback for a request without an order may name a device of an order without an outcome. Then
//! the request is a *candidate*: ThingSpace may have created it for this order.
//! `requests::orders::resolve` queries ThingSpace about the candidates.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Hub, is_same};
use crate::{
    identity::{Digits, RequestId},
    proto::storage::{self, Event},
    requests::{
        fold::order::{Order, OrderOutcome},
        lock,
    },
    store::Entry,
};

/// The maximum number of candidates of an order, including the dropped ones. Other systems may
/// place many requests for its devices, and each candidate costs a status query.
const MAX_CANDIDATES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct OpenOrders {
    orders: HashMap<Arc<str>, OpenOrder>,
    /// The orders without an outcome, by the EIDs and ICCIDs of their devices.
    by_device: HashMap<Digits, Vec<Arc<str>>>,
}

#[derive(Debug, Default)]
struct OpenOrder {
    order: Order,
    candidates: HashSet<RequestId>,
    dropped: HashSet<RequestId>,
}

impl OpenOrder {
    fn has_room(&self) -> bool {
        self.candidates.len() + self.dropped.len() < MAX_CANDIDATES
    }
}

impl OpenOrders {
    pub(super) fn contains(&self, id: &str) -> bool {
        self.orders.contains_key(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Order)> {
        self.orders.iter().map(|(id, open)| (id, &open.order))
    }

    /// Folds an event into an order. The order may be new.
    pub(super) fn apply(&mut self, id: &str, entry: &Entry, event: &Event) {
        self.change(id, |order| order.apply(entry.position, entry.time, event));
    }

    pub(super) fn insert(&mut self, id: &str, order: Order) {
        self.change(id, |old| *old = order);
    }

    /// Removes an order, and returns all its candidates.
    pub(super) fn remove(&mut self, id: &str) -> HashSet<RequestId> {
        let Some(open) = self.orders.remove(id) else { return HashSet::new() };
        self.forget_devices(id, &open.order);
        let OpenOrder { mut candidates, dropped, .. } = open;
        candidates.extend(dropped);
        candidates
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Order)) {
        let known = self.orders.remove_entry(id);
        let was_open = known.as_ref().is_some_and(|(_, open)| open.order.outcome.is_none());
        let (id, mut open) = known.unwrap_or_else(|| (id.into(), OpenOrder::default()));
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
            // Frees the memory of up to 10,000 devices. The log still has them.
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

    /// Adds a request as a candidate of the orders that have the callback's device. Returns whether
    /// it is a new candidate.
    pub(super) fn add_candidate(
        &mut self,
        request: &RequestId,
        called_back: &storage::CalledBack,
    ) -> bool {
        for open in self.orders.values_mut() {
            // The order was accepted with this id in another case. Its acceptance is not in the
            // request's log yet, so the callback's log is kept as a candidate.
            if let Some(OrderOutcome::AcceptedAs(accepted)) = &open.order.outcome
                && accepted != request
                && is_same(accepted, request)
                && open.has_room()
            {
                open.candidates.insert(request.clone());
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
            let is_of_account =
                open.order.ordered.as_ref().is_some_and(|o| o.account == called_back.account);
            if is_of_account && !open.dropped.contains(request) && open.has_room() {
                new |= open.candidates.insert(request.clone());
            }
        }
        new
    }
}

impl Hub {
    /// Returns the accepted orders whose acceptance may not be in the request's log yet.
    pub(crate) fn unfinished_orders(&self) -> Vec<String> {
        let projection = lock(&self.projection);
        let accepted = |order: &Order| matches!(order.outcome, Some(OrderOutcome::AcceptedAs(_)));
        let orders = projection.orders.iter().filter(|(_, order)| accepted(order));
        orders.map(|(id, _)| id.to_string()).collect()
    }

    /// Removes an accepted order whose acceptance is in the request's log.
    pub(crate) fn forget_order(&self, order_id: &str) {
        lock(&self.projection).orders.remove(order_id);
    }

    /// Maps the orders without an outcome, and returns the results that are not `None`.
    pub(crate) fn orders_without_outcome<T>(
        &self,
        mut select: impl FnMut(&Arc<str>, &Order) -> Option<T>,
    ) -> Vec<T> {
        let projection = lock(&self.projection);
        let open = projection.orders.iter().filter(|(_, order)| order.outcome.is_none());
        open.filter_map(|(id, order)| select(id, order)).collect()
    }

    /// Returns an order that is in memory and has no outcome.
    pub(crate) fn order_without_outcome(&self, order_id: &str) -> Option<Order> {
        let projection = lock(&self.projection);
        let order = &projection.orders.orders.get(order_id)?.order;
        order.outcome.is_none().then(|| order.clone())
    }

    /// Returns the candidates of the orders without an outcome, each with its order.
    pub(crate) fn candidates(&self) -> Vec<(Arc<str>, RequestId)> {
        let projection = lock(&self.projection);
        let open = projection.orders.orders.iter().filter(|(_, open)| open.order.outcome.is_none());
        open.flat_map(|(id, open)| {
            open.candidates.iter().map(|request| (Arc::clone(id), request.clone()))
        })
        .collect()
    }

    /// Drops a candidate that does not belong to the order. It is not returned again.
    pub(crate) fn drop_candidate(&self, order_id: &str, request: &RequestId) {
        if let Some(open) = lock(&self.projection).orders.orders.get_mut(order_id)
            && let Some(request) = open.candidates.take(request)
        {
            open.dropped.insert(request);
        }
    }
}

/// Returns the EIDs and ICCIDs of an order's devices.
fn names(order: &Order) -> impl Iterator<Item = Digits> {
    let each = |device: &storage::Device| [Digits::new(&device.eid), Digits::new(&device.iccid)];
    let devices = order.ordered.iter().flat_map(|ordered| &ordered.devices);
    devices.flat_map(each).filter(|digits| !digits.is_empty())
}
