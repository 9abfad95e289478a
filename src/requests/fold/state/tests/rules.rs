//! A test per rule.

use IdentifierKind::{Eid, Iccid, Imei, Mdn};
use StatusClass::{Failed, Pending, Succeeded, Unknown, Waiting};

use super::*;

#[test]
fn the_table_of_the_design() {
    let (d1, d2) = (ordered(1), ordered(2));
    let success =
        storage::CalledBack { profile: Some(profile("ACTIVE")), ..called_back(&d1, Succeeded) };
    let failure =
        storage::CalledBack { fault: Some(fault("REJECTED")), ..called_back(&d2, Failed) };
    // Position, event, the devices' states, the request's, the devices that changed, the revision.
    let table = [
        (17, accepted([d1.clone(), d2]), [0, 0], RequestState::Pending, &[1, 2][..], 1),
        (21, callback(&d1, Waiting), [1, 0], RequestState::Pending, &[1], 2),
        (25, listed([(d1.clone(), Succeeded)]), [2, 0], RequestState::Pending, &[1], 3),
        (26, listed([(d1.clone(), Succeeded)]), [2, 0], RequestState::Pending, &[], 3),
        (29, Kind::CalledBack(success), [2, 0], RequestState::Pending, &[1], 4),
        (30, callback(&d1, Waiting), [2, 0], RequestState::Pending, &[], 4),
        (41, Kind::CalledBack(failure), [2, 3], RequestState::PartiallySucceeded, &[2], 5),
    ];
    let states =
        [DeviceState::Pending, DeviceState::Waiting, DeviceState::Succeeded, DeviceState::Failed];

    let mut request = Request::default();
    for (at, kind, expected, state, changed, revision) in table {
        let event = Event { rules: event::RULES, kind: Some(kind), first_sequence: 0 };
        let applied = request.apply(position(at), time(at), &event);
        let found: Vec<_> = request.devices.iter().map(|d| d.state).collect();
        assert_eq!(found, expected.map(|s: usize| states[s]), "states at {at}");
        assert_eq!((request.state(), request.revision), (state, revision), "at {at}");
        let transition = applied.transition.map(|t| {
            let numbers: Vec<_> =
                t.devices.iter().map(|d| d.device.eid.as_str().parse().unwrap()).collect();
            (t.revision, t.position, t.time, t.state, t.counts, numbers)
        });
        let expected = (!changed.is_empty())
            .then(|| (revision, position(at), time(at), state, request.counts, changed.to_vec()));
        assert_eq!(transition, expected, "transition at {at}");
    }
    assert_eq!(request.devices[0].profile, Some(profile("ACTIVE")));
    assert_eq!(request.devices[1].fault, Some(fault("REJECTED")));
    assert_eq!(request.first, Some(position(17)));
    assert_eq!((request.create_time, request.update_time), (time(17), time(41)));
    assert_eq!(
        (request.devices[0].update_time, request.devices[1].update_time),
        (time(29), time(41))
    );
    assert!(request.is_final() && request.is_closed());
}

#[test]
fn the_state_of_a_request_is_that_of_its_devices() {
    let table = [
        ([Succeeded, Succeeded], RequestState::Succeeded),
        ([Failed, Failed], RequestState::Failed),
        ([Failed, Succeeded], RequestState::PartiallySucceeded),
        ([Succeeded, Waiting], RequestState::Pending),
        ([Pending, Failed], RequestState::Pending),
    ];
    for (classes, state) in table {
        let devices = classes.into_iter().enumerate().map(|(n, class)| (ordered(n), class));
        let log = Log::of([accepted([ordered(0), ordered(1)]), listed(devices)]);
        assert_eq!(log.request.state(), state, "{classes:?}");
    }
}

