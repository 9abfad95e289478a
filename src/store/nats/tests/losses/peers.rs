//! A gateway that starts without streams while others know a store.

use super::*;

/// Waits until the store reports a loss; fails if it could be used before.
async fn lost_unused(store: &dyn Store) -> String {
    tokio::select! {
        biased;
        () = store.usable() => panic!("a store that others remember was made anew"),
        what = lost(store) => what,
    }
}

async fn delete_all(server: &NatsServer) {
    let admin = admin(server).await;
    for stream in STREAMS {
        admin.delete_stream(stream).await.unwrap();
    }
}

async fn assert_nothing_was_made(server: &NatsServer) {
    let admin = admin(server).await;
    for stream in STREAMS {
        assert!(admin.get_stream(stream).await.is_err(), "{stream} was made again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_starts_makes_no_store_that_another_one_remembers() {
    let (server, first) = new().await;
    let before = write(&*first, "a").await;
    delete_all(&server).await;
    // Before the next check of any other gateway.
    let second = reopen(&server).await;
    let what = lost_unused(&*second).await;
    assert!(
        STREAMS.iter().all(|stream| what.contains(&format!("stream {stream} was deleted"))),
        "{what}"
    );
    assert_nothing_was_made(&server).await;
    // It passes on what it learned.
    drop(first);
    let third = reopen(&server).await;
    assert_eq!(lost_unused(&*third).await, what);
    assert_nothing_was_made(&server).await;

    accept(&*third, before).await;
    timeout(second.usable()).await;
    assert!(second.loss().is_none() && second.has_lost_cells());
}

/// If no gateway may answer, a new store is made. The others contradict it, and it is never used
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_store_that_another_gateway_contradicts_is_given_up_for_good() {
    // Longer than the gateways take to store again what they know.
    const AGAIN: Duration = Duration::from_secs(7);
    let server = NatsServer::start_with(&user_without("", "gw.record")).await;
    let first = open(&server).await;
    write(&*first, "a").await;
    delete_all(&server).await;
    let second = open(&server).await;
    for store in [&first, &second] {
        lost(&**store).await;
    }
    let used =
        tokio::time::timeout(AGAIN, async { tokio::join!(first.usable(), second.usable()) }).await;
    assert!(used.is_err(), "a lost store was used");
    let accepted = second.accept_loss(false).await.unwrap();
    assert!(accepted.is_some());
    for store in [&first, &second] {
        timeout(store.usable()).await;
    }
}

/// One of the gateways makes the store, and the others report no loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_make_one_store() {
    for _ in 0..5 {
        let server = NatsServer::start().await;
        let stores = join_all((0..3).map(|_| open(&server))).await;
        let mut epochs = Vec::new();
        for store in &stores {
            assert_eq!(store.loss(), None);
            epochs.push(
                contract::append(&**store, &contract::new_log(), "event").await.unwrap().epoch,
            );
        }
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    }
}

/// A gateway that knows nothing does not make deleted streams that others know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_accepts_no_loss_for_the_others() {
    let (server, store) = new().await;
    let before = write(&*store, "a").await;
    let admin = admin(&server).await;
    for stream in STREAMS {
        admin.delete_stream(stream).await.unwrap();
    }
    lost(&*store).await;
    let newcomer = reopen(&server).await;
    lost(&*newcomer).await;
    lost(&*store).await;
    accept(&*store, before).await;
    timeout(newcomer.usable()).await;
    assert_eq!(newcomer.loss(), None);
    contract::append(&*newcomer, &contract::new_log(), "after").await.unwrap();
}
