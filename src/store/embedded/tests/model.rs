//! Any sequence of calls and restarts has the results of a `Vec` and a map.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::runtime;

use super::*;
use crate::store::Versioned;

#[derive(Debug, Clone)]
enum Step {
    /// Log, id and event; ids repeat.
    Append(u8, u8, Vec<u8>),
    Read(u8, Index, usize),
    Follow(Index),
    /// Cell, whether the expected version is the right one, and value.
    Swap(u8, bool, Vec<u8>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let append = (0..3u8, any::<u8>(), vec(any::<u8>(), 0..2_000));
    let read = (0..3u8, any::<Index>(), 0..20usize);
    let swap = (0..3u8, any::<bool>(), vec(any::<u8>(), 0..50));
    prop_oneof![
        6 => append.prop_map(|(log, id, event)| Step::Append(log, id % 40, event)),
        3 => read.prop_map(|(log, after, limit)| Step::Read(log, after, limit)),
        1 => any::<Index>().prop_map(Step::Follow),
        3 => swap.prop_map(|(cell, right, value)| Step::Swap(cell, right, value)),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    events: Vec<(u8, u8, Position, Bytes)>,
    cells: BTreeMap<u8, Versioned>,
}

impl Model {
    /// A number of events, and the sequence after so many; sequences have gaps.
    fn after(&self, index: Index) -> (usize, u64) {
        let n = index.index(self.events.len() + 1);
        (n, if n == 0 { 0 } else { self.events[n - 1].2.sequence })
    }
}

fn log(n: u8) -> LogName {
    LogName::request(n.to_string())
}

fn cell(n: u8) -> CellName {
    if n == 0 { CellName::retained("0") } else { CellName::permanent(n.to_string()) }
}

async fn run(store: &Embedded, model: &mut Model, step: Step) {
    match step {
        Step::Append(of, id, event) => {
            let event = Bytes::from(event);
            let position =
                store.append(&log(of), Uuid::from_u128(id.into()), event.clone()).await.unwrap();
            if let Some(known) = model.events.iter().find(|known| known.1 == id) {
                assert_eq!(position, known.2);
            } else {
                assert!(model.events.last().is_none_or(|last| position > last.2));
                model.events.push((of, id, position, event));
            }
        }
        Step::Read(of, after, limit) => {
            let (n, after) = model.after(after);
            let expected = model.events[n..].iter().filter(|known| known.0 == of).take(limit);
            let expected: Vec<_> = expected.map(|known| (known.2, known.3.clone())).collect();
            let entries = store.read(&log(of), after, limit).await.unwrap();
            let entries: Vec<_> =
                entries.into_iter().map(|entry| (entry.position, entry.event)).collect();
            assert_eq!(entries, expected);
        }
        Step::Follow(after) => {
            let (n, sequence) = model.after(after);
            let after = Position { epoch: store.shared.epoch(), sequence };
            let (events, caught_up) = contract::catch_up(&mut store.follow(Some(after))).await;
            let events: Vec<_> =
                events.into_iter().map(|(log, e)| (log, e.position, e.event)).collect();
            let expected: Vec<_> =
                model.events[n..].iter().map(|k| (log(k.0), k.2, k.3.clone())).collect();
            assert_eq!(events, expected);
            assert_eq!(caught_up.sequence, model.events.last().map_or(0, |last| last.2.sequence));
        }
        Step::Swap(of, right, value) => {
            let (current, value) = (model.cells.get(&of).cloned(), Bytes::from(value));
            let held = current.as_ref().map(|current| current.version);
            let expected = if right {
                held
            } else {
                Some(held.map_or(Version(1), |Version(v)| Version(v + 1)))
            };
            match store.swap(&cell(of), expected, value.clone()).await.unwrap() {
                Swap::Swapped(version) => {
                    assert!(right && held.is_none_or(|held| version > held));
                    model.cells.insert(of, Versioned { version, value });
                }
                Swap::Conflict(now) => {
                    assert!(!right);
                    assert_eq!(now, current);
                }
            }
            assert_eq!(store.load(&cell(of)).await.unwrap(), model.cells.get(&of).cloned());
        }
        Step::Reopen => unreachable!("the caller reopens"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_like_a_vec(steps in vec(step(), 1..60)) {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (_folder, path) = place();
            let (mut store, mut model) = (open(&path), Model::default());
            for step in steps {
                if matches!(step, Step::Reopen) {
                    store.close().await;
                    store = open(&path);
                } else {
                    run(&store, &mut model, step).await;
                }
            }
        });
    }
}