#[test]
fn how_a_device_is_found() {
    let twin = Device { iccid: device(3).iccid, ..ordered(4) };
    let order = [ordered(1), only(&device(2), &[Eid, Iccid, Imei]), ordered(3), twin];
    let eid = |n: usize| only(&device(n), &[Eid]);
    let iccid = |n: usize| only(&device(n), &[Iccid]);
    let with_imei = |n: usize, named: Device| Device { imei: device(n).imei, ..named };
    let with_iccid = |n: usize, named: Device| Device { iccid: device(n).iccid, ..named };
    // What the message names, and which device of the order it means.
    let table = [
        ("EID", eid(1), Some(0)),
        ("ICCID", iccid(1), Some(0)),
        ("IMEI", with_imei(2, Device::default()), Some(1)),
        ("an EID beside another device's ICCID", with_iccid(2, eid(1)), Some(0)),
        ("an unknown EID beside a known ICCID", with_iccid(2, eid(9)), None),
        ("an ICCID of two devices", iccid(3), None),
        ("an ICCID of two devices beside an EID", ordered(3), Some(2)),
        ("an ICCID of two devices beside an IMEI", with_imei(2, iccid(3)), Some(1)),
        ("an unknown ICCID", iccid(9), None),
        ("an unknown ICCID beside a known IMEI", with_imei(2, iccid(9)), Some(1)),
        ("an identifier not known yet", only(&device(1), &[Mdn]), None),
        ("nothing", Device::default(), None),
    ];
    for (what, named, meant) in table {
        let mut log = Log::of([accepted(order.clone())]);
        let applied = log.add(callback(&named, Succeeded));
        assert_eq!(applied.unmatched, usize::from(meant.is_none()), "{what}");
        assert_eq!(applied.transition.is_some(), meant.is_some(), "{what}");
        let done = log.states().iter().position(|&state| state == DeviceState::Succeeded);
        assert_eq!(done, meant, "{what}");
    }
}

#[test]
fn a_callback_that_names_no_device_concerns_the_only_one() {
    let ids = |kinds: &[IdentifierKind], n: usize| only(&device(n), kinds);
    // What the callback names, and whether it concerns the device of an order of one.
    let table = [
        (Device::default(), true),
        (ids(&[Mdn], 9), true),
        // The new profile's.
        (ids(&[Iccid], 9), true),
        (ids(&[Iccid, Mdn], 9), true),
        (ids(&[Eid], 9), false),
        (ids(&[Eid, Iccid], 9), false),
        (ids(&[Imei], 9), false),
        (ids(&[Imei, Iccid], 9), false),
    ];
    let order = only(&device(1), &[Eid, Iccid, Imei]);
    for (named, concerns) in table {
        let failed =
            storage::CalledBack { fault: Some(fault("REJECTED")), ..called_back(&named, Failed) };
        let after = [accepted([order.clone()]), Kind::CalledBack(failed.clone())];
        let before = [Kind::CalledBack(failed.clone()), accepted([order.clone()])];
        for events in [after, before] {
            let log = Log::of(events);
            let status = &log.request.devices[0];
            let reason = concerns.then(|| fault("REJECTED"));
            assert_eq!((log.request.is_final(), &status.fault), (concerns, &reason), "{named:?}");
            assert_eq!(status.device.iccid, order.iccid);
        }
        let two =
            Log::of([accepted([order.clone(), ordered(2)]), Kind::CalledBack(failed.clone())]);
        assert!(two.request.devices.iter().all(|status| status.state == DeviceState::Pending));
        // Logs of earlier rules are folded as they were.
        let mut earlier = Log::default();
        for kind in [accepted([order.clone()]), Kind::CalledBack(failed)] {
            let rules = event::ICCID_RULES;
            earlier.add_event(&Event { rules, kind: Some(kind), first_sequence: 0 });
        }
        assert_eq!(earlier.states(), [DeviceState::Pending]);
    }
}

#[test]
fn a_device_missing_from_an_answer_is_unchanged() {
    let log = Log::of([
        accepted([ordered(1), ordered(2)]),
        callback(&ordered(2), Waiting),
        answered(Succeeded, [(ordered(1), Succeeded)]),
    ]);
    assert_eq!(log.states(), [DeviceState::Succeeded, DeviceState::Waiting]);
    assert_eq!(log.request.state(), RequestState::Pending);
}

