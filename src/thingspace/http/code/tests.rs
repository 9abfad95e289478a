use super::*;
use table::CodeClass;

fn code(text: &str) -> Code {
    read(&serde_json::json!({ "errorCode": text }).to_string())
}

fn first(body: &[u8]) -> Option<Code> {
    Code::first(&ReplyBody::parse(&String::from_utf8_lossy(body)))
}

fn read(body: &str) -> Code {
    first(body.as_bytes()).unwrap_or_else(|| panic!("no code in {body}"))
}

/// What it is refused as, in an answer with this status.
fn refused(code: &Code, status: u16) -> Refusal {
    match code.row(status).class {
        CodeClass::Refused(kind) => code.refusal(kind, status),
        means => panic!("{code:?} means {means:?}"),
    }
}

#[test]
fn a_code_is_shown_clean_and_short() {
    assert_eq!(refused(&code("A.REQUEST_FAILED.<b>x y'"), 400).code, "A.REQUEST_FAILED.bxy");
    assert_eq!(refused(&code(&"x".repeat(500)), 400).code.len(), MAX_CODE_CHARS);
}

#[test]
fn a_code_shows_no_identity_and_no_token() {
    let cases = [
        ("S.REQUEST_FAILED.89148000004292933820.NotFound", "S.REQUEST_FAILED._.NotFound"),
        ("S.REQUEST_FAILED.M2M Global 5GB.NotFound", "S.REQUEST_FAILED.M2MGlobal5GB.NotFound"),
        ("no device 5551234567", "_"),
        ("S.REQUEST_FAILED.8904 9032 0070 0888 2600 0862 9913 4038", "S.REQUEST_FAILED._"),
        ("token 8f14e45f-ceea-467f-a14b-1f3cdd1d9a20 is over", "_"),
        ("0af7651916cd43dd8448eb211c80319c", "_"),
        ("900906", "900906"),
    ];
    for (text, shown) in cases {
        assert_eq!(refused(&code(text), 400).code, shown, "{text}");
    }
}

#[test]
fn unknown_requests() {
    let unknown = |text, status| says_unknown_request(&refused(&code(text), status));
    assert!(unknown("UnifiedWebService.INPUT_INVALID.RequestId.Invalid", 400));
    assert!(unknown("UnifiedWebService.REQUEST_FAILED.RequestNotFound", 400));
    assert!(unknown("404", 404));
    assert!(!unknown("400", 400));
    assert!(!unknown("UnifiedWebService.REQUEST_FAILED.AccountNotFound", 404));
    assert!(!unknown("UnifiedWebService.INPUT_INVALID.Request.InvalidCharacter", 400));
    for wrong_path in [r#"{"fault":{"code":900906}}"#, XML] {
        assert!(!says_unknown_request(&refused(&read(wrong_path), 404)), "{wrong_path}");
    }
}

