use std::collections::BTreeMap;

use super::{super::streams::StreamState, *};

const KEEP: Duration = Duration::from_hours(24);

fn names() -> NatsNames {
    NatsNames::new("gw")
}

fn at(hours: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(hours)
}

fn stream(first: u64, last: u64, messages: u64, now: Timestamp) -> StreamInfo {
    let state = StreamState {
        messages,
        bytes: 0,
        first_seq: first,
        first_time: now,
        last_seq: last,
        last_time: now,
        subjects: BTreeMap::new(),
    };
    let config = async_nats::jetstream::stream::Config::default();
    StreamInfo { config, created: created(7), state, now }
}

fn created(ns: i128) -> Timestamp {
    Timestamp::from_nanosecond(ns).unwrap()
}

/// Streams with these events, and with ten cells and ten keys.
fn found(first: u64, last: u64, now: Timestamp) -> [StreamInfo; 3] {
    let events = stream(first, last, last + 1 - first, now);
    [events, stream(1, 20, 10, now), stream(1, 20, 10, now)]
}

fn known(first: u64, last: u64, now: Timestamp) -> StoreRecord {
    let found = found(first, last, now);
    let mut known = super::first(&found, now);
    observe(&names(), &mut known, &found, KEEP);
    known
}

const THERE: Marks = Marks { cells: true, keys: true };

const UNTOUCHED: CellsAfter = CellsAfter { lost: false, older: false };
const PURGED: CellsAfter = CellsAfter { lost: true, older: false };
const PUT_BACK: CellsAfter = CellsAfter { lost: true, older: true };

#[test]
fn what_came_with_a_backup_is_void_for_as_long_as_its_stream_exists() {
    let before = known(1, 9, at(0));
    let accept = |before: &StoreRecord, found: &[StreamInfo; 3], after| {
        accepted(Some(before), 0, found, String::new(), after)
    };
    let mut now = found(1, 9, at(1));
    assert_eq!(accept(&before, &now, PURGED).void_to, 0);
    let put_back = accept(&before, &now, PUT_BACK);
    assert_eq!(put_back.void_to, 20);
    now[CELLS].state.last_seq = 30;
    assert_eq!(accept(&put_back, &now, UNTOUCHED).void_to, 20);
    now[CELLS].created = created(8);
    now[CELLS].state.last_seq = 0;
    assert_eq!(accept(&put_back, &now, PURGED).void_to, 0);
}

fn lost(known: &StoreRecord, seen: [u64; 3], found: [StreamInfo; 3], marks: Marks) -> String {
    sentence(&losses(&names(), known, seen, &found.map(Some), marks))
}

#[test]
fn each_kind_of_loss_is_told_apart() {
    let known = known(1, 10, at(1));
    let same = found(1, 10, at(1));
    assert_eq!(lost(&known, [10, 20, 20], same.clone(), THERE), "");

    let mut anew = same.clone();
    anew[KEYS].created = created(8);
    assert_eq!(lost(&known, [0; 3], anew, THERE), "stream gw_keys was deleted and made anew");
    let shorter = found(1, 9, at(1));
    let put_back = "ended at 10 and now ends at 9: it was put back to an older copy";
    assert_eq!(lost(&known, [0; 3], shorter, THERE), format!("stream gw_events {put_back}"));
    // Only this process has seen more.
    let put_back = "ended at 30 and now ends at 20: it was put back to an older copy";
    assert_eq!(
        lost(&known, [10, 20, 30], same.clone(), THERE),
        format!("stream gw_keys {put_back}")
    );
    let mut fewer = same.clone();
    fewer[CELLS].state.messages = 4;
    let purged = "stream gw_cells held 10 cells and now holds 4: it was purged";
    assert_eq!(lost(&known, [0; 3], fewer, THERE), purged);
    let later = found(4, 10, at(2));
    assert_eq!(lost(&known, [0; 3], later, THERE), "stream gw_events was purged up to 3");
    let unmarked = Marks { cells: false, keys: false };
    let both = "stream gw_cells was purged; stream gw_keys was purged";
    assert_eq!(lost(&known, [0; 3], same.clone(), unmarked), both);
    let [events, cells, _] = same.map(Some);
    let gone = losses(&names(), &known, [0; 3], &[events, cells, None], THERE);
    assert_eq!(sentence(&gone), "stream gw_keys was deleted");
}

fn cells(found: &mut [StreamInfo; 3], names: &[&str]) {
    let subjects = names.iter().map(|name| (format!("gw.cell.{name}"), 1));
    found[CELLS].state.subjects = subjects.collect();
}

