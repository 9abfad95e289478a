//! The outcome of an order, folded from its log. Pure, like the fold of a request.

use jiff::Timestamp;

use super::event::{self, Kind};
use crate::{
    identity::RequestId,
    proto::storage::{self, Event, SettledBy},
    store::Position,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OrderOutcome {
    /// The order was refused or never sent.
    NotPlaced,
    AcceptedAs(RequestId),
}

/// What decided an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// ThingSpace answered, or the gateway did not send the order.
    Answer,
    Evidence,
    Operator,
}

/// An order, folded up to one event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    pub(crate) ordered: Option<storage::Ordered>,
    /// `None`: the order is being sent, or its outcome is unknown.
    pub(crate) outcome: Option<OrderOutcome>,
    pub(crate) source: Option<Source>,
    /// The position of the settlement that decided the outcome; `None` for ThingSpace's answer.
    pub(crate) settled: Option<Position>,
    /// The requests of earlier outcomes. Their logs may still name the order.
    pub(crate) former: Vec<RequestId>,
    pub(crate) first: Option<Position>,
    pub(crate) sent_time: Timestamp,
    /// Requests whose acceptance was withdrawn.
    withdrawn: Vec<RequestId>,
    last: Option<Position>,
    rules: u32,
}

impl Order {
    /// Folds an event, unless it was folded before.
    pub(crate) fn apply(&mut self, position: Position, time: Timestamp, event: &Event) {
        if self.last.is_some_and(|last| position.sequence <= last.sequence) {
            return;
        }
        self.last = Some(position);
        if self.first.is_none() {
            self.first = Some(position);
            self.sent_time = time;
            self.rules = event.rules;
        }
        match event.kind.as_ref().filter(|_| self.rules == event::ORDER_RULES) {
            Some(Kind::Ordered(ordered)) => {
                self.ordered.get_or_insert_with(|| ordered.clone());
            }
            Some(Kind::Refused(_) | Kind::NotSent(_)) => {
                if self.outcome.is_none() {
                    self.decide(OrderOutcome::NotPlaced, Source::Answer, None);
                }
            }
            Some(Kind::AcceptedAs(accepted)) => self.accept(&accepted.request_id),
            Some(Kind::Settled(settled)) => self.settle(settled, position),
            Some(Kind::Withdrawn(withdrawn)) => self.withdraw(&withdrawn.request_id),
            Some(
                Kind::Accepted(_) | Kind::Observed(_) | Kind::CalledBack(_) | Kind::Abandoned(_),
            )
            | None => {}
        }
    }

    /// ThingSpace's answer replaces every other outcome. The first answer stays.
    fn accept(&mut self, request_id: &str) {
        let Ok(request) = RequestId::parse(request_id) else { return };
        let is_answered =
            self.source == Some(Source::Answer) && self.outcome != Some(OrderOutcome::NotPlaced);
        if !is_answered && !self.withdrawn.contains(&request) {
            self.decide(OrderOutcome::AcceptedAs(request), Source::Answer, None);
        }
    }

    /// Applies a settlement if the outcome is unknown. The settlement of an operator also replaces
    /// an earlier one by an operator.
    fn settle(&mut self, settled: &storage::Settled, position: Position) {
        let source = match settled.by() {
            SettledBy::Operator => Source::Operator,
            SettledBy::Evidence => Source::Evidence,
            SettledBy::Unspecified => return,
        };
        let corrects = source == Source::Operator && self.source == Some(Source::Operator);
        if self.outcome.is_some() && !corrects {
            return;
        }
        let outcome = match RequestId::parse(&settled.request_id) {
            Ok(request) => OrderOutcome::AcceptedAs(request),
            Err(_) if settled.request_id.is_empty() => OrderOutcome::NotPlaced,
            Err(_) => return,
        };
        self.decide(outcome, source, Some(position));
    }

    /// Makes the outcome unknown again, because the request does not belong to this order.
    fn withdraw(&mut self, request_id: &str) {
        let Some(OrderOutcome::AcceptedAs(request)) = &self.outcome else { return };
        if request.as_str() == request_id {
            self.withdrawn.push(request.clone());
            (self.outcome, self.source, self.settled) = (None, None, None);
        }
    }

    fn decide(&mut self, outcome: OrderOutcome, source: Source, settled: Option<Position>) {
        if let Some(OrderOutcome::AcceptedAs(former)) = self.outcome.take() {
            self.former.push(former);
        }
        if let OrderOutcome::AcceptedAs(request) = &outcome {
            self.former.retain(|former| former != request);
        }
        (self.outcome, self.source, self.settled) = (Some(outcome), Some(source), settled);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind) -> Event {
        Event { rules: event::ORDER_RULES, kind: Some(kind), first_sequence: 0 }
    }

