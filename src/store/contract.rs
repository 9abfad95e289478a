//! The guarantees of every store, as functions that each backend's tests call.
//!
//! A situation that the trait cannot bring about (a restart, a full disk, expiry) is an argument.
//! No function assumes that the store is empty or that sequences have no gaps.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{join_all, try_join_all},
    stream::BoxStream,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    CellName, Entry, Followed, LogName, Lost, MAX_EVENT_BYTES, MAX_READ, Position, Store,
    StoreError, Swap, Version, Versioned,
};

/// The longest wait for an expected event.
const DEADLINE: Duration = Duration::from_secs(30);

const WRITERS: usize = 16;

/// Returns a log that no other test uses.
pub(super) fn new_log() -> LogName {
    LogName::request(Uuid::new_v4().to_string())
}

pub(super) async fn append(
    store: &dyn Store,
    log: &LogName,
    event: &str,
) -> Result<Position, StoreError> {
    store.append(log, Uuid::new_v4(), Bytes::copy_from_slice(event.as_bytes())).await
}

/// Returns all entries of a log, read in pages.
pub(super) async fn read_to_end(
    store: &dyn Store,
    log: &LogName,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map_or(0, |last| last.position.sequence);
        let page = store.read(log, after, MAX_READ).await?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

pub(super) fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.event).into_owned()).collect()
}

/// Returns the next item of a follower, without skipped positions; `None`: it ended.
pub(super) async fn next(followed: &mut BoxStream<'static, Followed>) -> Option<Followed> {
    loop {
        match timeout(DEADLINE, followed.next()).await.expect("the follower got nothing") {
            Some(Followed::Skipped(_)) => {}
            item => return item,
        }
    }
}

/// Returns all events before `CaughtUp`, and its position.
pub(super) async fn catch_up(
    followed: &mut BoxStream<'static, Followed>,
) -> (Vec<(LogName, Entry)>, Position) {
    let mut events = Vec::new();
    loop {
        match next(followed).await {
            Some(Followed::Event(log, entry)) => events.push((log, entry)),
            Some(Followed::CaughtUp(position)) => return (events, position),
            other => panic!("{other:?} instead of catching up"),
        }
    }
}

/// A log has its entries in the order of the appends; positions grow, and times never go back.
pub(super) async fn order(store: &dyn Store) {
    let logs = [new_log(), LogName::order(Uuid::new_v4().to_string())];
    let mut positions = Vec::new();
    for n in 0..20 {
        positions.push(append(store, &logs[n % 2], &n.to_string()).await.unwrap());
    }
    let follows = |a: &Position, b: &Position| a.sequence < b.sequence && a.epoch == b.epoch;
    assert!(positions.is_sorted_by(follows), "{positions:?}");

    for (first, log) in logs.iter().enumerate() {
        let entries = read_to_end(store, log).await.unwrap();
        let numbers: Vec<_> = (first..20).step_by(2).map(|n| n.to_string()).collect();
        assert_eq!(texts(&entries), numbers);
        let expected: Vec<_> = positions.iter().skip(first).step_by(2).copied().collect();
        assert_eq!(entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), expected);
        assert!(entries.is_sorted_by_key(|entry| entry.time));
        assert_eq!(store.read(log, expected[3].sequence, 2).await.unwrap(), entries[4..6]);
        assert_eq!(store.read(log, expected[9].sequence, MAX_READ).await.unwrap(), []);
        assert_eq!(store.read(log, u64::MAX, MAX_READ).await.unwrap(), []);
        assert_eq!(store.read(log, 0, 0).await.unwrap(), []);
    }
    assert_eq!(store.read(&new_log(), 0, MAX_READ).await.unwrap(), []);
}

/// A read returns at most its limit; the next reads return the rest.
pub(super) async fn pages(store: &dyn Store) {
    let log = new_log();
    let positions =
        try_join_all((0..=MAX_READ).map(|_| append(store, &log, "event"))).await.unwrap();
    assert_eq!(store.read(&log, 0, usize::MAX).await.unwrap().len(), MAX_READ);
    assert_eq!(read_to_end(store, &log).await.unwrap().len(), positions.len());
}

