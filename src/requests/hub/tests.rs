//! The projection against a real store.

mod logs;
mod memory;

use futures_util::future::{join_all, try_join_all};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    proto::storage::{self, StatusClass},
    requests::{
        append,
        fold::{
            event::Kind,
            state::{RequestState, Transition},
        },
    },
    store::{LogName, embedded::Embedded},
};

/// How long a test waits for a condition.
const DEADLINE: Duration = Duration::from_secs(30);

const KEEP: Duration = Duration::from_hours(1);

fn store() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store.redb"), KEEP).unwrap();
    (folder, Arc::new(store))
}

/// No limit in size.
fn limits(idle: Duration) -> ClosedLimits {
    ClosedLimits { bytes: usize::MAX, idle }
}

/// A hub that follows its store until it is stopped.
struct Running {
    hub: Arc<Hub>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(store: &Arc<dyn Store>, closed_in_memory: Duration) -> Self {
        Self::start_with(store, limits(closed_in_memory)).await
    }

    async fn start_with(store: &Arc<dyn Store>, limits: ClosedLimits) -> Self {
        let hub = Arc::new(Hub::new(Arc::clone(store), limits, KEEP, true));
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (hub, stop) = (Arc::clone(&hub), stop.clone());
            async move { hub.follow(stop).await }
        });
        within(hub.caught_up()).await;
        Self { hub, stop, task }
    }

    async fn folded(&self, position: Position) {
        within(async { while !self.hub.wait_until_folded(position).await {} }).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        within(self.task).await.unwrap();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it happens before the deadline")
}

fn id(n: usize) -> RequestId {
    RequestId::parse(&format!("request-{n}")).unwrap()
}

fn device() -> storage::Device {
    storage::Device { eid: "1".repeat(32), iccid: "1".repeat(20), ..storage::Device::default() }
}

fn accepted(n: usize) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: format!("order-{n}"),
        account: "0000123456-00001".to_owned(),
        devices: vec![device()],
        ..storage::Accepted::default()
    })
}

fn called_back(class: StatusClass, profile: Option<storage::Profile>) -> Kind {
    Kind::CalledBack(storage::CalledBack {
        account: "0000123456-00001".to_owned(),
        device: Some(device()),
        status: class.into(),
        profile,
        ..storage::CalledBack::default()
    })
}

fn profile() -> storage::Profile {
    storage::Profile { state: "ACTIVE".to_owned(), ..storage::Profile::default() }
}

/// The events of a request, with one revision each.
fn four_events(n: usize) -> [Kind; 4] {
    [
        accepted(n),
        called_back(StatusClass::Waiting, None),
        called_back(StatusClass::Succeeded, None),
        called_back(StatusClass::Succeeded, Some(profile())),
    ]
}

async fn add(store: &Arc<dyn Store>, id: &RequestId, kind: Kind) -> Position {
    append(&**store, &LogName::request(id.as_str()), None, Uuid::now_v7(), kind).await.unwrap()
}

#[tokio::test]
async fn a_late_callback_reaches_a_log_that_has_left_memory() {
    let (_folder, store) = store();
    let running = Running::start(&store, Duration::ZERO).await;
    let [accepted, _, succeeded, late] = four_events(1);
    add(&store, &id(1), accepted).await;
    running.folded(add(&store, &id(1), succeeded).await).await;
    running.hub.evict_and_advance().await;
    assert!(running.hub.get(&id(1)).is_none(), "a closed request leaves memory");

    running.folded(add(&store, &id(1), late).await).await;
    let (tracked, _changes) = running.hub.attach(&id(1)).await.unwrap().unwrap();
    {
        let folded = tracked.lock();
        assert_eq!((folded.request.revision, folded.request.state()), (3, RequestState::Succeeded));
        assert_eq!(folded.request.devices[0].profile, Some(profile()));
        assert_eq!(folded.after(0).map(|transitions| transitions.len()), Some(3));
    }
    running.hub.evict_and_advance().await;
    assert!(running.hub.get(&id(1)).is_some(), "one that is watched stays");
    running.stop().await;
}

#[tokio::test]
async fn a_late_callback_reaches_a_watcher_of_a_finished_request() {
    let (_folder, store) = store();
    let running = Running::start(&store, Duration::ZERO).await;
    let [accepted, _, succeeded, late] = four_events(1);
    add(&store, &id(1), accepted).await;
    running.folded(add(&store, &id(1), succeeded).await).await;
    let (tracked, mut changes) = running.hub.attach(&id(1)).await.unwrap().unwrap();
    assert_eq!(*changes.borrow_and_update(), 2);
    add(&store, &id(1), late).await;
    within(changes.changed()).await.unwrap();
    let received = tracked.lock().after(2).unwrap();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].devices[0].profile, Some(profile()));
    running.stop().await;
}

