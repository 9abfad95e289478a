//! Requests whose device set is not known yet: made elsewhere, or ours before their order is.

use IdentifierKind::{Eid, Iccid, Imei};
use StatusClass::{Failed, Pending, Succeeded, Unknown, Waiting};

use super::*;

#[test]
fn a_callback_before_the_order_is_known_is_kept() {
    let mut log = Log::default();
    let early =
        storage::CalledBack { fault: Some(fault("EARLY")), ..called_back(&ordered(1), Failed) };
    assert_eq!(log.add(Kind::CalledBack(early)), Applied::default());
    assert_eq!(
        log.add(of_account(OTHER_ACCOUNT, callback(&ordered(2), Failed))),
        Applied::default()
    );
    assert_eq!((log.request.revision, log.request.account.is_some()), (0, false));
    assert!(log.request.is_closed(), "its devices are not known");

    let transition = log.add(accepted([ordered(1), ordered(2)])).transition.unwrap();
    assert_eq!((transition.revision, transition.devices.len()), (1, 2));
    assert_eq!(transition.devices[0].fault, Some(fault("EARLY")));
    assert_eq!(log.states(), [DeviceState::Failed, DeviceState::Pending]);
    assert_eq!(log.request.create_time, time(1));
}

#[test]
fn a_callback_before_an_external_request_is_known_is_kept() {
    let mut log =
        Log::of([callback(&ordered(1), Succeeded), answered(Pending, [(ordered(1), Pending)])]);
    assert_eq!(log.states(), [DeviceState::Pending]);
    log.add(answered(Succeeded, [(ordered(1), Pending)]));
    assert_eq!(log.request.state(), RequestState::Succeeded);
}

#[test]
fn the_callbacks_kept_are_bounded() {
    let mut log = Log::default();
    for _ in 0..MAX_EARLY {
        assert_eq!(log.add(callback(&ordered(1), Waiting)).unmatched, 0);
    }
    assert_eq!(log.add(callback(&ordered(1), Succeeded)).unmatched, 1);
    log.add(accepted([ordered(1)]));
    assert_eq!(log.states(), [DeviceState::Waiting]);
}

#[test]
fn a_request_listed_without_eids_learns_them() {
    let listed = |n| only(&device(n), &[Iccid, Imei]);
    let mut log = Log::of([answered(Waiting, [(listed(1), Waiting), (listed(2), Pending)])]);
    log.add(callback(&ordered(1), Succeeded));
    assert_eq!(log.request.devices[0].device, only(&device(1), &[Eid, Iccid, Imei]));
    assert_eq!(log.add(callback(&only(&device(1), &[Eid]), Failed)), contradicted(1));
}

#[test]
fn an_external_request_is_known_by_a_complete_answer_that_is_not_pending() {
    let one = |class| vec![(ordered(1), class)];
    // Overall, complete, devices listed; known then, and the state.
    let table = [
        (Pending, true, one(Succeeded), false, RequestState::Pending),
        (Unknown, true, one(Succeeded), false, RequestState::Pending),
        (Succeeded, false, one(Succeeded), false, RequestState::Pending),
        (Succeeded, true, one(Succeeded), true, RequestState::Succeeded),
        (Succeeded, true, one(Pending), true, RequestState::Pending),
        (Waiting, true, one(Waiting), true, RequestState::Pending),
        (Failed, true, one(Unknown), true, RequestState::Pending),
        (Succeeded, true, vec![], true, RequestState::Succeeded),
        (Failed, true, vec![], true, RequestState::Failed),
        (Waiting, true, vec![], false, RequestState::Pending),
        (Waiting, true, vec![(Device::default(), Waiting)], false, RequestState::Pending),
        (Pending, true, vec![], false, RequestState::Pending),
    ];
    for (overall, complete, devices, known, state) in table {
        let case = format!("{overall:?} {complete} {devices:?}");
        let log = Log::of([Kind::Observed(storage::Observed {
            overall: event::class_to_stored(overall).into(),
            overall_only: devices.is_empty(),
            complete,
            ..observed(devices)
        })]);
        assert_eq!((log.request.known, log.request.state()), (known, state), "{case}");
        assert_eq!((log.request.revision, log.request.account), (1, Some(account())), "{case}");
    }
}

