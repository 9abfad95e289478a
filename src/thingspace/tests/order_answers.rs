//! What the reply to an order means: every case of the rules, in every known form.

mod ids;
mod texts;

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::thingspace::{
    RefusalKind,
    http::{
        reply::Reply,
        verdict::{Stale, Verdict, judge_order},
    },
};

const ID: &str = "86c83330-4bf5-4235-9c4e-a83f93aeae4c";
const REFUSAL: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#;
const NOT_FOUND: &str = "UnifiedWebService.REQUEST_FAILED.DeviceNotFound";
const THROTTLED: &str = r#""fault":{"code":900800}"#;
const SESSION: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.SessionToken.Expired""#;
const BEARER: &str = r#""fault":{"code":"900901"}"#;

pub(super) fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: None,
        locations: Vec::new(),
        request_ids: Vec::new(),
        notes: Vec::new(),
        body: Some(body.into()),
        cut: false,
    }
}

fn judged(status: u16, body: &str) -> Verdict<String> {
    match judge_order(&reply(status, body.to_owned())) {
        Verdict::Done(id) => Verdict::Done(id.as_str().to_owned()),
        Verdict::Stale(stale) => Verdict::Stale(stale),
        Verdict::Throttled(after) => Verdict::Throttled(after),
        Verdict::Refused(refusal) => Verdict::Refused(refusal),
        Verdict::Unknown { status, reason } => Verdict::Unknown { status, reason },
    }
}

#[track_caller]
fn assert_unknown(status: u16, body: &str) {
    let verdict = judged(status, body);
    assert!(matches!(verdict, Verdict::Unknown { .. }), "HTTP {status}, {body}: {verdict:?}");
}

