//! The registration of callbacks, which is kept and never taken from another system, and results
//! that come only by callbacks.

mod contests;

use std::{net::SocketAddr, time::Duration};

use secrecy::ExposeSecret;
use thingspace_gateway::{
    callbacks::registration::{Registrar, RegistrationError, RegistrationOutcome},
    config::Config,
    identity::AccountName,
    proto::esim::{DeviceState, RequestState, watch_request_response::Event},
    simulator::{
        self, CallbackOptions, CallbackRetries, Endpoint, Fault, Gate, Ledger,
        SimulatedRegistration, What, When,
    },
};

use crate::harness::*;

const THEIRS: &str = "https://production.example:28200/callbacks/production-secret";

fn account() -> AccountName {
    AccountName::parse(ACCOUNT).unwrap()
}

async fn upstream() -> Upstream {
    Upstream::calling(CallbackOptions::default()).await
}

/// Counts the listings, registrations and deregistrations.
fn calls(ledger: &Ledger) -> [u64; 3] {
    [Endpoint::ListCallbacks, Endpoint::RegisterCallback, Endpoint::DeregisterCallback]
        .map(|endpoint| ledger.calls(endpoint))
}

trait RegistrationUpstream {
    fn registered(&self) -> Option<SimulatedRegistration>;
    fn url(&self) -> String;
    async fn registering(&self, config: Config) -> Gateway;
}

impl RegistrationUpstream for Upstream {
    fn registered(&self) -> Option<SimulatedRegistration> {
        self.sim.registered(&account())
    }

    fn url(&self) -> String {
        self.registered().expect("something is registered").url
    }

    /// Starts a gateway and waits for its registration.
    async fn registering(&self, config: Config) -> Gateway {
        let registered = self.sim.ledger().calls(Endpoint::RegisterCallback);
        let gateway = Gateway::start(config).await;
        // The listing after the registration is the last call.
        self.sim
            .wait_until(DEADLINE, |ledger| {
                let [listed, now, _] = calls(ledger);
                now == registered + 1
                    && listed >= 2
                    && ledger.in_flight(Endpoint::ListCallbacks) == 0
            })
            .await;
        gateway
    }
}

trait RegistrationGateway {
    fn address_of_callbacks(&self) -> SocketAddr;
    fn registration(&self) -> &Registrar;
}

impl RegistrationGateway for Gateway {
    fn address_of_callbacks(&self) -> SocketAddr {
        self.callbacks.as_ref().expect("callbacks are configured").0
    }

    fn registration(&self) -> &Registrar {
        self.registration.as_ref().expect("callbacks are configured")
    }
}

fn theirs() -> SimulatedRegistration {
    SimulatedRegistration {
        url: THEIRS.into(),
        username: "production".into(),
        password: "p".into(),
    }
}

#[tokio::test]
async fn registered_at_start_and_then_left_alone() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    let gateway = upstream.registering(config.clone()).await;
    let made = upstream.registered().unwrap();
    let address = gateway.address_of_callbacks();
    let secret = made.url.strip_prefix(&format!("http://{address}/callbacks/")).unwrap();
    assert!(secret.len() >= 32, "a short secret");
    let chars = [&made.username, made.password.expose_secret()].map(|text| text.chars().count());
    assert!(chars.iter().all(|chars| (1..=40).contains(chars)), "{chars:?}");
    assert_eq!(calls(&upstream.sim.ledger()), [2, 1, 0]);
    gateway.stop().await;

    config.callbacks.listen = address;
    let gateway = Gateway::start(config).await;
    assert_eq!(
        gateway.registration().register(&account(), false).await.unwrap(),
        RegistrationOutcome::Unchanged
    );
    gateway.stop().await;
    let [_, registered, deregistered] = calls(&upstream.sim.ledger());
    assert_eq!([registered, deregistered], [1, 0]);
    assert_eq!(upstream.url(), made.url);
}

