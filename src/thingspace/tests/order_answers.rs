//! What an answer to an order means: every shape that a rule is about, and the ways in which each
//! has been written.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::thingspace::{
    RefusalKind,
    http::{
        transport::Reply,
        verdict::{Stale, Verdict, judge_order},
    },
};

const ID: &str = "86c83330-4bf5-4235-9c4e-a83f93aeae4c";
const REFUSAL: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#;
const THROTTLED: &str = r#""fault":{"code":900800}"#;
const SESSION: &str = r#""errorCode":"UnifiedWebService.REQUEST_FAILED.SessionToken.Expired""#;
const BEARER: &str = r#""fault":{"code":"900901"}"#;

pub(super) fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: None,
        locations: Vec::new(),
        request_ids: Vec::new(),
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
        Verdict::Unclear { status, reason } => Verdict::Unclear { status, reason },
    }
}

#[track_caller]
fn assert_unknown(status: u16, body: &str) {
    let verdict = judged(status, body);
    assert!(matches!(verdict, Verdict::Unclear { .. }), "HTTP {status}, {body}: {verdict:?}");
}

/// Each answer that would free the key or renew a token, with these fields beside its code.
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
    // These mean that the call may have been carried out, whatever the status.
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
    // ThingSpace may have carried the order out before it looked at the session.
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
            assert!(matches!(verdict, Verdict::Unclear { .. }), "{status}: {verdict:?}");
        }
    }
}

