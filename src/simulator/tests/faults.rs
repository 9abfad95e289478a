use std::{error::Error, io};

use futures_util::future::join;

use super::*;
use crate::simulator::{Endpoint, Fault, Gate, What, When};

use When::{AfterEffect, BeforeEffect};

/// Returns the number of orders after the call.
async fn orders(world: &World) -> usize {
    let idle = |ledger: &crate::simulator::Ledger| {
        ledger.calls(Endpoint::Download) > 0 && ledger.in_flight(Endpoint::Download) == 0
    };
    world.handle.wait_until(PATIENCE, idle).await.orders.len()
}

/// A world whose next order meets the fault.
async fn faulty(when: When, what: What) -> World {
    let world = world(manual()).await;
    world.handle.inject(Fault::once(Endpoint::Download, when, what));
    world
}

const BOTH: [(When, usize); 2] = [(BeforeEffect, 0), (AfterEffect, 1)];

#[tokio::test]
async fn another_answer() {
    for (when, effect) in BOTH {
        let what = What::Status {
            status: StatusCode::FORBIDDEN,
            content_type: "text/xml",
            body: "<am:fault><am:code>404</am:code></am:fault>".into(),
        };
        let world = faulty(when, what).await;
        let answer = send(world.order(&[device(1)]), 403).await;
        assert_eq!(answer.headers()["content-type"], "text/xml");
        assert!(answer.text().await.unwrap().starts_with("<am:fault"));
        assert_eq!(orders(&world).await, effect);
        // Used up.
        world.placed(&[device(2)]).await;
    }
}

#[tokio::test]
async fn answers_that_users_met() {
    let answers = [
        (What::invalid_credentials(), 401, "application/json; charset=UTF-8", r#""code":"900901""#),
        (
            What::wrong_authentication(),
            403,
            "application/xml; charset=UTF-8",
            "<am:code>404</am:code>",
        ),
        (
            What::failed(StatusCode::INTERNAL_SERVER_ERROR),
            500,
            "application/json; charset=UTF-8",
            r#""500""#,
        ),
        (What::page(StatusCode::OK), 200, "text/html;charset=UTF-8", "<html>"),
    ];
    for (what, status, content_type, part) in answers {
        let world = faulty(AfterEffect, what).await;
        let answer = send(world.order(&[device(1)]), status).await;
        assert_eq!(answer.headers()["content-type"], content_type);
        let text = answer.text().await.unwrap();
        assert!(text.contains(part), "{text}");
    }
    let world = faulty(AfterEffect, What::bare(StatusCode::REQUEST_TIMEOUT)).await;
    let answer = send(world.order(&[device(1)]), 408).await;
    assert_eq!((answer.headers().get("content-type"), answer.content_length()), (None, Some(0)));
}

#[tokio::test]
async fn throttled() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::Throttle { retry_after: Some(7) }).await;
        let answer = send(world.order(&[device(1)]), 429).await;
        assert_eq!(answer.headers()["retry-after"], "7");
        assert_eq!(answer.json::<Value>().await.unwrap()["fault"]["code"], "900800");
        assert_eq!(orders(&world).await, effect);
    }
}

#[tokio::test]
async fn unavailable() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::Unavailable { retry_after: Some(7) }).await;
        let answer = send(world.order(&[device(1)]), 503).await;
        assert_eq!(answer.headers()["retry-after"], "7");
        assert!(answer.text().await.unwrap().contains("<html>"));
        assert_eq!(orders(&world).await, effect);
    }
}

#[tokio::test]
async fn redirected() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::Redirect { location: "/elsewhere".into() }).await;
        let answer = send(world.order(&[device(1)]), 307).await;
        assert_eq!(answer.headers()["location"], "/elsewhere");
        assert_eq!(orders(&world).await, effect);
    }
}

#[tokio::test]
async fn a_cut_connection_gives_no_answer() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::Drop).await;
        let error = world.order(&[device(1)]).send().await.unwrap_err();
        assert!(error.is_request() && !error.is_timeout() && !error.is_connect(), "{error:?}");
        assert_eq!(orders(&world).await, effect);
        // Only one connection was cut.
        world.placed(&[device(2)]).await;
        assert_eq!(world.handle.ledger().calls(Endpoint::Download), 2);
    }
}

