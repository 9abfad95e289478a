//! What stays in memory, what is read again, and what is shared.

use tokio::task::unconstrained;

use super::{
    super::history::{MAX_PAGES, batch},
    *,
};
use crate::requests::{
    Error,
    fold::{event, state::Request},
    watch::{
        Snapshot, Watch, WatchEvent, Watched,
        token::{Resume, TokenKey},
    },
};

/// Each device waits and then fails with a long text. The transitions fill several pages.
const DEVICES: usize = 2_500;
const TEXT_CHARS: usize = 1_500;

fn nth(n: usize) -> storage::Device {
    storage::Device { eid: format!("{n:032}"), ..storage::Device::default() }
}

fn long_history() -> Vec<Kind> {
    let accepted = Kind::Accepted(storage::Accepted {
        order_id: "order".to_owned(),
        account: "0000123456-00001".to_owned(),
        devices: (0..DEVICES).map(nth).collect(),
        ..storage::Accepted::default()
    });
    let called_back = |n, status: StatusClass, fault| {
        Kind::CalledBack(storage::CalledBack {
            account: "0000123456-00001".to_owned(),
            device: Some(nth(n)),
            status: status.into(),
            fault,
            profile: None,
        })
    };
    let fault = storage::Fault { code: "1".to_owned(), message: "m".repeat(TEXT_CHARS) };
    let waiting = (0..DEVICES).map(|n| called_back(n, StatusClass::Waiting, None));
    let failed = (0..DEVICES).map(|n| called_back(n, StatusClass::Failed, Some(fault.clone())));
    std::iter::once(accepted).chain(waiting).chain(failed).collect()
}

/// Appends events in this order, many per commit.
async fn add_all(store: &Arc<dyn Store>, id: &RequestId, kinds: Vec<Kind>) -> Vec<Position> {
    let log = LogName::request(id.as_str());
    let mut positions = Vec::new();
    for kinds in kinds.chunks(1_000) {
        let append =
            |kind: &Kind| store.append(&log, Uuid::now_v7(), event::encode(kind.clone(), None));
        positions.extend(unconstrained(try_join_all(kinds.iter().map(append))).await.unwrap());
    }
    assert!(positions.is_sorted());
    positions
}