/// An acknowledged event can be read at once, also while many tasks write.
pub(super) async fn read_your_writes(store: &dyn Store) {
    join_all((0..WRITERS).map(|writer| async move {
        let log = new_log();
        for n in 0..20 {
            let text = format!("{writer}/{n}");
            let position = append(store, &log, &text).await.unwrap();
            let entries = store.read(&log, position.sequence - 1, MAX_READ).await.unwrap();
            assert_eq!(texts(&entries), [text]);
        }
    }))
    .await;
}

/// An event id is stored once, also if many tasks append it at once.
pub(super) async fn same_id(store: &dyn Store) {
    let (log, id) = (new_log(), Uuid::new_v4());
    let first = store.append(&log, id, Bytes::from_static(b"first")).await.unwrap();
    append(store, &log, "second").await.unwrap();
    assert_eq!(store.append(&log, id, Bytes::from_static(b"first")).await.unwrap(), first);

    let id = Uuid::new_v4();
    let appends = (0..WRITERS).map(|_| store.append(&log, id, Bytes::from_static(b"third")));
    let positions = try_join_all(appends).await.unwrap();
    assert!(positions.iter().all(|position| *position == positions[0]), "{positions:?}");
    assert_eq!(texts(&read_to_end(store, &log).await.unwrap()), ["first", "second", "third"]);
}

/// The largest event is stored; one that is a byte larger is refused.
pub(super) async fn largest_event(store: &dyn Store) {
    let log = new_log();
    let large: Bytes = (0u8..=250).cycle().take(MAX_EVENT_BYTES).collect();
    store.append(&log, Uuid::new_v4(), large.clone()).await.unwrap();
    let too_large = store.append(&log, Uuid::new_v4(), vec![0; MAX_EVENT_BYTES + 1].into()).await;
    assert!(
        matches!(too_large, Err(StoreError::TooLarge(bytes)) if bytes == MAX_EVENT_BYTES + 1),
        "{too_large:?}"
    );

    let entries = read_to_end(store, &log).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].event == large, "the largest event came back changed");
}

/// A restart keeps acknowledged events, their ids and times, cells, and the order of positions.
pub(super) async fn durable(open: impl AsyncFn() -> Arc<dyn Store>) {
    let (log, id) = (new_log(), Uuid::new_v4());
    let cell = CellName::permanent(Uuid::new_v4().to_string());
    let store = open().await;
    store.append(&log, id, Bytes::from_static(b"one")).await.unwrap();
    append(&*store, &log, "two").await.unwrap();
    let version = swapped(store.swap(&cell, None, Bytes::from_static(b"value")).await);
    let before = read_to_end(&*store, &log).await.unwrap();
    store.close().await;

    let store = open().await;
    assert_eq!(read_to_end(&*store, &log).await.unwrap(), before);
    let again = store.append(&log, id, Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(again, before[0].position);
    let loaded = store.load(&cell).await.unwrap().expect("the cell is there");
    assert_eq!((loaded.version, &*loaded.value), (version, &b"value"[..]));
    let third = append(&*store, &log, "three").await.unwrap();
    assert!(third > before[1].position, "{third:?} after {:?}", before[1].position);
    assert!(read_to_end(&*store, &log).await.unwrap()[2].time >= before[1].time);
    store.close().await;
}

/// When a follower learns the end of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LearnsEnd {
    /// When it is created. Later events are newer than its `CaughtUp`.
    AtOnce,
    /// A little later, from a server.
    Later,
}