#[tokio::test]
async fn a_reset_connection_gives_an_error() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::Reset).await;
        let error = world.order(&[device(1)]).send().await.unwrap_err();
        let mut root: &dyn Error = &error;
        while let Some(source) = root.source() {
            root = source;
        }
        let io = root.downcast_ref::<io::Error>();
        assert_eq!(io.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset), "{error:?}");
        assert_eq!(orders(&world).await, effect);
        world.placed(&[device(2)]).await;
    }
}

#[tokio::test]
async fn a_half_body_is_whole_to_http() {
    for (when, status) in [(BeforeEffect, 500), (AfterEffect, 200)] {
        let world = faulty(when, What::HalfBody).await;
        let answer = send(world.order(&[device(1)]), status).await;
        let length = answer.content_length().unwrap();
        let body = answer.bytes().await.unwrap();
        assert_eq!(body.len() as u64, length);
        assert!(body.starts_with(b"{") && serde_json::from_slice::<Value>(&body).is_err());
    }
}

#[tokio::test]
async fn a_trickle_comes_to_its_end() {
    let world = faulty(AfterEffect, What::Trickle { pause: Duration::from_millis(1) }).await;
    let mut answer = send(world.order(&[device(1)]), 200).await;
    let whole = answer.content_length().unwrap();
    let first = answer.chunk().await.unwrap().unwrap();
    assert_eq!(&*first, b"{");
    let mut rest = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        rest += chunk.len() as u64;
    }
    assert_eq!(1 + rest, whole);
}

#[tokio::test]
async fn more_headers() {
    let world = faulty(AfterEffect, What::Headers { count: 50 }).await;
    let answer = send(world.order(&[device(1)]), 200).await;
    assert_eq!(answer.headers().get_all("x-filler").iter().count(), 50);
}

#[tokio::test]
async fn a_cut_body_has_its_headers() {
    for (when, effect) in BOTH {
        let world = faulty(when, What::CutBody).await;
        let mut answer = world.order(&[device(1)]).send().await.unwrap();
        let whole = answer.content_length().unwrap();
        let begin = answer.chunk().await.unwrap().unwrap();
        assert_eq!(begin.len() as u64, whole / 2);
        let error = answer.chunk().await.unwrap_err();
        assert!(!error.is_timeout(), "{error:?}");
        assert_eq!(orders(&world).await, effect);
    }
}

