//! Answers to status queries, token requests and logins.

use secrecy::ExposeSecret;

use super::*;
use crate::{
    identity::{AccountName, RequestId},
    thingspace::{
        http::{
            body::ReplyBody,
            verdict::{Verdict, judge},
            wire,
        },
        tests::order_answers::reply,
    },
};

/// The number of digits of each kind of identifier.
const KINDS: [(&str, usize); 4] = [("eid", 32), ("iccid", 20), ("imei", 15), ("mdn", 10)];

#[test]
fn a_status_answer_tells_no_other_request_and_no_other_device() {
    each_answer(1, |rng| {
        let (asked, other) = (id(rng), id(rng));
        let mut fields = Vec::new();
        let mut is_about_asked = true;
        for _ in 0..rng.usize(..3) {
            let name =
                pick(rng, &["requestId", "RequestId", "requestID", "requestid", "Request_Id"])
                    .to_owned();
            let (about, value) = match rng.u8(..6) {
                0 => (other.eq_ignore_ascii_case(&asked), format!("\"{other}\"")),
                1 => (
                    false,
                    pick(rng, &["true", "[]", "100000000000000000001", "\"\"", "{}"]).to_owned(),
                ),
                2 => (true, "null".to_owned()),
                3 => (true, format!("\"{}\"", asked.to_ascii_uppercase())),
                _ => (true, format!("\"{asked}\"")),
            };
            is_about_asked &= about;
            fields.push((name, value));
        }
        let mut told = Vec::new();
        let mut subs = Vec::new();
        for _ in 0..rng.usize(..4) {
            let (kind, digits) = pick(rng, &KINDS);
            let digits: String = (0..digits)
                .map(|at| if at == 0 { '8' } else { char::from(b'0' + rng.u8(..10)) })
                .collect();
            let id = match rng.u8(..4) {
                // A number with so many digits is not exact and is left out.
                0 if digits.len() > 15 => digits,
                0 => {
                    told.push(digits.clone());
                    digits
                }
                1 => noise(rng),
                _ => {
                    told.push(digits.clone());
                    format!("\"{digits}\"")
                }
            };
            let ids = format!(r#"{{"kind":"{}","id":{id}}}"#, any_case(rng, kind));
            let ids = if rng.bool() { ids } else { format!("[{ids}]") };
            subs.push(format!(r#"{{"ids":{ids},"status":"Pending"}}"#));
        }
        fields.push((
            pick(rng, &["subRequests", "subrequests"]).to_owned(),
            format!("[{}]", subs.join(",")),
        ));
        if rng.u8(..8) > 0 {
            fields.push((
                "status".to_owned(),
                pick(rng, &["\"Success\"", "\"Failed\"", "\"Odd\"", "7", "null", "[]"]).to_owned(),
            ));
        }
        if rng.u8(..4) == 0 {
            let (is_own, name) = pick(
                rng,
                &[
                    (true, r#""0000123456-00001""#),
                    (true, "null"),
                    (true, "\"\""),
                    (false, r#""0000123456-00002""#),
                    (false, "123456"),
                    (false, r#"["0000123456-00001"]"#),
                ],
            );
            is_about_asked &= is_own;
            fields.push((
                pick(rng, &["accountName", "AccountName", "account_name"]).to_owned(),
                name.to_owned(),
            ));
        }
        fields.push(("extra".to_owned(), noise(rng)));
        let mut body = object(rng, fields).into_bytes();
        let asked = RequestId::parse(&asked).unwrap();
        let account = AccountName::parse("0000123456-00001").unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        let read = wire::status(&ReplyBody::parse(&text), &account, &asked);
        if let Some(answer) = &read {
            assert!(is_about_asked, "about {asked}: {text:.600}");
            let shown: Vec<_> =
                answer.devices.iter().flat_map(|(device, _)| device.present()).collect();
            for (_, digits) in shown {
                assert!(told.iter().any(|told| told == digits.as_str()), "{text:.600}");
            }
        }
        damage(rng, &mut body);
        let _ = judge(&reply(pick(rng, &[200, 400, 404, 500]), body), |body| {
            wire::status(body, &account, &asked)
        });
    });
}

#[test]
fn no_token_is_read_that_was_not_given() {
    each_answer(1, |rng| {
        let is_login = rng.bool();
        let (name, other) = if is_login {
            ("sessionToken", "access_token")
        } else {
            ("access_token", "sessionToken")
        };
        let token = id(rng);
        let mut fields =
            vec![("extra".to_owned(), noise(rng)), (other.to_owned(), "\"not this\"".to_owned())];
        let mut given = 0;
        for _ in 0..rng.usize(..3) {
            let (good, value) = match rng.u8(..4) {
                0 => (
                    false,
                    pick(rng, &["null", "\"\"", "7", "true", "\"a b\"", "\"\\n\"", "[]", "{}"])
                        .to_owned(),
                ),
                _ => (true, format!("\"{token}\"")),
            };
            given += i32::from(good);
            fields.push((name.to_owned(), value));
        }
        let copies = fields.iter().filter(|(field, _)| field == name).count();
        if rng.bool() {
            fields.push((
                "expires_in".to_owned(),
                pick(rng, &["3600", "\"3600\"", "-1", "1e300", "99999999999999999999"]).to_owned(),
            ));
        }
        if rng.u8(..4) == 0 {
            fields.push((
                "errorCode".to_owned(),
                "\"UnifiedWebService.INPUT_INVALID.Password.Invalid\"".to_owned(),
            ));
        }
        let status = pick(rng, &[200, 200, 201, 400, 401, 403, 500]);
        let mut body = object(rng, fields).into_bytes();
        let read = |body: Vec<u8>| {
            let reply = reply(status, body);
            if is_login {
                judge(&reply, |body| {
                    wire::session(body).map(|token| token.expose_secret().to_owned())
                })
            } else {
                judge(&reply, |body| {
                    wire::bearer(body).map(|bearer| bearer.token.expose_secret().to_owned())
                })
            }
        };
        let text = String::from_utf8_lossy(&body).into_owned();
        if let Verdict::Done(read) = read(body.clone()) {
            assert!(
                (200..300).contains(&status) && given == 1 && copies == 1,
                "HTTP {status}, {text:.600}"
            );
            assert_eq!(read, token, "{text:.600}");
        }
        damage(rng, &mut body);
        let text = String::from_utf8_lossy(&body).into_owned();
        if let Verdict::Done(read) = read(body) {
            assert!(text.contains(&read) || text.contains('\\'), "{text:.600}");
        }
    });
}
