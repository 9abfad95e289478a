//! Which parts of an answer are stored.

use proptest::prelude::*;

use super::{properties, *};
use crate::store::MAX_EVENT_BYTES;

const MAX_DEVICES: usize = 10_000;

fn answer(overall: StatusClass, devices: Vec<(Device, StatusClass)>) -> StatusAnswer {
    StatusAnswer { overall, devices }
}

/// Appends the events that an answer adds, checks that it then adds none, and returns their number.
fn store(log: &mut Log, answer: &StatusAnswer) -> usize {
    let observed = log.request.observations(&account(), answer);
    let events = observed.len();
    for event in observed {
        log.add(Kind::Observed(event));
    }
    assert_eq!(
        log.request.observations(&account(), answer),
        [],
        "the answer is stored: {answer:?}"
    );
    events
}

#[test]
fn only_new_statuses_are_stored() {
    use StatusClass::{Failed, Pending, Succeeded, Unknown, Waiting};
    let mut log = Log::of([accepted([ordered(1), ordered(2)])]);
    // Overall, the classes of two devices, how many devices are written.
    let table = [
        (Pending, [Pending, Pending], None),
        (Unknown, [Unknown, Unknown], None),
        (Succeeded, [Pending, Waiting], Some(1)),
        (Pending, [Pending, Pending], None),
        (Pending, [Succeeded, Failed], Some(2)),
        (Failed, [Failed, Succeeded], None),
    ];
    for (overall, [one, two], written) in table {
        let answer = answer(overall, vec![(device(1), one), (device(2), two)]);
        let observed = log.request.observations(&account(), &answer);
        assert_eq!(observed.first().map(|event| event.devices.len()), written, "{answer:?}");
        store(&mut log, &answer);
    }
    assert_eq!(log.states(), [DeviceState::Succeeded, DeviceState::Failed]);
}

#[test]
fn an_answer_that_changes_nothing_is_not_stored() {
    let pending = |devices| answer(StatusClass::Pending, devices);
    let nameless = pending(vec![(Device::default(), StatusClass::Waiting)]);
    let mut log = Log::default();
    assert_eq!(store(&mut log, &nameless), 1, "the account is new");
    assert_eq!(store(&mut log, &nameless), 0);
    assert_eq!(store(&mut log, &pending(vec![])), 0);

    let mut early = Log::of([Kind::CalledBack(called_back(&ordered(1), StatusClass::Succeeded))]);
    assert_eq!(store(&mut early, &pending(vec![])), 1, "the account is new after a callback, too");
    assert_eq!(early.request.account, Some(account()));

    let done = answer(StatusClass::Succeeded, vec![(ordered(1), StatusClass::Succeeded)]);
    let of_others =
        storage::Observed { account: OTHER_ACCOUNT.to_owned(), ..overall(StatusClass::Pending) };
    assert_eq!(Log::of([Kind::Observed(of_others)]).request.observations(&account(), &done), []);

    let mut newer = Log::default();
    newer.add_event(&Event { rules: event::RULES + 1, ..Event::default() });
    assert_eq!(newer.request.observations(&account(), &done), []);
}

#[test]
fn an_answer_without_devices_ends_an_external_request_only_when_it_is_final() {
    let mut log = Log::default();
    assert_eq!(store(&mut log, &answer(StatusClass::Waiting, vec![])), 1);
    assert!(!log.request.known);
    assert_eq!(store(&mut log, &answer(StatusClass::Succeeded, vec![])), 1);
    assert_eq!(log.request.state(), RequestState::Succeeded);
}

