//! Requests that belong to another order, logs without a beginning, and ids in another case.

use super::*;

fn accepted_as(n: usize) -> Kind {
    Kind::AcceptedAs(storage::AcceptedAs { request_id: id(n).to_string() })
}

/// A status answer that makes the devices of a request known.
fn answered(class: StatusClass) -> Kind {
    Kind::Observed(storage::Observed {
        account: "0000123456-00001".to_owned(),
        overall: class.into(),
        devices: vec![storage::ObservedDevice { device: Some(device()), status: class.into() }],
        complete: true,
        ..storage::Observed::default()
    })
}

/// The request is finished before the order's acceptance is in its log. The follower reads the log
/// ahead.
#[tokio::test]
async fn an_accepted_order_leaves_memory_when_its_requests_log_was_read_ahead() {
    let (_folder, store) = store();
    add(&store, &id(1), answered(StatusClass::Succeeded)).await;
    add_to_order(&store, "order-1", ordered()).await;
    add_to_order(&store, "order-1", accepted_as(1)).await;
    let end = add(&store, &id(1), accepted(1)).await;
    let running = Running::start(&store, KEEP).await;
    running.folded(end).await;
    assert_eq!(running.hub.unfinished_orders(), [""; 0]);
    running.stop().await;
}

/// A caller loads the request before the follower meets it.
#[tokio::test]
async fn an_accepted_order_leaves_memory_when_its_request_is_held_already() {
    let (_folder, store) = store();
    add_to_order(&store, "order-1", ordered()).await;
    add_to_order(&store, "order-1", accepted_as(1)).await;
    add(&store, &id(1), called_back(StatusClass::Waiting, None)).await;
    let end = add(&store, &id(1), accepted(1)).await;
    let hub = Arc::new(Hub::new(Arc::clone(&store), limits(KEEP), KEEP, true));
    hub.attach(&id(1)).await.unwrap().unwrap();
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (hub, stop) = (Arc::clone(&hub), stop.clone());
        async move { hub.follow(stop).await }
    });
    within(hub.caught_up()).await;
    within(async { while !hub.wait_until_folded(end).await {} }).await;
    assert_eq!(hub.unfinished_orders(), [""; 0]);
    stop.cancel();
    within(following).await.unwrap();
}

/// The acceptance must be withdrawn. Until then the resolver must find the order.
#[tokio::test]
async fn an_order_whose_request_is_another_orders_is_unfinished_until_its_acceptance_is_withdrawn()
{
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    add(&store, &id(1), accepted(1)).await;
    add_to_order(&store, "order-2", ordered()).await;
    add_to_order(&store, "order-2", accepted_as(1)).await;
    let Kind::Accepted(second) = accepted(2) else { unreachable!() };
    running.folded(add(&store, &id(1), Kind::Accepted(second)).await).await;
    assert_eq!(running.hub.unfinished_orders(), ["order-2"]);
    let withdrawn =
        storage::Withdrawn { order_id: "order-2".to_owned(), request_id: id(1).to_string() };
    running.folded(add_to_order(&store, "order-2", Kind::Withdrawn(withdrawn)).await).await;
    assert_eq!(running.hub.unfinished_orders(), [""; 0]);
    let order = running.hub.order_without_outcome("order-2").unwrap();
    assert!(order.ordered.is_some(), "its devices are known again");
    running.stop().await;
}

/// The store has lost the acceptance, and the log begins with a later status answer.
#[tokio::test]
async fn a_log_that_lost_its_beginning_is_never_folded() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    let lost = Position { epoch: 1, sequence: 1_000 };
    let log = LogName::request(id(1).as_str());
    let news = answered(StatusClass::Succeeded);
    let at = append(&*store, &log, Some(lost), Uuid::now_v7(), news).await.unwrap();
    running.folded(at).await;
    assert_eq!((running.hub.open_requests(), running.hub.open_devices()), (vec![], 0));
    let (tracked, _changes) = running.hub.attach(&id(1)).await.unwrap().unwrap();
    assert!(tracked.lock().request.is_expired() && !tracked.lock().request.known);
    running.stop().await;
}

/// Other replicas read only the rest of the log. This replica must not show more than they do.
#[tokio::test]
async fn a_request_in_memory_is_dropped_when_its_log_turns_out_to_begin_elsewhere() {
    let (_folder, store) = store();
    let running = Running::start(&store, KEEP).await;
    running.folded(add(&store, &id(1), answered(StatusClass::Waiting)).await).await;
    let (tracked, _changes) = running.hub.attach(&id(1)).await.unwrap().unwrap();
    assert_eq!(running.hub.open_devices(), 1);
    let log = LogName::request(id(1).as_str());
    let elsewhere = Position { epoch: 1, sequence: 1_000 };
    let news = answered(StatusClass::Succeeded);
    let at = append(&*store, &log, Some(elsewhere), Uuid::now_v7(), news).await.unwrap();
    running.folded(at).await;
    assert!(tracked.lock().is_discarded() && running.hub.get(&id(1)).is_none());
    assert_eq!(running.hub.open_devices(), 0);
    running.stop().await;
}

#[tokio::test]
async fn ids_of_requests_are_found_in_any_case() {
    let (_folder, store) = store();
    let running = Running::start(&store, Duration::ZERO).await;
    let spelled = |text: &str| RequestId::parse(text).unwrap();
    let (small, mixed) = (spelled("ab-1"), spelled("Cd-2"));
    add(&store, &mixed, accepted(2)).await;
    running.folded(add(&store, &small, accepted(1)).await).await;
    let find = async |text: &str| running.hub.spelling(&spelled(text)).await.unwrap();
    for text in ["ab-1", "AB-1", "Ab-1"] {
        assert_eq!(find(text).await, Some(small.clone()), "{text}");
    }
    for text in ["cd-2", "CD-2", "Cd-2"] {
        assert_eq!(find(text).await, Some(mixed.clone()), "{text}");
    }
    assert_eq!(find("ef-3").await, None);
    // Closed, and no longer in memory.
    for id in [&small, &mixed] {
        running.folded(add(&store, id, called_back(StatusClass::Succeeded, None)).await).await;
    }
    running.hub.evict_and_advance().await;
    assert!(running.hub.get(&small).is_none() && running.hub.get(&mixed).is_none());
    assert_eq!((find("AB-1").await, find("Cd-2").await), (Some(small), Some(mixed)));
    running.stop().await;
}
