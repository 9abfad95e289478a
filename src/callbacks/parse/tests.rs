mod generated;

use proptest::prelude::*;
use secrecy::ExposeSecret;
use storage::StatusClass::{Failed, Pending, Succeeded, Unspecified, Waiting};

use super::*;

const EID: &str = "89049032007008882600086299134038";
const ICCID: &str = "89148000004292933820";
const IMEI: &str = "490154203237518";
const MDN: &str = "9085551234";

macro_rules! fixtures {
    ($($name:ident),* $(,)?) => {
        [$((
            stringify!($name),
            include_bytes!(concat!(
                "../../../tests/fixtures/callbacks/",
                stringify!($name),
                ".json"
            ))
            .as_slice(),
        )),*]
    };
}

fn fixtures() -> [(&'static str, &'static [u8]); 12] {
    fixtures![
        page_example,
        with_credentials,
        pascal_case,
        lists,
        unknown_fields,
        failure,
        fault_without_status,
        warning,
        missing_ids,
        ids_in_two_places,
        without_first_brace,
        numbers,
    ]
}

const ACCOUNT: &str = "0000123456-00001";

fn parse(body: &[u8]) -> Result<Callback, QuarantineReason> {
    super::parse(body, &AccountName::parse(ACCOUNT).unwrap())
}

fn callback(body: &str) -> Callback {
    parse(body.as_bytes()).unwrap()
}

/// Parses a callback of the request `r-1` with these further fields.
fn with(fields: &str) -> storage::CalledBack {
    callback(&format!(r#"{{"requestId":"r-1",{fields}}}"#)).called_back
}

#[test]
fn every_shape_is_read() {
    let parsed: Vec<_> = fixtures()
        .into_iter()
        .map(|(name, body)| {
            let Callback { request_id, username, password, called_back } = parse(body).unwrap();
            assert_eq!(request_id.as_str(), "r-1", "{name}");
            let pair = username.zip(password);
            let pair = pair.map(|(u, p)| format!("{}/{}", u.expose_secret(), p.expose_secret()));
            assert_eq!(
                pair.as_deref(),
                (name != "page_example").then_some("user/secret"),
                "{name}"
            );
            let device = called_back.device.clone().unwrap();
            assert_eq!(device.eid, EID, "{name}");
            let others = (device.iccid == ICCID, device.imei == IMEI, device.mdn == MDN);
            (
                name,
                called_back.status(),
                others,
                called_back.profile.is_some(),
                called_back.fault.is_some(),
            )
        })
        .collect();
    let expected = [
        ("page_example", Succeeded, (true, true, true), true, false),
        ("with_credentials", Succeeded, (true, false, false), true, false),
        ("pascal_case", Succeeded, (true, false, false), true, false),
        ("lists", Succeeded, (true, false, false), true, false),
        ("unknown_fields", Succeeded, (false, false, false), false, false),
        ("failure", Failed, (false, false, false), false, true),
        ("fault_without_status", Failed, (false, false, false), false, true),
        ("warning", Waiting, (false, false, false), false, false),
        ("missing_ids", Succeeded, (false, false, false), false, false),
        ("ids_in_two_places", Succeeded, (true, true, false), false, false),
        ("without_first_brace", Succeeded, (false, false, false), false, false),
        ("numbers", Succeeded, (false, true, false), false, false),
    ];
    assert_eq!(parsed, expected);
}

#[test]
fn a_profile_and_a_fault_are_kept() {
    let page = parse(fixtures()[0].1).unwrap().called_back;
    let profile = page.profile.unwrap();
    assert_eq!((&*profile.state, &*profile.status, &*profile.role), ("ACTIVE", "ENABLE", "LOCAL"));
    let fault = parse(fixtures()[5].1).unwrap().called_back.fault.unwrap();
    assert_eq!(fault.code, "Service.REQUEST_FAILED.Download");
    assert_eq!(fault.message, "The profile …3820 could not be downloaded");
}

#[test]
fn what_is_shown_later_is_short_and_masked() {
    let long = "x".repeat(1000);
    let called_back = with(&format!(
        r#""faultResponse":{{"faultcode":"A.{EID}.<b>{long}",
        "faultstring":"a\n{EID}, {ICCID}; 123456 {MDN}{long}"}},
        "deviceResponse":{{"deviceProfileResponse":{{"state":"{EID}","profileStatus":"{long}"}}}}"#
    ));
    let (fault, profile) = (called_back.fault.unwrap(), called_back.profile.unwrap());
    assert!(fault.code.starts_with("A._.bxxx"), "{}", fault.code);
    assert!(fault.message.starts_with("a …4038, …3820; 123456 …1234xxx"), "{}", fault.message);
    assert_eq!((fault.code.len(), fault.message.chars().count()), (128, MAX_MESSAGE));
    assert_eq!((&*profile.state, profile.status.len()), ("…4038", MAX_PROFILE_TEXT));
}

