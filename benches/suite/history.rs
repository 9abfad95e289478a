//! Stores with a history, written as the gateway writes them.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use test_support::harness::device;
use thingspace_gateway::{
    proto::storage::{self, StatusClass},
    requests::fold::event::{self, Kind},
    store::{LogName, Store},
};
use uuid::Uuid;

use crate::gateway::account;

/// Longer than any bench.
pub(crate) const RETENTION: Duration = Duration::from_hours(1_000);

/// Concurrent appends, which share commits.
const AT_ONCE: usize = 2_000;

/// A device as it is stored.
pub(crate) fn stored(n: usize) -> storage::Device {
    let ids = device(n);
    storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
}

fn accepted(n: usize, devices: usize) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: Uuid::from_u128(n as u128).to_string(),
        account: account(n),
        service_plan: "plan 1".to_owned(),
        devices: (n * devices..(n + 1) * devices).map(stored).collect(),
        caller: String::new(),
    })
}

fn succeeded(n: usize) -> Kind {
    Kind::Observed(storage::Observed {
        account: account(n),
        overall: StatusClass::Succeeded.into(),
        devices: vec![storage::ObservedDevice {
            device: Some(stored(n)),
            status: StatusClass::Succeeded.into(),
        }],
        overall_only: false,
        complete: true,
    })
}

fn log(n: usize) -> LogName {
    LogName::request(format!("request-{n}"))
}

async fn append(store: &dyn Store, n: usize, kind: Kind) {
    store.append(&log(n), Uuid::now_v7(), event::encode(kind, None)).await.unwrap();
}

/// Appends open requests with so many devices each.
pub(crate) async fn open(store: &dyn Store, requests: std::ops::Range<usize>, devices: usize) {
    let appends = requests.map(|n| append(store, n, accepted(n, devices)));
    stream::iter(appends).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Appends finished requests with one device each.
pub(crate) async fn finished(store: &dyn Store, requests: std::ops::Range<usize>) {
    let appends = requests.map(async |n| {
        append(store, n, accepted(n, 1)).await;
        append(store, n, succeeded(n)).await;
    });
    stream::iter(appends).buffer_unordered(AT_ONCE).collect::<()>().await;
}
