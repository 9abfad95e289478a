//! Registrations that cannot last: another gateway at the same address, and listings that do not
//! show what was registered.

use thingspace_gateway::{
    callbacks::registration::{RegistrationState, StopReason},
    simulator::Passwords,
};

use super::*;
use crate::callbacks::sender::{Sender, about};

/// Returns the state of the registration, which the log shows, too.
fn state(gateway: &Gateway) -> Option<RegistrationState> {
    gateway.registration().states().remove(&account())
}

fn failing(gateway: &Gateway, why: &str) -> bool {
    matches!(state(gateway), Some(RegistrationState::Failing(said)) if said.contains(why))
}

/// A failed check says nothing about the registration, which is right.
#[tokio::test]
async fn a_registration_that_cannot_be_checked_is_not_missing() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    config.callbacks.recheck = Duration::from_secs(1);
    let gateway = upstream.registering(config).await;
    let error = What::page(http::StatusCode::INTERNAL_SERVER_ERROR);
    upstream.sim.inject(Fault::always(Endpoint::ListCallbacks, When::BeforeEffect, error));
    eventually("the check fails", async || {
        matches!(
            state(&gateway),
            Some(RegistrationState::CheckFailing { was_registered: true, .. })
        )
    })
    .await;
    upstream.sim.clear_faults();
    eventually("it is checked again", async || {
        state(&gateway) == Some(RegistrationState::Registered)
    })
    .await;

    // What was wrong before the failed check stays wrong.
    upstream.sim.register(&account(), theirs());
    eventually("another system has it", async || failing(&gateway, "go to another system")).await;
    let listed = upstream.sim.ledger().calls(Endpoint::ListCallbacks);
    let error = What::page(http::StatusCode::INTERNAL_SERVER_ERROR);
    upstream.sim.inject(Fault::always(Endpoint::ListCallbacks, When::BeforeEffect, error));
    let again = |ledger: &Ledger| ledger.calls(Endpoint::ListCallbacks) >= listed + 4;
    upstream.sim.wait_until(DEADLINE, again).await;
    assert!(failing(&gateway, "go to another system"), "{:?}", state(&gateway));
    gateway.stop().await;
}

fn registrations(upstream: &Upstream) -> u64 {
    upstream.sim.ledger().calls(Endpoint::RegisterCallback)
}

/// A registration of another gateway with the same address.
fn at_the_same_address(url: &str) -> SimulatedRegistration {
    let url = format!("{}/{}", url.rsplit_once('/').unwrap().0, "x".repeat(43));
    SimulatedRegistration { url, username: "gateway-other".into(), password: "p".into() }
}

/// Waits for 100 checks, so that one registration too many would show.
async fn checked_often(upstream: &Upstream) {
    let listed = upstream.sim.ledger().calls(Endpoint::ListCallbacks);
    let often = |ledger: &Ledger| ledger.calls(Endpoint::ListCallbacks) >= listed + 100;
    upstream.sim.wait_until(DEADLINE, often).await;
}

#[tokio::test]
async fn a_registration_of_another_gateway_at_the_same_address_is_left_alone() {
    let upstream = upstream().await;
    let mut config = upstream.called();
    config.callbacks.recheck = Duration::from_millis(5);
    let gateway = upstream.registering(config).await;
    let ours = upstream.url();
    upstream.sim.register(&account(), at_the_same_address(&ours));
    eventually("it is noticed", async || failing(&gateway, "another gateway with another store"))
        .await;
    checked_often(&upstream).await;
    let theirs = upstream.url();
    assert_ne!(theirs, ours);
    assert_eq!(registrations(&upstream), 1);

    let registration = gateway.registration();
    for refused in [
        registration.register(&account(), false).await.map(drop),
        registration.rotate(&account()).await.map(drop),
        registration.deregister(&account()).await,
    ] {
        let error = refused.unwrap_err();
        assert!(
            matches!(error, RegistrationError::Stopped(StopReason::Contested { .. })),
            "{error}"
        );
        assert_eq!(upstream.url(), theirs);
    }
    assert_eq!(
        registration.register(&account(), true).await.unwrap(),
        RegistrationOutcome::Registered
    );
    assert_eq!((upstream.url(), state(&gateway)), (ours, Some(RegistrationState::Registered)));
    gateway.stop().await;
}

/// Between the two calls of a rotation another gateway registers.
#[tokio::test]
async fn a_rotation_reports_the_other_gateway() {
    let upstream = upstream().await;
    let gateway = upstream.registering(upstream.called()).await;
    let ours = upstream.url();
    let gate = Gate::default();
    let hold = What::Hold(gate.clone());
    upstream.sim.inject(Fault::once(Endpoint::RegisterCallback, When::BeforeEffect, hold));
    let registration = gateway.registration().clone();
    let rotating = tokio::spawn(async move { registration.rotate(&account()).await });
    upstream
        .sim
        .wait_until(DEADLINE, |ledger| ledger.in_flight(Endpoint::RegisterCallback) == 1)
        .await;
    upstream.sim.register(&account(), at_the_same_address(&ours));
    let theirs = upstream.url();
    gate.open();
    let refused = within("the rotation ends", rotating).await.unwrap();
    assert!(
        matches!(refused, Err(RegistrationError::Stopped(StopReason::Contested { .. }))),
        "{refused:?}"
    );
    assert_eq!(upstream.url(), theirs);
    gateway.stop().await;
}