#[tokio::test]
async fn the_follower_waits_for_no_other_request_s_log() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    let loads = running.hub.loads.acquire_many(u32::try_from(MAX_LOADS).unwrap()).await.unwrap();
    let _loading = running.hub.loading.lock(&id(2)).await;
    running.folded(add(&store, &id(1), accepted(1)).await).await;
    assert!(running.hub.get(&id(1)).is_some());
    drop(loads);
    running.stop().await;
}

#[tokio::test]
async fn an_empty_log_has_no_request() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    assert!(running.hub.attach(&id(1)).await.unwrap().is_none());
    running.stop().await;
}

#[tokio::test]
async fn callbacks_of_an_unknown_request_do_not_read_its_log() {
    const CALLBACKS: u64 = 10_000;
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    let unknown = id(1);
    running.folded(add(&store, &unknown, called_back(StatusClass::Waiting, None)).await).await;
    assert!(running.hub.get(&unknown).is_none());
    assert_eq!(running.hub.events_read(), 1, "followed, and not read");

    let rest =
        (1..CALLBACKS).map(|_| add(&store, &unknown, called_back(StatusClass::Succeeded, None)));
    let last = within(join_all(rest)).await.into_iter().max().unwrap();
    running.folded(last).await;
    assert_eq!(running.hub.events_read(), CALLBACKS);

    running.folded(add(&store, &unknown, accepted(1)).await).await;
    assert_eq!(running.hub.events_read(), 2 * (CALLBACKS + 1), "the acceptance reads the log once");
    let (tracked, _changes) = running.hub.attach(&unknown).await.unwrap().unwrap();
    assert_eq!(tracked.lock().request.state(), RequestState::Succeeded);
    running.stop().await;
}

async fn add_to_order(store: &Arc<dyn Store>, order: &str, kind: Kind) -> Position {
    append(&**store, &LogName::order(order), None, Uuid::now_v7(), kind).await.unwrap()
}

fn ordered() -> Kind {
    Kind::Ordered(storage::Ordered {
        account: "0000123456-00001".to_owned(),
        devices: vec![device()],
        ..storage::Ordered::default()
    })
}

#[tokio::test]
async fn an_acceptance_after_the_conclusion_that_nothing_was_placed_is_picked_up() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    add_to_order(&store, "order-1", ordered()).await;
    let concluded = Kind::NotSent(storage::NotSent {});
    running.folded(add_to_order(&store, "order-1", concluded).await).await;
    assert!(running.hub.order_without_outcome("order-1").is_none());

    let accepted_as = Kind::AcceptedAs(storage::AcceptedAs { request_id: id(1).to_string() });
    running.folded(add_to_order(&store, "order-1", accepted_as).await).await;
    within(running.hub.resolver_woken()).await;
    assert_eq!(running.hub.unfinished_orders(), ["order-1"]);
    running.folded(add(&store, &id(1), accepted(1)).await).await;
    assert_eq!(running.hub.unfinished_orders(), [""; 0]);
    running.stop().await;
}

#[tokio::test]
async fn leads_of_an_order_are_bounded_and_taken_once() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    add_to_order(&store, "order-1", ordered()).await;
    let called_back = || called_back(StatusClass::Succeeded, None);
    let all = (0..100).map(async |n| add(&store, &id(n), called_back()).await);
    let last = join_all(all).await.into_iter().max();
    running.folded(last.unwrap()).await;
    let candidates = running.hub.candidates();
    assert_eq!(candidates.len(), 64);
    for (order, request) in &candidates {
        running.hub.drop_candidate(order, request);
    }
    running.folded(add(&store, &candidates[0].1, called_back()).await).await;
    running.folded(add(&store, &id(100), called_back()).await).await;
    assert_eq!(running.hub.candidates(), []);
    running.stop().await;
}

/// Returns the number of events that a start reads after `finished` finished requests and an open
/// one.
async fn read_at_start(finished: usize) -> u64 {
    let (_folder, store) = store();
    let before = Running::start(&store, KEEP).await;
    let finish = async |n| {
        for kind in four_events(n) {
            add(&store, &id(n), kind).await;
        }
    };
    within(join_all((1..=finished).map(finish))).await;
    before.folded(add(&store, &id(0), accepted(0)).await).await;
    before.stop().await;

    let after = Running::start(&store, KEEP).await;
    let events = after.hub.events_read();
    assert_eq!(after.hub.open_requests(), [id(0)]);
    assert_eq!(after.hub.open_devices(), 1);
    after.stop().await;
    events
}

