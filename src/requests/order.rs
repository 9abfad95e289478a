//! The fold of an order's log: what became of an order. Pure, like the fold of a request.

use std::time::Duration;

use jiff::Timestamp;

use super::event::Kind;
use crate::{
    identity::RequestId,
    proto::storage::{self, Event},
    store::Position,
};

/// What is known of an order to have come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was placed: refused, or never sent.
    NotPlaced,
    AcceptedAs(RequestId),
}

/// An order, folded up to some event.
#[derive(Debug, Clone, Default)]
pub struct Order {
    pub ordered: Option<storage::Ordered>,
    /// `None`: on its way, or its fate is unknown.
    pub outcome: Option<Outcome>,
    pub first: Option<Position>,
    pub sent_time: Timestamp,
}

impl Order {
    /// How long ago it was sent.
    pub fn age(&self, now: Timestamp) -> Duration {
        now.duration_since(self.sent_time).try_into().unwrap_or(Duration::ZERO)
    }

    pub fn apply(&mut self, position: Position, time: Timestamp, event: &Event) {
        if self.first.is_none() {
            self.first = Some(position);
            self.sent_time = time;
        }
        match event.kind.as_ref() {
            Some(Kind::Ordered(ordered)) => {
                self.ordered.get_or_insert_with(|| ordered.clone());
            }
            Some(Kind::Refused(_) | Kind::NotSent(_)) => {
                self.outcome.get_or_insert(Outcome::NotPlaced);
            }
            // ThingSpace's word beats everybody's conclusion that nothing was placed, and the first word stays.
            Some(Kind::AcceptedAs(accepted)) => {
                if let (Ok(request), None | Some(Outcome::NotPlaced)) =
                    (RequestId::parse(&accepted.request_id), &self.outcome)
                {
                    self.outcome = Some(Outcome::AcceptedAs(request));
                }
            }
            Some(Kind::Accepted(_) | Kind::Observed(_) | Kind::CalledBack(_) | Kind::Abandoned(_)) | None => {
            }
        }
    }
}