#[test]
fn whatever_looks_like_a_request_id_makes_the_outcome_unknown() {
    for name in [
        "requestId",
        "requestid",
        "REQUESTID",
        "RequestID",
        "request_id",
        "Request-Id",
        "request id",
        "requestId ",
        "\\u0072equestId",
        "requestIds",
        "asyncRequestId",
        "id",
        "ID",
        " id",
        "ｒequestId",
        "ｒｅｑｕｅｓｔＩｄ",
        "reqId",
        "ReqID",
        "req_id",
        "requestIdentifier",
    ] {
        assert_unknown_beside_every_code(&format!(r#""{name}":"{ID}""#));
    }
    let long = "a".repeat(65);
    for value in [
        &format!(r#""{ID} ""#),
        &format!(r#"["{ID}"]"#),
        &format!(r#"{{"id":"{ID}"}}"#),
        &format!(r#"{{"value":["{ID}"]}}"#),
        &format!(r#""{long}""#),
        r#""a_b""#,
        r#""../x""#,
        "7",
        "0",
        "-1",
        "1e400",
        "100000000000000000001",
        "true",
        "false",
        r#""null""#,
    ] {
        assert_unknown_beside_every_code(&format!(r#""requestId":{value}"#));
    }
    for elsewhere in [
        r#""data":{"requestId":"r-1"}"#,
        r#""data":{"id":"r-1"}"#,
        r#""data":[{"id":"r-1"}]"#,
        r#""data":{"more":{"request":{"id":"r-1"}}}"#,
        r#""a":{"b":{"c":{"d":{"requestId":"r-1"}}}}"#,
        r#""request":"r-1-2""#,
        r#""errorMessage":"{\"requestId\":\"r-1\"}""#,
        r#""errorMessage":"accepted: {\"requestId\":\"r-1\"}""#,
        r#""errorMessage":"accepted: {\"id\":\"r-1\"}""#,
        r#""errorMessage":"accepted: {\"requestId\":\"r-1""#,
        r#""errorMessage":"try [again] {later} {\"reqId\":4711}""#,
        r#""errorMessage":"{\"text\":\"{\\\"requestId\\\":\\\"r-1\\\"}\"}""#,
        r#""errorMessage":"see {\"\\u0072equestId\":\"r-1\"} ...""#,
        r#""errorMessage":"Request ID: r-1""#,
        r#""errorMessage":"The request was accepted with request id 4711.""#,
        r#""description":"reqId=r-1""#,
        r#""description":"<requestId>r-1</requestId>""#,
        r#""detail":{"text":"requestId: r-1"}"#,
        r#""detail":{"text":"{\"requestId\":\"r-1\"}"}"#,
        r#""details":["one","requestId r-1"]"#,
        r#""requestId":"","RequestId":"r-1""#,
        r#""requestId":null,"requestId":"r-1""#,
    ] {
        assert_unknown_beside_every_code(elsewhere);
    }
    for status in [401, 403, 429] {
        assert_unknown(status, &format!("<answer><requestId>{ID}</requestId></answer>"));
        let fault = r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>900800</am:code><requestId>r</requestId></am:fault>"#;
        assert_unknown(status, fault);
        for location in [
            "/api/m2m/v2/accounts/0-1/requests/r-1/status",
            "https://h/x?requestId=r-1",
            "/Request/r-1",
        ] {
            let named = Reply {
                locations: vec![location.into()],
                ..reply(status, format!("{{{THROTTLED}}}"))
            };
            assert!(matches!(judge_order(&named), Verdict::Unclear { .. }), "{location}");
        }
    }
}

/// Every request id that was ever seen is a UUID or a number. A number in a text is anything.
#[test]
fn a_text_that_quotes_a_uuid_makes_a_refusal_unknown() {
    for fields in [
        format!(r#""errorMessage":"the request is there, id {ID}""#),
        format!(r#""errorMessage":"Your request {ID} is pending""#),
        format!(r#""description":"{ID}""#),
        format!(r#""details":["{ID} was placed"]"#),
        format!(r#""orderId":"{ID}""#),
    ] {
        for status in [400, 404, 409, 429] {
            assert_unknown(status, &format!("{{{REFUSAL},{fields}}}"));
            assert_unknown(status, &format!("{{{fields},\"error\":\"invalid_request\"}}"));
        }
        assert_unknown(429, &format!("{{{fields}}}"));
        // Refusals of tokens quote the token, and the API manager has ids of its own.
        let told = |status, code: &str| judged(status, &format!("{{{code},{fields}}}"));
        assert!(matches!(told(400, SESSION), Verdict::Stale(_)), "{fields}");
        assert!(matches!(told(401, BEARER), Verdict::Stale(_)), "{fields}");
        assert_eq!(told(429, THROTTLED), Verdict::Throttled(None), "{fields}");
        assert!(matches!(told(404, r#""fault":{"code":900906}"#), Verdict::Refused(_)), "{fields}");
    }
    assert_unknown(429, &format!("{ID} accepted"));
    for fields in [
        format!(r#""traceId":"{ID}","transaction_id":["{ID}"]"#),
        r#""errorMessage":"Your request is not accepted""#.to_owned(),
        r#""description":"the device is pending since order 4711 was placed""#.to_owned(),
    ] {
        let verdict = judged(400, &format!("{{{REFUSAL},{fields}}}"));
        assert!(matches!(verdict, Verdict::Refused(_)), "{fields}: {verdict:?}");
    }
    let traced = format!(r#"{{"traceId":"{ID}","transaction_id":["{ID}"]}}"#);
    assert_eq!(judged(429, &traced), Verdict::Throttled(None));
}

#[test]
fn what_only_resembles_a_request_id_changes_nothing() {
    for fields in [
        r#""requestId":null"#,
        r#""requestId":"""#,
        r#""requestId":" ""#,
        r#""requestId":[]"#,
        r#""requestId":{"id":null}"#,
        r#""deviceIds":[{"kind":"iccid","id":"89148000004292933820"}]"#,
        r#""requestTime":{"zone":"UTC"}"#,
        r#""errorMessage":"the request identified by 12345 is over""#,
        r#""errorMessage":"a requestId is required""#,
        r#""errorMessage":"try [again] {later}""#,
        r#""errorMessage":"the request 12345 cannot be carried out""#,
        r#""path":"/api/m2m/v1/devices/profile/actions/download""#,
    ] {
        let verdict = judged(400, &format!("{{{REFUSAL},{fields}}}"));
        assert!(matches!(verdict, Verdict::Refused(_)), "{fields}: {verdict:?}");
    }
    let empty = Reply { request_ids: vec![String::new(), " ".into()], ..reply(429, "") };
    assert_eq!(judge_order(&empty), Verdict::Throttled(None));
    let elsewhere = Reply { locations: vec!["/login".into()], ..reply(429, "") };
    assert_eq!(judge_order(&elsewhere), Verdict::Throttled(None));
}

#[test]
fn codes_that_contradict_each_other_make_the_outcome_unknown() {
    for fields in [
        r#""fault":{"code":101503}"#,
        r#""faultResponse":{"faultcode":"X.REQUEST_ONHOLD.CreditApproval"}"#,
        r#""faultResponse":{"faultstring":"on hold"}"#,
        r#""faultResponse":"on hold""#,
        r#""faultResponse":["on hold"]"#,
        r#""faultResponse":[{"faultcode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound"},{"detail":"x"}]"#,
        r#""error":"internal_server_error""#,
        r#""error":true"#,
        r#""error":{"code":"x"}"#,
        r#""code":"x""#,
        r#""ErrorCode":"UnifiedWebService.REQUEST_ONHOLD.CreditApproval""#,
        r#""ErrorCode":["UnifiedWebService.REQUEST_ONHOLD.CreditApproval"]"#,
        r#""code":200"#,
        r#""error":false"#,
        r#""errors":[{"code":"UnifiedWebService.REQUEST_ONHOLD.CreditApproval"}]"#,
        r#""errors":[{"code":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound"},{"errorCode":"500"}]"#,
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
    // The same code once more contradicts nothing, and an empty envelope says nothing.
    for fields in [
        r#""ErrorCode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound""#,
        r#""faultResponse":{"faultcode":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound","faultstring":"x"}"#,
        r#""faultResponse":{},"fault":null,"error":"""#,
        r#""errors":[{"code":"UnifiedWebService.REQUEST_FAILED.DeviceNotFound","message":"x"}]"#,
        r#""errors":[],"faults":[{}]"#,
    ] {
        let verdict = judged(400, &format!("{{{REFUSAL},{fields}}}"));
        assert!(matches!(verdict, Verdict::Refused(_)), "{fields}: {verdict:?}");
    }
}

#[test]
fn a_word_of_success_makes_the_outcome_unknown() {
    for fields in [
        r#""status":"Success""#,
        r#""Status":"SUCCESSFUL""#,
        r#""status":"Pending""#,
        r#""status":"In Progress""#,
        r#""status":"On Hold""#,
        r#""status":"accepted""#,
        r#""status":202"#,
        r#""status":"200""#,
        r#""success":true"#,
        r#""state":"Pending""#,
        r#""result":"Success""#,
        r#""Outcome":"SUCCESS""#,
        r#""accepted":true"#,
        r#""message":"OK""#,
        r#""statusCode":202"#,
        r#""httpStatus":"202 Accepted""#,
        r#""requestStatus":"queued""#,
        r#""responseCode":"200""#,
        r#""httpStatusCode":"202""#,
        r#""result":{"status":"Success"}"#,
        r#""data":[{"state":"in progress"}]"#,
    ] {
        assert_unknown_beside_every_code(fields);
    }
    for fields in [
        r#""status":"Failed""#,
        r#""status":400"#,
        r#""status":"BAD_REQUEST""#,
        r#""success":false"#,
        r#""state":"failed","result":"Failure","message":"Bad Request","statusCode":400"#,
    ] {
        let verdict = judged(400, &format!("{{{REFUSAL},{fields}}}"));
        assert!(matches!(verdict, Verdict::Refused(_)), "{fields}: {verdict:?}");
    }
}

const ACCEPTANCES: [&str; 14] = [
    "Accepted",
    "Your request was accepted.",
    "Device not found yet, the request will be QUEUED",
    "request submitted",
    "already in progress",
    "in_progress",
    "order in-progress",
    "is being processed",
    "not yet accepted",
    "was not accepted yet",
    "not only accepted",
    "ａｃｃｅｐｔｅｄ",
    "not ordered: it was already queued",
    "Successfully created",
];

const TIME_OUTS: [&str; 6] = [
    "upstream timed out",
    "Timeout",
    "504 Gateway Time-out",
    "the back end timed-out",
    "TIME OUT",
    "no answer: TimedOut",
];

#[test]
fn a_text_that_speaks_of_acceptance_makes_the_outcome_unknown() {
    for text in ACCEPTANCES {
        for name in ["message", "errorMessage", "description", "note"] {
            assert_unknown_beside_every_code(&format!(r#""{name}":"{text}""#));
        }
        assert_unknown_beside_every_code(&format!(r#""details":[{{"text":"{text}"}}]"#));
        assert_unknown_beside_every_code(&format!(r#""description":"{{\"text\":\"{text}\"}}""#));
    }
}

#[test]
fn a_text_that_speaks_of_a_time_out_makes_a_refusal_and_a_throttling_unknown() {
    for text in TIME_OUTS {
        for fields in [format!(r#""message":"{text}""#), format!(r#""details":["{text}"]"#)] {
            for (status, code) in [
                (400, REFUSAL),
                (404, r#""error":"invalid_request""#),
                (401, r#""error":"invalid_request""#),
                (429, THROTTLED),
                (503, THROTTLED),
            ] {
                assert_unknown(status, &format!("{{{code},{fields}}}"));
            }
            for status in [401, 429] {
                assert_unknown(status, &format!("{{{fields}}}"));
            }
            // A session that timed out is refused before anything else is looked at.
            let stale = judged(400, &format!("{{{SESSION},{fields}}}"));
            assert!(matches!(stale, Verdict::Stale(_)), "{fields}: {stale:?}");
        }
    }
}

#[test]
fn a_whole_body_may_speak_of_acceptance_or_a_time_out() {
    for text in ACCEPTANCES.iter().chain(&TIME_OUTS).chain(&["OK", "Pending", "200 OK"]) {
        for status in [401, 429] {
            assert_unknown(status, text);
            assert_unknown(status, &format!("\"{text}\""));
        }
    }
    for text in ACCEPTANCES.iter().chain(&TIME_OUTS) {
        for status in [401, 429] {
            assert_unknown(status, &format!("<html><title>{text}</title></html>"));
        }
        let fault = r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>900800</am:code><am:message>"#;
        assert_unknown(429, &format!("{fault}{text}</am:message></am:fault>"));
    }
}

#[test]
fn a_text_that_denies_acceptance_changes_nothing() {
    for text in [
        "not accepted",
        "The request cannot be accepted",
        "this can't be queued",
        "the order was never submitted",
        "the token is no longer accepted",
        "Unaccepted, unsuccessful, resubmit it",
        "502 Bad Gateway",
        "<script>setTimeout(x)</script>",
    ] {
        let verdict = judged(400, &format!(r#"{{{REFUSAL},"errorMessage":"{text}"}}"#));
        assert!(matches!(verdict, Verdict::Refused(_)), "{text}: {verdict:?}");
    }
}

/// As API managers, gateways and servers write them.
const PLAIN_REFUSALS: [&str; 38] = [
    "Unauthorized",
    "no",
    "401 Authorization Required",
    "Authentication failed",
    "Missing Credentials",
    "Invalid Credentials. Make sure you have provided the correct security credentials",
    "The access token expired",
    "The incoming token has expired",
    "the token is no longer valid",
    "Session is invalid or has expired, please log in again",
    "Session token 86c83330-4bf5-4235-9c4e-a83f93aeae4c expired",
    "Jwt is missing",
    "Jwt issuer is not configured",
    "No API key found in request",
    "Full authentication is required to access this resource",
    "Access is denied due to invalid credentials.",
    "Access denied due to missing subscription key. Make sure to include subscription key when \
     making requests to an API.",
    "You do not have permission to view this page using the credentials that you supplied.",
    "This server could not verify that you are authorized to access the document requested. \
     Either you supplied the wrong credentials (e.g., bad password), or your browser doesn't \
     understand how to supply the credentials required.",
    "The request has not been applied because it lacks valid authentication credentials for the \
     target resource.",
    "slow down",
    "Too Many Requests",
    "429 Too Many Requests",
    "too_many_requests",
    "Message throttled out",
    "You have exceeded your quota",
    "Request was throttled. Expected available in 5 seconds.",
    "Rate limit is exceeded. Try again in 12 seconds.",
    "API rate limit exceeded",
    "local_rate_limited",
    "Limit Exceeded",
    "Rate limit quota violation. Quota limit exceeded.",
    "Spike arrest violation. Allowed rate : 10ps",
    "Out of call volume quota. Quota will be replenished in 00:10:00.",
    "You are being rate limited",
    "error code: 1015",
    "The user has sent too many requests in a given amount of time.",
    "Please retry after 2026-11-30T11:54:41Z",
];

/// What an order may stand behind, in words that no list of acceptances has.
const OTHER_TEXTS: [&str; 21] = [
    "Order placed",
    "Your order has been received",
    "Download scheduled",
    "Download initiated",
    "Request created",
    "Request is pending",
    "Previous request is still processing",
    "Accept&#101;d",
    "201 Created",
    "<order><state>open</state></order>",
    "Too many requests. Your order was placed.",
    "Unauthorized: the device has it already",
    "Connection reset by peer",
    "No response from backend",
    "Backend did not respond in time",
    "java.net.SocketTimeoutException",
    "ETIMEDOUT",
    "502 Bad Gateway: upstream answered 202",
    "not accepted",
    "the order was never submitted",
    "未授权",
];

#[test]
fn a_status_alone_decides_only_beside_the_text_of_a_plain_refusal() {
    let bodies = |text: &str| {
        [
            text.to_owned(),
            format!("{text:?}"),
            format!(
                r#"{{"message":{text:?},"path":"/api/orders","timestamp":"Mon, 30 Nov 2026"}}"#
            ),
            format!(r#"{{"details":[{{"note":{text:?}}}]}}"#),
            format!(
                "<!DOCTYPE html>\n<html lang=en><head><title>{text}</title><style>p {{ margin: 0 }}\
                 </style></head><body class=x><h1>{text}</h1><hr>nginx</body></html>"
            ),
        ]
    };
    let general =
        |text: &str| format!(r#"{{"error":"invalid_token","error_description":{text:?}}}"#);
    let both = Stale { bearer: true, session: true };
    for text in PLAIN_REFUSALS {
        for body in bodies(text).into_iter().chain([general(text)]) {
            assert_eq!(judged(401, &body), Verdict::Stale(both), "{body}");
            // A UUID may be the request's id.
            if !text.contains("86c83330") {
                assert_eq!(judged(429, &body), Verdict::Throttled(None), "{body}");
            }
        }
    }
    for text in OTHER_TEXTS {
        for body in bodies(text).into_iter().chain([general(text)]) {
            assert_unknown(401, &body);
            assert_unknown(429, &body);
        }
        // A code of ThingSpace or its API manager decides, whatever the text beside it is.
        let beside = |code: &str| format!(r#"{{{code},"note":{:?}}}"#, "Order placed");
        assert_eq!(judged(401, &beside(BEARER)), Verdict::Stale(Stale::BEARER));
        assert_eq!(judged(429, &beside(THROTTLED)), Verdict::Throttled(None));
    }
}

#[test]
fn one_id_that_is_carried_exactly_is_accepted() {
    let accepted = |body: &str, id: &str| {
        for status in [200, 201, 202] {
            assert_eq!(judged(status, body), Verdict::Done(id.to_owned()), "{body}");
        }
    };
    for name in ["requestId", "RequestId", "requestID", "requestid", "REQUEST_ID", "request-id"] {
        accepted(&format!(r#"{{"{name}":"{ID}"}}"#), ID);
    }
    accepted(r#"{"requestId":1234567}"#, "1234567");
    accepted(r#"{"requestId":9007199254740991}"#, "9007199254740991");
    accepted(r#"{"requestId":"100000000000000000001"}"#, "100000000000000000001");
    accepted(
        &format!(
            "\u{feff}{{\"requestId\":\"{ID}\",\"status\":\"Pending\",\"code\":200,\"error\":null}}\r\n"
        ),
        ID,
    );
    accepted(&format!(r#"{{"requestId":"{ID}","RequestId":"{ID}","data":{{"id":"{ID}"}}}}"#), ID);
    accepted(
        &format!(r#"{{"requestId":"{ID}","message":"The request id is {ID}, of 2 devices."}}"#),
        ID,
    );
    accepted(
        &format!(r#"{{"requestId":"{ID}","deviceIds":[{{"id":"8914","kind":"iccid"}}]}}"#),
        ID,
    );
    let located = Reply {
        locations: vec![format!("/api/m2m/v2/accounts/0-1/requests/{ID}/status")],
        ..reply(202, format!(r#"{{"requestId":"{ID}"}}"#))
    };
    assert!(matches!(judge_order(&located), Verdict::Done(id) if id.as_str() == ID));
    let in_header = |id: &str| {
        let body = format!(r#"{{"requestId":"{ID}"}}"#);
        judge_order(&Reply { request_ids: vec![id.to_owned()], ..reply(202, body) })
    };
    assert!(matches!(in_header(ID), Verdict::Done(id) if id.as_str() == ID));
    assert!(matches!(in_header("r-2"), Verdict::Unclear { .. }));
}

#[test]
fn an_id_that_thingspace_may_not_have_given_is_not_believed() {
    for value in [
        "100000000000000000001",
        "9007199254740992",
        "18446744073709551615",
        "1.0",
        "1e3",
        "-7",
        "0",
        "-0",
        "true",
        "false",
        "null",
        "[]",
        "{}",
        r#""null""#,
        r#""NULL""#,
        r#""undefined""#,
        r#""none""#,
        r#""NaN""#,
        r#""true""#,
        r#""false""#,
        r#""0""#,
        r#""-1""#,
        r#""""#,
        r#""-""#,
        r#""00000000-0000-0000-0000-000000000000""#,
        r#"["r-1"]"#,
        r#"{"id":"r-1"}"#,
        r#""r 1""#,
        r#"" r-1""#,
        r#""r_1""#,
        r#""error""#,
        r#""Failed""#,
        r#""pending""#,
        r#""not-available""#,
        r#""400""#,
        "500",
        "999",
        r#""x1""#,
    ] {
        assert_unknown(200, &format!(r#"{{"requestId":{value}}}"#));
    }
    assert_unknown(200, &format!(r#"{{"requestId":"{}"}}"#, "a".repeat(65)));
    for fields in [
        r#""RequestId":"r-2""#,
        r#""requestId":"r-2""#,
        r#""requestId":"R-1""#,
        r#""requestid":17"#,
        r#""id":"r-2""#,
        r#""data":{"requestId":"r-2"}"#,
        r#""message":"request id r-2""#,
        r#""reqId":"r-2""#,
        r#""ｒequestId":"r-2""#,
        r#""errors":[{"code":"500"}]"#,
        r#""errorCode":400.0"#,
        r#""errorCode":"500""#,
        r#""errorCode":["500"]"#,
        r#""fault":{"code":900901}"#,
        r#""error":"x""#,
        r#""code":"400""#,
        r#""faultResponse":{"faultcode":"X.REQUEST_FAILED.y"}"#,
        r#""faultResponse":{"faultstring":"y"}"#,
    ] {
        assert_unknown(200, &format!(r#"{{"requestId":"r-1",{fields}}}"#));
        assert_unknown(200, &format!(r#"{{{fields},"requestId":"r-1"}}"#));
    }
    for body in [
        "{}",
        "[]",
        ID,
        "null",
        r#"{"id":"r-1"}"#,
        r#"[{"requestId":"r-1"}]"#,
        r#"{"data":{"requestId":"r-1"}}"#,
        "<requestId>r-1</requestId>",
    ] {
        assert_unknown(200, body);
    }
    for status in [100, 302, 400, 408, 500] {
        assert_unknown(status, &format!(r#"{{"requestId":"{ID}"}}"#));
    }
    let located =
        Reply { locations: vec!["/requests/r-2".into()], ..reply(202, r#"{"requestId":"r-1"}"#) };
    assert!(matches!(judge_order(&located), Verdict::Unclear { .. }));
}

#[test]
fn a_header_named_request_id_is_one() {
    for (status, body) in
        [(400, REFUSAL), (401, BEARER), (429, THROTTLED), (400, SESSION), (401, "")]
    {
        let body = if body.is_empty() { String::new() } else { format!("{{{body}}}") };
        let named = Reply { request_ids: vec!["r-1".into()], ..reply(status, body) };
        assert!(matches!(judge_order(&named), Verdict::Unclear { .. }), "{named:?}");
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