#[test]
fn without_sub_requests_the_overall_status_holds_for_all() {
    let mut log = Log::of([accepted([ordered(1), ordered(2)]), callback(&ordered(1), Failed)]);
    for ignored in [Pending, Unknown] {
        assert_eq!(log.add(Kind::Observed(overall(ignored))), Applied::default(), "{ignored:?}");
    }
    log.add(Kind::Observed(overall(Waiting)));
    assert_eq!(log.states(), [DeviceState::Failed, DeviceState::Waiting]);
    let applied = log.add(Kind::Observed(overall(Succeeded)));
    assert_eq!(log.states(), [DeviceState::Failed, DeviceState::Succeeded]);
    assert_eq!((applied.contradictions, applied.transition.unwrap().devices.len()), (1, 1));
}

#[test]
fn the_first_final_state_wins() {
    for (first, second) in [(Succeeded, Failed), (Failed, Succeeded)] {
        let late = storage::CalledBack {
            fault: Some(fault("LATE")),
            profile: Some(profile("LATE")),
            ..called_back(&ordered(1), second)
        };
        let mut log = Log::of([accepted([ordered(1)]), callback(&ordered(1), first)]);
        assert_eq!(log.add(Kind::CalledBack(late)), contradicted(1));
        assert_eq!(log.add(listed([(ordered(1), second)])), contradicted(1));
        assert_eq!(log.states(), [DeviceState::of(first).unwrap()]);
        assert_eq!(log.request.revision, 2);
    }
}

#[test]
fn details_are_filled_once_and_also_after_the_end() {
    let with = |code: &str, mdn: &str| {
        let named = Device { mdn: Digits::new(mdn), imei: device(1).imei, ..ordered(1) };
        Kind::CalledBack(storage::CalledBack {
            fault: Some(fault(code)),
            profile: Some(profile(code)),
            ..called_back(&named, Failed)
        })
    };
    let mut log = Log::of([accepted([ordered(1)]), listed([(ordered(1), Failed)])]);
    assert!(log.request.is_final());

    let transition = log.add(with("FIRST", "5551234567")).transition.unwrap();
    assert_eq!((transition.revision, transition.state), (3, RequestState::Failed));
    let told = Arc::clone(&transition.devices[0]);
    assert_eq!((&told.fault, &told.profile), (&Some(fault("FIRST")), &Some(profile("FIRST"))));
    assert_eq!((told.device.mdn.as_str(), &told.device.imei), ("5551234567", &device(1).imei));
    assert_eq!(told.update_time, time(3));

    assert_eq!(log.add(with("SECOND", "5557654321")), Applied::default());
    assert_eq!(log.request.devices, [told]);
}

#[test]
fn only_the_word_that_holds_fills_in_details() {
    let with = |class| {
        Kind::CalledBack(storage::CalledBack {
            fault: Some(fault("UNREACHABLE")),
            profile: Some(profile("ACTIVE")),
            ..called_back(&ordered(1), class)
        })
    };
    for (class, has_fault, has_profile) in [
        (Pending, false, false),
        (Waiting, false, false),
        (Succeeded, false, true),
        (Failed, true, true),
    ] {
        let log = Log::of([accepted([ordered(1)]), with(class)]);
        let told = &log.request.devices[0];
        assert_eq!(
            (told.fault.is_some(), told.profile.is_some()),
            (has_fault, has_profile),
            "{class:?}"
        );
    }
    let failed =
        storage::CalledBack { fault: Some(fault("GONE")), ..called_back(&ordered(1), Failed) };
    let log = Log::of([accepted([ordered(1)]), with(Waiting), Kind::CalledBack(failed)]);
    assert_eq!(log.request.devices[0].fault, Some(fault("GONE")));
}

#[test]
fn an_unknown_status_changes_nothing() {
    let mut log = Log::of([accepted([ordered(1)])]);
    assert_eq!(log.add(callback(&ordered(1), Unknown)), Applied::default());
    assert_eq!(log.add(listed([(ordered(1), Unknown)])), Applied::default());
    let future = storage::CalledBack { status: 99, ..called_back(&ordered(1), Unknown) };
    assert_eq!(log.add(Kind::CalledBack(future)), Applied::default());
}

