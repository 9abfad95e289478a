//! Request ids in another case: callers, callbacks and ThingSpace's answers may write the id of one
//! request in different cases.

use thingspace_gateway::{
    identity::RequestId,
    proto::{
        esim::{DeviceState, GetRequestStatusRequest, RequestState},
        storage::StatusClass,
    },
    requests::Settlement,
    simulator::DeviceResult,
};
use tonic::Code;

use crate::{
    correlation::{account, call_back},
    harness::*,
};

fn spelled(text: &str) -> RequestId {
    RequestId::parse(text).unwrap()
}

fn upper_case(id: &RequestId) -> RequestId {
    spelled(&id.as_str().to_ascii_uppercase())
}

async fn first_device_failed_for_a_reason(client: &Client, id: &RequestId) {
    eventually("the reason has arrived", || {
        let mut client = client.clone();
        async move {
            // Without a status query, whose answer has no reasons.
            let an_hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
            let status_call = GetRequestStatusRequest { max_age: Some(an_hour), ..status_call(id) };
            let status = get_status(&mut client, status_call).await.unwrap();
            let failed = &status.devices[0];
            assert_eq!(failed.identifiers.as_ref().unwrap().eid, device(0).eid);
            failed.state() == DeviceState::Failed && failed.fault.is_some()
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_with_the_id_in_another_case_finds_the_orders_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    let page = GetRequestStatusRequest { page_size: 2, ..status_call(&upper_case(&id)) };
    let first = client.get_request_status(page.clone()).await.unwrap().into_inner();
    assert_eq!(first.status.unwrap().request_id, id.as_str());
    for id in [&id, &upper_case(&id)] {
        let next =
            GetRequestStatusRequest { page_token: first.next_page_token.clone(), ..page.clone() };
        let next = GetRequestStatusRequest { request_id: id.to_string(), ..next };
        assert_eq!(get_status(&mut client, next).await.unwrap().devices.len(), 1, "{id}");
    }
    let mut watching = watch(&mut client, &upper_case(&id), "").await.unwrap();
    let (_, token) = watching.event().await;
    for n in 0..3 {
        call_back(&gateway, &[id.clone(), upper_case(&id)][n % 2], n, StatusClass::Failed).await;
    }
    watching.rest().await;
    first_device_failed_for_a_reason(&client, &id).await;
    for id in [&id, &upper_case(&id)] {
        let resumed = watch(&mut client, id, &token).await.unwrap().rest().await;
        assert!(!resumed.is_empty(), "{id}");
    }
    assert_eq!(upstream.sim.ledger().polls_of(&upper_case(&id)), 0);
    assert_eq!(gateway.requests.overview().stray_callbacks, 0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_callback_in_another_case_before_the_answer_reaches_the_request() {
    for id in ["hj-1-abc", "HJ-1-ABC", "Hj-1-aBc"].map(spelled) {
        let upstream = Upstream::manual().await;
        let gateway = Gateway::start(upstream.quiet()).await;
        let client = gateway.client().await;
        upstream.sim.set_next_id(id.clone());
        let order = HeldOrder::begin(&upstream, &client, "k", 0..2).await;
        call_back(&gateway, &spelled("hJ-1-Abc"), 0, StatusClass::Failed).await;
        assert_eq!(order.answer().await.unwrap(), id);
        first_device_failed_for_a_reason(&client, &id).await;
        gateway.stop().await;
    }
}

/// The callback arrives before its order is known, also in a case that the store cannot look up.
#[tokio::test]
async fn a_callback_in_another_case_before_the_order_reaches_the_request() {
    for (called_back, id) in
        [("EF-1", "ef-1"), ("ef-2", "Ef-2"), ("Ef-3", "EF-3"), ("eF-4", "Ef-4")]
    {
        let upstream = Upstream::manual().await;
        let gateway = Gateway::start(upstream.quiet()).await;
        let mut client = gateway.client().await;
        call_back(&gateway, &spelled(called_back), 0, StatusClass::Failed).await;
        upstream.sim.set_next_id(spelled(id));
        assert_eq!(place(&mut client, "k", 0..2).await.unwrap().as_str(), id);
        first_device_failed_for_a_reason(&client, &spelled(id)).await;
        assert_eq!(
            get_status(&mut client, status_call(&spelled(called_back))).await.unwrap().request_id,
            id
        );
        gateway.stop().await;
    }
}

/// The first request is finished and not in memory. The id of the second order's request differs
/// only in case.
#[tokio::test]
async fn an_exact_id_in_the_store_is_not_taken_for_another_orders_request() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let (first, second) = (spelled("Re-4"), spelled("RE-4"));
    upstream.sim.set_next_id(first.clone());
    assert_eq!(place(&mut client, "first", [0]).await.unwrap(), first);
    upstream.sim.finish_all(&first, DeviceResult::Failed);
    assert_eq!(
        get_status(&mut client, status_call(&first)).await.unwrap().state(),
        RequestState::Failed
    );
    gateway.stop().await;

    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    upstream.sim.set_next_id(second.clone());
    assert_eq!(place(&mut client, "second", [1]).await.unwrap(), second);
    call_back(&gateway, &first, 0, StatusClass::Failed).await;
    first_device_failed_for_a_reason(&client, &first).await;
    for (key, n, id) in [("first", 0, &first), ("second", 1, &second)] {
        assert_eq!(place(&mut client, key, [n]).await.unwrap(), *id);
        let status = get_status(&mut client, status_call(id)).await.unwrap();
        assert_eq!(status.request_id, id.as_str());
        assert_eq!(status.devices[0].identifiers.as_ref().unwrap().eid, device(n).eid);
        let (snapshot, _) = watch(&mut client, id, "").await.unwrap().snapshot().await;
        assert_eq!(snapshot.request_id, id.as_str());
    }
    gateway.stop().await;
}

/// Two orders are answered at the same moment, so neither is stored when the other is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_orders_in_flight_with_one_id_in_two_cases_one_is_unknown() {
    const KEYS: [[&str; 2]; 4] = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]];
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    for (n, keys) in KEYS.into_iter().enumerate() {
        let ids = [spelled(&format!("sq-{n}")), spelled(&format!("SQ-{n}"))];
        upstream.sim.set_next_id(ids[0].clone());
        let first = HeldOrder::begin(&upstream, &client, keys[0], 0..1).await;
        upstream.sim.set_next_id(ids[1].clone());
        let second = HeldOrder::begin(&upstream, &client, keys[1], 1..2).await;
        let (first, second) = tokio::join!(first.answer(), second.answer());
        let answers = [first, second];
        let owner = answers.iter().position(Result::is_ok).expect("one order has the request");
        assert_eq!(answers[owner].as_ref().unwrap(), &ids[owner]);
        let other = 1 - owner;
        for status in [
            answers[other].as_ref().unwrap_err(),
            &place(&mut client, keys[other], [other]).await.unwrap_err(),
        ] {
            assert_eq!(
                kind(status),
                (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned())
            );
            assert!(
                !format!("{status:?}").to_lowercase().contains("sq-"),
                "has the other order's id: {status:?}"
            );
        }
        assert_eq!(place(&mut client, keys[owner], [owner]).await.unwrap(), ids[owner]);
        for id in &ids {
            let status = get_status(&mut client, status_call(id)).await.unwrap();
            assert_eq!(
                (status.request_id.as_str(), status.devices.len()),
                (ids[owner].as_str(), 1)
            );
            assert_eq!(status.devices[0].identifiers.as_ref().unwrap().eid, device(owner).eid);
        }
    }
    assert_eq!(gateway.requests.unknown_orders().await.unwrap().len(), KEYS.len());
    gateway.stop().await;
}

#[tokio::test]
async fn callbacks_reach_an_order_whose_id_was_looked_up_in_another_case_before() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let known = spelled("HJ-7");
    upstream.sim.set_next_id(known.clone());
    upstream.sim.add_request(account(), [upstream_device(0)]);
    assert_eq!(get_status(&mut client, status_call(&known)).await.unwrap().request_id, "HJ-7");
    upstream.sim.set_next_id(spelled("hj-7"));
    let id = place(&mut client, "k", [0]).await.unwrap();
    assert_eq!(id.as_str(), "hj-7");
    call_back(&gateway, &known, 0, StatusClass::Failed).await;
    first_device_failed_for_a_reason(&client, &id).await;
    assert_eq!(get_status(&mut client, status_call(&known)).await.unwrap().request_id, "hj-7");
    gateway.stop().await;
}

