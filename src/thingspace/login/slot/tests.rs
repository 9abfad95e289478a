use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const CAREFUL: Pace = Pace::BROKEN;

fn token(value: &'static str, generation: u64) -> Token {
    let id = TokenId { fingerprint: Fingerprint([1; 32]), generation };
    Token { value: HeaderValue::from_static(value), id, found: false }
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
        self.slot.get(|_| self.flight(result)).await
    }

    /// The same, although there is a token.
    async fn replace(&self, result: Result<Minted, Fault>) -> Outcome {
        self.slot.replace(|_| self.flight(result)).await
    }

    fn flight(
        &self,
        result: Result<Minted, Fault>,
    ) -> impl Future<Output = Result<Minted, Fault>> + Send + 'static {
        self.flights.fetch_add(1, Ordering::Relaxed);
        async { result }
    }

    /// The next token of the same credentials.
    fn minted(&self, value: &'static str) -> Minted {
        let generation = u64::from(self.flights()) + 1;
        Minted { token: token(value, generation), expires_in: None }
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
    let failed =
        join_all((0..100).map(|_| world.slot.get(|_| slow(Err(unavailable(Pace::QUICK)))))).await;
    assert!(failed.iter().all(|outcome| matches!(outcome, Err(failed) if failed.wait() == SECOND)));
    tokio::time::sleep(SECOND).await;
    let tokens = join_all((0..100).map(|_| world.slot.get(|_| slow(Ok(world.minted("a")))))).await;
    assert!(tokens.iter().all(|outcome| matches!(outcome, Ok(token) if token.id.generation == 1)));
}

#[tokio::test(start_paused = true)]
async fn failures_are_held_ever_longer_until_a_flight_succeeds() {
    let world = World::default();
    for (flights, seconds) in (1..).zip([5, 10, 20, 40, 80, 160, 320, 640, 900, 900]) {
        let failed = world.get(Err(unavailable(CAREFUL))).await.unwrap_err();
        assert_eq!(failed.wait(), SECOND * seconds);
        tokio::time::sleep(SECOND * (seconds - 1)).await;
        // Held: what a flight would bring now is not asked for.
        assert_eq!(world.get(Ok(world.minted("a"))).await.unwrap_err().wait(), SECOND);
        assert_eq!(world.flights(), flights);
        tokio::time::sleep(SECOND).await;
    }
    let token = world.get(Ok(world.minted("a"))).await.unwrap();
    world.slot.invalidate(token.id);
    let failed = world.get(Err(unavailable(CAREFUL))).await.unwrap_err();
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
    let old = world.get(Ok(world.minted("a"))).await.unwrap();
    world.slot.invalidate(old.id);
    let new = world.get(Ok(world.minted("b"))).await.unwrap();
    world.slot.invalidate(old.id);
    let kept = world.get(Ok(world.minted("c"))).await.unwrap();
    assert_eq!((kept.id, &kept.value), (new.id, &new.value));
    assert_eq!(world.flights(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_again_is_kept_for_a_while() {
    let world = World::default();
    let first = world.get(Ok(world.minted("a"))).await.unwrap();
    world.slot.invalidate(first.id);
    let again = world.get(Ok(world.minted("a"))).await.unwrap();
    for _ in 0..10 {
        world.slot.invalidate(again.id);
        world.get(Ok(world.minted("b"))).await.unwrap();
    }
    assert_eq!(world.flights(), 2);
    tokio::time::sleep(SAME_TOKEN_HOLD).await;
    world.slot.invalidate(again.id);
    assert_eq!(world.get(Ok(world.minted("b"))).await.unwrap().value, "b");
}

/// Each costs a login.
#[tokio::test(start_paused = true)]
async fn tokens_that_are_never_of_use_are_asked_for_ever_more_rarely() {
    let world = World::default();
    let useless = async |value: &'static str| {
        let token = world.get(Ok(world.minted(value))).await.unwrap();
        world.slot.invalidate(token.id);
    };
    useless("a").await;
    useless("b").await;
    for (wait, value) in [(1, "c"), (2, "d"), (4, "e")] {
        let failed = world.get(Ok(world.minted("x"))).await.unwrap_err();
        assert_eq!(failed.wait(), SECOND * wait);
        tokio::time::sleep(SECOND * wait).await;
        useless(value).await;
    }
    tokio::time::sleep(SECOND * 8).await;
    let token = world.get(Ok(world.minted("f"))).await.unwrap();
    world.slot.worked(token.id);
    world.slot.invalidate(token.id);
    world.get(Ok(world.minted("g"))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_an_upper_bound() {
    let world = World::default();
    let lasting = |seconds| Minted { expires_in: Some(SECOND * seconds), ..world.minted("a") };
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
async fn a_token_is_held_until_there_is_one_of_the_new_credentials() {
    let world = World::default();
    world.get(Ok(world.minted("a"))).await.unwrap();
    for wait in [5, 10] {
        assert_eq!(
            world.replace(Err(unavailable(CAREFUL))).await.unwrap_err().wait(),
            SECOND * wait
        );
        // The next attempt has to wait; the token has not.
        assert!(world.replace(Ok(world.minted("b"))).await.is_err());
        assert_eq!(world.get(Ok(world.minted("b"))).await.unwrap().value, "a");
        tokio::time::sleep(SECOND * wait).await;
    }
    assert_eq!(world.flights(), 3);
    world.replace(Ok(world.minted("b"))).await.unwrap();
    assert_eq!(world.get(Ok(world.minted("c"))).await.unwrap().value, "b");
    world.replace(Err(unavailable(CAREFUL))).await.unwrap_err();
    world.slot.invalidate(world.get(Ok(world.minted("c"))).await.unwrap().id);
    assert!(world.get(Ok(world.minted("c"))).await.is_err(), "its failure is held");
    world.slot.forget_failure();
    assert_eq!(world.get(Ok(world.minted("c"))).await.unwrap().value, "c");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_comes_after_the_last_token() {
    let slot = Arc::new(Slot::default());
    let mut last = None;
    for generation in 1..4 {
        let flight = |after| async move {
            assert_eq!(after, last);
            Ok(Minted { token: token("a", generation), expires_in: None })
        };
        let id = slot.get(flight).await.unwrap().id;
        last = Some(id);
        tokio::time::sleep(SAME_TOKEN_HOLD).await;
        slot.invalidate(id);
        assert_eq!(slot.holds(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn looking_at_the_files_is_no_attempt() {
    let world = World::default();
    let stopped = || Err(Fault { what: What::Stopped, pace: Pace::RECHECK });
    for _ in 0..20 {
        assert_eq!(world.get(stopped()).await.unwrap_err().wait(), SECOND);
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(world.get(Err(unavailable(CAREFUL))).await.unwrap_err().wait(), SECOND * 5);
    tokio::time::sleep(SECOND * 5).await;
    let until = Instant::now() + SECOND * 40;
    let later = Fault { what: What::Later("not yet".into(), until), pace: Pace::RECHECK };
    assert_eq!(world.get(Err(later)).await.unwrap_err().wait(), SECOND * 40);
    tokio::time::sleep(SECOND).await;
    // It is said for how long; but it may come sooner.
    assert!(world.get(Ok(world.minted("a"))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_a_failed_flight() {
    let slot = Arc::new(Slot::default());
    let panics = |_| async { panic!("a renewal that breaks, on purpose") };
    assert!(slot.get(panics).await.is_err());
    tokio::time::sleep(SECOND * 5).await;
    assert!(
        slot.get(|_| async { Ok(Minted { token: token("a", 1), expires_in: None }) }).await.is_ok()
    );
}