/// A follower gets every event once and in order while many tasks write, and `CaughtUp` before the
/// newer events.
pub(super) async fn follow_all(store: Arc<dyn Store>, learns: LearnsEnd) {
    const EACH: usize = 25;
    let logs: Vec<LogName> = (0..WRITERS).map(|_| new_log()).collect();
    for log in &logs {
        append(&*store, log, "before").await.unwrap();
    }
    let mut followed = store.follow(None);
    let newest = append(&*store, &logs[0], "after the follower began").await.unwrap();
    let writing = join_all(logs.iter().map(async |log| {
        for n in 0..EACH {
            append(&*store, log, &n.to_string()).await.unwrap();
        }
    }));

    let following = async {
        let (mut events, caught_up) = catch_up(&mut followed).await;
        assert!(events.iter().all(|(_, entry)| entry.position <= caught_up));
        let seen = |events: &[(LogName, Entry)]| {
            events.iter().filter(|(log, _)| logs.contains(log)).count()
        };
        let before = seen(&events);
        if learns == LearnsEnd::AtOnce {
            assert!(caught_up < newest, "caught up at {caught_up:?}, not before {newest:?}");
            assert_eq!(before, WRITERS);
        }
        assert!(before >= WRITERS, "caught up after {before} events");
        while seen(&events) < WRITERS * (1 + EACH) + 1 {
            match next(&mut followed).await {
                Some(Followed::Event(log, entry)) => {
                    assert!(entry.position > caught_up);
                    events.push((log, entry));
                }
                other => panic!("{other:?} instead of an event"),
            }
        }
        events
    };
    let (events, _) = tokio::join!(following, writing);

    assert!(events.is_sorted_by(|(_, a), (_, b)| a.position < b.position && a.time <= b.time));
    let mut by_log: HashMap<LogName, Vec<Entry>> = HashMap::new();
    for (log, entry) in events {
        by_log.entry(log).or_default().push(entry);
    }
    for log in &logs {
        assert_eq!(by_log[log], read_to_end(&*store, log).await.unwrap());
    }
}

/// A follower continues exactly after its position; at the end, it has caught up at once.
pub(super) async fn follow_from(store: &dyn Store) {
    let log = new_log();
    let mut positions = Vec::new();
    for n in 0..5 {
        positions.push(append(store, &log, &n.to_string()).await.unwrap());
    }
    let (events, caught_up) = catch_up(&mut store.follow(Some(positions[2]))).await;
    assert_eq!(events.iter().map(|(_, entry)| entry.position).collect::<Vec<_>>(), positions[3..]);
    assert!(caught_up >= positions[4]);

    let mut at_end = store.follow(Some(positions[4]));
    assert_eq!(catch_up(&mut at_end).await, (vec![], positions[4]));
    let position = append(store, &log, "live").await.unwrap();
    let Some(Followed::Event(of, entry)) = next(&mut at_end).await else { panic!("no event") };
    assert_eq!((of, entry.position), (log, position));
}

/// A follower ends with `Lost` if its position is of another store or beyond the end of this one.
pub(super) async fn replaced(store: &dyn Store) {
    let Position { epoch, sequence } = append(store, &new_log(), "last").await.unwrap();
    for invalid in [
        Position { epoch: epoch ^ 1, sequence },
        Position { epoch: epoch ^ 1, sequence: 0 },
        Position { epoch, sequence: sequence + 1 },
    ] {
        let mut followed = store.follow(Some(invalid));
        assert_eq!(next(&mut followed).await, Some(Followed::Lost(Lost::Replaced)), "{invalid:?}");
        assert_eq!(next(&mut followed).await, None);
    }
}

/// A follower ends with `Lost` if events after its position have expired. From the beginning, it
/// gets the events that are left.
pub(super) async fn too_old(store: &dyn Store, expired: Position) {
    let mut followed = store.follow(Some(expired));
    assert_eq!(next(&mut followed).await, Some(Followed::Lost(Lost::TooOld)));
    assert_eq!(next(&mut followed).await, None);

    let kept = append(store, &new_log(), "kept").await.unwrap();
    for beginning in [None, Some(Position { sequence: 0, ..expired })] {
        let (events, _) = catch_up(&mut store.follow(beginning)).await;
        assert!(events.iter().all(|(_, entry)| entry.position > expired));
        assert!(events.iter().any(|(_, entry)| entry.position == kept));
    }
}

