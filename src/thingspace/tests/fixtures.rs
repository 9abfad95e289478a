//! Every documented or observed answer, one in a file, and its verdict.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;

use super::account;
use crate::{
    identity::{Device, Digits, RequestId},
    thingspace::{
        Registration, Target,
        http::{
            body::ReplyBody,
            reply::Reply,
            verdict::{Verdict, judge, judge_order},
            wire,
        },
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
struct Fixture {
    #[serde(rename = "source")]
    _source: String,
    endpoint: Endpoint,
    status: u16,
    #[serde(default)]
    headers: std::collections::HashMap<String, String>,
    /// A JSON body. Otherwise `text` is the body.
    body: Option<Value>,
    text: Option<String>,
    verdict: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Endpoint {
    Token,
    Login,
    Download,
    Status,
    Callbacks,
    Registration,
}

impl Fixture {
    fn judged(&self) -> String {
        let retry_after =
            self.headers.get("retry-after").map(|s| Duration::from_secs(s.parse().unwrap()));
        let body = match (&self.body, &self.text) {
            (Some(json), None) => json.to_string(),
            (None, text) => text.clone().unwrap_or_default(),
            (Some(_), Some(_)) => panic!("body and text"),
        };
        let status = StatusCode::from_u16(self.status).unwrap();
        let reply = Reply {
            status,
            retry_after,
            locations: Vec::new(),
            request_ids: Vec::new(),
            notes: Vec::new(),
            body: Some(Bytes::from(body)),
            cut: false,
        };
        let asked = RequestId::parse("86c83330-4bf5-4235-9c4e-a83f93aeae4c").unwrap();
        match self.endpoint {
            Endpoint::Token => {
                shown(&judge(&reply, |body| wire::bearer(body).map(|bearer| bearer.expires_in)))
            }
            Endpoint::Login => shown(&judge(&reply, |body| wire::session(body).map(|_| ()))),
            Endpoint::Download => shown(&judge_order(&reply)),
            Endpoint::Callbacks => {
                shown(&judge(&reply, |body| wire::registrations(body).map(readable)))
            }
            Endpoint::Registration => {
                shown(&judge(&reply, |body| wire::registered(body, "DeviceProfileService")))
            }
            Endpoint::Status => {
                shown(&judge(&reply, |body| wire::status(body, &account(), &asked)))
            }
        }
    }
}

/// Service, URL and username of each.
fn readable(registrations: Vec<Registration>) -> Vec<[String; 3]> {
    let text = |r: Registration| [r.service, r.url.expose_secret().to_owned(), r.username];
    registrations.into_iter().map(text).collect()
}

fn shown<T: std::fmt::Debug>(verdict: &Verdict<T>) -> String {
    format!("{verdict:?}")
}

#[test]
fn every_fixture_has_the_verdict_that_it_names() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/thingspace");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let fixture: Fixture = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let judged = fixture.judged();
        if judged != fixture.verdict {
            wrong.push(format!("{}: {judged}, not {}", path.display(), fixture.verdict));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 77, "only {count} fixtures");
}

#[test]
fn a_body_that_was_cut_is_no_success_and_no_refusal() {
    let reply = |status| Reply {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: None,
        locations: Vec::new(),
        request_ids: Vec::new(),
        notes: Vec::new(),
        body: None,
        cut: true,
    };
    for status in [200, 400, 404, 500] {
        assert!(
            matches!(judge(&reply(status), wire::session), Verdict::Unknown { .. }),
            "{status}"
        );
    }
    // The status decides these, except for an order: a request id may have been cut off.
    assert!(matches!(judge(&reply(401), wire::session), Verdict::Stale(_)));
    assert!(matches!(judge(&reply(429), wire::session), Verdict::Throttled(None)));
    for status in [200, 400, 401, 404, 429, 500] {
        assert!(matches!(judge_order(&reply(status)), Verdict::Unknown { .. }), "{status}");
    }
}

#[test]
fn a_status_answer_has_no_wrong_id() {
    let asked = RequestId::parse("r-1").unwrap();
    let read = |body: String| wire::status(&ReplyBody::parse(&body), &account(), &asked);
    for ids in [r#""requestId":"R-1","#, r#""request_id":"r-1","requestId":"r-1","#] {
        assert!(read(format!(r#"{{{ids}"status":"Success"}}"#)).is_some(), "{ids}");
    }
    // An answer without an id has to list devices.
    for ids in ["", r#""requestId":null,"#] {
        assert_eq!(read(format!(r#"{{{ids}"status":"Success"}}"#)), None, "{ids}");
        assert!(
            read(format!(r#"{{{ids}"status":"Success","subRequests":[{{"status":"Success"}}]}}"#))
                .is_some()
        );
    }
    for ids in [
        r#""requestid":"r-2","#,
        r#""request_id":"r-2","requestId":"r-1","#,
        r#""requestId":"r-1","requestId":"r-2","#,
        r#""requestId":["r-1"],"#,
        r#""requestId":true,"#,
        r#""requestId":"","#,
    ] {
        assert_eq!(read(format!(r#"{{{ids}"status":"Success"}}"#)), None, "{ids}");
    }
    let number = RequestId::parse("100000000000000000000").unwrap();
    assert_eq!(
        wire::status(
            &ReplyBody::parse(r#"{"requestId":100000000000000000001,"status":"Success"}"#),
            &account(),
            &number
        ),
        None
    );
    // A number that other programs would round is left out, as is what is no identifier.
    for (id, imei) in [
        ("990013907835573", "990013907835573"),
        ("9900139078355731", ""),
        ("true", ""),
        (r#"["490154203237518"]"#, ""),
    ] {
        let ids = format!(
            r#"[{{"kind":"imei","id":{id}}},{{"kind":"iccid","id":89148000004292933820}}]"#
        );
        let answer =
            read(format!(r#"{{"status":"Pending","subRequests":[{{"ids":{ids}}}]}}"#)).unwrap();
        assert_eq!(
            answer.devices[0].0,
            Device { imei: Digits::new(imei), ..Device::default() },
            "{id}"
        );
    }
}

/// As on Verizon's page, without the trailing comma.
#[test]
fn an_order_is_written_as_in_the_page_s_example() {
    let device = Device {
        eid: Digits::new("89049032007008882600086299134038"),
        iccid: Digits::new("89148000004292933820"),
        imei: Digits::new("990013907835573"),
        mdn: Digits::new("5551234567"),
    };
    let plain = Device { imei: Digits::default(), ..device.clone() };
    let mut order = super::Order { devices: vec![device, plain], ..super::order(0) };
    let written = |order: &super::Order| String::from_utf8(wire::order(order).to_vec()).unwrap();
    assert_eq!(
        written(&order),
        concat!(
            r#"{"devices":[{"deviceIds":[{"kind":"eid","id":"89049032007008882600086299134038"},"#,
            r#"{"kind":"iccid","id":"89148000004292933820"},"#,
            r#"{"kind":"imei","id":"990013907835573"}]},"#,
            r#"{"deviceIds":[{"kind":"eid","id":"89049032007008882600086299134038"},"#,
            r#"{"kind":"iccid","id":"89148000004292933820"}]}],"#,
            r#""accountName":"0000123456-00001","servicePlan":"a plan"}"#
        )
    );
    order.service_plan.clear();
    order.devices.clear();
    assert_eq!(written(&order), r#"{"devices":[],"accountName":"0000123456-00001"}"#);
}

#[test]
fn a_registration_is_written_as_on_the_page() {
    let (url, password) = ("https://h/secret".into(), "open sesame".into());
    let target = Target { url: &url, username: "gateway", password: &password };
    assert_eq!(
        String::from_utf8_lossy(&wire::registration("DeviceProfileService", &target)),
        concat!(
            r#"{"name":"DeviceProfileService","url":"https://h/secret","#,
            r#""username":"gateway","password":"open sesame"}"#
        )
    );
    let shown = format!("{target:?}");
    assert!(!shown.contains("sesame") && !shown.contains("https"), "{shown}");
}
