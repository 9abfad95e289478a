//! Request ids in the reply to an order.

use super::*;

#[test]
fn anything_like_a_request_id_makes_the_outcome_unknown() {
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
        let fault = concat!(
            r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>900800</am:code>"#,
            "<requestId>r</requestId></am:fault>"
        );
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
            assert!(matches!(judge_order(&named), Verdict::Unknown { .. }), "{location}");
        }
    }
}

/// Every known request id is a UUID or a number. A number in a text may be anything.
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
        // Refusals of tokens quote the token, and the API manager has its own ids.
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
fn one_exact_id_is_accepted() {
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
            "\u{feff}{{\"requestId\":\"{ID}\",\"status\":\"Pending\",\"code\":200,\
             \"error\":null}}\r\n"
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
    assert!(matches!(in_header("r-2"), Verdict::Unknown { .. }));
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
    assert!(matches!(judge_order(&located), Verdict::Unknown { .. }));
}

#[test]
fn a_header_named_request_id_is_one() {
    for (status, body) in
        [(400, REFUSAL), (401, BEARER), (429, THROTTLED), (400, SESSION), (401, "")]
    {
        let body = if body.is_empty() { String::new() } else { format!("{{{body}}}") };
        let named = Reply { request_ids: vec!["r-1".into()], ..reply(status, body) };
        assert!(matches!(judge_order(&named), Verdict::Unknown { .. }), "{named:?}");
    }
}