/// No increment is lost when 16 tasks increment one cell 20 times each.
pub(super) async fn swap_race(store: Arc<dyn Store>) {
    const EACH: usize = 20;
    let cell = CellName::retained(Uuid::new_v4().to_string());
    let increments = (0..WRITERS).map(|_| {
        let (store, cell) = (Arc::clone(&store), cell.clone());
        tokio::spawn(async move {
            let mut current = store.load(&cell).await.unwrap();
            for _ in 0..EACH {
                loop {
                    let count = current.as_ref().map_or(0, |current| number(&current.value));
                    let value = Bytes::from((count + 1).to_string());
                    let expected = current.as_ref().map(|current| current.version);
                    match store.swap(&cell, expected, value.clone()).await.unwrap() {
                        Swap::Swapped(version) => {
                            assert!(expected.is_none_or(|expected| version > expected));
                            current = Some(Versioned { version, value });
                            break;
                        }
                        Swap::Conflict(now) => current = now,
                    }
                }
            }
        })
    });
    join_all(increments).await.into_iter().for_each(|increment| increment.unwrap());
    let cell = store.load(&cell).await.unwrap().unwrap();
    assert_eq!(number(&cell.value), WRITERS * EACH);
}

fn swapped(swap: Result<Swap, StoreError>) -> Version {
    match swap {
        Ok(Swap::Swapped(version)) => version,
        other => panic!("{other:?}"),
    }
}

fn number(value: &[u8]) -> usize {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// A swap that expects another version changes nothing and returns the current value.
pub(super) async fn swap_conflict(store: &dyn Store) {
    let name = Uuid::new_v4().to_string();
    let (cell, other_life) = (CellName::permanent(&name), CellName::retained(&name));
    assert_eq!(store.load(&cell).await.unwrap(), None);
    let absent = store.swap(&cell, Some(Version(1)), Bytes::from_static(b"never")).await.unwrap();
    assert_eq!(absent, Swap::Conflict(None));

    let first = swapped(store.swap(&cell, None, Bytes::from_static(b"one")).await);
    let second = swapped(store.swap(&cell, Some(first), Bytes::from_static(b"two")).await);
    assert!(second > first);
    let third = swapped(store.swap(&cell, Some(second), Bytes::from_static(b"two")).await);
    assert!(third > second, "an equal value is a new version");

    let current = store.load(&cell).await.unwrap();
    let expected = Versioned { version: third, value: Bytes::from_static(b"two") };
    assert_eq!(current, Some(expected));
    for stale in [None, Some(first), Some(second)] {
        let swap = store.swap(&cell, stale, Bytes::from_static(b"never")).await.unwrap();
        assert_eq!(swap, Swap::Conflict(current.clone()));
    }
    assert_eq!(store.load(&cell).await.unwrap(), current);
    assert_eq!(store.load(&other_life).await.unwrap(), None);
}

/// Without space, the store keeps acknowledged events and stores no refused one. With space again,
/// it accepts events. `fill` leaves at most 100 MB.
pub(super) async fn full(store: &dyn Store, fill: impl AsyncFnOnce(), free: impl AsyncFnOnce()) {
    const BYTES: usize = 100_000;
    const TRIES: usize = 1_000;
    let log = new_log();
    let mut followed = store.follow(None);
    let mut stored = vec![append(store, &log, "before").await.unwrap()];
    fill().await;
    let mut refused = 0;
    while refused < 3 {
        match store.append(&log, Uuid::new_v4(), vec![0; BYTES].into()).await {
            Ok(position) => stored.push(position),
            Err(StoreError::Full(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(stored.len() < TRIES, "the store never became full");
    }
    free().await;

    let id = Uuid::new_v4();
    let writing = async {
        loop {
            match store.append(&log, id, vec![0; BYTES].into()).await {
                Ok(position) => return position,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    stored.push(timeout(DEADLINE, writing).await.expect("the store did not recover"));
    let positions: Vec<_> =
        read_to_end(store, &log).await.unwrap().iter().map(|e| e.position).collect();
    assert_eq!(positions, stored);
    let mut seen = Vec::new();
    while seen.len() < stored.len() {
        match next(&mut followed).await {
            Some(Followed::Event(of, entry)) if of == log => seen.push(entry.position),
            Some(Followed::Event(..) | Followed::CaughtUp(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, stored);
}
