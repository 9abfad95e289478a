//! ThingSpace answers an order with the id of another order's request, or of an external request.

use bytes::Bytes;
use thingspace_gateway::{
    identity::{AccountName, RequestId},
    proto::{
        esim::{GetRequestStatusRequest, RequestState},
        storage::{self, StatusClass},
    },
    requests::{
        fold::event::{self, Kind, Once},
        key::{self, KeyCell},
    },
    store::{LogName, Store, embedded::Embedded},
    thingspace::Order,
};
use uuid::Uuid;

use super::*;
use crate::correlation::call_back;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_order_with_an_id_is_unknown_and_the_first_keeps_its_devices() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let mut client = process.client().await;
    let id = place(&mut client, "first", [0]).await.unwrap();
    let same = What::Status {
        status: axum::http::StatusCode::OK,
        content_type: "application/json",
        body: serde_json::json!({ "requestId": id.as_str() }).to_string(),
    };
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, same));
    for _ in 0..2 {
        let status = place(&mut client, "second", [1]).await.unwrap_err();
        assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
        assert!(!format!("{status:?}").contains(id.as_str()), "it is not its own: {status:?}");
    }
    assert_eq!(place(&mut client, "first", [0]).await.unwrap(), id);
    let devices = get_status(&mut client, status_call(&id)).await.unwrap().devices;
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].identifiers.as_ref().unwrap().eid, device(0).eid);
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Download), 2, "never sent again");
    process.terminate();
    let (_, lines) = process.wait().await;
    let errors: Vec<_> = lines.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].contains("belongs to another order") && errors[0].contains("orders settle"),
        "{errors:?}"
    );
}

/// The next order is answered with the id of an external request.
fn answer_with(upstream: &Upstream, id: &str) {
    let what = What::request_id(&format!("\"{id}\""));
    upstream.sim.inject(Fault::once(Endpoint::Download, When::AfterEffect, what));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_a_request_with_other_devices_leaves_the_order_unknown() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.with_callbacks(), upstream.dir.path());
    let mut client = process.client().await;
    let account = |name: &str| AccountName::parse(name).unwrap();
    let of = |name: &str, devices: &[usize]| {
        let devices: Vec<_> = devices.iter().map(|n| upstream_device(*n)).collect();
        upstream.sim.add_request(account(name), devices)
    };
    let other_account = upstream.accounts[1].as_str();
    let mut known =
        vec![of(ACCOUNT, &[5]), of(ACCOUNT, &[0, 5]), of(ACCOUNT, &[0]), of(other_account, &[0])];
    // It has ended, so its list is complete.
    upstream.sim.finish_all(&known[2], DeviceResult::Success);
    for (n, id) in known.iter().enumerate() {
        let asked = if n == 3 { other_account } else { ACCOUNT };
        let asked = GetRequestStatusRequest { account_name: asked.to_owned(), ..status_call(id) };
        get_status(&mut client, asked).await.unwrap();
    }
    let capitals = known[0].as_str().to_ascii_uppercase();
    known.push(RequestId::parse(&capitals).unwrap());
    for id in &known {
        answer_with(&upstream, id.as_str());
        for _ in 0..2 {
            let status = place(&mut client, id.as_str(), 0..2).await.unwrap_err();
            assert_eq!(
                kind(&status),
                (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()),
                "{id}"
            );
            assert!(!format!("{status:?}").contains(id.as_str()), "it is not its own: {status:?}");
        }
    }
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Download), 5, "never sent again");
    let devices = get_status(&mut client, status_call(&known[0])).await.unwrap().devices;
    assert_eq!(devices[0].identifiers.as_ref().unwrap().iccid, device(5).iccid);
    process.terminate();
    let (_, lines) = process.wait().await;
    let errors: Vec<_> = lines.iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), known.len(), "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("orders settle")), "{errors:?}");
}

#[tokio::test]
async fn an_order_whose_request_was_looked_up_before_the_answer_has_it() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let order = HeldOrder::begin(&upstream, &client, "k", 0..2).await;
    let id = order.id.clone();
    assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap().devices.len(), 2);
    upstream.sim.finish_all(&id, DeviceResult::Success);
    assert_eq!(
        get_status(&mut client, status_call(&id)).await.unwrap().state(),
        RequestState::Succeeded
    );
    assert_eq!(order.answer().await.unwrap(), id);
    assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap().devices.len(), 2);
    gateway.stop().await;
}

