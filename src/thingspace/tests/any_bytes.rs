//! The parsers of foreign bytes (callbacks, status answers, error envelopes and the rest): no bytes
//! make them panic, and none take more than linear time.

use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::order_answers::reply;
use crate::{
    callbacks::parse,
    identity::{AccountName, RequestId},
    thingspace::http::{
        verdict::{judge, judge_order},
        wire,
    },
};

/// Bytes of a body, and how many times as long the other one is.
const SHORT: usize = 2 << 10;
const TIMES: u32 = 16;

/// A linear parser needs [`TIMES`] as much time for it, a quadratic one the square of that.
const MOST_TIMES: u32 = 3 * TIMES;

/// A measurement that another thread of the machine disturbed is repeated.
const ATTEMPTS: usize = 5;

type Parser = (&'static str, fn(&[u8]));

const PARSERS: [Parser; 9] = [
    ("callback", |body| drop(parse::parse(body, &account()))),
    ("pair", |body| drop(parse::pair(body))),
    ("order", |body| drop(judge_order(&reply(200, body.to_vec())))),
    ("refused order", |body| drop(judge_order(&reply(400, body.to_vec())))),
    ("status", |body| {
        let request = RequestId::parse("r-1").unwrap();
        let reply = reply(200, body.to_vec());
        drop(judge(&reply, |body| wire::status(body, &account(), &request)));
    }),
    ("error", |body| drop(judge(&reply(500, body.to_vec()), |_| Some(())))),
    ("token", |body| drop(judge(&reply(200, body.to_vec()), wire::bearer))),
    ("login", |body| drop(judge(&reply(200, body.to_vec()), wire::session))),
    ("registrations", |body| drop(judge(&reply(200, body.to_vec()), wire::registrations))),
];

fn account() -> AccountName {
    AccountName::parse("0000123456-00001").unwrap()
}

fn parse_all(body: &[u8]) {
    for (_, parse) in PARSERS {
        parse(body);
    }
}

/// Pieces of answers, and pieces that belong nowhere.
const PIECES: [&[u8]; 46] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b" ",
    b"\\",
    b"\\u0041",
    b"\\ud83d",
    b"null",
    b"true",
    b"1",
    b"89148000004292933820",
    b"-1.5e300",
    b"1e400",
    b"\"requestId\":",
    b"\"r-1\"",
    b"\"status\":",
    b"\"Success\"",
    b"\"Failed\"",
    b"\"subRequests\":",
    b"\"ids\":",
    b"\"deviceIds\":",
    b"\"kind\":\"eid\"",
    b"\"id\":",
    b"\"deviceResponse\":",
    b"\"faultResponse\":",
    b"\"errorCode\":",
    b"\"fault\":",
    b"\"code\":\"900901\"",
    b"\"errors\":",
    b"\"accountName\":",
    b"\"password\":",
    b"request id ",
    b"accepted ",
    b"not be ",
    b"time out ",
    b"<am:fault xmlns:am=\"http://wso2.org/apimanager\">",
    b"<am:code>",
    b"</am:code>",
    b"0f8fad5b-d9cb-469f-a165-70867728950e",
    b"\xef\xbb\xbf",
    b"\xff",
    "é１".as_bytes(),
];

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(body in prop::collection::vec(any::<u8>(), 0..2_048)) {
        parse_all(&body);
    }

    #[test]
    fn no_pieces_of_answers_make_a_parser_panic(
        pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..200)
    ) {
        parse_all(&pieces.concat());
    }
}

