use proptest::prelude::*;

use super::*;

fn account(number: usize) -> AccountName {
    AccountName::parse(&format!("{number:010}-00001")).unwrap()
}

/// A queue with so many calls of one account in each class.
fn queue(waiting: [usize; 4]) -> Queue<Class> {
    let mut queue = Queue::new();
    for (class, count) in CLASSES.into_iter().zip(waiting) {
        for _ in 0..count {
            queue.push(class, &account(0), class).unwrap();
        }
    }
    queue
}

fn take<T>(queue: &mut Queue<T>) -> Option<T> {
    queue.take(|_| Some(())).map(|(call, _, ())| call)
}

/// The share of each class in queues that are never empty.
#[test]
fn shares_of_the_permits() {
    const MANY: usize = 200;
    let table = [
        ([MANY; 4], [55, 10, 30, 5]),
        ([MANY, MANY, MANY, 0], [60, 10, 30, 0]),
        ([MANY, MANY, 0, 0], [90, 10, 0, 0]),
        ([MANY, 0, MANY, 0], [70, 0, 30, 0]),
        ([MANY, 0, 0, MANY], [95, 0, 0, 5]),
        ([0, MANY, MANY, 0], [0, 70, 30, 0]),
        ([0, MANY, 0, MANY], [0, 95, 0, 5]),
        ([0, 0, MANY, MANY], [0, 0, 95, 5]),
        ([MANY, 0, 0, 0], [100, 0, 0, 0]),
        ([0, 0, 0, MANY], [0, 0, 0, 100]),
    ];
    for (waiting, expected) in table {
        let mut queue = queue(waiting);
        let mut got = [0_i32; 4];
        for _ in 0..100 {
            got[take(&mut queue).unwrap() as usize] += 1;
        }
        for (got_, expected_) in got.into_iter().zip(expected) {
            assert!((got_ - expected_).abs() <= 2, "{waiting:?}: {got:?}, not {expected:?}");
        }
    }
}

/// A class that was idle gets at most two permits in a row.
#[test]
fn an_idle_class_saves_nothing_up() {
    let mut queue = queue([1_000, 0, 0, 0]);
    for _ in 0..500 {
        take(&mut queue).unwrap();
    }
    for _ in 0..100 {
        queue.push(Class::External, &account(0), Class::External).unwrap();
    }
    let taken: Vec<_> = (0..100).filter_map(|_| take(&mut queue)).collect();
    let elsewhere = taken.iter().filter(|class| **class == Class::External).count();
    assert!((4..=7).contains(&elsewhere), "{elsewhere}");
}

/// Its calls wait, and all others go on.
#[test]
fn a_class_without_a_connection_is_passed_over() {
    let mut queue = queue([10, 10, 10, 10]);
    for _ in 0..20 {
        let taken =
            queue.take(|class| (class != Class::Order && class != Class::Poll).then_some(()));
        assert!(
            taken.is_some_and(|(_, class, ())| matches!(class, Class::Query | Class::External))
        );
    }
    assert!(queue.take(|class| (class == Class::Query).then_some(())).is_none());
    assert!(!queue.is_empty());
}

#[test]
fn calls_that_had_a_turn_before_go_first_in_their_class() {
    let mut queue = Queue::new();
    queue.push(Class::Poll, &account(0), "waits").unwrap();
    queue.push_first(Class::Poll, "again");
    queue.push(Class::Order, &account(0), "order").unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
    assert_eq!(taken, ["order", "again", "waits"]);
}

#[test]
fn accounts_take_turns() {
    let mut queue = Queue::new();
    for (of, count) in [(0, 3), (1, 1), (2, 2)] {
        (0..count).for_each(|_| drop(queue.push(Class::Order, &account(of), of).unwrap()));
    }
    let taken: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
    assert_eq!(taken, [0, 1, 2, 0, 2, 0]);
}

#[test]
fn one_account_fills_its_own_queue_and_no_other() {
    let mut queue = Queue::new();
    let first = queue.push(Class::Order, &account(0), ()).unwrap();
    (1..MAX_WAITING).for_each(|_| drop(queue.push(Class::Order, &account(0), ()).unwrap()));
    assert!(queue.push(Class::Order, &account(0), ()).is_none());
    assert!(queue.push(Class::Order, &account(1), ()).is_some());
    assert!(queue.push(Class::Query, &account(0), ()).is_some());
    queue.remove(&first);
    assert!(queue.push(Class::Order, &account(0), ()).is_some());
}

/// Something that happens to a queue.
#[derive(Debug, Clone)]
enum Step {
    Push(Class, usize),
    /// The caller of the `n`th waiting call gives up.
    Remove(usize),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let class = proptest::sample::select(&CLASSES);
    prop_oneof![
        3 => (class, 0_usize..4).prop_map(|(class, account)| Step::Push(class, account)),
        1 => any::<usize>().prop_map(Step::Remove),
        2 => Just(Step::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each call that was not given up gets exactly one permit. Calls of one class and account get
    /// them in their order.
    #[test]
    fn each_call_gets_one_turn(steps in proptest::collection::vec(step(), 1..300)) {
        let mut queue = Queue::new();
        let (mut waiting, mut count) = (Vec::<(Ticket, Class, usize, usize)>::new(), 0);
        let check = |queue: &mut Queue<usize>, waiting: &mut Vec<(Ticket, Class, usize, usize)>| {
            let Some(taken) = take(queue) else { return waiting.is_empty() };
            let place = waiting.iter().position(|(_, _, _, call)| *call == taken);
            let Some(at) = place else { return false };
            let (_, class, account, _) = waiting[at].clone();
            let before = waiting[..at].iter().any(|(_, c, a, _)| (*c, *a) == (class, account));
            waiting.remove(at);
            !before
        };
        for step in steps {
            match step {
                Step::Push(class, of) => {
                    count += 1;
                    let ticket = queue.push(class, &account(of), count).unwrap();
                    waiting.push((ticket, class, of, count));
                }
                Step::Remove(at) if !waiting.is_empty() => {
                    let (ticket, ..) = waiting.remove(at % waiting.len());
                    queue.remove(&ticket);
                }
                Step::Remove(_) => {}
                Step::Take => prop_assert!(check(&mut queue, &mut waiting)),
            }
            prop_assert_eq!(queue.is_empty(), waiting.is_empty());
        }
        while !waiting.is_empty() {
            prop_assert!(check(&mut queue, &mut waiting));
        }
    }

    /// A call waits for no more permits than the share of its class and the accounts before it
    /// allow, and not longer than the estimate.
    #[test]
    fn no_call_starves(
        waiting in proptest::collection::vec(
            (proptest::sample::select(&CLASSES), 0_usize..4, 0_usize..50),
            0..12,
        ),
        class in proptest::sample::select(&CLASSES),
    ) {
        let mut queue = Queue::new();
        for (class, of, count) in waiting {
            (0..count).for_each(|_| drop(queue.push(class, &account(of), false).unwrap()));
        }
        let estimate = queue.permits_before(class, &account(9));
        queue.push(class, &account(9), true).unwrap();
        let mut turns = 0;
        // All other classes always have more.
        while !take(&mut queue).unwrap() {
            turns += 1;
            for other in CLASSES.into_iter().filter(|other| *other != class) {
                queue.push(other, &account(0), false).unwrap();
            }
        }
        // One permit of its own class, after those before it.
        let worst = match class {
            Class::Order => estimate * 100 / 55 + 10,
            _ => estimate + u64::from(PERMIT / class.share()) + 10,
        };
        prop_assert!(turns <= worst, "{turns} turns, {estimate} estimated");
    }
}