#[tokio::test]
async fn a_registration_of_another_system_is_replaced_only_by_force() {
    let upstream = upstream().await;
    upstream.sim.register(&account(), theirs());
    let gateway = Gateway::start(upstream.called()).await;
    let registration = gateway.registration();
    for refused in [
        registration.register(&account(), false).await.map(drop),
        registration.rotate(&account()).await.map(drop),
        registration.deregister(&account()).await,
    ] {
        let error = refused.unwrap_err();
        assert!(
            matches!(&error, RegistrationError::Taken { host, .. } if host == "production.example")
        );
        assert!(!error.to_string().contains("production-secret"), "{error}");
    }
    let listed = registration.list(&account()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].host.as_str(), listed[0].ours), ("production.example", false));
    assert_eq!(calls(&upstream.sim.ledger())[1..], [0, 0]);
    assert_eq!(upstream.url(), THEIRS);

    assert_eq!(
        registration.register(&account(), true).await.unwrap(),
        RegistrationOutcome::Registered
    );
    assert_eq!(calls(&upstream.sim.ledger())[1..], [1, 1]);
    let listed = registration.list(&account()).await.unwrap();
    assert_eq!((listed[0].host.as_str(), listed[0].ours), ("127.0.0.1", true));
    gateway.stop().await;
}