#[test]
fn the_largest_events_fit_the_store() {
    let fits = |kind| event::encode(kind, Some(position(u64::MAX))).len() <= MAX_EVENT_BYTES;
    let devices: Vec<_> = (0..MAX_DEVICES)
        .map(|n| event::to_stored(&Device { mdn: Digits::default(), ..device(n) }))
        .collect();
    let account = AccountName::parse(&"1".repeat(32)).unwrap();
    let accepted = storage::Accepted {
        order_id: "1".repeat(36),
        account: account.to_string(),
        service_plan: "p".repeat(256),
        devices: devices.clone(),
        caller: "c".repeat(256),
    };
    assert!(fits(Kind::Accepted(accepted.clone())));
    assert!(fits(Kind::Ordered(storage::Ordered {
        account: account.to_string(),
        service_plan: "p".repeat(256),
        devices,
        key_cell: "k".repeat(256),
        caller: "c".repeat(256),
    })));

    let all: Vec<_> = (0..MAX_DEVICES).map(|n| (device(n), StatusClass::Failed)).collect();
    let all = answer(StatusClass::Failed, all);
    for mut log in [Log::default(), Log::of([Kind::Accepted(accepted)])] {
        let observed = log.request.observations(&account, &all);
        let last = observed.len() - 1;
        for (at, observed) in observed.into_iter().enumerate() {
            assert_eq!(observed.complete, at == last, "only the last part completes");
            assert!(!log.request.is_final());
            assert!(fits(Kind::Observed(observed.clone())));
            log.add(Kind::Observed(observed));
        }
        assert_eq!(
            log.request.counts,
            Counts { total: MAX_DEVICES, succeeded: 0, failed: MAX_DEVICES }
        );
        assert_eq!(log.request.state(), RequestState::Failed);
        assert_eq!(log.request.observations(&account, &all), []);
    }
}

proptest! {
    #![proptest_config(properties::config())]

    #[test]
    fn after_an_answer_is_stored_the_state_is_that_of_the_answer(
        (events, answer) in properties::world()
            .prop_flat_map(|world| (world.events(12), world.answer())),
    ) {
        let mut log = Log::of(events);
        let before = log.request.clone();
        prop_assert!(store(&mut log, &answer) <= 1);
        let after = &log.request;
        prop_assert_eq!(after.account.as_ref(), Some(&account()));
        // Callbacks that had been waiting for the device set may say more than the answer.
        let agrees = |found: DeviceState, told: DeviceState| {
            found == told || !before.early.is_empty() && found > told
        };
        let mut agreed = answer.clone();
        before.make_agree(&mut agreed);
        for (device, class) in &agreed.devices {
            let Some(at) = after.find(device) else {
                prop_assert!(before.known || device.present().next().is_none());
                continue;
            };
            let had = before.find(device).map(|at| before.devices[at].state);
            let had = had.unwrap_or(DeviceState::Pending);
            let told = DeviceState::of(*class).unwrap_or(DeviceState::Pending);
            let told = if had.is_final() { had } else { had.max(told) };
            let now = &after.devices[at];
            prop_assert!(agrees(now.state, told), "{:?}: {:?}", device, now);
        }
        let for_all = before.known && answer.devices.is_empty();
        if let (true, Some(told)) = (for_all, DeviceState::of(answer.overall)) {
            for (had, has) in before.devices.iter().zip(&after.devices) {
                let expected =
                    if had.state.is_final() { had.state } else { had.state.max(told) };
                prop_assert_eq!(has.state, expected);
            }
        }
    }
}

/// A list with a device without identifiers may be incomplete, so an external request stays open.
#[test]
fn a_device_without_identifiers_keeps_a_request_open() {
    for class in [StatusClass::Pending, StatusClass::Failed, StatusClass::Unknown] {
        for devices in [
            vec![(Device::default(), class)],
            vec![(device(1), StatusClass::Succeeded), (Device::default(), class)],
        ] {
            let mut log = Log::of([]);
            store(&mut log, &answer(StatusClass::Succeeded, devices.clone()));
            assert!(!log.request.is_final(), "{devices:?}");
        }
    }
}

/// The devices of the order have the status `own` by their EIDs, beside a part about no device of
/// the order.
fn states_beside(part: &(Device, StatusClass), own: StatusClass, overall: StatusClass) -> Log {
    let mut log = Log::of([accepted([ordered(1), ordered(2)])]);
    let named = [1, 2].map(|n| (only(&device(n), &[IdentifierKind::Eid]), own));
    let devices = named.into_iter().chain([part.clone()]).collect();
    store(&mut log, &answer(overall, devices));
    log
}