#[test]
fn an_external_request_lists_each_device_once() {
    let twins = [ordered(1), Device { iccid: device(1).iccid, ..ordered(2) }];
    let vague = [only(&device(1), &[Iccid]), Device::default()];
    let seen = || twins.iter().chain(&vague).map(|device| (device.clone(), Pending));
    let mut log = Log::of([listed(seen())]);
    assert_eq!(log.request.counts.total, 2);
    assert_eq!(log.add(listed(seen())), unmatched(2));
}

#[test]
fn becoming_known_is_a_revision_only_if_it_shows() {
    let mut log = Log::of([listed([(ordered(1), Waiting)])]);
    assert_eq!(log.add(answered(Waiting, [(ordered(1), Waiting)])), Applied::default());
    assert!(log.request.known);
    assert_eq!(log.add(listed([(ordered(2), Pending)])), unmatched(1), "the device set stays");
}

#[test]
fn an_order_knows_better_than_an_answer_to_another_account() {
    for told in [Kind::Observed(overall(Succeeded)), answered(Succeeded, [(ordered(1), Succeeded)])]
    {
        let mut log =
            Log::of([of_account(OTHER_ACCOUNT, told), accepted([ordered(1), ordered(2)])]);
        assert_eq!(log.request.account, Some(account()));
        assert_eq!(log.states(), [DeviceState::Pending; 2]);
        assert_eq!(
            log.add(of_account(OTHER_ACCOUNT, listed([(ordered(1), Failed)]))),
            Applied::default()
        );
    }
}

#[test]
fn an_order_after_an_answer_keeps_what_was_seen() {
    let failed = storage::CalledBack {
        fault: Some(fault("SEEN")),
        profile: Some(profile("SEEN")),
        ..called_back(&device(2), Failed)
    };
    let listed = |n| only(&device(n), &[Iccid]);
    let mut log = Log::of([
        answered(Waiting, [(listed(2), Pending), (listed(1), Waiting)]),
        Kind::CalledBack(failed),
    ]);
    let transition = log.add(accepted([ordered(1), ordered(2), ordered(3)])).transition.unwrap();
    assert_eq!((transition.revision, transition.devices.len()), (3, 3));
    assert_eq!(log.states(), [DeviceState::Waiting, DeviceState::Failed, DeviceState::Pending]);
    let seen = &log.request.devices[1];
    assert_eq!((&seen.fault, &seen.profile), (&Some(fault("SEEN")), &Some(profile("SEEN"))));
    assert_eq!(seen.device, device(2));
    assert_eq!(log.request.counts, Counts { total: 3, succeeded: 0, failed: 1 });
    assert_eq!(log.request.order_id.as_deref(), Some("order"));
}

#[test]
fn an_order_does_not_reopen_a_final_request() {
    let mut listed = Log::of([answered(Succeeded, [(only(&device(1), &[Iccid]), Succeeded)])]);
    let applied = listed.add(accepted([ordered(1), ordered(2)]));
    assert_eq!((applied.unmatched, applied.transition.unwrap().devices.len()), (1, 1));
    assert_eq!(listed.request.state(), RequestState::Succeeded);
    assert_eq!(listed.request.devices[0].device, ordered(1));

    let mut unlisted = Log::of([Kind::Observed(overall(Failed))]);
    unlisted.add(accepted([ordered(1), ordered(2)]));
    assert_eq!(unlisted.states(), [DeviceState::Failed; 2]);
    assert_eq!(unlisted.request.state(), RequestState::Failed);
}