/// A caller asks about a request with other devices. Then an order gets an id that differs only in
/// case, so its outcome is unknown. When an operator settles the order, ThingSpace's answers show
/// that there are two requests.
#[tokio::test]
async fn requests_that_thingspace_reports_separately_stay_two() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let other = spelled("HJ-8");
    upstream.sim.set_next_id(other.clone());
    upstream.sim.add_request(account(), [upstream_device(5)]);
    assert_eq!(get_status(&mut client, status_call(&other)).await.unwrap().devices.len(), 1);
    let id = spelled("hj-8");
    upstream.sim.set_next_id(id.clone());
    let status = place(&mut client, "k", [0]).await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    eventually("the unknown order is listed", async || {
        gateway.requests.unknown_orders().await.unwrap().len() == 1
    })
    .await;
    let unknown = gateway.requests.unknown_orders().await.unwrap();
    let settlement = Settlement::AcceptedAs(id.clone());
    gateway.requests.settle_order(&unknown[0].order_id, &settlement, false).await.unwrap();
    assert_eq!(place(&mut client, "k", [0]).await.unwrap(), id);
    for (id, n) in [(&id, 0), (&other, 5)] {
        upstream.sim.finish_all(id, DeviceResult::Failed);
        call_back(&gateway, id, n, StatusClass::Failed).await;
        eventually("each has its own callback", || {
            let mut client = client.clone();
            async move {
                let status = get_status(&mut client, status_call(id)).await.unwrap();
                assert_eq!(status.request_id, id.as_str());
                assert_eq!(status.devices[0].identifiers.as_ref().unwrap().iccid, device(n).iccid);
                status.devices[0]
                    .fault
                    .as_ref()
                    .is_some_and(|fault| fault.message == format!("no {n}"))
            }
        })
        .await;
    }
    gateway.stop().await;
}
