use std::collections::VecDeque;

use futures_util::{FutureExt, future::BoxFuture};

use super::*;

fn account() -> AccountName {
    AccountName::parse("0000123456-00001").unwrap()
}

fn permits(rate: u32) -> Arc<Permits> {
    Arc::new(Permits::new(rate.try_into().unwrap(), ConnectionPool::new(100_000, 1), 0))
}

async fn wait(permits: &Permits, class: Class) -> Permit {
    permits.wait(class, &account(), None).await.unwrap()
}

async fn call(permits: &Permits, class: Class) {
    wait(permits, class).await.used = true;
}

type Waiting = VecDeque<BoxFuture<'static, Permit>>;

/// Callers in the queue, in the order given.
fn enqueue(permits: &Arc<Permits>, class: Class, count: usize) -> Waiting {
    (0..count)
        .map(|_| {
            let permits = Arc::clone(permits);
            let mut waiter = async move { wait(&permits, class).await }.boxed();
            assert!(waiter.as_mut().now_or_never().is_none());
            waiter
        })
        .collect()
}

/// Uses the permits that are issued at this instant, from the front of a queue.
fn granted(queue: &mut Waiting) -> usize {
    let mut count = 0;
    while let Some(mut permit) = queue.front_mut().and_then(FutureExt::now_or_never) {
        permit.used = true;
        queue.pop_front();
        count += 1;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_small_burst_then_the_rate() {
    let permits = permits(10);
    let began = Instant::now();
    for n in 0..30_u32 {
        call(&permits, Class::Order).await;
        let least = Duration::from_millis(100) * n.saturating_sub(rate::BURST - 1);
        let took = began.elapsed();
        assert!(
            took >= least && took <= least + Duration::from_millis(20),
            "call {n} after {took:?}"
        );
    }
    // A long pause saves up no more than a burst.
    tokio::time::sleep(Duration::from_mins(1)).await;
    let mut orders = enqueue(&permits, Class::Order, 30);
    tokio::time::sleep(Duration::from_millis(950)).await;
    let burst = usize::try_from(rate::BURST).unwrap();
    assert!((9 + burst - 1..=9 + burst).contains(&granted(&mut orders)));
}

#[tokio::test(start_paused = true)]
async fn orders_go_first_and_polls_and_queries_get_their_share() {
    let permits = permits(10);
    let mut waiting =
        [Class::Order, Class::Query, Class::Poll].map(|class| enqueue(&permits, class, 200));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let [orders, queries, polls] = waiting.each_mut().map(granted);
    assert!((58..=64).contains(&orders), "{orders}");
    assert!((9..=12).contains(&queries) && (29..=32).contains(&polls), "{queries}, {polls}");
    // Alone, a class gets all.
    let [orders, queries, mut polls] = waiting;
    drop((orders, queries));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(granted(&mut polls) >= 9);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_costs_nothing() {
    let permits = permits(1);
    for _ in 0..rate::BURST {
        call(&permits, Class::Order).await;
    }
    // Given up while waiting, after the permit was issued, and with the permit.
    drop(enqueue(&permits, Class::Order, 100));
    let granted_unseen = enqueue(&permits, Class::Order, 1);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    drop(granted_unseen);
    let began = Instant::now();
    drop(wait(&permits, Class::Order).await);
    call(&permits, Class::Poll).await;
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_be_made_in_time_is_refused_at_once() {
    let permits = permits(10);
    let _waiting = enqueue(&permits, Class::Order, 300);
    let within = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
    let refused =
        permits.wait(Class::Order, &account(), within(10)).now_or_never().expect("at once");
    let Err(Error::Busy { retry_after }) = refused else { panic!("{refused:?}") };
    assert!((15..=21).contains(&retry_after.as_secs()), "{retry_after:?}");
    assert!(permits.wait(Class::Order, &account(), within(35)).now_or_never().is_none());
    // Another account does not wait for them.
    let other = AccountName::parse("0000123456-00002").unwrap();
    assert!(permits.wait(Class::Order, &other, within(1)).now_or_never().is_none());
    // A deadline that has passed does not mean that the queue is full.
    assert!(permits.wait(Class::Order, &account(), within(0)).now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let permits = permits(1);
    for _ in 0..rate::BURST {
        call(&permits, Class::Poll).await;
    }
    let _waiting = enqueue(&permits, Class::Poll, queue::MAX_WAITING);
    let refused =
        permits.wait(Class::Poll, &account(), None).now_or_never().expect("refused at once");
    assert!(matches!(refused, Err(Error::Busy { .. })));
}

/// Calls that hang hold their connections. Other classes and other sets go on.
#[tokio::test(start_paused = true)]
async fn hanging_calls_stop_neither_other_classes_nor_other_sets() {
    let connections = ConnectionPool::new(16, 2);
    let rate = NonZeroU32::new(1_000).unwrap();
    let permits = |set| Arc::new(Permits::new(rate, Arc::clone(&connections), set));
    let (one, other) = (permits(0), permits(1));
    let mut hanging: Vec<Permit> = Vec::new();
    while let Ok(permit) =
        tokio::time::timeout(Duration::from_secs(1), wait(&one, Class::Order)).await
    {
        hanging.push(permit);
    }
    let mut waiting = enqueue(&one, Class::Order, 3);
    for permits in [&one, &other] {
        for class in [Class::Query, Class::Poll, Class::External] {
            tokio::time::timeout(Duration::from_secs(1), call(permits, class))
                .await
                .expect("it goes on");
        }
    }
    tokio::time::timeout(Duration::from_secs(1), call(&other, Class::Order))
        .await
        .expect("it goes on");
    assert_eq!(granted(&mut waiting), 0);
    hanging.pop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(granted(&mut waiting), 1, "an order gets the connection that came free");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_repeated_goes_before_others_of_its_class() {
    let permits = permits(1);
    for _ in 0..rate::BURST {
        call(&permits, Class::Poll).await;
    }
    let mut waiting = enqueue(&permits, Class::Poll, 3);
    permits.wait_again(Class::Poll).await.unwrap().used = true;
    assert_eq!(granted(&mut waiting), 0);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(granted(&mut waiting), 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_permits() {
    let permits = permits(1);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(permits);
    while tasks() > 0 {
        tokio::task::yield_now().await;
    }
}
