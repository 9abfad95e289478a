use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::*;
use crate::{
    simulator::{Identifiers, List, Outcome, Overall, Shape, Words},
    thingspace::{RefusalKind, StatusAnswer, StatusClass},
};

fn found(lookup: Result<StatusLookup, Error>) -> StatusAnswer {
    match lookup {
        Ok(StatusLookup::Found(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_shape_is_read() {
    let world = world(manual()).await;
    let request = world.handle.add_request(account(), (0..4).map(device));
    let outcomes = [Outcome::Success, Outcome::Failed, Outcome::Pending, Outcome::Word("Warning")];
    for (number, outcome) in (0..).zip(outcomes) {
        world.handle.finish(&request, device(number).eid.as_str(), outcome);
    }
    let classes = [StatusClass::Succeeded, StatusClass::Failed, StatusClass::Pending, StatusClass::Waiting];
    let all = Shape { identifiers: Identifiers::All, extras: true, numeric_imei: true, ..Shape::default() };
    for words in [Words::Documented, Words::Sdk, Words::Upper, Words::Mixed] {
        for shape in
            [Shape { words, ..Shape::default() }, Shape { words, ..Shape::sdk() }, Shape { words, ..all }]
        {
            world.handle.set_shape(shape);
            let answer = found(world.poll(&request).await);
            assert_eq!(answer.overall, StatusClass::Succeeded, "{shape:?}");
            assert_eq!(
                answer.devices.iter().map(|(_, class)| *class).collect::<Vec<_>>(),
                classes,
                "{shape:?}"
            );
            for (number, (read, _)) in (0..).zip(&answer.devices) {
                assert_eq!(read.iccid, device(number).iccid, "{shape:?}");
            }
        }
    }
    world.handle.set_shape(Shape { list: List::Absent, overall: Overall::Honest, ..Shape::default() });
    let answer = found(world.poll(&request).await);
    assert_eq!(answer, StatusAnswer { overall: StatusClass::Pending, devices: vec![] });
}

#[tokio::test]
async fn an_unknown_request_is_not_known_and_a_strange_account_is_refused() {
    let world = world(manual()).await;
    let request = world.request();
    let unknown = RequestId::parse("no-such-request").unwrap();
    assert_eq!(world.poll(&unknown).await.unwrap(), StatusLookup::NotKnown);
    for (name, kind) in [
        ("0000999999-00001", RefusalKind::AccountForbidden),
        ("0000000000-00000", RefusalKind::AccountNotFound),
    ] {
        let refused = world.client.request_status(&named(name), &request, Purpose::Poll).await;
        assert!(matches!(refused, Err(Error::Refused(refusal)) if refusal.kind == kind));
    }
    for vague in [answer(404, "<html>"), answer(503, r#"{"errorCode":"503"}"#)] {
        world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, vague));
        assert!(matches!(world.poll(&request).await, Err(Error::Ambiguous { .. })));
        world.handle.clear_faults();
    }
}

#[tokio::test]
async fn foreign_requests_never_wait() {
    let world = configured(manual(), |config| config.calls_per_second = 20).await;
    let request = world.request();
    let account = account();
    let foreign = async || {
        world.client.request_status(&account, &request, Purpose::Foreign).await.map(|(lookup, _)| lookup)
    };
    found(foreign().await);
    let mut refused = 0;
    for _ in 0..10 {
        refused += usize::from(matches!(foreign().await, Err(Error::Throttled { retry_after: Some(_) })));
    }
    assert!(refused > 0);
    assert_eq!(world.handle.ledger().polls(), 11 - refused as u64);
    found(world.poll(&request).await);
}

#[tokio::test]
async fn the_wait_for_the_rate_is_none_of_the_time_an_answer_took() {
    let world = configured(manual(), |config| config.calls_per_second = 2).await;
    let (account, request) = (account(), world.request());
    let began = Instant::now();
    // Two go at once, the others wait for half a second, for a whole one, …: five together.
    let polls = (0..6).map(|_| world.client.request_status(&account, &request, Purpose::Poll));
    let polls = try_join_all(polls).await.unwrap();
    let took: Duration = polls.iter().map(|(_, took)| *took).sum();
    assert!(took < began.elapsed(), "{took:?} in {:?}", began.elapsed());
}