#[test]
fn a_part_about_no_device_of_an_order_denies_under_every_overall_status() {
    use IdentifierKind::{Eid, Iccid, Imei, Mdn};
    use StatusClass::{Failed, Pending, Succeeded, Unknown, Waiting};
    let other = device(7);
    let named = [&[Imei][..], &[Mdn], &[Iccid], &[Eid], &[Eid, Iccid, Imei]];
    let without_check_digit =
        Device { iccid: Digits::new(&device(1).iccid.as_str()[..19]), ..Device::default() };
    let named = named.map(|kinds| only(&other, kinds)).into_iter().chain([without_check_digit]);
    let all = [Pending, Waiting, Succeeded, Failed, Unknown];
    for device in named.chain([Device::default()]) {
        for (class, overall) in all.into_iter().flat_map(|class| all.map(|other| (class, other))) {
            let part = (device.clone(), class);
            let succeeded = states_beside(&part, Succeeded, overall);
            let is_denied = class != Succeeded;
            let told = if is_denied { DeviceState::Pending } else { DeviceState::Succeeded };
            assert_eq!(succeeded.states(), [told; 2], "{part:?}, {overall:?}");

            let failed = states_beside(&part, Failed, overall);
            let is_denied = class == Succeeded;
            let told = if is_denied { DeviceState::Pending } else { DeviceState::Failed };
            assert_eq!(failed.states(), [told; 2], "{part:?}, {overall:?}");
        }
    }
}

#[test]
fn a_later_answer_decides_a_success_that_was_denied() {
    let imei = only(&device(7), &[IdentifierKind::Imei]);
    let mut log =
        states_beside(&(imei, StatusClass::Failed), StatusClass::Succeeded, StatusClass::Failed);
    assert_eq!(log.states(), [DeviceState::Pending; 2]);
    let later = [1, 2].map(|n| (ordered(n), StatusClass::Failed));
    store(&mut log, &answer(StatusClass::Failed, later.to_vec()));
    assert_eq!(log.states(), [DeviceState::Failed; 2]);
}

/// The part may be about the device that no other part names, or about the new profile of another.
#[test]
fn a_part_about_no_device_of_an_order_denies_also_if_a_device_has_no_part() {
    use StatusClass::{Failed, Pending, Succeeded};
    let other = |class| (only(&device(7), &[IdentifierKind::Iccid]), class);
    for (overall, denied) in [Pending, Failed, Succeeded]
        .map(|overall| [Pending, Failed].map(|class| (overall, class)))
        .as_flattened()
    {
        let mut log = Log::of([accepted([ordered(1), ordered(2)])]);
        store(&mut log, &answer(*overall, vec![(ordered(1), Succeeded), other(*denied)]));
        assert_eq!(log.states(), [DeviceState::Pending; 2], "{overall:?}, {denied:?}");
        // A device that is final has no part any more.
        store(&mut log, &answer(Pending, vec![(ordered(2), Succeeded)]));
        store(&mut log, &answer(*overall, vec![(ordered(1), Succeeded), other(*denied)]));
        let states = [DeviceState::Pending, DeviceState::Succeeded];
        assert_eq!(log.states(), states, "{overall:?}, {denied:?}");
    }
}

#[test]
fn the_only_part_of_an_answer_is_about_the_only_device() {
    use IdentifierKind::{Eid, Iccid, Imei, Mdn};
    use StatusClass::{Failed, Pending, Succeeded};
    for kinds in [&[Mdn][..], &[Imei], &[Iccid], &[Iccid, Mdn], &[]] {
        for (class, overall, state) in [
            (Succeeded, Succeeded, DeviceState::Succeeded),
            (Failed, Failed, DeviceState::Failed),
            (Succeeded, Pending, DeviceState::Pending),
            (Failed, Pending, DeviceState::Pending),
            (Pending, Pending, DeviceState::Pending),
        ] {
            let mut log = Log::of([accepted([ordered(1)])]);
            let part = (only(&device(7), kinds), class);
            store(&mut log, &answer(overall, vec![part.clone()]));
            assert_eq!(log.states(), [state], "{part:?}, {overall:?}");
        }
    }
    // Another EID is another device, and an order of two has no only device.
    let other = |kinds: &[_]| answer(Succeeded, vec![(only(&device(7), kinds), Succeeded)]);
    let mut log = Log::of([accepted([ordered(1)])]);
    store(&mut log, &other(&[Eid]));
    assert_eq!(log.states(), [DeviceState::Pending]);
    let mut log = Log::of([accepted([ordered(1), ordered(2)])]);
    store(&mut log, &other(&[Mdn]));
    assert_eq!(log.states(), [DeviceState::Pending; 2]);
}
