//! A hundred thousand callbacks for external requests: they cause no status query, need bounded
//! memory, and do not affect the gateway's own requests.

use std::time::Instant;

use futures_util::future::join_all;
use thingspace_gateway::{
    identity::{AccountName, RequestId},
    proto::{
        esim::RequestState,
        storage::{self, StatusClass},
    },
    requests::{Overview, Requests, fold::event},
};
use tokio::task::unconstrained;

use crate::harness::{
    ACCOUNT, Gateway, Upstream, eventually, get_status, place, status_call, upstream_device, watch,
};

const FOREIGN: usize = 100_000;
/// The number of callbacks that are sent at once, so that they share commits. A callback whose id
/// is not looked up within half a second is stored without being counted, and 16 are looked up at a
/// time. So there may not be too many.
const AT_ONCE: usize = 400;
/// The memory for one external request, in bytes, with the store's cache.
const MEMORY_EACH: usize = 4_096;

pub fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1_024
}

async fn call_back(requests: &Requests, id: &str, n: usize) {
    let said = storage::CalledBack {
        device: Some(event::to_stored(&upstream_device(n))),
        status: StatusClass::Succeeded.into(),
        ..storage::CalledBack::default()
    };
    let (account, id) = (AccountName::parse(ACCOUNT).unwrap(), RequestId::parse(id).unwrap());
    requests.called_back(&account, &id, said).await.unwrap();
}

/// Sends callbacks, each for another external request.
async fn flood(requests: &Requests, from: usize) {
    for start in (from..from + FOREIGN).step_by(AT_ONCE) {
        let ids: Vec<_> = (start..start + AT_ONCE).map(|n| (format!("foreign-{n}"), n)).collect();
        unconstrained(join_all(ids.iter().map(|(id, n)| call_back(requests, id, *n)))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_foreign_callbacks() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "ours", 0..2).await.unwrap();
    let watching = watch(&mut client, &id, "").await.unwrap();
    let overview = gateway.requests.overview();

    let before = resident_bytes();
    let began = Instant::now();
    flood(&gateway.requests, 1_000).await;
    let grown = resident_bytes().saturating_sub(before);
    eprintln!("{FOREIGN} callbacks: {:?}, {} KiB", began.elapsed(), grown >> 10);
    assert!(grown < FOREIGN * MEMORY_EACH, "grew by {grown} bytes");

    // The gateway's own request is unchanged, and is shown as soon as the follower has caught up.
    let counted = Overview { stray_callbacks: FOREIGN as u64, ..overview };
    eventually("all callbacks are counted", async || gateway.requests.overview() == counted).await;
    let began = Instant::now();
    call_back(&gateway.requests, id.as_str(), 0).await;
    call_back(&gateway.requests, id.as_str(), 1).await;
    assert!(!watching.rest().await.is_empty());
    eprintln!("ours was finished {:?} after its callbacks", began.elapsed());
    assert_eq!(
        get_status(&mut client, status_call(&id)).await.unwrap().state(),
        RequestState::Succeeded
    );
    assert_eq!(upstream.sim.ledger().polls(), 0, "no request was polled");
    gateway.stop().await;
}
