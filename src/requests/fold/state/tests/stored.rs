//! The stored bytes, frozen for ever: each file of `tests/fixtures/stored/v1` is a log as it was
//! written once, and what it folds to. A file is never changed; new kinds of events get new files.
//!
//! Its first line says whose log it is. Lines with `#` are comments; an event is its position and
//! its bytes in hex; lines with `=` say what it came to (revision: account, state, succeeded +
//! failed of all; each changed device). The test writes those anew, and compares.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs, mem,
    path::{Path, PathBuf},
};

use super::*;
use crate::requests::fold::order::Order;

/// `Accepted` to `Withdrawn`.
const KINDS: usize = 10;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored/v1");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The position and the event of a line, if it holds one.
fn parse(line: &str) -> Option<(u64, Event)> {
    let (at, hex) =
        line.split_once(' ').filter(|_| line.starts_with(|c: char| c.is_ascii_digit()))?;
    Some((at.parse().unwrap(), event::decode(&bytes(hex)).expect("frozen bytes are an event")))
}

/// Writes what an event came to.
fn describe(text: &mut String, request: &Request, applied: &Applied) {
    let Some(transition) = &applied.transition else {
        writeln!(text, "= nothing shown").unwrap();
        return describe_rest(text, applied);
    };
    let Counts { total, succeeded, failed } = transition.counts;
    let Transition { revision, state, polling_stopped, .. } = transition;
    let account = request.account.as_ref().map_or("nobody", AccountName::as_str);
    let stopped = if *polling_stopped { ", polling stopped" } else { "" };
    let restart = if transition.restart { ", devices from before are gone" } else { "" };
    writeln!(
        text,
        "= {revision}: {account} {state:?}, {succeeded} + {failed} of {total}{stopped}{restart}"
    )
    .unwrap();
    for status in &transition.devices {
        write!(text, "=   {:?}", status.state).unwrap();
        for (kind, digits) in status.device.present() {
            write!(text, " {} {}", kind.as_str(), digits.as_str()).unwrap();
        }
        if let Some(storage::Profile { state, status, role }) = &status.profile {
            write!(text, ", profile {state} {status} {role}").unwrap();
        }
        if let Some(storage::Fault { code, message }) = &status.fault {
            write!(text, ", fault {code}: {message}").unwrap();
        }
        writeln!(text, " @{}", status.update_time.as_second()).unwrap();
    }
    if let Some(caller) = &request.caller {
        writeln!(text, "=   ordered by {caller}").unwrap();
    }
    describe_rest(text, applied);
}

fn describe_rest(text: &mut String, applied: &Applied) {
    let counted = [("contradictions", applied.contradictions), ("unmatched", applied.unmatched)];
    for (what, count) in counted.into_iter().filter(|(_, count)| *count > 0) {
        writeln!(text, "=   {what} {count}").unwrap();
    }
}

/// The file's text, with what its events come to now.
fn rewrite(file: &str) -> String {
    let mut text = String::new();
    let (mut request, mut order) = (Request::default(), Order::default());
    for line in file.lines().filter(|line| !line.starts_with('=')) {
        writeln!(text, "{line}").unwrap();
        let Some((at, event)) = parse(line) else { continue };
        if file.starts_with("log of an order\n") {
            order.apply(position(at), time(at), &event);
            let devices = order.ordered.as_ref().map(|ordered| ordered.devices.len());
            writeln!(text, "= devices {devices:?}, outcome {:?}", order.outcome).unwrap();
        } else {
            let applied = request.apply(position(at), time(at), &event);
            describe(&mut text, &request, &applied);
        }
    }
    text
}

#[test]
fn stored_bytes_mean_what_they_meant() {
    let mut kinds = HashSet::new();
    for path in files() {
        let file = fs::read_to_string(&path).unwrap();
        kinds.extend(
            file.lines()
                .filter_map(parse)
                .filter_map(|(_, e)| e.kind.as_ref().map(mem::discriminant)),
        );
        assert_eq!(rewrite(&file), file, "{}", path.display());
    }
    assert_eq!(kinds.len(), KINDS, "every kind of event is frozen");
}
