use futures_util::FutureExt as _;

use super::*;
use crate::{config::Config, store::nats::Nats};

/// A follower of a stream that ends at 3.
async fn follower() -> (Nats, StreamFollower, mpsc::Receiver<Queued>) {
    let mut settings = Config::defaults().store.nats;
    settings.url = "nats://127.0.0.1:1".to_owned();
    let store = Nats::open(&settings, Duration::from_hours(1)).await.unwrap();
    let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
    let follower = StreamFollower {
        core: Arc::clone(&store.core),
        sender,
        queue_bytes: queue_bytes(),
        epoch: Some(1),
        position: 0,
        catching_up: CatchUp::To(3),
        time: Timestamp::MIN,
        short: 0,
    };
    (store, follower, receiver)
}

fn message(follower: &StreamFollower, sequence: u64, delivery: u64, left: u64) -> Message {
    let reply = format!("$JS.ACK.gw_events.c.1.{sequence}.{delivery}.1000.{left}");
    let subject: async_nats::Subject = "gw.ev.r.1".into();
    let message = async_nats::Message {
        subject,
        reply: Some(reply.into()),
        payload: sequence.to_string().into(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    };
    Message { message, context: follower.core.follow_link.context.clone() }
}

fn sequences(receiver: &mut mpsc::Receiver<Queued>) -> Vec<String> {
    let items = std::iter::from_fn(|| receiver.try_recv().ok());
    items
        .map(|(item, _)| match item {
            Followed::Event(_, entry) => entry.position.sequence.to_string(),
            Followed::CaughtUp(position) => format!("caught up at {}", position.sequence),
            Followed::Skipped(position) => format!("skipped {}", position.sequence),
            Followed::Lost(lost) => format!("{lost:?}"),
        })
        .collect()
}

#[tokio::test]
async fn what_a_lagging_server_has_not_got_yet_comes_later_and_is_not_skipped() {
    let (_store, mut follower, mut receiver) = follower().await;
    let mut deliveries = 0;
    for (sequence, left) in [(1, 0), (2, 0), (3, 0), (4, 0)] {
        let message = message(&follower, sequence, deliveries + 1, left);
        assert!(follower.deliver(message, &mut deliveries).await.is_ok());
    }
    assert_eq!(sequences(&mut receiver), ["1", "2", "3", "caught up at 3", "4"]);
}

/// What waits for a slow reader is bounded, however large the events are.
#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    const LARGE: usize = 760_000;
    let (_store, mut follower, mut receiver) = follower().await;
    let mut deliveries = 0;
    let mut sequence = 0;
    loop {
        sequence += 1;
        let mut large = message(&follower, sequence, sequence, 0);
        large.message.payload = vec![0; LARGE].into();
        if follower.deliver(large, &mut deliveries).now_or_never().is_none() {
            break;
        }
    }
    let waiting: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    let events =
        waiting.iter().filter(|(waiting, _)| matches!(waiting, Followed::Event(..))).count();
    assert_eq!(events, QUEUE_BYTES as usize / LARGE);
    // What was taken makes room.
    drop(waiting);
    let next = message(&follower, sequence + 1, sequence + 1, 0);
    assert!(follower.deliver(next, &mut deliveries).await.is_ok());
}

#[tokio::test]
async fn a_skipped_delivery_begins_anew() {
    let (_store, mut follower, mut receiver) = follower().await;
    let mut deliveries = 0;
    let first = message(&follower, 1, 1, 2);
    assert!(follower.deliver(first, &mut deliveries).await.is_ok());
    let third = message(&follower, 3, 3, 0);
    assert!(matches!(follower.deliver(third, &mut deliveries).await, Err(End::Retry(_))));
    assert_eq!(sequences(&mut receiver), ["1"]);
    assert_eq!(follower.position, 1);
}
