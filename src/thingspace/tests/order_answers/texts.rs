//! Words and texts in the reply to an order.

use super::*;

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

const ACCEPTANCES: [&str; 19] = [
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
    "Partially processed",
    "1 device not found, 1 device processed",
    "the order was partly carried out",
    "Partial success",
    "could not be fully processed",
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
fn a_text_that_mentions_acceptance_makes_the_outcome_unknown() {
    for text in ACCEPTANCES {
        for name in ["message", "errorMessage", "description", "note"] {
            assert_unknown_beside_every_code(&format!(r#""{name}":"{text}""#));
        }
        assert_unknown_beside_every_code(&format!(r#""details":[{{"text":"{text}"}}]"#));
        assert_unknown_beside_every_code(&format!(r#""description":"{{\"text\":\"{text}\"}}""#));
    }
}

#[test]
fn a_text_that_mentions_a_time_out_makes_a_refusal_and_a_throttling_unknown() {
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
            // A session times out before it is refused.
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
        let fault = r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>900800</am:code>"#;
        assert_unknown(429, &format!("{fault}<am:message>{text}</am:message></am:fault>"));
    }
}

#[test]
fn a_header_for_people_may_speak_of_acceptance_or_a_request_id() {
    for (status, code) in
        [(400, REFUSAL), (400, SESSION), (401, BEARER), (429, THROTTLED), (401, ""), (429, "")]
    {
        let noted = |note: &str| {
            judge_order(&Reply { notes: vec![note.into()], ..reply(status, format!("{{{code}}}")) })
        };
        for note in [
            r#"Bearer error="invalid_token", error_description="request accepted""#,
            r#"Bearer error_description="expired, see request id 4711""#,
            r#"299 - "the order is being processed""#,
        ] {
            assert!(matches!(noted(note), Verdict::Unknown { .. }), "HTTP {status}, {note}");
        }
        // The name of a realm may be any text, and a nonce may be a UUID.
        for note in [
            r#"Bearer realm="Orders of ThingSpace", error="invalid_token""#,
            r#"OAuth2 realm="API", error_description="The token was not accepted""#,
            r#"Digest realm="api", nonce="86c83330-4bf5-4235-9c4e-a83f93aeae4c""#,
            r#"214 - "Transformation Applied""#,
        ] {
            assert_eq!(noted(note), noted(""), "HTTP {status}, {note}");
        }
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
        "the request could not be processed",
        "the order has not been processed",
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

/// Texts that may be about an executed order, although none of the known phrases is in them.
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
            // A UUID may be the id of a request.
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
        // A code of ThingSpace or its API manager decides, with any text beside it.
        let beside = |code: &str| format!(r#"{{{code},"note":{:?}}}"#, "Order placed");
        assert_eq!(judged(401, &beside(BEARER)), Verdict::Stale(Stale::BEARER));
        assert_eq!(judged(429, &beside(THROTTLED)), Verdict::Throttled(None));
    }
}
