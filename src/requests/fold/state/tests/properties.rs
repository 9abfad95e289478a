//! What holds for every sequence of events.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// What a watcher shows: its devices by number, and the latest transition.
type Seen = (BTreeMap<usize, DeviceStatus>, RequestState, Counts, bool);

/// The devices of a request, and how upstream names them.
#[derive(Debug, Clone, Copy)]
pub(super) struct World {
    devices: usize,
    /// Whether status answers name EIDs.
    with_eids: bool,
    /// Whether devices 0 and 1 have the same ICCID.
    shared_iccid: bool,
}

pub(super) fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

pub(super) fn world() -> impl Strategy<Value = World> {
    (1..=6_usize, any::<bool>(), any::<bool>()).prop_map(|(devices, with_eids, shared)| World {
        devices,
        with_eids,
        shared_iccid: shared && with_eids,
    })
}

impl World {
    fn device(self, n: usize) -> Device {
        let iccid = if self.shared_iccid && n == 1 { 0 } else { n };
        Device { iccid: device(iccid).iccid, ..device(n) }
    }

    /// Those identifiers of a device whose bits are set.
    fn named(self, n: usize, bits: u8) -> Device {
        let kinds =
            [IdentifierKind::Eid, IdentifierKind::Iccid, IdentifierKind::Imei, IdentifierKind::Mdn];
        let set = |at: &usize| bits & (1 << at) != 0;
        let kinds: Vec<_> = (0..kinds.len()).filter(set).map(|at| kinds[at]).collect();
        only(&self.device(n), &kinds)
    }

    /// Which device this is.
    fn number(self, named: &Device) -> usize {
        let kind = if named.eid.is_empty() { IdentifierKind::Iccid } else { IdentifierKind::Eid };
        let is = |&n: &usize| self.device(n).get(kind) == named.get(kind);
        (0..self.devices).find(is).expect("answers and orders name only devices of this world")
    }

    /// A status answer: each device at most once, and sometimes one without any identifier we know.
    pub(super) fn answer(self) -> impl Strategy<Value = StatusAnswer> {
        let (always, never) = if self.with_eids { (0b0011, 0) } else { (0b0010, 0b0001) };
        let listed = vec((0..self.devices, 0..16_u8, class()), 0..=self.devices);
        let nameless = prop::option::weighted(0.1, class());
        (class(), listed, nameless).prop_map(move |(overall, listed, nameless)| {
            let once: BTreeMap<_, _> = listed
                .into_iter()
                .map(|(n, bits, class)| (n, (self.named(n, bits & !never | always), class)))
                .collect();
            let nameless = nameless.map(|class| (Device::default(), class));
            StatusAnswer { overall, devices: once.into_values().chain(nameless).collect() }
        })
    }

    fn accepted(self) -> impl Strategy<Value = Kind> {
        select(vec![0b0011, 0b0111])
            .prop_map(move |bits| accepted((0..self.devices).map(|n| self.named(n, bits))))
    }

    fn observed(self) -> impl Strategy<Value = Kind> {
        (self.answer(), prop::bool::weighted(0.8), account_name()).prop_map(
            |(answer, complete, account)| {
                Kind::Observed(storage::Observed {
                    account,
                    overall: event::class_to_stored(answer.overall).into(),
                    overall_only: answer.devices.is_empty(),
                    complete,
                    ..observed(answer.devices)
                })
            },
        )
    }

    /// Of any device and some others, by any of its identifiers.
    fn called_back(self) -> impl Strategy<Value = Kind> {
        let detail = || prop::option::of(select(vec!["A", "B"]));
        (0..8_usize, 0..16_u8, class(), detail(), detail(), account_name()).prop_map(
            move |(n, bits, class, code, state, account)| {
                Kind::CalledBack(storage::CalledBack {
                    account,
                    fault: code.map(fault),
                    profile: state.map(profile),
                    ..called_back(&self.named(n, bits), class)
                })
            },
        )
    }

    /// Events in any order, each up to three times. The first answer is the account's own: what
    /// another account's would mean is in the rules.
    pub(super) fn events(self, most: usize) -> impl Strategy<Value = Vec<Kind>> {
        let event = prop_oneof![
            2 => self.accepted().boxed(),
            6 => self.observed().boxed(),
            8 => self.called_back().boxed(),
            1 => Just(abandoned()).boxed(),
        ];
        let repeated = vec((event, 1..=3_usize), 0..most).prop_map(|events| {
            events
                .into_iter()
                .flat_map(|(kind, times)| std::iter::repeat_n(kind, times))
                .collect::<Vec<_>>()
        });
        (repeated.prop_shuffle(), any::<bool>()).prop_map(|(mut events, order_first)| {
            if order_first {
                events.sort_by_key(|kind| !matches!(kind, Kind::Accepted(_)));
            }
            let first = events.iter_mut().find_map(|kind| match kind {
                Kind::Observed(answer) => Some(answer),
                _ => None,
            });
            if let Some(first) = first {
                ACCOUNT.clone_into(&mut first.account);
            }
            events
        })
    }