#[test]
fn words_and_faults_decide_the_class() {
    let fault = r#""faultResponse":{"faultcode":"A.B"}"#;
    let table = [
        (r#""status":"SUCCESS""#.to_owned(), Succeeded),
        (r#""status":"Failure""#.to_owned(), Failed),
        (r#""status":"Pending""#.to_owned(), Pending),
        (r#""status":"Sideways""#.to_owned(), Unspecified),
        (r#""other":1"#.to_owned(), Unspecified),
        (r#""status":"Success","faultResponse":{}"#.to_owned(), Succeeded),
        (
            r#""status":"Success","faultResponse":{"faultcode":null,"detail":""}"#.to_owned(),
            Succeeded,
        ),
        (r#""faultResponse":{"detail":{"x":1}}"#.to_owned(), Failed),
        (fault.to_owned(), Failed),
        (format!(r#""status":"warning",{fault}"#), Waiting),
        (format!(r#""status":"Success",{fault}"#), Unspecified),
    ];
    for (fields, class) in table {
        assert_eq!(with(&fields).status(), class, "{fields}");
    }
}

#[test]
fn a_success_that_another_field_contradicts_is_unspecified() {
    let profile =
        |fields: &str| format!(r#""deviceResponse":{{"deviceProfileResponse":{{{fields}}}}}"#);
    for fields in [
        r#""Status":"Failed""#.to_owned(),
        r#""status":"Pending""#.to_owned(),
        r#""status":["Failed"]"#.to_owned(),
        r#""errorCode":"UnifiedWebService.REQUEST_FAILED.X","errorMessage":"x""#.to_owned(),
        r#""fault":{"code":"900901","message":"x"}"#.to_owned(),
        r#""faultResponse":null,"faultResponse":{"faultcode":"X.REQUEST_FAILED.Y"}"#.to_owned(),
        r#""success":false"#.to_owned(),
        r#""deviceResponse":{"faultResponse":{"faultcode":"X.REQUEST_FAILED.Y","faultstring":"z"}}"#
            .to_owned(),
        r#""deviceResponse":[{},{"errorCode":"X.REQUEST_FAILED.Y"}]"#.to_owned(),
        r#""deviceResponse":{"status":"Failure"}"#.to_owned(),
        profile(r#""status":"Failed""#),
        profile(r#""state":"ACTIVE","profileStatus":"NOT_DOWNLOADED""#),
        profile(r#""profileStatus":"Not Downloaded""#),
        profile(r#""faultResponse":{"faultstring":"z"}"#),
        profile(r#""profileStatus":"DOWNLOAD_FAILED""#),
        r#""deviceProfileResponse":{"profileStatus":"NOT_DOWNLOADED"}"#.to_owned(),
        r#""requestStatus":"Failed""#.to_owned(),
        r#""isSuccess":false"#.to_owned(),
        r#""failureReason":"card busy""#.to_owned(),
        r#""deviceResponse":{"errorMessage":"eUICC unreachable"}"#.to_owned(),
    ] {
        let status = with(&format!(r#""status":"SUCCESS",{fields}"#)).status();
        assert_eq!(status, Unspecified, "{fields}");
        let reversed = with(&format!(r#"{fields},"status":"SUCCESS""#)).status();
        assert_eq!(reversed, Unspecified, "{fields}");
    }
    for fields in [
        r#""status":"Succeeded","code":200,"error":null,"errors":[]"#.to_owned(),
        r#""success":true,"result":"OK","errorMessage":"","failureReason":"No error""#.to_owned(),
        profile(r#""status":"Success","state":"INACTIVE","profileStatus":"DISABLE""#),
    ] {
        assert_eq!(
            with(&format!(r#""status":"SUCCESS",{fields}"#)).status(),
            Succeeded,
            "{fields}"
        );
    }
}

#[test]
fn a_callback_that_names_another_account_goes_to_the_quarantine() {
    for (fields, is_read) in [
        (r#""accountName":"0000123456-00001""#, true),
        (r#""AccountName":" 0000123456-00001 ""#, true),
        (r#""accountName":null,"account_name":"""#, true),
        (r#""accountName":"0000123456-00002""#, false),
        (r#""ACCOUNTNAME":"0000999999-00009""#, false),
        (r#""accountName":123456"#, false),
        (r#""account":"0000123456-00001""#, true),
        (r#""Account":"0000123456-00002""#, false),
        (r#""accountName":"0000123456-00001","accountName":"0000123456-00002""#, false),
        (r#""deviceResponse":{"accountName":"0000123456-00002"}"#, false),
        (
            r#""deviceResponse":[{"deviceProfileResponse":{"accountName":"0000123456-00002"}}]"#,
            false,
        ),
    ] {
        let read =
            parse(format!(r#"{{"requestId":"r-1","status":"Success",{fields}}}"#).as_bytes());
        assert_eq!(read.err(), (!is_read).then_some(QuarantineReason::OtherAccount), "{fields}");
    }
}

#[test]
fn contradictory_identifiers_are_ignored() {
    let called_back = with(&format!(
        r#""deviceIds":[{{"kind":"eid","id":"{EID}"}},{{"kind":"iccid","id":"{ICCID}"}}],
        "deviceResponse":{{"deviceIds":[{{"kind":"EID","id":" {EID} "}},
        {{"kind":"iccid","id":"89148000000842590078"}},
        {{"kind":"iccid","id":"short"}},{{"kind":"esn","id":"1"}}]}}"#
    ));
    let device = called_back.device.unwrap();
    assert_eq!((&*device.eid, &*device.iccid), (EID, ""));
    let nested = with(&format!(r#""devices":[{{"deviceIds":[{{"kind":"eid","id":"{EID}"}}]}}]"#));
    assert_eq!(nested.device.unwrap().eid, EID);
}

#[test]
fn a_body_that_is_not_a_callback_goes_to_the_quarantine() {
    let deep = "[".repeat(200_000);
    let objects = r#"{"device":"#.repeat(25_000);
    for (body, error) in [
        ("", QuarantineReason::NotAnObject),
        ("null", QuarantineReason::NotAnObject),
        ("[]", QuarantineReason::NotAnObject),
        ("<xml/>", QuarantineReason::NotAnObject),
        ("\"", QuarantineReason::NotAnObject),
        (r#"{"requestId":"r"} x"#, QuarantineReason::NotAnObject),
        (&deep, QuarantineReason::NotAnObject),
        (&objects, QuarantineReason::NotAnObject),
        ("{}", QuarantineReason::NoRequest),
        (r#"{"requestId":null}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":"a/b"}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":{"requestId":"r"}}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":true}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":"null"}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":100000000000000000001}"#, QuarantineReason::NoRequest),
        (r#"{"requestId":"r-1","RequestId":"r-2"}"#, QuarantineReason::NoRequest),
    ] {
        assert_eq!(parse(body.as_bytes()).err(), Some(error), "{body:.40}");
    }
}

#[test]
fn a_body_that_is_not_utf_8_is_read() {
    let parsed = parse(
        b"\xef\xbb\xbf {\"requestId\":7,\"faultResponse\":{\"faultstring\":\"caf\xe9\"}}\r\n",
    )
    .unwrap();
    assert_eq!(parsed.request_id.as_str(), "7");
    assert_eq!(parsed.called_back.fault.unwrap().message, "caf\u{fffd}");
}

#[test]
fn nothing_secret_is_printed() {
    let shown =
        format!("{:?}", callback(r#"{"requestId":"r","username":"ali","password":"sesame"}"#));
    assert!(!shown.contains("ali") && !shown.contains("sesame"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse(&body);
    }

    #[test]
    fn no_damage_makes_it_panic_or_show_an_identity(
        fixture in any::<prop::sample::Index>(),
        damage in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0_usize..20, "[\\PC\"{}\\[\\],:0-9]{0,12}"),
            1..6,
        ),
    ) {
        let fixtures = fixtures();
        let mut body = fixture.get(&fixtures).1.to_vec();
        for (at, length, insert) in damage {
            let at = at.index(body.len() + 1);
            let end = (at + length).min(body.len());
            body.splice(at..end, insert.bytes());
        }
        if let Ok(callback) = parse(&body) {
            let fault = callback.called_back.fault.unwrap_or_default();
            prop_assert!(fault.message.chars().count() <= MAX_MESSAGE && fault.code.len() <= 128);
            let runs = fault.message.split(|c: char| !c.is_numeric());
            let longest = runs.map(|run| run.chars().count()).max();
            prop_assert!(longest < Some(MASKED_DIGITS), "{}", fault.message);
        }
    }
}
