use std::{fs, slice};

use test_support::issuer::{Issuer, KeyServer, claims, key_set};
use tokio::{task::JoinSet, time};

use super::{
    super::jwt::{ExpectedClaims, JwtError},
    *,
};

/// A source that is followed until it is dropped.
struct Followed {
    source: Arc<KeySource>,
    _following: JoinSet<()>,
}

impl Followed {
    async fn start(url: KeySetUrl) -> Self {
        let source = Arc::new(KeySource::url(url).await.unwrap());
        let (mut following, followed) = (JoinSet::new(), Arc::clone(&source));
        following.spawn(async move { followed.follow().await });
        Self { source, _following: following }
    }

    async fn with_keys(server: &KeyServer) -> Self {
        let followed = Self::start(location(server)).await;
        followed.until(|state| state.keys.is_some()).await;
        followed
    }

    fn fetched(&self) -> &FetchedKeys {
        match &self.source.0 {
            Source::Url(url) => url,
            Source::File(_) => unreachable!(),
        }
    }

    async fn until(&self, condition: impl FnMut(&FetchState) -> bool) {
        let mut state = self.fetched().state.subscribe();
        let waited = timeout(Duration::from_secs(30), state.wait_for(condition)).await;
        waited.expect("the state changes in time").unwrap();
    }

    /// Lets a call with a token of this issuer look for its key.
    async fn look_for(&self, issuer: &Issuer) -> Result<(), JwtError> {
        let expected = ExpectedClaims {
            issuer: test_support::issuer::ISSUER.into(),
            audience: test_support::issuer::AUDIENCE.into(),
        };
        let token = issuer.token(&claims(jiff::Timestamp::now().as_second() + 600));
        let keys = self.source.current().unwrap();
        match expected.verify(&keys, &token) {
            Err(JwtError::UnknownKey) => {
                let newer = self.source.newer_than(&keys).await.ok_or(JwtError::UnknownKey)?;
                expected.verify(&newer, &token).map(drop)
            }
            verified => verified.map(drop),
        }
    }
}

fn location(server: &KeyServer) -> KeySetUrl {
    KeySetUrl { url: server.url.clone(), ca_file: Some(server.ca_file.clone()), token_file: None }
}

/// Lets this time pass at once. Only while no socket is waited for.
async fn pass(duration: Duration) {
    time::pause();
    time::advance(duration).await;
    time::resume();
}

#[tokio::test]
async fn a_new_key_is_fetched_for_the_first_token_with_it() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let server = KeyServer::start(key_set(&[&old])).await;
    let followed = Followed::with_keys(&server).await;
    assert_eq!(followed.look_for(&old).await, Ok(()));
    server.answer(200, key_set(&[&old, &new]));
    // A fetch was less than a minute ago.
    assert_eq!(followed.look_for(&new).await, Err(JwtError::UnknownKey));
    assert_eq!(server.requests().len(), 1);
    pass(RETRY).await;
    assert_eq!(followed.look_for(&new).await, Ok(()));
    assert_eq!(followed.look_for(&old).await, Ok(()));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn unknown_keys_cause_one_fetch_a_minute_and_few_calls_wait_for_it() {
    let (known, unknown) = (Issuer::new("known"), Issuer::new("unknown"));
    let server = KeyServer::start(key_set(&[&known])).await;
    let followed = Arc::new(Followed::with_keys(&server).await);
    for fetches in 2..5 {
        pass(RETRY).await;
        let mut calls = JoinSet::new();
        for _ in 0..3 * MAX_WAITING {
            let (followed, issuer) = (Arc::clone(&followed), Issuer::new("unknown"));
            calls.spawn(async move { followed.look_for(&issuer).await });
        }
        let outcomes = calls.join_all().await;
        assert!(outcomes.iter().all(|outcome| *outcome == Err(JwtError::UnknownKey)));
        assert_eq!(followed.look_for(&unknown).await, Err(JwtError::UnknownKey));
        assert_eq!(server.requests().len(), fetches);
    }
    // All places are free again.
    assert_eq!(followed.fetched().waiting.available_permits(), MAX_WAITING);
    assert_eq!(followed.look_for(&known).await, Ok(()));
}

/// A caller that went away once cancelled the fetch, and no other was made for a minute.
#[tokio::test]
async fn a_call_that_is_cancelled_does_not_cancel_the_fetch() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let server = KeyServer::start(key_set(&[&old])).await;
    let followed = Followed::with_keys(&server).await;
    server.answer(200, key_set(slice::from_ref(&&new)));
    pass(RETRY).await;
    tokio::select! {
        biased;
        _ = followed.look_for(&new) => unreachable!("a fetch takes longer"),
        () = std::future::ready(()) => {}
    }
    followed.until(|state| state.fetches == 2).await;
    assert_eq!(followed.look_for(&new).await, Ok(()));
}

#[tokio::test]
async fn an_answer_without_keys_never_replaces_the_keys() {
    let issuer = Issuer::new("one");
    let server = KeyServer::start(key_set(&[&issuer])).await;
    let followed = Followed::with_keys(&server).await;
    let large = format!(r#"{{"keys": [], "padding": "{}"}}"#, "x".repeat(MAX_BYTES));
    for (fetches, (status, body)) in (2..).zip([
        (500, key_set(&[])),
        (302, key_set(&[&Issuer::new("one")])),
        (200, "{}".to_owned()),
        (200, key_set(&[])),
        (200, large),
    ]) {
        server.answer(status, body);
        pass(REFRESH).await;
        followed.until(|state| state.fetches == fetches).await;
        assert_eq!(followed.look_for(&issuer).await, Ok(()));
    }
    assert!(server.requests().iter().all(|head| head.starts_with("GET /keys ")));
}

#[tokio::test]
async fn only_a_server_with_a_trusted_certificate_is_believed() {
    let issuer = Issuer::new("one");
    let (server, other) =
        (KeyServer::start(key_set(&[&issuer])).await, KeyServer::start(key_set(&[&issuer])).await);
    let trusting_other = KeySetUrl { ca_file: Some(other.ca_file.clone()), ..location(&server) };
    let followed = Followed::start(trusting_other).await;
    followed.until(|state| state.fetches == 1).await;
    assert!(followed.source.current().is_none());
    let why = followed.fetched().get().await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    assert!(server.requests().is_empty());

    // The authorities are read again.
    fs::copy(&server.ca_file, &other.ca_file).unwrap();
    assert_eq!(followed.fetched().client.refresh().await, Ok(true));
    followed.fetched().get().await.unwrap();
}

#[tokio::test]
async fn the_token_in_a_file_is_sent() {
    let server = KeyServer::start(key_set(&[&Issuer::new("one")])).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let followed =
        Followed::start(KeySetUrl { token_file: Some(file.clone()), ..location(&server) });
    let followed = followed.await;
    followed.until(|state| state.fetches == 1).await;
    fs::write(&file, "second\n").unwrap();
    followed.fetched().get().await.unwrap();
    for (head, token) in server.requests().iter().zip(["first", "second"]) {
        assert!(head.contains(&format!("authorization: Bearer {token}\r\n")), "{head}");
    }
}