    fn by_number<'a>(
        self,
        devices: impl IntoIterator<Item = &'a Arc<DeviceStatus>>,
    ) -> BTreeMap<usize, DeviceStatus> {
        devices
            .into_iter()
            .map(|status| (self.number(&status.device), (**status).clone()))
            .collect()
    }

    fn seen(self, request: &Request) -> Seen {
        (self.by_number(&request.devices), request.state(), request.counts, request.polling_stopped)
    }
}

fn class() -> impl Strategy<Value = StatusClass> + Clone {
    select(vec![
        StatusClass::Pending,
        StatusClass::Waiting,
        StatusClass::Succeeded,
        StatusClass::Failed,
        StatusClass::Unknown,
    ])
}

fn account_name() -> impl Strategy<Value = String> {
    prop_oneof![9 => Just(ACCOUNT.to_owned()), 1 => Just(OTHER_ACCOUNT.to_owned())]
}

fn worlds_events() -> impl Strategy<Value = (World, Vec<Kind>)> {
    world().prop_flat_map(|world| (Just(world), world.events(16)))
}

fn recount(request: &Request) -> Counts {
    let count = |state| request.devices.iter().filter(|status| status.state == state).count();
    Counts {
        total: request.devices.len(),
        succeeded: count(DeviceState::Succeeded),
        failed: count(DeviceState::Failed),
    }
}

/// Whether a callback names its device by an identifier that is known, or by none. A callback is
/// about the only device also if its identifiers are not known. If one of them becomes known later,
/// the same callback fills in the others.
fn names_known(kind: &Kind, request: &Request) -> bool {
    let Kind::CalledBack(storage::CalledBack { device: Some(named), .. }) = kind else {
        return true;
    };
    let named = event::from_stored(named);
    let kinds =
        [IdentifierKind::Eid, IdentifierKind::Iccid, IdentifierKind::Imei, IdentifierKind::Mdn];
    let mut kinds = kinds.iter().filter(|kind| !named.get(**kind).is_empty()).peekable();
    kinds.peek().is_none()
        || kinds.any(|kind| {
            request.devices.iter().any(|known| known.device.get(*kind) == named.get(*kind))
        })
}