/// Callbacks of an external request named its devices before the order was answered with its id.
#[tokio::test]
async fn an_id_whose_callbacks_named_other_devices_leaves_the_order_unknown() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = upstream.sim.add_request(AccountName::parse(ACCOUNT).unwrap(), [upstream_device(5)]);
    call_back(&gateway, &id, 5, StatusClass::Succeeded).await;
    answer_with(&upstream, id.as_str());
    let status = place(&mut client, "k", [0]).await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    gateway.stop().await;
}

/// Two replicas stored their acceptances at the same moment, and the second one died before it saw
/// that it was second.
#[tokio::test]
async fn an_acceptance_that_came_second_is_taken_back_after_a_restart() {
    taken_back_after_a_restart("an-id-1").await;
}

#[tokio::test]
async fn an_acceptance_that_came_second_in_another_case_is_taken_back_after_a_restart() {
    taken_back_after_a_restart("AN-id-1").await;
}

/// The first order was answered with "an-id-1", the second with this id.
async fn taken_back_after_a_restart(second_id: &str) {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let account = AccountName::parse(ACCOUNT).unwrap();
    let ids = ["an-id-1", second_id].map(|id| RequestId::parse(id).unwrap());
    upstream.sim.set_next_id(ids[0].clone());
    let id = upstream.sim.add_request(account.clone(), [upstream_device(0)]);
    let plan = order("second", [1]).service_plan;
    let second =
        Order { account: account.clone(), service_plan: plan, devices: vec![upstream_device(1)] };
    let cell = key::cell(&account, "second");
    let orders = [Uuid::now_v7().to_string(), Uuid::now_v7().to_string()];
    {
        let store = Embedded::open(&config.store.path, Duration::from_hours(24 * 40)).unwrap();
        let claim = storage::Key {
            order_id: orders[1].clone(),
            request_hash: key::hash(&second),
            incarnation: "gone".to_owned(),
            sent_time_ms: jiff::Timestamp::now().as_millisecond(),
            lease_ms: 1,
            ..storage::Key::default()
        };
        KeyCell::claim(&store, &cell, None, claim).await.unwrap().unwrap();
        for (n, (order_id, id)) in orders.iter().zip(&ids).enumerate() {
            let devices = vec![event::to_stored(&upstream_device(n))];
            let ordered = storage::Ordered {
                account: ACCOUNT.to_owned(),
                devices: devices.clone(),
                key_cell: cell.name.clone(),
                ..storage::Ordered::default()
            };
            let accepted_as = storage::AcceptedAs { request_id: id.to_string() };
            let accepted = storage::Accepted {
                order_id: order_id.clone(),
                account: ACCOUNT.to_owned(),
                devices,
                ..storage::Accepted::default()
            };
            let (of_order, of_request) = (LogName::order(order_id), LogName::request(id.as_str()));
            let events = [
                (&of_order, Once::Ordered, Kind::Ordered(ordered)),
                (&of_order, Once::AcceptedAs, Kind::AcceptedAs(accepted_as)),
                (&of_request, Once::Accepted, Kind::Accepted(accepted)),
            ];
            for (log, once, kind) in events {
                let bytes: Bytes = event::encode(kind, None);
                store.append(log, once.id(order_id), bytes).await.unwrap();
            }
        }
        store.close().await;
    }
    let gateway = Gateway::start(config).await;
    eventually("the second acceptance is taken back", || async {
        let unknown = gateway.requests.unknown_orders().await.unwrap();
        unknown.iter().any(|unknown| unknown.order_id == orders[1] && unknown.devices == 1)
    })
    .await;
    let mut client = gateway.client().await;
    let status = place(&mut client, "second", [1]).await.unwrap_err();
    assert_eq!(kind(&status), (Code::FailedPrecondition, "ORDER_OUTCOME_UNKNOWN".to_owned()));
    for asked in &ids {
        let status = get_status(&mut client, status_call(asked)).await.unwrap();
        assert_eq!((&*status.request_id, status.devices.len()), (id.as_str(), 1));
        assert_eq!(status.devices[0].identifiers.as_ref().unwrap().eid, device(0).eid);
    }
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Download), 0);
    gateway.stop().await;
}