#[test]
fn giving_up_is_said_once_and_is_not_the_end() {
    let mut log = Log::of([accepted([ordered(1)])]);
    let transition = log.add(abandoned()).transition.unwrap();
    assert_eq!((transition.revision, transition.polling_stopped), (2, true));
    assert_eq!((transition.state, transition.devices.len()), (RequestState::Pending, 0));
    assert!(log.request.is_closed() && !log.request.is_final());
    assert_eq!(log.add(abandoned()), Applied::default());

    let transition = log.add(callback(&ordered(1), Succeeded)).transition.unwrap();
    assert_eq!((transition.state, transition.polling_stopped), (RequestState::Succeeded, true));

    let mut ended = Log::of([accepted([ordered(1)]), callback(&ordered(1), Succeeded)]);
    assert_eq!(ended.add(abandoned()), Applied::default());
    assert!(!ended.request.polling_stopped);
}

#[test]
fn the_account_comes_from_the_order_or_the_first_answer() {
    for begin in [accepted([ordered(1)]), answered(Waiting, [(ordered(1), Pending)])] {
        let mut log = Log::of([begin]);
        assert_eq!(log.request.account, Some(account()));
        for stranger in [OTHER_ACCOUNT, "", "not/an/account"] {
            assert_eq!(
                log.add(of_account(stranger, listed([(ordered(1), Failed)]))),
                Applied::default()
            );
            assert_eq!(
                log.add(of_account(stranger, callback(&ordered(1), Failed))),
                Applied::default()
            );
        }
        assert_eq!(log.states(), [DeviceState::Pending]);
    }
    let mut without_account = Log::of([of_account("", listed([(ordered(1), Failed)]))]);
    assert_eq!(without_account.add(of_account("", accepted([ordered(1)]))), Applied::default());
    assert_eq!(
        (without_account.request.account.is_none(), without_account.request.revision),
        (true, 0)
    );
}

#[test]
fn the_first_order_of_a_request_stays() {
    let mut log = Log::of([accepted([ordered(1)]), callback(&ordered(1), Waiting)]);
    assert_eq!(log.add(accepted([ordered(1)])), Applied::default());
    assert_eq!(log.add(accepted([ordered(2), ordered(3)])), Applied::default());
    assert_eq!(log.states(), [DeviceState::Waiting]);
}

#[test]
fn unknown_kinds_and_rules_change_nothing() {
    let future = Event { rules: event::RULES + 1, ..written(accepted([ordered(1)])) };
    let nothing = Event { rules: event::RULES, ..Event::default() };

    let mut newer = Log::default();
    assert_eq!(newer.add_event(&future), Applied::default());
    assert_eq!(
        newer.add(accepted([ordered(1)])),
        Applied::default(),
        "a log keeps its first event's rules"
    );
    assert_eq!((newer.request.revision, newer.request.first), (0, Some(position(1))));

    let mut ours = Log::default();
    assert_eq!(ours.add_event(&nothing), Applied::default());
    assert!(ours.add_event(&future).transition.is_some(), "a log keeps its first event's rules");
    assert_eq!(ours.request.first, Some(position(1)));

    for kind in [
        Kind::Ordered(storage::Ordered::default()),
        Kind::Refused(storage::Refused::default()),
        Kind::NotSent(storage::NotSent {}),
        Kind::AcceptedAs(storage::AcceptedAs::default()),
        Kind::Settled(storage::Settled::default()),
        Kind::Withdrawn(storage::Withdrawn::default()),
    ] {
        assert_eq!(ours.add(kind), Applied::default());
    }
    assert_eq!(ours.request.revision, 1);
}

fn written(kind: Kind) -> Event {
    Event { rules: event::RULES, kind: Some(kind), first_sequence: 0 }
}

/// An event whose writer knew where the log begins.
fn after(first_sequence: u64, kind: Kind) -> Event {
    Event { first_sequence, ..written(kind) }
}

#[test]
fn a_log_without_its_beginning_shows_nothing() {
    let news = || after(1, listed([(ordered(1), Succeeded)]));
    let whole = [
        written(accepted([ordered(1), ordered(2), ordered(3)])),
        news(),
        after(1, callback(&ordered(2), Failed)),
        after(1, abandoned()),
        after(1, answered(Succeeded, [(ordered(1), Succeeded)])),
    ];
    for lost in 1..=whole.len() {
        let mut log = Log { end: lost as u64, ..Log::default() };
        for event in &whole[lost..] {
            assert_eq!(log.add_event(event), Applied::default(), "{lost} lost");
        }
        assert!(!log.request.known && log.request.is_closed(), "{lost} lost");
        assert_eq!(log.request.is_expired(), lost < whole.len());
        assert_eq!((log.request.revision, log.request.beginning()), (0, None));
    }
    let mut log = Log::default();
    for event in &whole {
        log.add_event(event);
    }
    assert_eq!((log.request.revision, log.request.beginning()), (4, Some(position(1))));
}

