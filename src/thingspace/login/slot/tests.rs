use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::thingspace::login::guard::{Delay, Stopped};

const SECOND: Duration = Duration::from_secs(1);

fn token(value: &'static str, generation: u64) -> Token {
    let id = TokenId { fingerprint: Fingerprint([1; 32]), generation };
    Token { value: HeaderValue::from_static(value), id, found: false, expires_in: None }
}

fn unavailable() -> LoginError {
    LoginError::unavailable("down")
}

/// A slot, and how many renewals it began.
#[derive(Default)]
struct World {
    slot: Arc<Slot>,
    renewals: AtomicU32,
}

impl World {
    /// Gets the token; if a renewal begins, this is its result.
    async fn get(&self, result: Renewed) -> Renewed {
        self.slot.get(Need::Call, |_| self.renewal(result)).await
    }

    /// The same, although there is a token.
    async fn replace(&self, result: Renewed) -> Renewed {
        self.slot.get(Need::Rotation, |_| self.renewal(result)).await
    }

    fn renewal(&self, result: Renewed) -> impl Future<Output = Renewed> + Send + 'static {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        async { result }
    }

    /// The next token of the same credentials.
    fn minted(&self, value: &'static str) -> Token {
        let generation = u64::from(self.renewals()) + 1;
        token(value, generation)
    }

    fn renewals(&self) -> u32 {
        self.renewals.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn the_result_of_a_renewal_goes_to_all_who_wait() {
    let world = World::default();
    let slow = |result: Renewed| async {
        tokio::time::sleep(SECOND).await;
        result
    };
    let failed =
        join_all((0..100).map(|_| world.slot.get(Need::Call, |_| slow(Err(unavailable()))))).await;
    assert!(failed.iter().all(|outcome| matches!(outcome, Err(failed) if failed.wait() == SECOND)));
    tokio::time::sleep(SECOND).await;
    let tokens =
        join_all((0..100).map(|_| world.slot.get(Need::Call, |_| slow(Ok(world.minted("a"))))))
            .await;
    assert!(tokens.iter().all(|outcome| matches!(outcome, Ok(token) if token.id.generation == 1)));
}

#[tokio::test(start_paused = true)]
async fn failures_are_held_ever_longer_until_a_renewal_succeeds() {
    let world = World::default();
    for (renewals, seconds) in (1..).zip([1, 2, 4, 8, 16, 32, 60, 60]) {
        let failed = world.get(Err(unavailable())).await.unwrap_err();
        assert_eq!(failed.wait(), SECOND * seconds);
        tokio::time::sleep(SECOND * (seconds - 1)).await;
        // Held: no other renewal begins.
        assert_eq!(world.get(Ok(world.minted("a"))).await.unwrap_err().wait(), SECOND);
        assert_eq!(world.renewals(), renewals);
        tokio::time::sleep(SECOND).await;
    }
    let token = world.get(Ok(world.minted("a"))).await.unwrap();
    world.slot.invalidate(token.id);
    let failed = world.get(Err(unavailable())).await.unwrap_err();
    assert_eq!(failed.wait(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_throttling_is_held_as_long_as_it_says() {
    let world = World::default();
    let throttled =
        |wait: Option<Duration>| LoginError::new(Problem::Throttled, wait.unwrap_or_default());
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
    assert_eq!(world.renewals(), 2);
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
    assert_eq!(world.renewals(), 2);
    tokio::time::sleep(SAME_TOKEN_HOLD).await;
    world.slot.invalidate(again.id);
    assert_eq!(world.get(Ok(world.minted("b"))).await.unwrap().value, "b");
}

/// Each token costs a login.
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
    let lasting = |seconds| Token { expires_in: Some(SECOND * seconds), ..world.minted("a") };
    world.get(Ok(lasting(3))).await.unwrap();
    tokio::time::sleep(SECOND * 3).await;
    world.get(Ok(lasting(0))).await.unwrap();
    assert_eq!(world.renewals(), 1);
    tokio::time::sleep(EXPIRY_SLACK).await;
    // An expired token that is handed out again is requested once a second, not at each call.
    for _ in 0..10 {
        world.get(Ok(lasting(0))).await.unwrap();
    }
    assert_eq!(world.renewals(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_held_until_there_is_one_of_the_new_credentials() {
    let world = World::default();
    world.get(Ok(world.minted("a"))).await.unwrap();
    for wait in [1, 2] {
        assert_eq!(world.replace(Err(unavailable())).await.unwrap_err().wait(), SECOND * wait);
        // The next renewal is delayed, but calls still get the token.
        assert!(world.replace(Ok(world.minted("b"))).await.is_err());
        assert_eq!(world.get(Ok(world.minted("b"))).await.unwrap().value, "a");
        tokio::time::sleep(SECOND * wait).await;
    }
    assert_eq!(world.renewals(), 3);
    world.replace(Ok(world.minted("b"))).await.unwrap();
    assert_eq!(world.get(Ok(world.minted("c"))).await.unwrap().value, "b");
    world.replace(Err(unavailable())).await.unwrap_err();
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
        let renewal = |after| async move {
            assert_eq!(after, last);
            Ok(token("a", generation))
        };
        let id = slot.get(Need::Call, renewal).await.unwrap().id;
        last = Some(id);
        tokio::time::sleep(SAME_TOKEN_HOLD).await;
        slot.invalidate(id);
        assert_eq!(slot.holds(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn looking_at_the_files_is_no_attempt() {
    let world = World::default();
    let stopped = || Err(Problem::Stopped(Stopped::Rejected).into());
    for _ in 0..20 {
        assert_eq!(world.get(stopped()).await.unwrap_err().wait(), SECOND);
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(world.get(Err(unavailable())).await.unwrap_err().wait(), SECOND);
    tokio::time::sleep(SECOND).await;
    let delayed = LoginError::delayed(SECOND * 40, Delay::Unanswered);
    assert_eq!(world.get(Err(delayed)).await.unwrap_err().wait(), SECOND * 40);
    tokio::time::sleep(SECOND).await;
    // Callers are told the delay, but the next renewal may begin sooner.
    assert!(world.get(Ok(world.minted("a"))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_a_failed_renewal() {
    let slot = Arc::new(Slot::default());
    let panics = |_| async { panic!("a renewal that breaks, on purpose") };
    assert!(slot.get(Need::Call, panics).await.is_err());
    tokio::time::sleep(SECOND * 5).await;
    assert!(slot.get(Need::Call, |_| async { Ok(token("a", 1)) }).await.is_ok());
}