    fn ordered(plan: &str) -> Event {
        event(Kind::Ordered(storage::Ordered {
            service_plan: plan.to_owned(),
            ..Default::default()
        }))
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

    fn request(id: &str) -> OrderOutcome {
        OrderOutcome::AcceptedAs(RequestId::parse(id).unwrap())
    }

    #[test]
    fn an_order_has_the_outcome_of_its_log() {
        let table = [
            (vec![], None),
            (vec![not_sent()], Some(OrderOutcome::NotPlaced)),
            (vec![refused()], Some(OrderOutcome::NotPlaced)),
            (vec![accepted_as("r1")], Some(request("r1"))),
            (vec![not_sent(), accepted_as("r1")], Some(request("r1"))),
            (vec![refused(), not_sent(), accepted_as("r1"), refused()], Some(request("r1"))),
            (vec![accepted_as("r1"), not_sent(), accepted_as("r2")], Some(request("r1"))),
            (vec![not_sent(), accepted_as("no/id")], Some(OrderOutcome::NotPlaced)),
            (vec![accepted_as(""), accepted_as("r2")], Some(request("r2"))),
            (vec![event(Kind::Abandoned(storage::Abandoned {}))], None),
            (vec![Event { rules: event::ORDER_RULES, ..Event::default() }], None),
        ];
        for (events, outcome) in table {
            let order = fold(std::iter::once(ordered("plan")).chain(events.clone()));
            assert_eq!(order.outcome, outcome, "{events:?}");
        }
    }

    fn settled(by: SettledBy, request_id: &str) -> Event {
        event(Kind::Settled(storage::Settled { by: by.into(), request_id: request_id.to_owned() }))
    }

    fn withdrawn(request_id: &str) -> Event {
        let (order_id, request_id) = ("order".to_owned(), request_id.to_owned());
        event(Kind::Withdrawn(storage::Withdrawn { order_id, request_id }))
    }

    #[test]
    fn outcomes_replace_each_other_by_their_source() {
        use SettledBy::{Evidence, Operator, Unspecified};
        let not_placed = || Some(OrderOutcome::NotPlaced);
        let table = [
            (vec![settled(Operator, "r1")], Some(request("r1"))),
            (vec![settled(Operator, "")], not_placed()),
            (vec![settled(Operator, "no/id")], None),
            (vec![settled(Unspecified, "r1")], None),
            (vec![settled(Operator, "r1"), settled(Operator, "r2")], Some(request("r2"))),
            (vec![settled(Operator, "r1"), settled(Operator, "")], not_placed()),
            (vec![settled(Operator, ""), settled(Operator, "r1")], Some(request("r1"))),
            (vec![settled(Evidence, "r1"), settled(Operator, "r2")], Some(request("r1"))),
            (vec![settled(Operator, "r1"), settled(Evidence, "r2")], Some(request("r1"))),
            (vec![refused(), settled(Operator, "r1")], not_placed()),
            (vec![accepted_as("r1"), settled(Operator, "r2")], Some(request("r1"))),
            (
                vec![settled(Operator, "r1"), accepted_as("r2"), accepted_as("r3")],
                Some(request("r2")),
            ),
            (
                vec![settled(Operator, "r1"), accepted_as("r2"), settled(Operator, "r3")],
                Some(request("r2")),
            ),
            (vec![settled(Operator, "r1"), not_sent()], Some(request("r1"))),
            (vec![accepted_as("r1"), withdrawn("r1")], None),
            (vec![accepted_as("r1"), withdrawn("r2")], Some(request("r1"))),
            (vec![accepted_as("r1"), withdrawn("r1"), accepted_as("r1")], None),
            (
                vec![accepted_as("r1"), withdrawn("r1"), settled(Operator, "r1")],
                Some(request("r1")),
            ),
        ];
        for (events, outcome) in table {
            let order = fold(std::iter::once(ordered("plan")).chain(events.clone()));
            assert_eq!(order.outcome, outcome, "{events:?}");
        }
        let former =
            |events: Vec<Event>| fold(std::iter::once(ordered("plan")).chain(events)).former;
        let id = |text: &str| RequestId::parse(text).unwrap();
        assert_eq!(former(vec![settled(Operator, "r1"), settled(Operator, "")]), [id("r1")]);
        assert_eq!(former(vec![settled(Operator, "r1"), accepted_as("r2")]), [id("r1")]);
        let back = ["r1", "r2", "r1"].map(|r| settled(Operator, r)).to_vec();
        assert_eq!(former(back), [id("r2")]);
        assert_eq!(former(vec![settled(Operator, "r1"), settled(Operator, "r1")]), []);
    }

    #[test]
    fn an_event_that_was_folded_before_changes_nothing() {
        let mut order = fold([
            ordered("plan"),
            settled(SettledBy::Operator, "r1"),
            settled(SettledBy::Operator, "r2"),
        ]);
        let again = settled(SettledBy::Operator, "r1");
        order.apply(Position { epoch: 7, sequence: 2 }, Timestamp::UNIX_EPOCH, &again);
        assert_eq!(
            (order.outcome, order.settled.map(|at| at.sequence)),
            (Some(request("r2")), Some(3))
        );
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
        let newer = |event: Event| Event { rules: event::ORDER_RULES + 1, ..event };
        let order = fold([newer(ordered("plan")), not_sent(), refused()]);
        assert_eq!((order.ordered, order.outcome), (None, None));
        assert_eq!(
            fold([ordered("plan"), newer(refused())]).outcome,
            Some(OrderOutcome::NotPlaced)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn an_acceptance_wins_in_any_order(
            others in proptest::collection::vec(
                prop_oneof![Just(not_sent()), Just(refused())],
                0..6,
            ),
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
