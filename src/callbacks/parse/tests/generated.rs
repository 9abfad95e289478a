//! Generated callbacks: what stands in them is known when they are made, and the reader sees only
//! their bytes.
//!
//! A fifth of all generated answers; see `thingspace::tests::generated` for the variables that say
//! how many and repeat them.

use std::env;

use fastrand::Rng;

use super::*;

/// In `make test`; `make soak` has ten times as many.
const ANSWERS: u64 = 200_000;

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn id(rng: &mut Rng) -> String {
    let text = format!("{:08x}-{:x}", rng.u32(..), rng.u64(..));
    pick(rng, &[text.as_str(), "r-1", "1234567", "86C83330-4bf5"]).to_owned()
}

/// Fields that name a request, and the request if they name exactly one.
fn request(rng: &mut Rng) -> (Vec<String>, Option<String>) {
    let (one, other) = (id(rng), id(rng));
    let mut said: Option<String> = None;
    let mut agrees = true;
    let mut fields = Vec::new();
    for _ in 0..rng.usize(..4) {
        let name = pick(rng, &["requestId", "RequestId", "REQUESTID", "requestID", "request_id"]);
        let mut says = |id: &str| match &said {
            Some(said) => agrees &= said.eq_ignore_ascii_case(id),
            None => said = Some(id.to_owned()),
        };
        let value = match rng.u8(..8) {
            0 => pick(rng, &["null", "\"\"", "[]", "{}"]).to_owned(),
            1 => {
                agrees = false;
                pick(
                    rng,
                    &[
                        "true",
                        "\"null\"",
                        "1e5",
                        "0",
                        "\"a/b\"",
                        "[\"r\"]",
                        "100000000000000000001",
                    ],
                )
                .to_owned()
            }
            2 => {
                says(&other);
                format!("\"{other}\"")
            }
            3 => {
                let upper = one.to_ascii_uppercase();
                says(&upper);
                format!("\"{upper}\"")
            }
            _ => {
                says(&one);
                format!("\"{one}\"")
            }
        };
        fields.push(format!("\"{name}\":{value}"));
    }
    (fields, said.filter(|_| agrees))
}

#[test]
fn a_generated_callback_is_about_the_request_and_device_that_it_names() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let answers = number("GENERATED_ANSWERS").unwrap_or(ANSWERS) / 5;
    let seed = number("GENERATED_SEED").unwrap_or_else(|| fastrand::u64(..1 << 53));
    eprintln!("GENERATED_SEED={seed}");
    for answer in 0..answers {
        one_callback(&mut Rng::with_seed(seed.wrapping_add(answer)));
    }
}

fn one_callback(rng: &mut Rng) {
    let (mut fields, named) = request(rng);
    let eid = format!("89{:030}", rng.u64(..));
    let entry = pick(rng, &["\"id\":", "\"identifier\":", "\"x\":"]);
    let devices = format!(r#"{{"kind":"Eid",{entry}"{eid}"}}"#);
    let place = pick(rng, &["deviceIds", "Device", "extra"]);
    let devices = if rng.bool() { format!("[{devices},null,7]") } else { devices };
    fields.push(format!("\"{place}\":{devices}"));
    let status = pick(rng, &["\"SUCCESS\"", "\"Failed\"", "\"warning\"", "null", "[]", "1e400"]);
    fields.push(format!("\"status\":{status}"));
    if rng.bool() {
        let fault = pick(
            rng,
            &[
                "null",
                "\"x\"",
                "{}",
                r#"{"faultcode":"A.B","faultstring":"89049032007008882600086299134038"}"#,
            ],
        );
        fields.push(format!("\"faultResponse\":{fault}"));
    }
    rng.shuffle(&mut fields);
    let mut body = format!("{{{}}}", fields.join(",")).into_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    match (parse(&body), named) {
        (Ok(callback), Some(named)) => {
            assert!(callback.request_id.as_str().eq_ignore_ascii_case(&named), "{text}");
            let device = callback.called_back.device.unwrap();
            let told = place != "extra" && entry != "\"x\":";
            assert_eq!(device.eid, if told { eid.as_str() } else { "" }, "{text}");
        }
        (Err(QuarantineReason::NoRequest), None) => {}
        // Nothing holds a number beyond all bounds.
        (Err(QuarantineReason::NotAnObject), _) if text.contains("1e400") => {}
        (read, named) => panic!("{named:?}: {read:?} of {text}"),
    }
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..=body.len());
        let end = (at + rng.usize(..9)).min(body.len());
        let insert: Vec<u8> = (0..rng.usize(..6)).map(|_| pick(rng, b"\"{}[],:\\0\xff")).collect();
        body.splice(at..end, insert);
    }
    if let Ok(callback) = parse(&body) {
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains(callback.request_id.as_str()) || text.contains('\\'), "{text}");
    }
}