#[tokio::test]
async fn a_user_name_listed_in_another_case_is_ours() {
    let upstream = upstream().await;
    let gateway = upstream.registering(upstream.called()).await;
    let mut listed = upstream.registered().unwrap();
    listed.username = listed.username.to_uppercase();
    upstream.sim.register(&account(), listed);
    assert_eq!(
        gateway.registration().register(&account(), false).await.unwrap(),
        RegistrationOutcome::Unchanged
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_registration_is_made_again() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    config.callbacks.recheck = Duration::from_millis(50);
    let gateway = upstream.registering(config).await;
    let url = upstream.url();
    upstream.sim.forget_registration(&account());
    upstream.sim.wait_until(DEADLINE, |ledger| ledger.calls(Endpoint::RegisterCallback) == 2).await;
    eventually("it is registered again", async || upstream.registered().is_some()).await;
    assert_eq!(upstream.url(), url);
    gateway.stop().await;
}

#[tokio::test]
async fn the_gateways_own_url_with_an_earlier_secret_is_replaced() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    let gateway = upstream.registering(config.clone()).await;
    let before = upstream.url();
    config.callbacks.listen = gateway.address_of_callbacks();
    gateway.stop().await;
    // A new store has another secret.
    config.store.path = upstream.dir.path().join("another.redb");
    let gateway = Gateway::start(config).await;
    assert_eq!(gateway.registration().register(&account(), false).await.map(drop).ok(), Some(()));
    assert_ne!(upstream.url(), before);
    assert_eq!(calls(&upstream.sim.ledger())[1..], [2, 1]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_changed_password_in_the_files_is_registered() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    let files = ["callback-user", "callback-password"].map(|name| upstream.dir.path().join(name));
    std::fs::write(&files[0], "from-file").unwrap();
    std::fs::write(&files[1], "first").unwrap();
    [config.callbacks.username_file, config.callbacks.password_file] = files.clone();
    let gateway = upstream.registering(config).await;
    let pair =
        || upstream.registered().map(|r| (r.username, r.password.expose_secret().to_owned()));
    assert_eq!(pair(), Some(("from-file".into(), "first".into())));
    std::fs::write(&files[1], "second").unwrap();
    assert_eq!(
        gateway.registration().register(&account(), false).await.unwrap(),
        RegistrationOutcome::Registered
    );
    assert_eq!(pair(), Some(("from-file".into(), "second".into())));
    assert_eq!(
        gateway.registration().register(&account(), false).await.unwrap(),
        RegistrationOutcome::Unchanged
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_decided_by_the_next_listing() {
    for (when, posts) in [(When::AfterEffect, 1), (When::BeforeEffect, 2)] {
        let upstream = upstream().await;
        upstream.sim.inject(Fault::once(Endpoint::RegisterCallback, when, What::Drop));
        let mut config = upstream.called();
        config.callbacks.register = false;
        let gateway = Gateway::start(config).await;
        assert_eq!(
            gateway.registration().register(&account(), false).await.unwrap(),
            RegistrationOutcome::Registered
        );
        assert_eq!(calls(&upstream.sim.ledger())[1..], [posts, 0], "{when:?}");
        assert!(upstream.registered().is_some());
        gateway.stop().await;
    }
}

fn answer(status: u16, body: &str) -> What {
    let status = status.try_into().unwrap();
    What::Status { status, content_type: "application/json", body: body.to_owned() }
}

#[tokio::test]
async fn a_refused_registration_is_not_repeated_at_once() {
    let upstream = upstream().await;
    let refusal = answer(
        400,
        r#"{"errorCode":"UnifiedWebService.INPUT_INVALID.Url.Invalid","errorMessage":"m"}"#,
    );
    upstream.sim.inject(Fault::always(Endpoint::RegisterCallback, When::BeforeEffect, refusal));
    let mut config = upstream.called();
    config.callbacks.register = false;
    let gateway = Gateway::start(config).await;
    let error = gateway.registration().register(&account(), false).await.unwrap_err();
    assert!(error.to_string().contains("INPUT_INVALID.Url.Invalid"), "{error}");
    assert_eq!(calls(&upstream.sim.ledger()), [2, 1, 0]);
    upstream.sim.clear_faults();
    assert_eq!(
        gateway.registration().register(&account(), false).await.unwrap(),
        RegistrationOutcome::Registered
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_registration_that_failed_at_start_is_repeated() {
    let upstream = upstream().await;
    let down = answer(500, "down for maintenance");
    upstream.sim.inject(Fault::once(Endpoint::ListCallbacks, When::BeforeEffect, down));
    let gateway = upstream.registering(upstream.called()).await;
    assert!(upstream.registered().is_some());
    gateway.stop().await;
}

#[tokio::test]
async fn a_registration_that_keeps_failing_is_one_line_in_the_log() {
    let upstream = upstream().await;
    let refusal =
        answer(400, r#"{"errorCode":"REQUEST_FAILED.UnexpectedError","errorMessage":"m"}"#);
    upstream.sim.inject(Fault::always(Endpoint::ListCallbacks, When::BeforeEffect, refusal));
    let mut config = upstream.called();
    config.callbacks.public_url = "http://127.0.0.1:28200/callbacks".to_owned();
    config.callbacks.recheck = Duration::from_secs(1);
    let process = Process::serve(&config, upstream.dir.path());
    let tried = |ledger: &Ledger| ledger.calls(Endpoint::ListCallbacks) >= 3;
    upstream.sim.wait_until(DEADLINE, tried).await;
    process.terminate();
    let (_, lines) = process.wait().await;
    let said =
        lines.iter().filter(|line| line.contains("the registration of callbacks; trying again"));
    assert_eq!(said.count(), 1, "{lines:#?}");
}

#[tokio::test]
async fn an_account_that_an_operator_deregistered_is_not_registered_again() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    config.callbacks.recheck = Duration::from_millis(10);
    let gateway = upstream.registering(config.clone()).await;
    gateway.registration().deregister(&account()).await.unwrap();
    gateway.registration().deregister(&account()).await.unwrap();
    assert!(upstream.registered().is_none());
    assert_eq!(calls(&upstream.sim.ledger())[1..], [1, 1]);
    gateway.stop().await;

    // Not even a restart brings it back.
    let gateway = Gateway::start(config).await;
    gateway.registration().deregister(&account()).await.unwrap();
    gateway.registration().register(&account(), false).await.unwrap();
    assert_eq!(calls(&upstream.sim.ledger())[1..], [2, 1]);
    assert!(upstream.registered().is_some());
    gateway.stop().await;
}

/// Between a deregistration and the next registration, results are lost.
#[tokio::test]
async fn a_drain_does_not_interrupt_a_rotation() {
    let upstream = upstream().await;
    let gateway = upstream.registering(upstream.called()).await;
    let gate = Gate::default();
    let hold = What::Hold(gate.clone());
    upstream.sim.inject(Fault::once(Endpoint::RegisterCallback, When::BeforeEffect, hold));
    let registration = gateway.registration().clone();
    let rotating = tokio::spawn(async move { registration.rotate(&account()).await });
    upstream
        .sim
        .wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::RegisterCallback) == 1)
        .await;
    assert!(upstream.registered().is_none());
    rotating.abort();
    gateway.stop.soft.cancel();
    let stopping = tokio::spawn(gateway.stop());
    gate.open();
    within("the gateway ends", stopping).await.unwrap();
    assert!(upstream.registered().is_some());
}

#[tokio::test]
async fn an_unknown_account_and_no_public_url() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    config.callbacks.register = false;
    let gateway = Gateway::start(config.clone()).await;
    let unknown = AccountName::parse("0000999999-00009").unwrap();
    let refused = gateway.registration().register(&unknown, true).await;
    assert!(matches!(refused, Err(RegistrationError::NotConfigured(_))), "{refused:?}");
    let refused = gateway.registration().list(&unknown).await;
    assert!(matches!(refused, Err(RegistrationError::NotConfigured(_))), "{refused:?}");
    gateway.stop().await;
    config.callbacks.public_url.clear();
    let gateway = Gateway::start(config).await;
    assert!(gateway.registration.is_none() && gateway.callbacks.is_some());
    gateway.stop().await;
    assert_eq!(calls(&upstream.sim.ledger()), [0, 0, 0]);
}

/// ThingSpace still sends the old pair, in turn with the new one.
#[tokio::test]
async fn a_replaced_pair_is_accepted_within_its_grace_and_not_after() {
    for (grace, acknowledged) in [(Duration::from_hours(1), 4), (Duration::ZERO, 2)] {
        let callbacks = CallbackOptions {
            old_pair: Duration::from_hours(1),
            retries: CallbackRetries { times: 0, interval: Duration::ZERO },
            ..CallbackOptions::default()
        };
        let upstream = Upstream::calling(callbacks).await;
        let mut config = upstream.called();
        config.callbacks.password_grace = grace;
        let gateway = upstream.registering(config).await;
        let before = upstream.registered().unwrap();
        assert_eq!(
            gateway.registration().rotate(&account()).await.unwrap(),
            RegistrationOutcome::Rotated
        );
        let after = upstream.registered().unwrap();
        assert_eq!(after.url, before.url);
        assert_ne!(after.password.expose_secret(), before.password.expose_secret());
        let id = place(&mut gateway.client().await, "k", 0..4).await.unwrap();
        upstream.sim.finish_all(&id, simulator::DeviceResult::Success);
        let answered = |ledger: &Ledger| {
            let attempts = ledger.callbacks_of(&id);
            attempts.acknowledged + attempts.refused.values().sum::<u64>() == 4
        };
        let attempts = upstream.sim.wait_until(DEADLINE, answered).await.callbacks_of(&id);
        assert_eq!(attempts.acknowledged, acknowledged);
        assert_eq!(attempts.refused.get(&401).copied().unwrap_or_default(), 4 - acknowledged);
        gateway.stop().await;
    }
}

/// From the order to the watcher's last message there is no poll.
#[tokio::test]
async fn a_result_needs_no_poll() {
    let upstream = upstream().await;
    let gateway = upstream.registering(upstream.called()).await;
    let mut client = gateway.client().await;
    let id = place(&mut client, "k", 0..3).await.unwrap();
    let mut watching = watch(&mut client, &id, "").await.unwrap();
    let (Event::Snapshot(snapshot), _) = watching.event().await else {
        panic!("a snapshot comes first")
    };
    assert_eq!(states(&snapshot), [DeviceState::Pending; 3]);
    upstream.sim.finish(&id, &device(1).eid, simulator::DeviceResult::Failed);
    let (Event::Change(change), _) = watching.event().await else { panic!("then a change") };
    assert_eq!(change.devices.len(), 1);
    assert_eq!(change.devices[0].state(), DeviceState::Failed);
    let fault = change.devices[0].fault.as_ref().expect("the callback knows the reason");
    assert_eq!(fault.code, "DeviceProfileService.REQUEST_FAILED.DownloadFailed");
    upstream.sim.finish(&id, &device(0).eid, simulator::DeviceResult::Success);
    upstream.sim.finish(&id, &device(2).eid, simulator::DeviceResult::Success);
    let last = watching.rest().await.pop().and_then(|message| message.event);
    let Some(Event::Change(last)) = last else { panic!("the last message is a change: {last:?}") };
    assert_eq!(last.state(), RequestState::PartiallySucceeded);
    // The watcher may get the result before ThingSpace gets its answer.
    let acknowledged = |ledger: &Ledger| ledger.callbacks_of(&id).acknowledged == 3;
    assert_eq!(upstream.sim.wait_until(DEADLINE, acknowledged).await.polls(), 0);
    gateway.stop().await;
}