/// Whether a device may go from one status to the other.
fn moves_forward(from: &DeviceStatus, to: &DeviceStatus) -> bool {
    let kept = |from: &Digits, to: &Digits| from.is_empty() || from == to;
    let (a, b) = (&from.device, &to.device);
    (from.state == to.state || from.state.moves_to(to.state))
        && (from.fault.is_none() || from.fault == to.fault)
        && (from.profile.is_none() || from.profile == to.profile)
        && (kept(&a.eid, &b.eid)
            && kept(&a.iccid, &b.iccid)
            && kept(&a.imei, &b.imei)
            && kept(&a.mdn, &b.mdn))
        && from.update_time <= to.update_time
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_revision_is_one_event_that_changes_something_shown((world, events) in worlds_events()) {
        let mut log = Log::default();
        for kind in events {
            let before = log.request.clone();
            let applied = log.add(kind);
            let after = &log.request;
            prop_assert_eq!(after.counts, recount(after));
            let Some(transition) = applied.transition else {
                prop_assert_eq!(after.revision, before.revision);
                prop_assert_eq!(&after.devices, &before.devices);
                prop_assert_eq!(world.seen(after), world.seen(&before));
                prop_assert_eq!(&after.account, &before.account);
                prop_assert!(before.first.is_none() || after.update_time == before.update_time);
                continue;
            };
            prop_assert_eq!(after.revision, before.revision + 1);
            prop_assert!(
                (&after.account, &after.devices) != (&before.account, &before.devices)
                    || world.seen(after) != world.seen(&before)
            );
            let told = Transition {
                revision: after.revision,
                position: position(log.end),
                time: time(log.end),
                state: after.state(),
                counts: after.counts,
                polling_stopped: after.polling_stopped,
                devices: after
                    .devices
                    .iter()
                    .filter(|d| !before.devices.contains(d))
                    .map(Arc::clone)
                    .collect(),
                restart: false,
            };
            prop_assert_eq!(transition, told);
            prop_assert_eq!(after.update_time, time(log.end));
        }
    }

    #[test]
    fn everything_only_moves_forward((world, events) in worlds_events()) {
        let mut log = Log::default();
        for kind in events {
            let before = log.request.clone();
            log.add(kind);
            let after = &log.request;
            prop_assert!(!before.is_final() || after.is_final());
            prop_assert!(!before.known || after.known);
            prop_assert!(!before.polling_stopped || after.polling_stopped);
            prop_assert!(before.account.is_none() || before.account == after.account);
            prop_assert!(before.state() == after.state() || !before.is_final());
            let now = world.by_number(&after.devices);
            prop_assert_eq!(now.len(), after.devices.len(), "each device is listed once");
            // A callback finds the wrong device if only its ICCID is known and two devices share
            // it. The order corrects the IMEI.
            let is_corrected =
                world.shared_iccid && before.order_id.is_none() && after.order_id.is_some();
            for (n, mut was) in world.by_number(&before.devices) {
                let is = now.get(&n);
                if let (true, Some(is)) = (is_corrected, is) {
                    was.device.imei.clone_from(&is.device.imei);
                }
                prop_assert!(is.is_some_and(|is| moves_forward(&was, is)), "{:?} {:?}", was, is);
            }
        }
    }

    #[test]
    fn a_duplicate_changes_nothing_shown((world, events) in worlds_events()) {
        let mut log = Log::default();
        // Those that found every device they named, among devices that stay the same.
        let mut understood = Vec::new();
        for kind in events {
            let total = log.request.counts.total;
            let is_named_by_known = names_known(&kind, &log.request);
            let applied = log.add(kind.clone());
            let request = log.request.clone();
            let again = log.add(kind.clone());
            prop_assert_eq!((again.transition, request.revision), (None, log.request.revision));
            if total != log.request.counts.total {
                understood.clear();
            }
            if log.request.known && applied.unmatched == 0 && is_named_by_known {
                understood.push(kind);
            }
        }
        let end = world.seen(&log.request);
        for kind in understood {
            let again = log.add(kind.clone());
            prop_assert_eq!(again.transition, None, "{:?}", kind);
        }
        prop_assert_eq!(world.seen(&log.request), end);
    }

    #[test]
    fn folding_in_parts_is_folding_at_once(
        ((_, events), cut) in (worlds_events(), any::<prop::sample::Index>()),
    ) {
        let cut = cut.index(events.len() + 1);
        let mut log = Log::default();
        let (first, later) = events.split_at(cut);
        let mut transitions: Vec<_> = first.iter().map(|kind| log.add(kind.clone())).collect();
        let half = log.clone();
        let shown: Vec<_> = half.request.devices.iter().map(|d| (**d).clone()).collect();
        let shown_half = (shown, half.request.counts);
        let mut copy = log.clone();
        let rest: Vec<_> = later.iter().map(|kind| log.add(kind.clone())).collect();
        let rest_of_copy: Vec<_> = later.iter().map(|kind| copy.add(kind.clone())).collect();
        prop_assert_eq!(&rest, &rest_of_copy);
        // Going on does not reach back into what was handed out.
        let handed_out: Vec<_> = half.request.devices.iter().map(|d| (**d).clone()).collect();
        prop_assert_eq!((handed_out, half.request.counts), shown_half);

        transitions.extend(rest);
        let mut whole = Log::default();
        let at_once: Vec<_> = events.into_iter().map(|kind| whole.add(kind)).collect();
        prop_assert_eq!(transitions, at_once);
        prop_assert_eq!(&whole.request.devices, &copy.request.devices);
    }

    #[test]
    fn a_watcher_that_resumes_anywhere_ends_with_what_is(
        ((world, events), cut) in (worlds_events(), any::<prop::sample::Index>()),
    ) {
        let cut = cut.index(events.len() + 1);
        let mut log = Log::of(events[..cut].iter().cloned());
        let (mut devices, mut state, mut counts, mut polling_stopped) = world.seen(&log.request);
        let mut revision = log.request.revision;
        for kind in &events[cut..] {
            let Some(transition) = log.add(kind.clone()).transition else { continue };
            prop_assert_eq!(transition.revision, revision + 1);
            devices.extend(world.by_number(&transition.devices));
            Transition { revision, state, counts, polling_stopped, .. } = transition;
        }
        prop_assert_eq!((devices, state, counts, polling_stopped), world.seen(&log.request));
        prop_assert_eq!(revision, log.request.revision);
    }
}