/// Bodies that repeat a unit, written with `#` for a number that differs from unit to unit.
type Shape = (&'static str, &'static str, &'static str);

const REPEATED: [Shape; 34] = [
    ("", "[", ""),
    ("", "{\"a\":", ""),
    ("", "\"", ""),
    ("", "\\", ""),
    ("", "{", ""),
    ("", "89148000004292933820 ", ""),
    ("", "１", ""),
    ("", "<am:code>", ""),
    ("<am:fault xmlns:am=\"http://wso2.org/apimanager\">", "<am:code>1", "</am:fault>"),
    ("", "<p>request id r-#</p>", ""),
    ("", "password=", ""),
    ("[", "{},", "1]"),
    ("[", "[[[1]]],", "1]"),
    ("[", "\"{\\\"a\\\":\\\"[1]\\\"}\",", "1]"),
    ("{", "\"requestId\":\"r-1\",", "\"a\":1}"),
    ("{", "\"requestId\":\"r-#\",", "\"a\":1}"),
    ("{", "\"status\":\"Success\",", "\"a\":1}"),
    ("{", "\"errorCode\":\"A.B#\",", "\"a\":1}"),
    ("{", "\"accountName\":\"0000123456-00001\",", "\"a\":1}"),
    ("{", "\"field#\":{\"code\":\"#\"},", "\"a\":1}"),
    ("{\"errorCode\":\"A.B\",\"errors\":[", "{\"code\":\"A.B#\"},", "1]}"),
    ("{\"message\":\"", "request id ", "\"}"),
    ("{\"requestId\":\"r-1\",\"message\":\"", "request id r-# ", "\"}"),
    ("{\"message\":\"", "not be be accepted ", "\"}"),
    ("{\"message\":\"", "be ", "accepted\"}"),
    ("{\"message\":\"", "0f8fad5b-d9cb-469f-a165-70867728950", "\"}"),
    ("{\"message\":\"", "{\\\"requestId\\\":", "\"}"),
    ("{\"message\":\"", "\\\\u0041", "\"}"),
    ("{\"faultResponse\":{\"faultcode\":\"A.B\",\"faultstring\":\"", "8914800 ", "\"}}"),
    (
        "{\"requestId\":\"r-1\",\"status\":\"Success\",\"subRequests\":[",
        "{\"ids\":[{\"kind\":\"iccid\",\"id\":\"89148000000#\"}],\"status\":\"Success\"},",
        "{}]}",
    ),
    (
        "{\"requestId\":\"r-1\",\"status\":\"Success\",\"subRequests\":[",
        "{\"ids\":[{\"kind\":\"eid\",\"id\":\"89049032007008882600086299134038\"},\
          {\"kind\":\"iccid\",\"id\":\"89148000000#\"}],\"status\":\"Success\"},",
        "{}]}",
    ),
    (
        "{\"requestId\":\"r-1\",\"status\":\"Success\",\"subRequests\":[{\"ids\":[",
        "{\"kind\":\"iccid\",\"id\":\"89148000000#\"},",
        "{}],\"status\":\"Success\"}]}",
    ),
    (
        "{\"requestId\":\"r-1\",\"status\":\"SUCCESS\",\"deviceIds\":[",
        "{\"kind\":\"iccid\",\"id\":\"89148000000#\"},",
        "{}]}",
    ),
    (
        "{\"requestId\":\"r-1\",\"status\":\"SUCCESS\",\"deviceResponse\":[",
        "{\"deviceProfileResponse\":[{\"deviceIds\":[{\"kind\":\"iccid\",\"id\":\"#\"}]}]},",
        "{}]}",
    ),
];

fn repeated((begin, unit, end): Shape, bytes: usize) -> Vec<u8> {
    let unit = |n: usize| unit.replace('#', &format!("{n:09}"));
    let units: String = (0..bytes / unit(0).len()).map(unit).collect();
    format!("{begin}{units}{end}").into_bytes()
}

/// How long this thread computes for something. What else the machine does counts little.
fn cpu_time(compute: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
    };
    let began = now();
    compute();
    now().saturating_sub(began)
}

/// Whether a parser takes linear time for bodies of a shape.
fn is_linear(parse: impl Fn(&[u8]), shape: Shape) -> bool {
    let (short, long) = (repeated(shape, SHORT), repeated(shape, SHORT * TIMES as usize));
    (0..ATTEMPTS).any(|_| cpu_time(|| parse(&long)) < cpu_time(|| parse(&short)) * MOST_TIMES)
}

#[test]
fn no_body_takes_more_than_linear_time() {
    for shape in REPEATED {
        for (name, parse) in PARSERS {
            assert!(is_linear(parse, shape), "{name} of {shape:?}");
        }
    }
}

#[test]
fn a_quadratic_parser_would_be_noticed() {
    let count_pairs = |body: &[u8]| {
        let pairs = (0..body.len()).step_by(64).map(|at| body[at..].iter().max());
        assert!(pairs.max().is_some());
    };
    assert!(!is_linear(count_pairs, ("", "a", "")));
}
