use proptest::prelude::*;

use super::*;

const ALL: [Class; CLASSES.len()] = [Class::Order, Class::Query, Class::Poll, Class::External];

fn take_all(state: &mut PoolState, set: usize, class: Class) -> usize {
    std::iter::from_fn(|| state.take(set, class)).count()
}

#[test]
fn a_greedy_class_leaves_the_others_their_quarter() {
    for most in [4, 5, 7, 16, 128, 10_000] {
        for greedy in [Class::Order, Class::Query, Class::Poll] {
            let mut state = PoolState::new(most, 1);
            let quarter = (most / 4).max(1);
            assert!(take_all(&mut state, 0, greedy) >= quarter, "{most}");
            let left = ALL.into_iter().filter(|class| *class != greedy);
            for class in left {
                let expected = if class == Class::External { (most / 16).max(1) } else { quarter };
                assert_eq!(take_all(&mut state, 0, class), expected, "{most}");
            }
        }
    }
}

/// The reserved connections of a set are available at once, even if another set uses all others.
#[test]
fn a_greedy_set_leaves_the_others_their_part() {
    let mut state = PoolState::new(128, 2);
    let greedy: usize = ALL.into_iter().map(|class| take_all(&mut state, 0, class)).sum();
    let left: usize = ALL.into_iter().map(|class| take_all(&mut state, 1, class)).sum();
    assert_eq!((greedy, left), (76, 52));
}

#[test]
fn a_set_that_has_its_part_waits_for_those_that_have_not() {
    let mut state = PoolState::new(128, 2);
    let greedy = take_all(&mut state, 0, Class::Order);
    assert_eq!(greedy, 16 + 24);
    assert_eq!(take_all(&mut state, 1, Class::Order), 16);
    state.sets[1].waits = true;
    for _ in 0..12 {
        state.give_back(0, PoolShare::Common);
        assert_eq!(state.take(0, Class::Order), None);
        assert_eq!(state.take(1, Class::Order), Some(PoolShare::Common));
    }
    // Both have their part now, so the first that asks gets the connection.
    state.give_back(1, PoolShare::Common);
    assert_eq!(state.take(0, Class::Order), None, "the other one lacks one");
    assert_eq!(state.take(1, Class::Order), Some(PoolShare::Common));
    state.give_back(0, PoolShare::Common);
    assert_eq!(state.take(0, Class::Order), Some(PoolShare::Common));
    // A set that does not wait limits no other.
    state.sets[1].waits = false;
    state.give_back(1, PoolShare::Common);
    assert_eq!(state.take(0, Class::Order), Some(PoolShare::Common));
}

/// Something that happens to the pool.
#[derive(Debug, Clone)]
enum Step {
    Take(usize, Class),
    GiveBack(usize),
    Waits(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..4, proptest::sample::select(&ALL))
            .prop_map(|(set, class)| Step::Take(set, class)),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => (0_usize..4, any::<bool>()).prop_map(|(set, waits)| Step::Waits(set, waits)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The total is never exceeded, and reserved connections are never refused.
    #[test]
    fn bounds_and_reservations_hold(
        most in 16_usize..300,
        steps in proptest::collection::vec(step(), 1..600),
    ) {
        let mut state = PoolState::new(most, 4);
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Take(set, class) => {
                    let index = class as usize;
                    let reserved = state.sets[set].reserved[index] < state.reserved[index];
                    let from = state.take(set, class);
                    prop_assert!(from.is_some() || !reserved);
                    held.extend(from.map(|from| (set, from)));
                }
                Step::GiveBack(at) if !held.is_empty() => {
                    let (set, from) = held.remove(at % held.len());
                    state.give_back(set, from);
                }
                Step::GiveBack(_) => {}
                Step::Waits(set, waits) => state.sets[set].waits = waits,
            }
            prop_assert!(held.len() <= most, "{} of {most}", held.len());
        }
    }
}
