//! Answers to orders.

use bytes::Bytes;

use super::*;
use crate::thingspace::{
    http::{
        reply::Reply,
        verdict::{Stale, Verdict, judge_order},
    },
    tests::order_answers::reply,
};

/// The meaning of a part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Says {
    /// This id, in the documented place and exact.
    Id(String),
    /// This id, in another place.
    IdElsewhere(String),
    /// Something that looks like an id and has no exact value.
    IdLike,
    /// A text for people with a UUID in it.
    Quotes,
    /// A text for people that mentions a time-out.
    TimedOut,
    /// A text that is not the plain refusal of a token or of a rate.
    OtherText,
    /// A list with errors that are in no envelope.
    Errors,
    Code(Code),
    Success,
    Nothing,
}

/// A code with its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Refusal(&'static str),
    Unknown(&'static str),
    Session(&'static str),
    Bearer(u32),
    Throttled(u32),
    NotForwarded(u32),
    Lost(u32),
    /// A refusal that is not ThingSpace's, for example of the authorization server.
    Word(&'static str),
    Fine,
    Unreadable,
}

const STATUSES: [u16; 24] = [
    200, 200, 200, 201, 202, 204, 301, 307, 400, 400, 400, 401, 401, 403, 404, 408, 409, 422, 429,
    429, 500, 502, 503, 504,
];

const IDS: [&str; 6] =
    ["requestId", "RequestId", "requestID", "request_id", "REQUEST-ID", "request id"];

const INEXACT: [&str; 20] = [
    r#""error""#,
    r#""Failed""#,
    "500",
    r#""x1""#,
    "100000000000000000001",
    "9007199254740993",
    "1.5",
    "-7",
    "true",
    "false",
    "0",
    r#""null""#,
    r#""undefined""#,
    r#""-1""#,
    r#"["r-1"]"#,
    r#"{"id":"r-1"}"#,
    r#""r_1""#,
    r#""a b""#,
    r#""00000000-0000-0000-0000-000000000000""#,
    r#"{"value":{"deep":1}}"#,
];

type Part = (Says, String, String);

/// A field of the outermost object.
fn part(rng: &mut Rng, id: &str) -> Part {
    match rng.u8(..15) {
        0 | 1 => (Says::Id(id.to_owned()), pick(rng, &IDS).to_owned(), exact(rng, id)),
        2 => id_elsewhere(rng, id),
        3 => (Says::IdLike, pick(rng, &IDS).to_owned(), pick(rng, &INEXACT).to_owned()),
        4 => (
            Says::Nothing,
            pick(rng, &IDS).to_owned(),
            pick(rng, &["null", "\"\"", "[]", "{}", "[null]"]).to_owned(),
        ),
        5..=8 => code(rng),
        9 => status_word(rng),
        10 => errors(rng),
        11 => quotes(rng),
        12 => speaks(rng),
        _ => {
            let name = pick(rng, &["message", "errorMessage", "description", "extra", "deviceIds"]);
            let noise = noise(rng);
            let is_text = ["\"text", "\"x"].iter().any(|begin| noise.starts_with(begin));
            (if is_text { Says::OtherText } else { Says::Nothing }, name.to_owned(), noise)
        }
    }
}

/// An id as a text, or as a number if that is exact.
fn exact(rng: &mut Rng, id: &str) -> String {
    let is_number = id.len() < 15 && id.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && rng.bool() { id.to_owned() } else { format!("\"{id}\"") }
}

fn id_elsewhere(rng: &mut Rng, id: &str) -> Part {
    let place =
        |name: &str, value: String| (Says::IdElsewhere(id.to_owned()), name.to_owned(), value);
    match rng.u8(..9) {
        0 => place("id", format!("\"{id}\"")),
        1 => place("data", format!(r#"{{"requestId":"{id}"}}"#)),
        2 => place("response", format!(r#"[{{"kind":1,"more":{{"Request_Id":"{id}"}}}}]"#)),
        3 => place("request", format!(r#"{{"id":"{id}"}}"#)),
        4 => place(pick(rng, &["reqId", "ｒequestId", "REQ_ID"]), exact(rng, id)),
        5 => {
            let name = pick(rng, &["id", "RequestId", "reqid"]);
            place("description", format!(r#""text before {{\"{name}\":\"{id}\"}} and after""#))
        }
        6 => {
            let words = pick(rng, &["request id", "requestId:", "REQ-ID =", "request identifier"]);
            place("errorMessage", format!("\"{words} {id}, for your files.\""))
        }
        7 => place("detail", format!(r#"{{"text":["one","requestId={id}"]}}"#)),
        _ => place("errorMessage", format!(r#""{{\"requestId\":\"{id}\"}}""#)),
    }
}

/// A UUID that is not named as an id.
fn quotes(rng: &mut Rng) -> Part {
    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let text = pick(rng, &["Your token {} is invalid", "{} is unauthorized", "{}"]);
    let text = format!("\"{}\"", text.replace("{}", UUID));
    let (says, name) = if rng.u8(..4) == 0 {
        (Says::Nothing, pick(rng, &["traceId", "transactionId"]))
    } else {
        (Says::Quotes, pick(rng, &["errorMessage", "description", "cause", "orderId"]))
    };
    (says, name.to_owned(), text)
}

/// A text for people that may say what became of the order.
fn speaks(rng: &mut Rng) -> Part {
    let (says, text) = match rng.u8(..4) {
        0 => (
            Says::Success,
            pick(rng, &["Request accepted", "it was QUEUED", "in progress", "not yet accepted"]),
        ),
        1 => (Says::TimedOut, pick(rng, &["upstream timed out", "Gateway Time-out", "TIMEOUT"])),
        2 => (
            Says::OtherText,
            pick(rng, &["not accepted", "cannot be queued", "Order placed", "no time yet"]),
        ),
        _ => (
            Says::Nothing,
            pick(rng, &["Token expired", "too many requests", "try again later", "Unauthorized"]),
        ),
    };
    let name = pick(rng, &["message", "errorMessage", "description", "cause", "traceId"]);
    (says, name.to_owned(), format!("\"{text}\""))
}

fn code(rng: &mut Rng) -> Part {
    use Code::*;
    let code = match rng.u8(..12) {
        0..=2 => Refusal(pick(
            rng,
            &[
                "UnifiedWebService.REQUEST_FAILED.DeviceNotFound",
                "DeviceService.INPUT_INVALID.x",
                "REQUEST_CANCELLED.CreditDenied",
            ],
        )),
        3 => Word(pick(rng, &["400", "404", "INVALID_ACCESS", "invalid_token"])),
        4 => Unknown(pick(
            rng,
            &[
                "500",
                "408",
                "INTERNAL_ERROR",
                "S.REQUEST_ONHOLD.CreditApproval",
                "S.REQUEST_FAILED.DuplicateRequest",
                "REQUEST_FAILED.Timeout",
                "S.REQUEST_FAILED.AlreadyInProgress",
                "S.REQUEST_FAILED.PartialSuccess",
            ],
        )),
        5 | 6 => Session(pick(
            rng,
            &[
                "UnifiedWebService.REQUEST_FAILED.SessionToken.Expired",
                "S.INPUT_INVALID.SessionToken.Invalid",
            ],
        )),
        7 => Bearer(rng.u32(900_900..=900_905)),
        8 => Throttled(rng.u32(900_800..=900_807)),
        9 => pick(rng, &[NotForwarded(700_700), NotForwarded(404), Lost(101_503), Lost(303_001)]),
        10 => Fine,
        _ => Unreadable,
    };
    let (name, value) = match code {
        Refusal(text) | Unknown(text) | Session(text) | Word(text) => match rng.u8(..3) {
            0 => (any_case(rng, "errorCode"), format!("\"{text}\"")),
            1 => (any_case(rng, "error"), format!("\" {text} \"")),
            _ => (
                any_case(rng, "faultResponse"),
                format!(r#"{{"faultcode":"{text}","faultstring":"x"}}"#),
            ),
        },
        Bearer(number) | Throttled(number) | NotForwarded(number) | Lost(number) => {
            match rng.u8(..3) {
                0 => (any_case(rng, "fault"), format!(r#"{{"code":{number},"message":"x"}}"#)),
                1 => (any_case(rng, "fault"), format!(r#"{{"code":"{number}"}}"#)),
                _ => (any_case(rng, "code"), number.to_string()),
            }
        }
        // Always the same text in one place, because different texts would contradict each other.
        Fine => {
            let (name, value) = pick(rng, &[("code", "200"), ("error", "false")]);
            (name.to_owned(), value.to_owned())
        }
        Unreadable => match rng.u8(..3) {
            0 => {
                let odd = ["[1]", r#"{"x":"y"}"#, r#""<>""#, "400.0", "-4e2", "true", r#""null""#];
                ("errorCode".to_owned(), pick(rng, &odd).to_owned())
            }
            1 => (
                "faultResponse".to_owned(),
                pick(rng, &[r#"{"faultstring":"x"}"#, "\"x\"", "7"]).to_owned(),
            ),
            _ => {
                ("fault".to_owned(), pick(rng, &[r#"{"message":"x"}"#, "\"x\"", "true"]).to_owned())
            }
        },
    };
    (Says::Code(code), name, value)
}

/// Errors beside the code, in a list.
fn errors(rng: &mut Rng) -> Part {
    let (says, value) = if rng.bool() {
        (
            Says::Errors,
            pick(rng, &[r#"[{"code":"S.REQUEST_ONHOLD.x"}]"#, r#"["on hold"]"#, r#"{"code":501}"#]),
        )
    } else {
        (Says::Nothing, pick(rng, &["[]", "null", "[{}]", r#"[""]"#]))
    };
    (says, pick(rng, &["errors", "Errors", "faults"]).to_owned(), value.to_owned())
}

fn status_word(rng: &mut Rng) -> Part {
    let (says, value) = if rng.bool() {
        (
            Says::Success,
            pick(
                rng,
                &[
                    "\"Success\"",
                    "\"PENDING\"",
                    "\"in progress\"",
                    "202",
                    "\"accepted\"",
                    "\"On Hold\"",
                ],
            ),
        )
    } else {
        (Says::Nothing, pick(rng, &["\"Failed\"", "\"Failure\"", "400", "\"BAD_REQUEST\"", "null"]))
    };
    let name = pick(rng, &["status", "state", "result", "outcome", "requestStatus", "message"]);
    (says, any_case(rng, name), value.to_owned())
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    Done(String),
    Stale { bearer: bool, session: bool },
    Throttled,
    Refused,
    Unknown,
}

/// The verdict according to the rules, from the parts alone.
fn expected(status: u16, parts: &[Says], readable: bool) -> Expected {
    if !readable {
        return Expected::Unknown;
    }
    let mut ids = Vec::new();
    let (mut documented, mut id_like, mut success, mut errors) = (false, false, false, false);
    let (quotes, timed_out) = (parts.contains(&Says::Quotes), parts.contains(&Says::TimedOut));
    let other_text = timed_out || parts.contains(&Says::OtherText);
    let mut codes = Vec::new();
    for part in parts {
        match part {
            Says::Id(id) => {
                documented = true;
                ids.push(id);
            }
            Says::IdElsewhere(id) => ids.push(id),
            Says::IdLike => id_like = true,
            Says::Code(code) if !codes.contains(code) => codes.push(*code),
            Says::Success => success = true,
            Says::Errors => errors = true,
            Says::Code(_) | Says::Quotes | Says::TimedOut | Says::OtherText | Says::Nothing => {}
        }
    }
    ids.dedup();
    let is_success = (200..300).contains(&status);
    let is_error = (400..600).contains(&status) && status != 408;
    if id_like || !ids.is_empty() {
        let one = documented && ids.len() == 1 && !id_like;
        let no_error = codes.iter().all(|code| *code == Code::Fine);
        return if one && is_success && no_error && !errors {
            Expected::Done(ids[0].clone())
        } else {
            Expected::Unknown
        };
    }
    if success || errors || codes.len() > 1 {
        return Expected::Unknown;
    }
    match codes.first() {
        None if other_text => Expected::Unknown,
        None if status == 401 => Expected::Stale { bearer: true, session: true },
        None if status == 429 && !quotes => Expected::Throttled,
        Some(Code::Session(_)) if is_error && status < 500 => {
            Expected::Stale { bearer: false, session: true }
        }
        Some(Code::Bearer(_)) if is_error => Expected::Stale { bearer: true, session: false },
        _ if timed_out => Expected::Unknown,
        Some(Code::Throttled(_)) if is_error => Expected::Throttled,
        Some(Code::Word(_)) if matches!(status, 401 | 429) && other_text => Expected::Unknown,
        Some(Code::Word(_) | Code::NotForwarded(_)) if status == 401 => {
            Expected::Stale { bearer: true, session: true }
        }
        Some(Code::Refusal(_) | Code::Word(_)) if quotes => Expected::Unknown,
        Some(Code::Refusal(_) | Code::Word(_) | Code::NotForwarded(_)) if status == 429 => {
            Expected::Throttled
        }
        Some(Code::Refusal(_) | Code::Word(_) | Code::NotForwarded(_))
            if is_error && status < 500 =>
        {
            Expected::Refused
        }
        _ => Expected::Unknown,
    }
}

fn found(reply: &Reply) -> Expected {
    match judge_order(reply) {
        Verdict::Done(id) => Expected::Done(id.as_str().to_owned()),
        Verdict::Stale(Stale { bearer, session }) => Expected::Stale { bearer, session },
        Verdict::Throttled(_) => Expected::Throttled,
        Verdict::Refused(_) => Expected::Refused,
        Verdict::Unknown { .. } => Expected::Unknown,
    }
}

#[test]
fn every_answer_to_an_order_means_what_its_parts_say() {
    each_answer(2, |rng| {
        let status = pick(rng, &STATUSES);
        let first = id(rng);
        let second = if rng.u8(..4) == 0 { id(rng) } else { first.clone() };
        let parts: Vec<Part> = (0..rng.usize(..4))
            .map(|at| part(rng, if at % 2 == 0 { &first } else { &second }))
            .collect();
        let mut says: Vec<Says> = parts.iter().map(|(says, ..)| says.clone()).collect();
        let mut body =
            object(rng, parts.into_iter().map(|(_, name, value)| (name, value)).collect());
        let (mut readable, mut html) = (true, None);
        let mut whole = true;
        match rng.u8(..20) {
            0 => {
                body.truncate(body.trim_end().len() - 1);
                readable = false;
            }
            1 => {
                html = Some(pick(rng, &["no", "try later", "error 17", "not accepted"]));
                body = format!("<html><body>{}</body></html>", html.unwrap());
            }
            2 => whole = false,
            3 => body.clear(),
            _ => {}
        }
        if !body.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
            says.clear();
            says.extend(html.filter(|text| *text == "not accepted").map(|_| Says::OtherText));
        }
        let mut reply = reply(status, body.clone());
        if whole {
            match rng.u8(..10) {
                0 => {
                    reply
                        .locations
                        .push(format!("/api/m2m/v2/accounts/0-1/requests/{first}/status"));
                    says.push(Says::IdElsewhere(first.clone()));
                }
                1 => {
                    reply.request_ids.push(first.clone());
                    says.push(Says::IdElsewhere(first.clone()));
                }
                _ => {}
            }
        } else {
            reply.body = None;
        }
        let expected = expected(status, &says, readable && whole);
        assert_eq!(
            found(&reply),
            expected,
            "HTTP {status}, {:?}, {body:.600}, {says:?}",
            reply.locations
        );
        if expected != Expected::Unknown && rng.bool() {
            damaged(rng, &reply, &body);
        }
    });
}

/// A damaged answer gives no id that it does not contain.
fn damaged(rng: &mut Rng, reply: &Reply, body: &str) {
    let mut bytes = body.as_bytes().to_vec();
    damage(rng, &mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let damaged = Reply {
        status: reply.status,
        retry_after: None,
        locations: reply.locations.clone(),
        request_ids: reply.request_ids.clone(),
        notes: reply.notes.clone(),
        body: Some(Bytes::from(bytes)),
        cut: false,
    };
    if let Expected::Done(id) = found(&damaged) {
        assert!(text.contains(&id) || text.contains('\\'), "{id} is not in {text:.600}");
    }
}
