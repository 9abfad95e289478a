//! Two thousand callbacks a second, while 600 senders that know the path never complete a body.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use secrecy::ExposeSecret;
use thingspace_gateway::{identity::AccountName, simulator::CallbackOptions};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    flood::free_address,
    harness::*,
    sender::{about, drip},
};

const SLOW: usize = 600;
const GENUINE: u32 = 10_000;
/// The number of genuine senders, each of which waits for its answers.
const SENDERS: u32 = 64;
/// The callbacks per second of all genuine senders.
const RATE: u32 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_genuine_callback_is_taken_beside_slow_senders() {
    let upstream = Upstream::calling(CallbackOptions::default()).await;
    let mut config = upstream.called();
    config.callbacks.listen = free_address();
    config.callbacks.public_url = format!("http://{}/callbacks", config.callbacks.listen);
    let account = AccountName::parse(ACCOUNT).unwrap();
    let gateway = Process::serve(&config, upstream.dir.path());
    eventually("it is registered", async || upstream.sim.registered(&account).is_some()).await;
    let registered = upstream.sim.registered(&account).unwrap();
    let id = place(&mut gateway.client().await, "k", 0..1).await.unwrap();

    let address = config.callbacks.listen;
    let path = registered.url.rsplit('/').next().unwrap();
    let headers = format!("POST /{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n");
    let (mut slow, begun) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for n in 0..SLOW {
        // A third of them with the address of the genuine senders.
        let from = IpAddr::from([127, 0, 0, u8::try_from(1 + n % 3).unwrap()]);
        slow.spawn(drip(address, from, headers.clone(), Arc::clone(&begun)));
    }
    eventually("they take all the places", async || begun.load(Ordering::Relaxed) > 2 * SLOW).await;

    let body = about(&id, &device(0), "warning")
        .replace(r#""user""#, &format!("{:?}", registered.username))
        .replace(r#""secret""#, &format!("{:?}", registered.password.expose_secret()));
    let (http, url) = (reqwest::Client::new(), registered.url.clone());
    let (mut genuine, start) = (JoinSet::new(), Instant::now());
    for _ in 0..SENDERS {
        let (http, url, body) = (http.clone(), url.clone(), body.clone());
        genuine.spawn(async move {
            let mut pace = interval(Duration::from_secs(1) * SENDERS / RATE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut longest = Duration::ZERO;
            for _ in 0..GENUINE / SENDERS {
                pace.tick().await;
                let sent = Instant::now();
                let answer =
                    within("an answer", http.post(&url).body(body.clone()).send()).await.unwrap();
                assert_eq!(answer.status(), 200);
                longest = longest.max(sent.elapsed());
            }
            longest
        });
    }
    let longest = genuine.join_all().await.into_iter().max().unwrap_or_default();
    let (took, begun) = (start.elapsed(), begun.load(Ordering::Relaxed));
    eprintln!(
        "{GENUINE} callbacks in {took:?}, the slowest in {longest:?}; slow senders began {begun} \
         times"
    );
    assert_eq!(slow.len(), SLOW, "the slow ones are still there");
    slow.shutdown().await;
    gateway.terminate();
    assert!(gateway.wait().await.0.success());
}
