//! A gateway without free file descriptors.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::*;

/// Limits the file descriptors of this process from now on.
fn limit_descriptors(gateway: &Process, current: Option<u64>) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap()
}

#[tokio::test]
async fn a_lack_of_descriptors_is_reported_and_passes_at_once() {
    let upstream = Upstream::manual().await;
    let gateway = Process::serve(&upstream.quiet(), upstream.dir.path());
    let mut client = gateway.client().await;
    // The gateway has tokens but no connection for an order.
    let elsewhere = upstream.sim.add_request(upstream.accounts[0].clone(), []);
    get_status(&mut client, status_call(&elsewhere)).await.unwrap();

    // Only the standard streams have descriptors below this limit.
    let before = limit_descriptors(&gateway, Some(3));
    // More failures than would open the breaker.
    for n in 0..10 {
        let status = place(&mut client, &format!("k{n}"), [n]).await.unwrap_err();
        let limit = status.get_details_error_info().unwrap().metadata["limit"].clone();
        let answer = (status.code(), reason(&status), limit);
        assert_eq!(answer, (Code::ResourceExhausted, "OVERLOADED".into(), "open files".into()));
    }
    assert_eq!(upstream.sim.ledger().orders.len(), 0);
    limit_descriptors(&gateway, before.current);
    place(&mut client, "k0", [0]).await.unwrap();
}
