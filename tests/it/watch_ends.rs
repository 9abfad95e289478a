//! Promise 5 of the README: a watch that the gateway ends early says why, and resumes without a
//! gap.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use thingspace_gateway::{proto::esim::watch_request_response::Event, simulator::DeviceResult};
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt;

use crate::harness::*;

#[track_caller]
fn assert_ends(status: &Status, reason: &str, token: &str) {
    assert_eq!(kind(status), (Code::Unavailable, reason.to_owned()));
    assert_eq!(status.get_details_error_info().unwrap().metadata["resumeToken"], token);
    assert!(status.get_details_retry_info().is_some());
}

#[tokio::test]
async fn a_watch_ends_at_its_age_and_resumes() {
    const AGE: Duration = Duration::from_secs(3);
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.stream_age = AGE;
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..2).await.unwrap();
    let began = Instant::now();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (_, token) = watching.event().await;
    assert_ends(&watching.next().await.unwrap_err(), "STREAM_AGE", &token);
    assert!(began.elapsed() >= AGE * 9 / 10, "{:?}", began.elapsed());

    let mut resumed = watch(&mut client, &id, &token).await.unwrap();
    let first = resumed.next().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Heartbeat(_))), "{first:?}");
    assert_ends(&resumed.next().await.unwrap_err(), "STREAM_AGE", &first.resume_token);
    gateway.stop().await;
}

/// A token exists only after a complete revision.
#[tokio::test]
async fn an_old_watch_sends_the_rest_of_a_revision_before_it_ends() {
    const DEVICES: usize = 2_000;
    const AGE: Duration = Duration::from_secs(3);
    /// Smaller than a message, in bytes.
    const WINDOW: u32 = 1_000;
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.stream_age = AGE;
    let gateway = Gateway::start(config).await;
    let id = place(&mut gateway.client().await, "k", 0..DEVICES).await.unwrap();
    let peer = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let channel = peer.initial_stream_window_size(WINDOW).connect().await.unwrap();
    let mut watching = watch(&mut Client::new(channel), &id, "").await.unwrap();
    let (mut devices, mut parts) = (0, 0);
    let token = loop {
        let message = watching.next().await.unwrap().unwrap();
        let Some(Event::Snapshot(part)) = message.event else { panic!("{message:?}") };
        (devices, parts) = (devices + part.devices.len(), parts + 1);
        if parts == 1 {
            // The watch is old now, in the middle of the snapshot.
            tokio::time::sleep(AGE * 3 / 2).await;
        }
        if !message.more {
            break message.resume_token;
        }
    };
    assert!(parts > 2, "{parts} parts");
    assert_eq!(devices, DEVICES);
    assert_ends(&watching.next().await.unwrap_err(), "STREAM_AGE", &token);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_spreads_the_ends_of_many_watches() {
    const WATCHES: usize = 2_000;
    const EACH: usize = 250;
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let id = place(&mut gateway.client().await, "k", 0..2).await.unwrap();
    let mut watchings = Vec::new();
    for _ in 0..WATCHES / EACH {
        let client = gateway.client().await;
        let opened = join_all((0..EACH).map(|_| {
            let mut client = client.clone();
            let id = &id;
            async move {
                let mut watching = watch(&mut client, id, "").await.unwrap();
                let (_, token) = watching.event().await;
                (watching, token)
            }
        }));
        watchings.extend(opened.await);
    }
    let ends = join_all(watchings.into_iter().map(async |(mut watching, token)| {
        let status = watching.next().await.unwrap_err();
        assert_ends(&status, "DRAINING", &token);
        Instant::now()
    }));
    let (ends, ()) = tokio::join!(ends, gateway.stop());
    let spread = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
    assert!(spread >= Duration::from_millis(100), "all ended within {spread:?}");
}

/// So the gateway encodes it once.
#[tokio::test]
async fn watches_that_began_at_different_times_get_the_same_messages() {
    let upstream = Upstream::manual().await;
    let mut config = upstream.quiet();
    config.grpc.heartbeat = Duration::from_millis(100);
    let gateway = Gateway::start(config).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    let mut first = watch(&mut client, &id, "").await.unwrap();
    first.snapshot().await;
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let mut second = watch(&mut client, &id, "").await.unwrap();
    second.snapshot().await;
    let heartbeat = async |watching: &mut Watching| loop {
        let message = watching.next().await.unwrap().unwrap();
        if let Some(Event::Heartbeat(heartbeat)) = &message.event
            && heartbeat.revision == 2
        {
            return message;
        }
    };
    let messages = [heartbeat(&mut first).await, heartbeat(&mut second).await];
    assert_eq!(messages[0], messages[1]);
    gateway.stop().await;
}