/// Asserts that these fields make the outcome unknown beside each code that would free the key or
/// renew a token.
#[track_caller]
fn assert_unknown_beside_every_code(fields: &str) {
    for (status, code) in [
        (400, REFUSAL),
        (404, r#""error":"invalid_request""#),
        (429, THROTTLED),
        (503, THROTTLED),
        (400, SESSION),
        (401, BEARER),
        (500, r#""fault":{"code":900900}"#),
    ] {
        assert_unknown(status, &format!("{{{code},{fields}}}"));
        assert_unknown(status, &format!("{{{fields},{code}}}"));
    }
    for status in [401, 429] {
        assert_unknown(status, &format!("{{{fields}}}"));
    }
}

#[test]
fn one_code_and_nothing_else_decides() {
    let body = |fields: &str| format!("{{{fields}}}");
    assert_eq!(judged(401, &body(BEARER)), Verdict::Stale(Stale::BEARER));
    for status in [400, 401, 403] {
        let stale = Stale { bearer: false, session: true };
        assert_eq!(judged(status, &body(SESSION)), Verdict::Stale(stale), "{status}");
    }
    for status in [403, 429, 503] {
        assert_eq!(judged(status, &body(THROTTLED)), Verdict::Throttled(None), "{status}");
    }
    for status in [400, 401, 404, 422] {
        let Verdict::Refused(refusal) = judged(status, &body(REFUSAL)) else { panic!("{status}") };
        assert_eq!((refusal.kind, refusal.status), (RefusalKind::DeviceNotFound, status));
    }
    for status in [100, 200, 202, 204, 301, 307, 408, 500, 502, 503] {
        assert_unknown(status, &body(REFUSAL));
        assert_unknown(status, "");
    }
    // With these the order may have been executed, with any status.
    for code in [
        r#""fault":{"code":101503}"#,
        r#""errorCode":"INTERNAL_ERROR""#,
        r#""errorCode":"X.REQUEST_ONHOLD.y""#,
        r#""errorCode":"REQUEST_FAILED.DuplicateRequest""#,
        r#""errorCode":"X.INPUT_INVALID.Request.Duplicate""#,
        r#""errorCode":"DUPLICATE_REQUEST""#,
        r#""errorCode":"UnifiedWebService.REQUEST_FAILED.Timeout""#,
        r#""faultResponse":{"faultcode":"X.REQUEST_FAILED.BackendTimedOut"}"#,
        r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DownloadAlreadyInProgress""#,
        r#""errorCode":"REQUEST_FAILED.Request_In_Progress""#,
        r#""errorCode":"REQUEST_FAILED.Already In Progress""#,
        r#""errorCode":"ALREADY_IN_PROGRESS""#,
        r#""errorCode":"X.REQUEST_FAILED.RequestPending""#,
        r#""errorCode":"X.REQUEST_FAILED.PartialSuccess""#,
        r#""errorCode":"request_failed.partially.completed""#,
        r#""errorCode":"X.REQUEST_FAILED.AlreadyQueued""#,
        r#""errorCode":"X.REQUEST_FAILED.AlreadySubmitted""#,
    ] {
        for status in [200, 400, 401, 404, 429, 500] {
            assert_unknown(status, &body(code));
        }
    }
    for status in [100, 301, 408] {
        for code in [SESSION, BEARER, THROTTLED] {
            assert_unknown(status, &body(code));
        }
    }
    // ThingSpace may have executed the order before it checked the session.
    for status in [200, 202, 500, 502, 503] {
        assert_unknown(status, &body(SESSION));
    }
}

#[test]
fn the_status_alone_decides_only_where_nothing_contradicts_it() {
    let both = Stale { bearer: true, session: true };
    for body in [
        "",
        "{}",
        "null",
        "<html>no</html>",
        "Unauthorized",
        "401",
        r#"{"message":"Unauthorized"}"#,
        r#""no""#,
    ] {
        assert_eq!(judged(401, body), Verdict::Stale(both), "{body}");
        assert_eq!(judged(429, body), Verdict::Throttled(None), "{body}");
        assert_unknown(400, body);
    }
    let wait = Duration::from_secs(7);
    let told = judge_order(&Reply { retry_after: Some(wait), ..reply(429, "") });
    assert_eq!(told, Verdict::Throttled(Some(wait)));
    for body in [ID, &format!("\"{ID}\""), "12345678", "{\"message\":\"Unauth", "[1,", "\"", "{}{}"]
    {
        assert_unknown(401, body);
        assert_unknown(429, body);
    }
    for status in [401, 429, 400] {
        for cut in [true, false] {
            let verdict = judge_order(&Reply { body: None, cut, ..reply(status, "") });
            assert!(matches!(verdict, Verdict::Unknown { .. }), "{status}: {verdict:?}");
        }
    }
}

#[test]
fn codes_that_contradict_each_other_make_the_outcome_unknown() {
    for fields in [
        r#""fault":{"code":101503}"#,
        r#""faultResponse":{"faultcode":"X.REQUEST_ONHOLD.CreditApproval"}"#,
        r#""faultResponse":{"faultstring":"on hold"}"#,
        r#""faultResponse":"on hold""#,
        r#""faultResponse":["on hold"]"#,
        &format!(r#""faultResponse":[{{"faultcode":"{NOT_FOUND}"}},{{"detail":"x"}}]"#),
        r#""error":"internal_server_error""#,
        r#""error":true"#,
        r#""error":{"code":"x"}"#,
        r#""code":"x""#,
        r#""ErrorCode":"UnifiedWebService.REQUEST_ONHOLD.CreditApproval""#,
        r#""ErrorCode":["UnifiedWebService.REQUEST_ONHOLD.CreditApproval"]"#,
        r#""code":200"#,
        r#""error":false"#,
        r#""errors":[{"code":"UnifiedWebService.REQUEST_ONHOLD.CreditApproval"}]"#,
        &format!(r#""errors":[{{"code":"{NOT_FOUND}"}},{{"errorCode":"500"}}]"#),
        r#""Errors":{"code":500}"#,
        r#""errors":["on hold"]"#,
        r#""faults":[{"faultstring":"on hold"}]"#,
        r#""code":"PENDING""#,
        r#""code":"200 OK""#,
    ] {
        assert_unknown(400, &format!("{{{REFUSAL},{fields}}}"));
        assert_unknown(400, &format!("{{{fields},{REFUSAL}}}"));
    }
    assert_unknown(401, r#"{"fault":{"code":900901},"error":"x"}"#);
    assert_unknown(
        429,
        r#"{"fault":{"code":900800},"errorCode":"X.REQUEST_FAILED.AccountNotFound"}"#,
    );
    assert_unknown(401, r#"{"fault":{"code":900901},"Fault":true}"#);
    assert_unknown(401, r#"{"fault":[{"code":900901},"x"]}"#);
    assert_unknown(429, r#"{"code":"OK"}"#);
    // The same code again is no contradiction, nor is an empty envelope.
    for fields in [
        r#""ErrorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#,
        &format!(r#""faultResponse":{{"faultcode":"{NOT_FOUND}","faultstring":"x"}}"#),
        r#""faultResponse":{},"fault":null,"error":"""#,
        r#""errors":[{"code":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound","message":"x"}]"#,
        r#""errors":[],"faults":[{}]"#,
    ] {
        let verdict = judged(400, &format!("{{{REFUSAL},{fields}}}"));
        assert!(matches!(verdict, Verdict::Refused(_)), "{fields}: {verdict:?}");
    }
}

#[test]
fn what_is_no_code_refuses_nothing() {
    for code in ["400.0", "4e2", "-400", "true", "\"null\"", "\"400.0\"", "\"undefined\"", "[400]"]
    {
        for status in [400, 401, 404, 429] {
            assert_unknown(status, &format!(r#"{{"errorCode":{code}}}"#));
            assert_unknown(status, &format!(r#"{{"fault":{{"code":{code}}}}}"#));
        }
    }
}