#[test]
fn whose_word_a_refusal_is() {
    let by_api_manager = |body: &str| is_by_api_manager(&refused(&read(body), 403));
    assert!(by_api_manager(r#"{"fault":{"code":"900908"}}"#));
    assert!(by_api_manager(r#"{"code":700700}"#));
    // It may be about a password.
    assert!(!by_api_manager(XML));
    assert!(!by_api_manager(r#"{"errorCode":"900908"}"#));
    assert!(!by_api_manager(r#"{"errorCode":"UnifiedWebService.INPUT_INVALID.Password.Invalid"}"#));
}

#[test]
fn kinds() {
    use RefusalKind::*;
    let cases = [
        ("UnifiedWebService.INPUT_INVALID.Request.InvalidCharacter", InvalidInput),
        ("UnifiedWebService.INPUT_INVALID.RequestUndefined", Other),
        ("UnifiedWebService.DeserializationFailed", Other),
        ("UnifiedWebService.REQUEST_FAILED.UnexpectedError", Other),
        ("UnifiedWebService.INPUT_INVALID.Account.NotDefined", InvalidInput),
        ("UnifiedWebService.REQUEST_FAILED.AccountName", AccountForbidden),
        ("UnifiedWebService.REQUEST_FAILED.AccountNotFound", AccountNotFound),
        ("DeviceService.REQUEST_FAILED.AccountNotFound", AccountNotFound),
        ("unifiedwebservice.request_failed.accountnotfound", AccountNotFound),
        ("REQUEST_FAILED.AccountNotFound", AccountNotFound),
        ("UnifiedWebService.REQUEST_FAILED.NoAccounts", AccountForbidden),
        ("UnifiedWebService.REQUEST_FAILED.MultipleAccounts", InvalidInput),
        ("UnifiedWebService.INPUT_INVALID.Device.Kind.Invalid", InvalidInput),
        ("UnifiedWebService.INPUT_INVALID.Device.Identifier.Invalid", InvalidInput),
        ("UnifiedWebService.REQUEST_FAILED.DeviceNotFound", DeviceNotFound),
        ("UnifiedWebService.REQUEST_FAILED.DeviceGroup.NotFound", Other),
        ("UnifiedWebService.INPUT_INVALID.CustomField.TooLong", InvalidInput),
        ("UnifiedWebService.INPUT_INVALID.MaxRequestsExceeded", InvalidInput),
        ("UnifiedWebService.INPUT_INVALID.DeviceState.Invalid", DeviceState),
        ("UnifiedWebService.REQUEST_FAILED.DeviceAlreadyActive", DeviceState),
        ("UnifiedWebService.REQUEST_FAILED._servicePlan_.NotFound", PlanNotFound),
        ("UnifiedWebService.REQUEST_FAILED.M2M Global 5GB.NotFound", PlanNotFound),
        // A plan's name is the customer's choice.
        ("UnifiedWebService.REQUEST_FAILED.INPUT_INVALID.x.NotFound", PlanNotFound),
        ("UnifiedWebService.REQUEST_FAILED.a.SessionToken.b.NotFound", PlanNotFound),
        ("UnifiedWebService.REQUEST_FAILED.Pending Partial Plan.NotFound", PlanNotFound),
        ("UnifiedWebService.INPUT_INVALID.PartialResult", InvalidInput),
        ("UnifiedWebService.REQUEST_FAILED.ServicePlanNotFound", PlanNotFound),
        ("UnifiedWebService.REQUEST_FAILED.Request.NotFound", RequestNotFound),
        ("UnifiedWebService.REQUEST_FAILED.DefaultIpPoolNotDefined", Other),
        ("UnifiedWebService.REQUEST_CANCELLED.CreditDenied", Other),
        ("400", InvalidInput),
        ("403", Other),
        ("INVALID_PARAMETER", InvalidInput),
        ("INVALID_ACCESS", Other),
        ("CALLBACK_NOT_REGISTERED", Other),
    ];
    for (text, kind) in cases {
        assert_eq!(refused(&code(text), 400).kind, kind, "{text}");
    }
}

const XML: &str =
    r#"<am:fault xmlns:am="http://wso2.org/apimanager"><am:code>404</am:code></am:fault>"#;

/// The text and the API manager's number of each.
#[test]
fn every_envelope() {
    let ours = |text: &str| (text.to_owned(), None);
    let managers = |number: u32| (number.to_string(), Some(number));
    let cases = [
        (r#"{"errorCode":"S.C.x","errorMessage":"900901"}"#, ours("S.C.x")),
        (r#"{"ERRORCODE":"S.C.x"}"#, ours("S.C.x")),
        (r#"{"errorCode":400}"#, ours("400")),
        (r#"{"errorCode":" 400 "}"#, ours("400")),
        (r#"{"errorCode":"900901"}"#, ours("900901")),
        (r#"{"fault":{"code":"900901","message":"m"}}"#, managers(900_901)),
        (r#"{"fault":{"code":900901}}"#, managers(900_901)),
        (r#"{"code":"900800","message":"m"}"#, managers(900_800)),
        (
            r#"{"error":"invalid_request","error_description":"d","cause":"c"}"#,
            ours("invalid_request"),
        ),
        (
            r#"{"requestId":"r","status":"Failed","faultResponse":{"faultcode":"S.C.x"}}"#,
            ours("S.C.x"),
        ),
        (r#"{"faultResponse":[{"FaultCode":"S.C.x"}]}"#, ours("S.C.x")),
        // ThingSpace's own code precedes all others, and an empty one is no code.
        (r#"{"error":"e","fault":{"code":900901},"errorCode":"S.C.x"}"#, ours("S.C.x")),
        (r#"{"errorCode":"","fault":{"code":900901}}"#, managers(900_901)),
        (r#"{"errorCode":null,"error":"e"}"#, ours("e")),
        (r#"{"errorCode":"S.C.x","errorCode":"S.C.x"}"#, ours("S.C.x")),
        ("\u{feff} {\"errorCode\":\"S.C.x\"}\r\n", ours("S.C.x")),
        (XML, managers(404)),
        (&format!("\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{XML}\n"), managers(404)),
        (&XML.replace("am:", ""), managers(404)),
        (
            concat!(
                r#"<amt:fault xmlns:amt="http://wso2.org/apimanager/throttling">"#,
                "<amt:code> 900800 </amt:code></amt:fault>"
            ),
            managers(900_800),
        ),
    ];
    for (body, (text, number)) in cases {
        assert_eq!(read(body), Code { text, number }, "{body}");
    }
    // Not UTF-8, in the message.
    assert_eq!(first(b"{\"errorCode\":\"x\",\"errorMessage\":\"caf\xe9\"}"), Some(code("x")));
}

#[test]
fn no_envelope() {
    let utf_16: Vec<u8> =
        r#"{"errorCode":"x"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = "[".repeat(100_000);
    let long = serde_json::json!({ "errorCode": "x".repeat(MAX_CODE_BYTES + 1) }).to_string();
    let bodies = [
        "",
        "null",
        "400",
        "\"S.C.x\"",
        "[]",
        r#"[{"errorCode":"S.C.x"}]"#,
        "{}",
        r#"{"errorMessage":"S.C.x"}"#,
        r#"{"errorCode":{"code":"S.C.x"}}"#,
        r#"{"errorCode":"S.C.x""#,
        r#"{"errorCode":"S.C.x","errorCode":"S.C.y"}"#,
        r#"{"errorCode":"S.C.x","ErrorCode":"S.C.y","error":"e"}"#,
        r#"{"errorCode":"  "}"#,
        r#"{"errorCode":"<>"}"#,
        r#"{"fault":"900901"}"#,
        "requested resource is not available",
        "<html><body>900901</body></html>",
        "<am:fault/>",
        &XML[..XML.len() - 1],
        &XML.replace("http://wso2.org/apimanager", "http://example.com"),
        &XML.replace("<am:code>404</am:code>", ""),
        &XML.replace("</am:code>", "</am:code><am:code>900901</am:code>"),
        &XML.replace("<am:fault", "<html").replace("</am:fault", "</html"),
        &deep,
        &long,
    ];
    for body in bodies {
        assert_eq!(first(body.as_bytes()), None, "{body:.100}");
    }
    assert_eq!(first(&utf_16), None);
}