/// Whoever writes a callback may know nothing of its log.
#[test]
fn the_first_event_that_knows_the_beginning_decides() {
    let mut log = Log { end: 60, ..Log::default() };
    log.add_event(&written(answered(Waiting, [(ordered(1), Pending)])));
    assert!(log.request.known);
    assert_eq!(log.add_event(&after(50, listed([(ordered(1), Succeeded)]))), Applied::default());
    assert!(log.request.is_expired() && !log.request.known && log.request.devices.is_empty());
    // It stays so after every event.
    log.add_event(&written(accepted([ordered(1)])));
    assert!(log.request.is_expired() && log.request.order_id.is_none());
    assert_eq!(
        log.request.observations(&account(), &StatusAnswer { overall: Succeeded, devices: vec![] }),
        []
    );
}

#[test]
fn a_missing_iccid_is_filled_by_the_newer_rules() {
    let order = || accepted([only(&device(1), &[Eid]), only(&device(2), &[Eid]), ordered(3)]);
    let iccid = |at: usize, log: &Log| log.request.devices[at].device.iccid.clone();
    let mut log = Log::of([order()]);
    let applied = log.add(callback(&ordered(1), Waiting));
    assert_eq!(applied.transition.unwrap().devices[0].device.iccid, device(1).iccid);
    // From then on it names the device, and is not replaced.
    let other = Device { iccid: device(9).iccid, ..only(&device(1), &[Eid]) };
    log.add(callback(&other, Waiting));
    log.add(callback(&only(&device(1), &[Iccid]), Succeeded));
    assert_eq!((iccid(0, &log), log.states()[0]), (device(1).iccid, DeviceState::Succeeded));
    // It is another device's already.
    let taken = Device { iccid: device(3).iccid, ..only(&device(2), &[Eid]) };
    log.add(callback(&taken, Waiting));
    assert_eq!((iccid(1, &log), log.states()[1]), (Digits::default(), DeviceState::Waiting));
    log.add(callback(&only(&device(3), &[Iccid]), Succeeded));
    assert_eq!(log.states()[2], DeviceState::Succeeded);

    let mut old = Log::default();
    old.add_event(&Event { rules: event::FIRST_RULES, ..written(order()) });
    old.add(callback(&ordered(1), Waiting));
    assert_eq!((iccid(0, &old), old.states()[0]), (Digits::default(), DeviceState::Waiting));
}

#[test]
fn a_withdrawn_order_leaves_a_request_that_was_placed_elsewhere() {
    let withdraws = |order_id: &str| {
        let (order_id, request_id) = (order_id.to_owned(), "request".to_owned());
        Kind::Withdrawn(storage::Withdrawn { order_id, request_id })
    };
    let mut log = Log::of([accepted([ordered(1)]), callback(&ordered(1), Succeeded)]);
    assert_eq!(log.add(withdraws("another order")), Applied::default());
    let transition = log.add(withdraws("order")).transition.unwrap();
    assert_eq!(
        (transition.revision, transition.restart, transition.state),
        (3, true, RequestState::Pending)
    );
    assert_eq!((transition.counts.total, transition.devices.len()), (0, 0));
    let Request { account, order_id, known, .. } = &log.request;
    assert_eq!((account, order_id, *known), (&None, &None, false));
    assert_eq!(log.add(withdraws("order")), Applied::default());
    // Its own devices come with the next answer; another order may turn out to be its own.
    log.add(answered(Waiting, [(ordered(2), Pending)]));
    assert_eq!((log.request.devices[0].device.clone(), log.request.revision), (ordered(2), 4));
    log.add(accepted([ordered(2)]));
    assert_eq!(log.request.order_id.as_deref(), Some("order"));
}
