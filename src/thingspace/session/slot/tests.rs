use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

fn minted(value: &'static str) -> Minted {
    Minted { value: HeaderValue::from_static(value), fingerprint: fingerprint(1), expires_in: None }
}

fn unavailable(pace: Pace) -> Fault {
    Fault { what: What::Unavailable("down".into()), pace }
}

/// A slot and how many flights it took.
#[derive(Default)]
struct World {
    slot: Arc<Slot>,
    flights: AtomicU32,
}

impl World {
    /// Gets the token; if there is a flight, this is its result.
    async fn get(&self, result: Result<Minted, Fault>) -> Outcome {
        self.slot
            .get(|| {
                self.flights.fetch_add(1, Ordering::Relaxed);
                async { result }
            })
            .await
    }

    fn flights(&self) -> u32 {
        self.flights.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_a_flight_goes_to_all_who_wait() {
    let world = World::default();
    let slow = |result: Result<Minted, Fault>| async {
        tokio::time::sleep(SECOND).await;
        result
    };
    let failed = join_all((0..100).map(|_| world.slot.get(|| slow(Err(unavailable(Pace::QUICK)))))).await;
    assert!(failed.iter().all(|outcome| matches!(outcome, Err(failed) if failed.wait() == SECOND)));
    tokio::time::sleep(SECOND).await;
    let tokens = join_all((0..100).map(|_| world.slot.get(|| slow(Ok(minted("a")))))).await;
    assert!(tokens.iter().all(|outcome| matches!(outcome, Ok(token) if token.generation == 1)));
}

#[tokio::test(start_paused = true)]
async fn failures_are_held_ever_longer_until_a_flight_succeeds() {
    let world = World::default();
    for (flights, seconds) in (1..).zip([5, 10, 20, 40, 80, 160, 320, 640, 900, 900]) {
        let failed = world.get(Err(unavailable(Pace::CAREFUL))).await.unwrap_err();
        assert_eq!(failed.wait(), SECOND * seconds);
        tokio::time::sleep(SECOND * (seconds - 1)).await;
        // Held: what a flight would bring now is not asked for.
        assert_eq!(world.get(Ok(minted("a"))).await.unwrap_err().wait(), SECOND);
        assert_eq!(world.flights(), flights);
        tokio::time::sleep(SECOND).await;
    }
    let token = world.get(Ok(minted("a"))).await.unwrap();
    world.slot.invalidate(token.generation);
    let failed = world.get(Err(unavailable(Pace::CAREFUL))).await.unwrap_err();
    assert_eq!(failed.wait(), SECOND * 5);
}

#[tokio::test(start_paused = true)]
async fn a_throttling_is_held_as_long_as_it_says() {
    let world = World::default();
    let throttled = |wait| Fault { what: What::Throttled(wait), pace: Pace::QUICK };
    assert_eq!(world.get(Err(throttled(Some(SECOND * 40)))).await.unwrap_err().wait(), SECOND * 40);
    tokio::time::sleep(SECOND * 40).await;
    assert_eq!(world.get(Err(throttled(None))).await.unwrap_err().wait(), SECOND * 2);
}

#[tokio::test(start_paused = true)]
async fn only_the_generation_that_was_refused_is_invalidated() {
    let world = World::default();
    let old = world.get(Ok(minted("a"))).await.unwrap();
    world.slot.invalidate(old.generation);
    let new = world.get(Ok(minted("b"))).await.unwrap();
    world.slot.invalidate(old.generation);
    let kept = world.get(Ok(minted("c"))).await.unwrap();
    assert_eq!((kept.generation, &kept.value), (new.generation, &new.value));
    assert_eq!(world.flights(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_again_is_kept_for_a_while() {
    let world = World::default();
    let first = world.get(Ok(minted("a"))).await.unwrap();
    world.slot.invalidate(first.generation);
    let again = world.get(Ok(minted("a"))).await.unwrap();
    for _ in 0..10 {
        world.slot.invalidate(again.generation);
        world.get(Ok(minted("b"))).await.unwrap();
    }
    assert_eq!(world.flights(), 2);
    tokio::time::sleep(SAME_TOKEN_HOLD).await;
    world.slot.invalidate(again.generation);
    assert_eq!(world.get(Ok(minted("b"))).await.unwrap().value, "b");
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_an_upper_bound() {
    let world = World::default();
    let lasting = |seconds| Minted { expires_in: Some(SECOND * seconds), ..minted("a") };
    world.get(Ok(lasting(3))).await.unwrap();
    tokio::time::sleep(SECOND * 3).await;
    world.get(Ok(lasting(0))).await.unwrap();
    assert_eq!(world.flights(), 1);
    tokio::time::sleep(EXPIRY_SLACK).await;
    // The same token with nothing left of it is asked for once in a second, not at each call.
    for _ in 0..10 {
        world.get(Ok(lasting(0))).await.unwrap();
    }
    assert_eq!(world.flights(), 2);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_other_credentials_are_discarded() {
    let world = World::default();
    world.get(Ok(minted("a"))).await.unwrap();
    world.slot.keep_only(fingerprint(1));
    world.get(Ok(minted("b"))).await.unwrap();
    assert_eq!(world.flights(), 1);
    world.slot.keep_only(fingerprint(2));
    world.get(Ok(minted("b"))).await.unwrap();
    assert_eq!(world.flights(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_a_failed_flight() {
    let slot = Arc::new(Slot::default());
    let panics = || async { panic!("a renewal that breaks, on purpose") };
    assert!(slot.get(panics).await.is_err());
    tokio::time::sleep(SECOND * 5).await;
    assert!(slot.get(|| async { Ok(minted("a")) }).await.is_ok());
}