#[tokio::test]
async fn a_held_call_waits_for_its_gate() {
    for (when, effect) in BOTH {
        let gate = Gate::default();
        let world = faulty(when, What::Hold(gate.clone())).await;
        let at_the_gate = async {
            let there = world.handle.wait_until(PATIENCE, |l| {
                l.in_flight(Endpoint::Download) == 1 && l.orders.len() == effect
            });
            there.await;
            assert_eq!(world.handle.ledger().orders.len(), effect);
            gate.open();
        };
        join(at_the_gate, world.placed(&[device(1)])).await;
        assert_eq!(orders(&world).await, 1);
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    for (when, _) in BOTH {
        let gate = Gate::default();
        let world = faulty(when, What::Hold(gate.clone())).await;
        let caller = tokio::spawn(world.order(&[device(1)]).send());
        world.handle.wait_until(PATIENCE, |ledger| ledger.in_flight(Endpoint::Download) == 1).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        // After another call the simulator has seen the end of that connection.
        body(world.token(), 200).await;
        gate.open();
        assert_eq!(orders(&world).await, 1);
    }
}

#[tokio::test]
async fn faults_are_met_in_order_by_calls_of_their_endpoint() {
    let world = world(manual()).await;
    let status = |code: u16| What::Status {
        status: StatusCode::from_u16(code).unwrap(),
        content_type: "text/html",
        body: String::new(),
    };
    let fault = |endpoint, code, times| Fault {
        endpoint,
        when: BeforeEffect,
        what: status(code),
        times,
        request: None,
    };
    world.handle.inject(fault(Endpoint::Download, 500, Some(2)));
    world.handle.inject(fault(Endpoint::Download, 503, None));
    world.handle.inject(Fault::always(Endpoint::Token, AfterEffect, status(502)));
    for code in [500, 500, 503, 503, 503] {
        send(world.order(&[device(1)]), code).await;
    }
    send(world.token(), 502).await;
    send(world.login("simulator-password"), 200).await;
    world.handle.clear_faults();
    world.placed(&[device(1)]).await;
    send(world.token(), 200).await;
    assert_eq!(world.handle.ledger().peak(Endpoint::Download), 1);
}

#[tokio::test]
async fn answers_that_contradict_themselves_are_about_the_order_that_was_placed() {
    let world = world(manual()).await;
    let answers = [
        (What::refused_with_id("Request-ID"), 400, "Request-ID"),
        (What::two_envelopes(), 400, "errorCode"),
        (What::request_id("true"), 200, "requestId"),
        (What::request_id(r#""{id}""#), 200, "requestId"),
    ];
    for (number, (what, status, field)) in answers.into_iter().enumerate() {
        world.handle.inject(Fault::once(Endpoint::Download, AfterEffect, what.clone()));
        let said = body(world.order(&[device(number as u64)]), status).await;
        let placed = world.handle.ledger().orders.pop().unwrap().request_id;
        let id = json!(placed.as_str());
        assert_eq!(
            said[field] == id,
            !matches!(field, "errorCode") && said[field].is_string(),
            "{what:?}: {said}"
        );
    }
    assert_eq!(world.handle.ledger().orders.len(), 4);
}

#[tokio::test]
async fn a_fault_can_be_about_one_request() {
    let world = world(manual()).await;
    let (one, other) = (world.placed(&[device(1)]).await, world.placed(&[device(2)]).await);
    let a_day = What::Unavailable { retry_after: Some(86_400) };
    world.handle.inject(Fault::once(Endpoint::Status, BeforeEffect, a_day).about(&one));
    world.shown(&other).await;
    let answer = send(world.status(ACCOUNT, one.as_str()), 503).await;
    assert_eq!(answer.headers()["retry-after"], "86400");
    world.shown(&one).await;
}

#[tokio::test]
async fn the_most_in_flight_is_remembered() {
    let gate = Gate::default();
    let world = cold(manual()).await;
    world.handle.inject(Fault::always(Endpoint::Token, BeforeEffect, What::Hold(gate.clone())));
    let opened = async {
        world.handle.wait_until(PATIENCE, |ledger| ledger.in_flight(Endpoint::Token) == 2).await;
        gate.open();
    };
    join(opened, join(body(world.token(), 200), body(world.token(), 200))).await;
    let ledger = world.handle.ledger();
    assert_eq!((ledger.peak(Endpoint::Token), ledger.in_flight(Endpoint::Token)), (2, 0));
    assert_eq!(ledger.bearers_issued, 1);
}

#[tokio::test]
async fn stopping_cuts_everything() {
    let simulator = Simulator::bind(manual()).await.unwrap();
    let (url, handle, stop) = (simulator.base_url(), simulator.handle(), CancellationToken::new());
    let running = tokio::spawn(simulator.run(stop.clone()));
    handle.inject(Fault::always(Endpoint::Token, BeforeEffect, What::Hold(Gate::default())));
    // An idle connection.
    let silent = tokio::net::TcpStream::connect(url["http://".len()..].trim_end_matches("/api"))
        .await
        .unwrap();
    let waiting = tokio::spawn(Client::new().post(format!("{url}/ts/v1/oauth2/token")).send());
    handle.wait_until(PATIENCE, |ledger| ledger.in_flight(Endpoint::Token) == 1).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    assert!(!waiting.await.unwrap().unwrap_err().is_timeout());
    drop(silent);
}

#[tokio::test]
#[should_panic(expected = "not so after")]
async fn waiting_for_what_does_not_happen_fails() {
    let world = cold(manual()).await;
    world.handle.wait_until(Duration::ZERO, |ledger| ledger.bearers_issued == 1).await;
}
