//! The fold of an order's log: what became of an order. Pure, like the fold of a request.

use jiff::Timestamp;

use super::event::{self, Kind};
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
    /// The rules of the first event.
    rules: u32,
}

impl Order {
    pub fn apply(&mut self, position: Position, time: Timestamp, event: &Event) {
        if self.first.is_none() {
            self.first = Some(position);
            self.sent_time = time;
            self.rules = event.rules;
        }
        match event.kind.as_ref().filter(|_| self.rules == event::RULES) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind) -> Event {
        Event { rules: event::RULES, kind: Some(kind) }
    }

    fn ordered(plan: &str) -> Event {
        event(Kind::Ordered(storage::Ordered { service_plan: plan.to_owned(), ..Default::default() }))
    }

    fn accepted_as(id: &str) -> Event {
        event(Kind::AcceptedAs(storage::AcceptedAs { request_id: id.to_owned() }))
    }

    fn not_sent() -> Event {
        event(Kind::NotSent(storage::NotSent {}))
    }

    fn refused() -> Event {
        event(Kind::Refused(storage::Refused::default()))
    }

    fn fold(events: impl IntoIterator<Item = Event>) -> Order {
        let mut order = Order::default();
        for (event, sequence) in events.into_iter().zip(1..) {
            let time = Timestamp::from_second(sequence).unwrap();
            order.apply(Position { epoch: 7, sequence: sequence.cast_unsigned() }, time, &event);
        }
        order
    }

    fn request(id: &str) -> Outcome {
        Outcome::AcceptedAs(RequestId::parse(id).unwrap())
    }

    #[test]
    fn what_became_of_an_order() {
        let table = [
            (vec![], None),
            (vec![not_sent()], Some(Outcome::NotPlaced)),
            (vec![refused()], Some(Outcome::NotPlaced)),
            (vec![accepted_as("r1")], Some(request("r1"))),
            (vec![not_sent(), accepted_as("r1")], Some(request("r1"))),
            (vec![refused(), not_sent(), accepted_as("r1"), refused()], Some(request("r1"))),
            (vec![accepted_as("r1"), not_sent(), accepted_as("r2")], Some(request("r1"))),
            (vec![not_sent(), accepted_as("no/id")], Some(Outcome::NotPlaced)),
            (vec![accepted_as(""), accepted_as("r2")], Some(request("r2"))),
            (vec![event(Kind::Abandoned(storage::Abandoned {}))], None),
            (vec![Event { rules: event::RULES, kind: None }], None),
        ];
        for (events, outcome) in table {
            let order = fold(std::iter::once(ordered("plan")).chain(events.clone()));
            assert_eq!(order.outcome, outcome, "{events:?}");
        }
    }

    #[test]
    fn the_first_event_dates_an_order_and_the_first_order_stays() {
        let order = fold([ordered("first"), ordered("second")]);
        assert_eq!(order.ordered.as_ref().map(|o| o.service_plan.as_str()), Some("first"));
        assert_eq!(order.first, Some(Position { epoch: 7, sequence: 1 }));
        assert_eq!(order.sent_time, Timestamp::from_second(1).unwrap());
    }

    #[test]
    fn an_order_of_unknown_rules_stays_unknown() {
        let newer = |event: Event| Event { rules: event::RULES + 1, ..event };
        let order = fold([newer(ordered("plan")), not_sent(), refused()]);
        assert_eq!((order.ordered, order.outcome), (None, None));
        assert_eq!(fold([ordered("plan"), newer(refused())]).outcome, Some(Outcome::NotPlaced));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_acceptance_wins_in_any_order(
            others in proptest::collection::vec(prop_oneof![Just(not_sent()), Just(refused())], 0..6),
            at in any::<prop::sample::Index>(),
            ordered_at in any::<prop::sample::Index>(),
            again in any::<bool>(),
        ) {
            let mut events = others;
            events.insert(at.index(events.len() + 1), accepted_as("r1"));
            events.insert(ordered_at.index(events.len() + 1), ordered("plan"));
            events.extend(again.then(|| accepted_as("r2")));
            let order = fold(events);
            prop_assert_eq!(order.outcome, Some(request("r1")));
            prop_assert!(order.ordered.is_some());
        }
    }
}
