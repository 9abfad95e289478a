//! Three servers with three replicas of each stream, some of which fail. These tests run alone.

use super::{
    faults::{nothing_is_lost, written},
    *,
};

/// A cluster, and a store in it that can be used.
async fn new_cluster() -> (NatsCluster, Arc<Nats>) {
    let cluster = NatsCluster::start().await;
    let store = open_in(&cluster.url()).await;
    (cluster, store)
}

async fn open_in(url: &str) -> Arc<Nats> {
    let settings = NatsConfig { replicas: 3, ..settings(url) };
    let store = Nats::open(&settings, KEEP).await.unwrap();
    timeout(store.usable()).await;
    Arc::new(store)
}

/// The server that leads a stream; waits for an election.
async fn leader(store: &Nats, stream: &str) -> String {
    timeout(async {
        loop {
            if let Ok(stream) = store.core.link.context.get_stream(stream).await
                && let Some(leader) =
                    stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone())
            {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract() {
    let (cluster, store) = new_cluster().await;
    let dynamic = || Arc::clone(&store) as Arc<dyn Store>;
    contract::order(&*store).await;
    contract::pages(&*store).await;
    contract::read_your_writes(&*store).await;
    contract::same_id(&*store).await;
    contract::largest_event(&*store).await;
    contract::follow_all(dynamic(), contract::LearnsEnd::Later).await;
    contract::follow_from(&*store).await;
    contract::replaced(&*store).await;
    contract::swap_race(dynamic()).await;
    contract::swap_conflict(&*store).await;
    contract::durable(async || open_in(&cluster.url()).await as Arc<dyn Store>).await;
}

/// What one gateway has stored, another one reads at once, over any server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale() {
    let (cluster, _) = new_cluster().await;
    let mut stores = Vec::new();
    for server in &cluster.servers {
        stores.push(open_in(&server.url()).await);
    }
    let (log, cell) = (contract::new_log(), CellName::permanent("cell"));
    let mut version = None;
    for n in 0..600 {
        let (writer, reader) = (&stores[n % 3], &stores[(n + 1 + n / 3 % 2) % 3]);
        let value = Bytes::from(n.to_string());
        let swapped = writer.swap(&cell, version, value.clone()).await.unwrap();
        let Swap::Swapped(now) = swapped else { panic!("{swapped:?}") };
        version = Some(now);
        assert_eq!(reader.load(&cell).await.unwrap(), Some(Versioned { version: now, value }));

        let position = contract::append(&**writer, &log, &n.to_string()).await.unwrap();
        let entries = reader.read(&log, position.sequence - 1, 10).await.unwrap();
        assert_eq!(contract::texts(&entries), [n.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_are_killed_lose_nothing() {
    let (mut cluster, store) = new_cluster().await;
    let watched = Arc::clone(&store);
    let trouble = async || {
        for _ in 0..2 {
            timeout(written(&*watched)).await;
            let leader = leader(&watched, "gw_events").await;
            cluster.named(&leader).kill();
            timeout(written(&*watched)).await;
            cluster.named(&leader).restart().await;
        }
    };
    nothing_is_lost(store, trouble).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_and_a_restart_of_all_lose_nothing() {
    let (mut cluster, store) = new_cluster().await;
    let watched = Arc::clone(&store);
    let trouble = async || {
        timeout(written(&*watched)).await;
        let frozen = leader(&watched, "gw_events").await;
        cluster.named(&frozen).freeze();
        // The two others elect a leader.
        timeout(written(&*watched)).await;
        cluster.named(&frozen).thaw();
        cluster.servers.iter_mut().for_each(NatsServer::kill);
        cluster.servers.iter_mut().for_each(NatsServer::spawn);
        for server in &mut cluster.servers {
            server.ready().await;
        }
        timeout(written(&*watched)).await;
    };
    nothing_is_lost(store, trouble).await;
}

/// Servers that stop in lame-duck mode, one after the other, cause no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_costs_no_error() {
    let (mut cluster, store) = new_cluster().await;
    let stop = CancellationToken::new();
    let writing = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), stop.clone());
        async move {
            let (log, cell) = (contract::new_log(), CellName::permanent("cell"));
            let mut version = None;
            let mut written = 0;
            while !stop.is_cancelled() {
                contract::append(&*store, &log, "event").await.unwrap();
                let swapped =
                    store.swap(&cell, version, Bytes::from_static(b"value")).await.unwrap();
                let Swap::Swapped(now) = swapped else { panic!("{swapped:?}") };
                version = Some(now);
                written += 1;
            }
            assert_eq!(contract::read_to_end(&*store, &log).await.unwrap().len(), written);
        }
    });
    let mut followed = store.follow(None);
    contract::catch_up(&mut followed).await;
    for server in &mut cluster.servers {
        server.lame_duck().await;
        server.restart().await;
        contract::next(&mut followed).await;
    }
    stop.cancel();
    timeout(writing).await.unwrap();
}
