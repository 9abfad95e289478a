//! ThingSpace answers two orders with the same request id.

use bytes::Bytes;
use thingspace_gateway::{
    identity::AccountName,
    proto::storage,
    requests::{
        event::{self, Kind, Once},
        key::{self, Claim, Key},
    },
    simulator::{Endpoint, Fault, What, When},
    store::{LogName, Store, embedded::Embedded},
    thingspace::Order,
};
use uuid::Uuid;

use super::*;

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
    let devices = ask(&mut client, question(&id)).await.unwrap().devices;
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

/// Two replicas stored their acceptances at the same moment, and the second one died before it saw that it was second.
#[tokio::test]
async fn an_acceptance_that_came_second_is_taken_back_after_a_restart() {
    let upstream = Upstream::manual().await;
    let config = upstream.quiet();
    let account = AccountName::parse(ACCOUNT).unwrap();
    let id = upstream.sim.add_request(account.clone(), [upstream_device(0)]);
    let plan = order("second", [1]).service_plan;
    let second = Order { account: account.clone(), service_plan: plan, devices: vec![upstream_device(1)] };
    let cell = key::cell(&account, "second");
    let orders = [Uuid::now_v7().to_string(), Uuid::now_v7().to_string()];
    {
        let store = Embedded::open(&config.store.path, Duration::from_hours(24 * 40)).unwrap();
        let claim = Claim {
            order_id: &orders[1],
            hash: &key::hash(&second),
            incarnation: "gone",
            sent_time: jiff::Timestamp::now(),
            lease_ms: 1,
        };
        Key::claim(&store, &cell, None, claim).await.unwrap().unwrap();
        for (n, order_id) in orders.iter().enumerate() {
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
    let devices = ask(&mut client, question(&id)).await.unwrap().devices;
    assert_eq!(devices[0].identifiers.as_ref().unwrap().eid, device(0).eid);
    assert_eq!(upstream.sim.ledger().calls(Endpoint::Download), 0);
    gateway.stop().await;
}
