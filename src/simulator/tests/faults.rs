use futures_util::future::join;

use super::*;
use crate::simulator::{Endpoint, Fault, Gate, What, When};

use When::{AfterEffect, BeforeEffect};

/// How many orders there are once the call is through.
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
            body: r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>404</am:code></am:fault>"#
                .into(),
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
        // One connection was cut, the simulator goes on.
        world.placed(&[device(2)]).await;
        assert_eq!(world.handle.ledger().calls(Endpoint::Download), 2);
    }
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
            let there = world
                .handle
                .wait_until(PATIENCE, |l| l.in_flight(Endpoint::Download) == 1 && l.orders.len() == effect);
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
        // By the time another call is through, the simulator has seen that connection end.
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
    let fault = |endpoint, code, times| Fault { endpoint, when: BeforeEffect, what: status(code), times };
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
    assert_eq!(ledger.mints, 1);
}

#[tokio::test]
async fn stopping_cuts_everything() {
    let simulator = Simulator::bind(manual()).await.unwrap();
    let (url, handle, stop) = (simulator.base_url(), simulator.handle(), CancellationToken::new());
    let running = tokio::spawn(simulator.run(stop.clone()));
    handle.inject(Fault::always(Endpoint::Token, BeforeEffect, What::Hold(Gate::default())));
    // A connection that is open and says nothing.
    let silent =
        tokio::net::TcpStream::connect(url["http://".len()..].trim_end_matches("/api")).await.unwrap();
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
    world.handle.wait_until(Duration::ZERO, |ledger| ledger.mints == 1).await;
}