#[tokio::test]
async fn a_registration_that_is_never_listed_is_made_twice_and_no_more() {
    let upstream = upstream().await;
    let accepted = answer(200, r#"{"accountName":"a","serviceName":"DeviceProfileService"}"#);
    upstream.sim.inject(Fault::always(Endpoint::RegisterCallback, When::BeforeEffect, accepted));
    let mut config = upstream.called();
    config.callbacks.recheck = Duration::from_millis(5);
    let gateway = Gateway::start(config).await;
    eventually("it is noticed", async || failing(&gateway, "registers no more. Ask Verizon")).await;
    checked_often(&upstream).await;
    assert_eq!(registrations(&upstream), 2);
    upstream.sim.clear_faults();
    assert_eq!(
        gateway.registration().register(&account(), true).await.unwrap(),
        RegistrationOutcome::Registered
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_changed_password_is_registered_also_where_the_listing_hides_passwords() {
    for passwords in [Passwords::Shown, Passwords::Masked, Passwords::Omitted] {
        let upstream =
            Upstream::calling(CallbackOptions { passwords, ..CallbackOptions::default() }).await;
        let mut config = upstream.called();
        let files =
            ["callback-user", "callback-password"].map(|name| upstream.dir.path().join(name));
        std::fs::write(&files[0], "from-file").unwrap();
        std::fs::write(&files[1], "first").unwrap();
        [config.callbacks.username_file, config.callbacks.password_file] = files.clone();
        let gateway = upstream.registering(config.clone()).await;
        let registration = gateway.registration();
        assert_eq!(
            registration.rotate(&account()).await.unwrap(),
            RegistrationOutcome::Unchanged,
            "{passwords:?}"
        );
        std::fs::write(&files[1], "second").unwrap();
        assert_eq!(
            registration.rotate(&account()).await.unwrap(),
            RegistrationOutcome::Rotated,
            "{passwords:?}"
        );
        assert_eq!(upstream.registered().unwrap().password.expose_secret(), "second");
        assert_eq!(
            registration.register(&account(), false).await.unwrap(),
            RegistrationOutcome::Unchanged
        );
        // Changed while the gateway is down.
        config.callbacks.listen = gateway.address_of_callbacks();
        gateway.stop().await;
        std::fs::write(&files[1], "third").unwrap();
        let gateway = Gateway::start(config).await;
        gateway.registration().register(&account(), false).await.unwrap();
        assert_eq!(
            upstream.registered().unwrap().password.expose_secret(),
            "third",
            "{passwords:?}"
        );
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_rotation_of_what_was_deregistered_registers_nothing() {
    let upstream = upstream().await;
    let gateway = upstream.registering(upstream.called()).await;
    let before = upstream.registered().unwrap();
    let registration = gateway.registration();
    registration.deregister(&account()).await.unwrap();
    for rotated in [
        registration.rotate(&account()).await.unwrap(),
        registration.rotate_path(&account()).await.unwrap(),
    ] {
        assert_eq!(rotated, RegistrationOutcome::RotatedOnly);
        assert!(upstream.registered().is_none());
        assert_eq!(state(&gateway), Some(RegistrationState::Deregistered));
    }
    assert_eq!(
        registration.register(&account(), false).await.unwrap(),
        RegistrationOutcome::Registered
    );
    let after = upstream.registered().unwrap();
    assert_ne!(after.password.expose_secret(), before.password.expose_secret());
    assert_ne!(after.url, before.url);
    gateway.stop().await;
}

/// The old path is accepted for `password_grace`, for callbacks that are in flight.
#[tokio::test]
async fn a_replaced_path_is_accepted_for_a_while() {
    for (grace, status) in [(Duration::from_hours(1), 200), (Duration::ZERO, 404)] {
        let upstream = upstream().await;
        let mut config = upstream.called();
        config.callbacks.password_grace = grace;
        let gateway = upstream.registering(config).await;
        let id = place(&mut gateway.client().await, "k", 0..1).await.unwrap();
        let (old, before) = (Sender::new(&gateway), upstream.registered().unwrap());
        assert_eq!(
            gateway.registration().rotate_path(&account()).await.unwrap(),
            RegistrationOutcome::Rotated
        );
        let (new, after) = (Sender::new(&gateway), upstream.registered().unwrap());
        assert_ne!(after.url, before.url);
        assert!(after.url.ends_with(&new.path));
        assert_eq!(after.password.expose_secret(), before.password.expose_secret());
        let body = about(&id, &device(0), "warning");
        assert_eq!((new.post(&body).await, old.post(&body).await), (200, status));
        gateway.stop().await;
    }
}
