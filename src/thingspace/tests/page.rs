//! Every row of the table of codes, from the body of an answer to the error of a caller. The table
//! in `docs/errors.md` has to show the same.

use std::{env, fs, path::Path};

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    grpc::status,
    requests,
    thingspace::{
        Error,
        http::{
            body::ReplyBody,
            code::{
                Code,
                table::{CodeClass, CodePattern, ROWS, Row},
            },
            reply::Reply,
            verdict::{Stale, Verdict, judge_order},
        },
    },
};

const PAGE: &str = "docs/errors.md";
const COMMAND: &str = "UPDATE_DOCS=1 cargo test --lib the_page_shows_the_table";
const BEGIN: &str = "<!-- table of codes: generated -->\n";
const END: &str = "<!-- end of the table of codes -->\n";

/// A body for each code of a row; the smallest and the largest number of a range.
fn samples(row: &Row) -> Vec<String> {
    match row.codes {
        CodePattern::Named(patterns) => patterns
            .iter()
            .map(|pattern| {
                let name = pattern.replace('*', "Some").replace('#', "7");
                let service = if name.contains('.') { "UnifiedWebService." } else { "" };
                json!({ "errorCode": format!("{service}{name}") }).to_string()
            })
            .collect(),
        CodePattern::ApiManager(first, last) => [first, last]
            .into_iter()
            .map(|number| json!({ "fault": { "code": number } }).to_string())
            .collect(),
    }
}

/// A reply with a status with which the row counts.
fn reply(row: &Row, body: String) -> Reply {
    let status = StatusCode::from_u16(row.http.unwrap_or(400)).unwrap();
    Reply {
        status,
        retry_after: None,
        locations: Vec::new(),
        request_ids: Vec::new(),
        notes: Vec::new(),
        body: Some(Bytes::from(body)),
        cut: false,
    }
}

/// The errors of a caller that orders and of one that queries.
fn read<T: std::fmt::Debug>(verdict: Verdict<T>) -> [String; 2] {
    let asks = |error: Error| named(&status::of(&error.into()));
    let both = |error: Error| {
        let name = asks(error);
        [name.clone(), name]
    };
    match verdict {
        Verdict::Done(done) => panic!("a success: {done:?}"),
        // Refused again with a new token.
        Verdict::Stale(_) => both(Error::CredentialsRejected { name: String::new() }),
        Verdict::Throttled(retry_after) => both(Error::Throttled { retry_after }),
        Verdict::Refused(refusal) => both(Error::Refused(refusal)),
        Verdict::Unknown { reason, .. } => {
            let unknown = requests::Error::OrderOutcomeUnknown {
                order_id: String::new(),
                sent_time: jiff::Timestamp::UNIX_EPOCH,
                request_id: None,
            };
            [
                named(&status::of(&unknown)),
                asks(Error::OutcomeUnknown { reason, retry_after: None }),
            ]
        }
    }
}

/// The gRPC code and the reason.
fn named(status: &Status) -> String {
    let mut code = String::new();
    for (at, letter) in format!("{:?}", status.code()).char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            code.push('_');
        }
        code.push(letter.to_ascii_uppercase());
    }
    format!(
        "{code} `{}`",
        status.get_details_error_info().expect("every error has a reason").reason
    )
}

fn line(row: &Row) -> String {
    let codes = match row.codes {
        CodePattern::Named(names) => {
            names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        }
        CodePattern::ApiManager(first, last) if first == last => {
            format!("the API manager's {first}")
        }
        CodePattern::ApiManager(first, last) => format!("the API manager's {first} to {last}"),
    };
    let http = row.http.map(|http| format!(" with HTTP {http}")).unwrap_or_default();
    let [order, other] = read(judge_order(&reply(row, samples(row).remove(0))));
    let (reads, again) = match row.class {
        CodeClass::SessionRefused | CodeClass::BearerRefused => (
            format!(
                "nothing: the token is renewed and the call repeated, once. If that is refused \
                 too: {order}"
            ),
            "no",
        ),
        CodeClass::Throttled => (order, "after `RetryInfo`"),
        CodeClass::Refused(_) => (order, "no"),
        CodeClass::Unknown => (
            format!("an order: {order}; any other call: {other}"),
            "with the same key, to learn more",
        ),
    };
    format!("| {codes}{http} | {} | {reads} | {again} |\n", row.meaning)
}

#[test]
fn every_row_holds_for_its_codes() {
    for row in ROWS {
        let printed = line(row);
        for sample in samples(row) {
            let found = Code::first(&ReplyBody::parse(&sample)).unwrap();
            let found = found.row(row.http.unwrap_or(400));
            assert!(std::ptr::eq(found, row), "{sample} is read as {found:?}, not as {row:?}");
            let verdict = judge_order(&reply(row, sample));
            let as_meant = match (row.class, &verdict) {
                (CodeClass::SessionRefused, Verdict::Stale(stale)) => {
                    !stale.bearer && stale.session
                }
                (CodeClass::BearerRefused, Verdict::Stale(stale)) => *stale == Stale::BEARER,
                (CodeClass::Throttled, Verdict::Throttled(None))
                | (CodeClass::Unknown, Verdict::Unknown { .. }) => true,
                (CodeClass::Refused(kind), Verdict::Refused(refusal)) => {
                    refusal.kind == kind && refusal.to_string().ends_with(row.meaning)
                }
                _ => false,
            };
            assert!(as_meant, "{row:?}: {verdict:?}");
            let [order, other] = read(verdict);
            assert!(printed.contains(&order) || printed.contains(&other), "{printed}");
        }
    }
}

#[test]
fn the_page_shows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the table's begin is marked");
    let (shown, after) = rest.split_once(END).expect("the table's end is marked");
    let table: String = ROWS.iter().map(line).collect();
    let table = format!(
        "\n| upstream code | meaning | a caller reads | again? |\n|---|---|---|---|\n{table}\n"
    );
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert!(shown == table, "{PAGE} does not show the table of codes; this writes it: {COMMAND}");
}