#[tokio::test]
async fn a_start_reads_only_what_is_open() {
    let few = read_at_start(100).await;
    assert_eq!(few, 2, "followed, and read from its beginning");
    assert_eq!(read_at_start(2_000).await, few);
}

#[tokio::test]
async fn a_request_read_ahead_of_the_follower_does_not_raise_the_mark_beyond_it() {
    let (_folder, store) = store();
    let folded = add(&store, &id(0), accepted(0)).await;
    let behind = Hub::new(Arc::clone(&store), limits(KEEP), KEEP, true);
    behind.progress.send_replace(FollowerProgress { folded: Some(folded), caught_up: true });
    add(&store, &id(1), accepted(1)).await;
    add(&store, &id(2), accepted(2)).await;
    behind.attach(&id(2)).await.unwrap().unwrap();
    behind.evict_and_advance().await;

    let next = Running::start(&store, KEEP).await;
    assert!(
        next.hub.open_requests().contains(&id(1)),
        "it is open, and was not folded when the mark was raised"
    );
    next.stop().await;
}

#[tokio::test]
async fn the_devices_of_an_order_are_in_memory_while_its_outcome_is_unknown() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    let log = LogName::order("order-1");
    let ordered = storage::Ordered { devices: vec![device()], ..storage::Ordered::default() };
    let position =
        append(&*store, &log, None, Uuid::now_v7(), Kind::Ordered(ordered.clone())).await.unwrap();
    running.folded(position).await;
    let order = running.hub.order_without_outcome("order-1").unwrap();
    assert_eq!((order.first, order.ordered), (Some(position), Some(ordered.clone())));
    let accepted_as = storage::AcceptedAs { request_id: id(1).to_string() };
    let position =
        append(&*store, &log, None, Uuid::now_v7(), Kind::AcceptedAs(accepted_as)).await.unwrap();
    running.folded(position).await;
    assert_eq!(running.hub.unfinished_orders(), ["order-1"]);
    let kept = {
        let projection = lock(&running.hub.projection);
        let (_, order) = projection.orders.iter().find(|(id, _)| &***id == "order-1").unwrap();
        order.ordered.clone()
    };
    assert_eq!(kept, None, "no longer needed in memory");
    assert_eq!(running.hub.order("order-1").await.unwrap().ordered, Some(ordered));
    running.stop().await;
}

/// Watches a request from its first event in the store to its fourth revision.
async fn watch(hub: &Hub, id: &RequestId) -> (u64, Vec<Arc<Transition>>) {
    let (tracked, mut changes) = loop {
        match hub.attach(id).await.unwrap() {
            Some(attached) => break attached,
            None => tokio::task::yield_now().await,
        }
    };
    let first = tracked.lock().request.revision;
    let mut received = Vec::new();
    let mut revision = first;
    while revision < 4 {
        changes.borrow_and_update();
        let new = tracked.lock().after(revision).expect("the last transitions are in memory");
        revision = new.last().map_or(revision, |transition| transition.revision);
        let is_idle = new.is_empty();
        received.extend(new);
        if is_idle {
            changes.changed().await.unwrap();
        }
    }
    (first, received)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_watcher_that_attaches_at_any_time_sees_every_transition_once() {
    const REQUESTS: usize = 100;
    const WATCHERS: usize = 4;
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    let watchers = (0..REQUESTS * WATCHERS).map(|n| {
        let hub = Arc::clone(&running.hub);
        tokio::spawn(async move { watch(&hub, &id(n % REQUESTS)).await })
    });
    let watchers: Vec<_> = watchers.collect();
    let writers = (0..REQUESTS).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for kind in four_events(n) {
                add(&store, &id(n), kind).await;
            }
        })
    });
    within(try_join_all(writers.collect::<Vec<_>>())).await.unwrap();
    for (n, seen) in within(try_join_all(watchers)).await.unwrap().into_iter().enumerate() {
        let (first, received) = seen;
        let revisions: Vec<_> = received.iter().map(|transition| transition.revision).collect();
        assert_eq!(revisions, (first + 1..=4).collect::<Vec<_>>(), "watcher {n}");
        let id = id(n % REQUESTS);
        let from_the_log = running
            .hub
            .history(&id, running.hub.first(&id), first, &mut PageGuard::default())
            .await;
        assert_eq!(received, from_the_log.unwrap().unwrap(), "watcher {n}");
    }
    assert_eq!(running.hub.open_devices(), 0);
    running.stop().await;
}