#[test]
fn a_cell_that_is_missing_is_named() {
    let mut now = found(1, 10, at(1));
    let mut known = super::first(&now, at(1));
    cells(&mut now, &["e", "d", "c", "b", "a", "store", "store-mark"]);
    observe(&names(), &mut known, &now, KEEP);
    assert_eq!(
        known.cell_subjects,
        ["a", "b", "c", "d", "e"].map(|name| format!("gw.cell.{name}"))
    );
    assert_eq!(lost(&known, [0; 3], now.clone(), THERE), "");

    // As many cells as before.
    cells(&mut now, &["a", "b", "d", "e", "f", "g"]);
    let one = "stream gw_cells no longer holds gw.cell.c: it was purged";
    assert_eq!(lost(&known, [0; 3], now.clone(), THERE), one);
    cells(&mut now, &["f", "g"]);
    let all =
        "stream gw_cells no longer holds gw.cell.a, gw.cell.b, gw.cell.c and 2 more: it was purged";
    assert_eq!(lost(&known, [0; 3], now.clone(), THERE), all);

    // An accepted loss is not reported again.
    let mut after = accepted(Some(&known), 0, &now, String::new(), PURGED);
    observe(&names(), &mut after, &now, KEEP);
    assert_eq!(lost(&after, [0; 3], now, THERE), "");
    assert_eq!(after.cell_subjects, ["gw.cell.f", "gw.cell.g"]);
}

#[test]
fn what_may_have_expired_was_not_purged() {
    let known = known(1, 10, at(0));
    assert_eq!(
        lost(&known, [0; 3], found(6, 10, at(23)), THERE),
        "stream gw_events was purged up to 5"
    );
    assert_eq!(lost(&known, [0; 3], found(6, 10, at(24)), THERE), "");
    let mut empty = found(1, 10, at(48));
    empty[EVENTS].state.messages = 0;
    empty[EVENTS].state.first_seq = 11;
    assert_eq!(lost(&known, [0; 3], empty, THERE), "");
}

/// For a month, ten events an hour are stored and expire. A purge of more than the oldest sixteenth
/// is noticed.
#[test]
fn a_purge_in_the_middle_is_seen_also_while_events_expire() {
    let mut known = known(1, 10, at(0));
    for hour in 1..24 * 30 {
        let last = 10 * (u64::try_from(hour).unwrap() + 1);
        let first = last.saturating_sub(24 * 10) + 1;
        let mut now = found(first, last, at(hour));
        now[EVENTS].state.first_time = at(hour - 23);
        assert_eq!(lost(&known, [0; 3], now.clone(), THERE), "", "hour {hour}");
        observe(&names(), &mut known, &now, KEEP);
        assert!(known.event_marks.len() <= 66, "{}", known.event_marks.len());
        let purged = found(first + 20, last, at(hour));
        assert_ne!(lost(&known, [0; 3], purged, THERE), "", "hour {hour}");
    }
}

#[test]
fn an_accepted_loss_begins_a_new_epoch_and_is_kept() {
    let before = known(1, 10, at(1));
    let now = found(5, 10, at(2));
    let after = accepted(Some(&before), 0, &now, "stream gw_cells was purged".to_owned(), PURGED);
    assert!(after.epoch > before.epoch && after.cells_lost);
    assert_eq!(
        (after.made_time_ms, after.remembers_since_ms),
        (before.made_time_ms, at(2).as_millisecond())
    );
    assert_eq!(after.losses.len(), 1);
    let mut observed = after.clone();
    observe(&names(), &mut observed, &now, KEEP);
    assert_eq!(lost(&observed, [0; 3], now.clone(), THERE), "");
    // Also if the servers' clock went back.
    let mut early = found(5, 10, at(0));
    for stream in &mut early {
        stream.created = created(1);
    }
    let mut last = observed;
    for n in 0..2 * MAX_LOSSES {
        let next = accepted(Some(&last), 0, &early, n.to_string(), UNTOUCHED);
        assert!(next.epoch > last.epoch && next.cells_lost);
        last = next;
    }
    assert_eq!(last.losses.len(), MAX_LOSSES);
}

#[test]
fn copies_are_merged_into_what_both_know() {
    let mut a = known(1, 10, at(1));
    let mut b = known(1, 30, at(5));
    (a.cell_subjects, b.cell_subjects) =
        (vec!["b".to_owned()], vec!["a".to_owned(), "b".to_owned()]);
    merge(&mut a, &b);
    assert_eq!(a.events.as_ref().unwrap().last_sequence, 30);
    assert_eq!(a.cell_subjects, ["a", "b"]);
    let mut again = a.clone();
    merge(&mut again, &b);
    assert_eq!(again, a);
}