/// Returns all transitions after a revision, read in batches as a watcher does.
async fn read_on(hub: &Hub, id: &RequestId, first: Position, after: u64) -> Vec<Arc<Transition>> {
    let (mut received, mut reading) = (Vec::<Arc<Transition>>::new(), PageGuard::default());
    loop {
        let after = received.last().map_or(after, |last| last.revision);
        let more =
            within(hub.history(id, Some(first), after, &mut reading)).await.unwrap().unwrap();
        if more.is_empty() {
            return received;
        }
        let devices: usize = more.iter().skip(1).map(|transition| transition.devices.len()).sum();
        assert!(devices <= MAX_BATCH);
        received.extend(more);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_are_far_behind_share_pages() {
    const WATCHERS: usize = 16;
    let (_folder, store) = store();
    let hub = Arc::new(Hub::new(Arc::clone(&store), limits(KEEP), KEEP, true));
    let kinds = long_history();
    let positions = add_all(&store, &id(1), kinds.clone()).await;
    let mut request = Request::default();
    let expected: Vec<_> = kinds
        .into_iter()
        .zip(&positions)
        .filter_map(|(kind, position)| {
            let event = event::decode(&event::encode(kind, None)).unwrap();
            request.apply(*position, jiff::Timestamp::UNIX_EPOCH, &event).transition
        })
        .map(|transition| (transition.revision, transition.position, transition.counts))
        .collect();
    assert_eq!(expected.len(), 2 * DEVICES + 1);

    let watchers = (0..WATCHERS).map(|n| {
        let (hub, first) = (Arc::clone(&hub), positions[0]);
        tokio::spawn(async move { read_on(&hub, &id(1), first, n as u64).await })
    });
    for (n, received) in
        try_join_all(watchers.collect::<Vec<_>>()).await.unwrap().into_iter().enumerate()
    {
        let received: Vec<_> =
            received.iter().map(|t| (t.revision, t.position, t.counts)).collect();
        assert!(received == expected[n..], "watcher {n}");
    }
    // One read per page, and one per watcher that finds the end.
    let pages = lock(&hub.history.pages).len() as u64;
    assert!((2..=4).contains(&pages), "{pages} pages");
    let reads = hub.events_read() / positions.len() as u64;
    assert!(reads <= pages + WATCHERS as u64, "{reads} times the log");
    // Another log does not begin there.
    let elsewhere = Position { sequence: positions[0].sequence + 1, ..positions[0] };
    let lost = hub.history(&id(1), Some(elsewhere), 0, &mut PageGuard::default()).await.unwrap();
    assert_eq!(lost, None);
}

#[tokio::test]
async fn stalled_readers_hold_no_pages() {
    let (_folder, store) = store();
    let hub = Hub::new(Arc::clone(&store), limits(KEEP), KEEP, true);
    let mut stalled = Vec::new();
    for n in 0..MAX_PAGES + 3 {
        let first = add(&store, &id(n), accepted(n)).await;
        let mut reading = PageGuard::default();
        let received =
            within(hub.history(&id(n), Some(first), 0, &mut reading)).await.unwrap().unwrap();
        assert_eq!(received.len(), 1);
        stalled.push(reading);
        assert!(lock(&hub.history.pages).len() <= MAX_PAGES);
    }
    hub.history.drop_unused(Duration::ZERO);
    assert_eq!(lock(&hub.history.pages).len(), 0);
}

#[tokio::test]
async fn closed_requests_are_bounded_in_bytes() {
    const FINISHED: usize = 6;
    let (_folder, store) = store();
    let [.., late] = four_events(0);
    let bytes = {
        let mut folded = TrackedState::default();
        for (n, kind) in four_events(0).into_iter().enumerate() {
            let position = Position { epoch: 1, sequence: n as u64 + 1 };
            let entry = crate::store::Entry {
                position,
                time: jiff::Timestamp::UNIX_EPOCH,
                event: event::encode(kind, None),
            };
            folded.apply("request", &entry);
        }
        folded.bytes()
    };
    let running = Running::start_with(&store, ClosedLimits { bytes: 3 * bytes, idle: KEEP }).await;
    let mut last = add(&store, &id(100), accepted(100)).await;
    for n in 0..FINISHED {
        for kind in four_events(n) {
            last = add(&store, &id(n), kind).await;
        }
    }
    running.folded(last).await;
    let hub = &running.hub;
    let in_memory = || (0..FINISHED).filter(|n| hub.get(&id(*n)).is_some()).collect::<Vec<_>>();
    // Which ones stay depends on which of them the follower uses meanwhile.
    assert_eq!(in_memory().len(), 3);
    assert!(hub.get(&id(100)).is_some(), "open requests stay");

    // Requests that are read again evict others, but none in use.
    let used = hub.attach(&id(3)).await.unwrap().unwrap();
    for n in [0, 1, 2] {
        let (tracked, _) = hub.attach(&id(n)).await.unwrap().unwrap();
        assert_eq!(tracked.lock().request.state(), RequestState::Succeeded);
    }
    assert_eq!(in_memory(), [1, 2, 3]);
    drop(used);
    // A late callback does not load a request.
    running.folded(add(&store, &id(5), late).await).await;
    assert_eq!(in_memory(), [1, 2, 3]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_one_request_share_a_read() {
    let (_folder, store) = store();
    let hub = Arc::new(Hub::new(Arc::clone(&store), limits(KEEP), KEEP, true));
    let positions = add_all(&store, &id(1), long_history()).await;
    let callers = (0..20).map(|_| {
        let hub = Arc::clone(&hub);
        tokio::spawn(
            async move { hub.attach(&id(1)).await.unwrap().unwrap().0.lock().request.revision },
        )
    });
    let revisions = within(try_join_all(callers.collect::<Vec<_>>())).await.unwrap();
    assert!(revisions.iter().all(|revision| *revision == positions.len() as u64));
    assert_eq!(hub.events_read(), positions.len() as u64);
}

#[test]
fn a_batch_is_bounded_in_devices() {
    let transition = |devices: usize| {
        let kind = Kind::Accepted(storage::Accepted {
            account: "0000123456-00001".to_owned(),
            devices: (0..devices).map(nth).collect(),
            ..storage::Accepted::default()
        });
        let event = event::decode(&event::encode(kind, None)).unwrap();
        let position = Position { epoch: 1, sequence: 1 };
        let applied = Request::default().apply(position, jiff::Timestamp::UNIX_EPOCH, &event);
        Arc::new(applied.transition.unwrap())
    };
    let taken = |sizes: &[usize]| {
        let transitions: Vec<_> = sizes.iter().map(|devices| transition(*devices)).collect();
        batch(transitions.iter()).len()
    };
    assert_eq!(taken(&[]), 0);
    assert_eq!(taken(&[MAX_BATCH + 1, 1]), 1);
    assert_eq!(taken(&[1, MAX_BATCH - 1, 1]), 2);
    assert_eq!(taken(&[1, MAX_BATCH]), 1);
}

async fn begin(running: &Running, store: &Arc<dyn Store>) -> Watch {
    let attached = running.hub.attach(&id(1)).await.unwrap().unwrap();
    let key = TokenKey::load_or_create(&**store).await.unwrap();
    Watch::begin(Arc::clone(&running.hub), attached, "caller".into(), key, None, KEEP)
        .await
        .unwrap()
}

async fn snapshot(watch: &mut Watch) -> Snapshot {
    match within(watch.next(None)).await.unwrap() {
        Watched::Event(WatchEvent::Snapshot(snapshot)) => snapshot,
        other => panic!("not a snapshot: {other:?}"),
    }
}

/// Waits until the request is evicted after its watch was not read for a while.
async fn wait_until_evicted(hub: &Hub) {
    within(async {
        while hub.get(&id(1)).is_some() {
            hub.evict_and_advance().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    hub.snapshots.drop_unused(Duration::ZERO);
}

#[tokio::test]
async fn a_watch_with_a_stalled_reader_keeps_no_finished_request_in_memory() {
    let (_folder, store) = store();
    let running = Running::start(&store, Duration::ZERO).await;
    let [accepted, _, succeeded, late] = four_events(1);
    add(&store, &id(1), accepted).await;
    running.folded(add(&store, &id(1), succeeded).await).await;

    let mut watch = begin(&running, &store).await;
    let first = snapshot(&mut watch).await;
    let devices = Arc::downgrade(&first.devices);
    watch.pause(first.clone());
    running.hub.evict_and_advance().await;
    assert!(running.hub.get(&id(1)).is_some(), "it stays while it is read");
    let expected = (first.revision, first.position, first.devices.to_vec());
    drop(first);
    wait_until_evicted(&running.hub).await;
    assert_eq!(devices.strong_count(), 0, "the snapshot is kept");

    let again = snapshot(&mut watch).await;
    assert_eq!((again.revision, again.position, again.devices.to_vec()), expected);
    watch.complete(Resume { position: again.position, revision: again.revision });
    wait_until_evicted(&running.hub).await;
    let end = within(watch.next(None)).await.unwrap();
    assert!(matches!(end, Watched::Final), "it ends with the final state");

    // The partly sent snapshot is dropped and the request has changed, so the watch must be
    // resumed.
    let mut watch = begin(&running, &store).await;
    let first = snapshot(&mut watch).await;
    watch.pause(first);
    running.folded(add(&store, &id(1), late).await).await;
    wait_until_evicted(&running.hub).await;
    assert!(matches!(within(watch.next(None)).await, Err(Error::SlowReader)));
    // A resumed watch begins with the change.
    let mut resumed = begin(&running, &store).await;
    let whole = snapshot(&mut resumed).await;
    assert_eq!(whole.revision, 3);
    running.stop().await;
}
