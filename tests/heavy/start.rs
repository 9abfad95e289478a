//! A start reads what happened since the oldest open request, and not the whole history.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt, stream};
use thingspace_gateway::{
    config::Config,
    identity::RequestId,
    proto::storage,
    requests::event::{self, Kind},
    store::{LogName, Store, embedded::Embedded},
};
use uuid::Uuid;

use crate::{assert_known, harness::*};

/// Appends waiting for a commit at the same time.
const CONCURRENT: usize = 4_000;

/// Requests still open at the end of the history.
const OPEN: usize = 3;

fn id(n: usize) -> RequestId {
    RequestId::parse(&format!("request-{n}")).unwrap()
}

fn stored(n: usize) -> storage::Device {
    let ids = device(n);
    storage::Device { eid: ids.eid, iccid: ids.iccid, imei: ids.imei, mdn: ids.mdn }
}

fn accepted(n: usize) -> Kind {
    Kind::Accepted(storage::Accepted {
        order_id: Uuid::from_u128(n as u128).to_string(),
        account: ACCOUNT.to_owned(),
        service_plan: "plan 1".to_owned(),
        devices: vec![stored(n)],
    })
}

fn succeeded(n: usize) -> Kind {
    Kind::Observed(storage::Observed {
        account: ACCOUNT.to_owned(),
        overall: storage::StatusClass::Succeeded.into(),
        devices: vec![storage::ObservedDevice {
            device: Some(stored(n)),
            status: storage::StatusClass::Succeeded.into(),
        }],
        overall_only: false,
        complete: true,
    })
}

/// A store with so many finished requests, and then some that are open.
async fn write_history(path: &Path, finished: usize) {
    let store = Embedded::open(path, Duration::from_hours(1_000)).unwrap();
    let events = (0..finished).flat_map(|n| [(n, accepted(n)), (n, succeeded(n))]);
    let open = (finished..finished + OPEN).map(|n| (n, accepted(n)));
    let appends = stream::iter(events.chain(open)).map(|(n, kind)| {
        let (store, log) = (&store, LogName::request(id(n).as_str()));
        async move { store.append(&log, Uuid::now_v7(), event::encode(kind)).await.unwrap() }
    });
    appends.buffered(CONCURRENT).for_each(|_| async {}).await;
    store.close().await;
}

/// Starts a gateway, lets it look at its open requests, and tells how many events its start has read.
async fn start(config: &Config, finished: usize) -> u64 {
    let gateway = Gateway::start(config.clone()).await;
    let read = gateway.requests.events_read();
    let mut client = gateway.client().await;
    for n in finished..finished + OPEN {
        assert_known(&mut client, &id(n), [n]).await;
    }
    gateway.stop().await;
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_does_not_read_what_was_finished_before_the_oldest_open_request() {
    let mut reads = Vec::new();
    for finished in [100, 100_000] {
        let upstream = Upstream::manual().await;
        let mut config = upstream.config();
        // The open requests are made up, so that nothing but the start reads or writes events.
        config.polling.first = Duration::from_mins(50);
        config.polling.max_watched = Duration::from_mins(50);
        config.polling.max = Duration::from_mins(50);
        let t = std::time::Instant::now();
        write_history(&config.store.path, finished).await;
        eprintln!("write {:?}", t.elapsed());
        let first = start(&config, finished).await;
        eprintln!("first {:?}", t.elapsed());
        assert!(first > 2 * finished as u64, "the first start folds everything");
        reads.push(start(&config, finished).await);
        eprintln!("second {:?}", t.elapsed());
    }
    assert_eq!(reads[0], reads[1]);
    // Each open request's event is followed, and its log read once.
    assert_eq!(reads[0], 2 * OPEN as u64);
}
