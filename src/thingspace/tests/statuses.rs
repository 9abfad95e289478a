use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::*;
use crate::{
    simulator::{DeviceResult, Identifiers, List, Overall, Shape, Words},
    thingspace::{RefusalKind, StatusAnswer, StatusClass},
};

fn found(lookup: Result<StatusLookup, Error>) -> StatusAnswer {
    match lookup {
        Ok(StatusLookup::Found(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_shape_is_read() {
    let world = world(manual()).await;
    let request = world.handle.add_request(account(), (0..4).map(device));
    let outcomes = [
        DeviceResult::Success,
        DeviceResult::Failed,
        DeviceResult::Pending,
        DeviceResult::Word("Warning"),
    ];
    for (number, outcome) in (0..).zip(outcomes) {
        world.handle.finish(&request, device(number).eid.as_str(), outcome);
    }
    let classes =
        [StatusClass::Succeeded, StatusClass::Failed, StatusClass::Pending, StatusClass::Waiting];
    let all = Shape {
        identifiers: Identifiers::All,
        extras: true,
        numeric_imei: true,
        ..Shape::default()
    };
    for words in [Words::Documented, Words::Sdk, Words::Upper, Words::Mixed] {
        for shape in [
            Shape { words, ..Shape::default() },
            Shape { words, ..Shape::sdk() },
            Shape { words, ..all },
        ] {
            world.handle.set_shape(shape);
            let answer = found(world.poll(&request).await);
            assert_eq!(answer.overall, StatusClass::Succeeded, "{shape:?}");
            assert_eq!(
                answer.devices.iter().map(|(_, class)| *class).collect::<Vec<_>>(),
                classes,
                "{shape:?}"
            );
            for (number, (read, _)) in (0..).zip(&answer.devices) {
                assert_eq!(read.iccid, device(number).iccid, "{shape:?}");
            }
        }
    }
    world.handle.set_shape(Shape {
        list: List::Absent,
        overall: Overall::Honest,
        ..Shape::default()
    });
    let answer = found(world.poll(&request).await);
    assert_eq!(answer, StatusAnswer { overall: StatusClass::Pending, devices: vec![] });
}

/// A status query with HTTP 200 and this body, in which `{id}` is the request.
async fn answered(world: &World, body: &str) -> Result<StatusLookup, Error> {
    let request = world.request();
    let body = body.replace("{id}", request.as_str());
    world.handle.inject(Fault::once(Endpoint::Status, When::BeforeEffect, answer(200, &body)));
    world.poll(&request).await
}

#[tokio::test]
async fn a_success_with_an_error_of_the_call_decides_no_request() {
    let world = world(manual()).await;
    world.poll(&world.request()).await.unwrap();
    for body in [
        r#"{"requestId":"{id}","status":"Failed","errorCode":"S.SessionToken.Expired"}"#,
        r#"{"requestId":"{id}","status":"Failed","fault":{"code":"900901"}}"#,
        r#"{"requestId":"{id}","status":"Failed","errorCode":"500"}"#,
        r#"{"status":"error","message":"Backend unavailable"}"#,
        r#"{"status":"Success"}"#,
        r#"{"requestId":"{id}","status":"Success","Status":"Pending"}"#,
        r#"{"requestId":"{id}","accountName":"0000999999-00001","status":"Success"}"#,
        r#"{"requestId":"{id}","Account_Name":123456,"status":"Success"}"#,
        r#"{"requestId":"{id}","account":"0000999999-00001","status":"Success"}"#,
    ] {
        // The query is repeated, and the request is pending.
        assert_eq!(found(answered(&world, body).await).overall, StatusClass::Pending, "{body}");
    }
    let doubtful =
        r#"{"requestId":"{id}","status":"Success","errorCode":"REQUEST_FAILED.UnexpectedError"}"#;
    assert_eq!(found(answered(&world, doubtful).await).overall, StatusClass::Unknown);
}

/// The denial is at the top or in a sub-request.
#[tokio::test]
async fn a_success_that_something_denies_decides_no_device() {
    use StatusClass::{Failed, Succeeded, Unknown};
    let world = world(manual()).await;
    let (eid, other) = (device(1).eid, device(2).eid);
    let body = |status: &str, top: &str, sub: &str| {
        let ids = format!(r#""ids":[{{"kind":"eid","id":"{}"}}]"#, eid.as_str());
        let sub = format!(r#"{{{ids},"status":"{status}"{sub}}}"#);
        format!(r#"{{"requestId":"{{id}}","status":"{status}"{top},"subRequests":[{sub}]}}"#)
    };
    let denials = [
        r#","errorCode":"UnifiedWebService.REQUEST_FAILED.X","errorMessage":"x""#,
        r#","faultResponse":{"faultcode":"X.REQUEST_FAILED.Y","faultstring":"z"}"#,
        r#","state":"Failed""#,
        r#","success":false"#,
        r#","profileStatus":"NOT_DOWNLOADED""#,
        r#","profileStatus":"DOWNLOAD_FAILED""#,
        r#","downloadStatus":"Failed""#,
        r#","isSuccess":false"#,
        r#","errorMessage":"eUICC unreachable""#,
        r#","errorDescription":"the card is busy""#,
        r#","FaultString":"no answer""#,
        r#","failureReason":"card busy""#,
        r#","deviceResponse":{"failureReason":"card busy"}"#,
        r#","deviceResponse":{"status":"Failure"}"#,
        r#","deviceResponse":{"faultResponse":{"faultcode":"X.REQUEST_FAILED.Y"}}"#,
        r#","deviceResponse":[{"deviceProfileResponse":{"profileStatus":"Download error"}}]"#,
        r#","deviceProfileResponse":{"errorCode":"X.REQUEST_FAILED.Y"}"#,
    ];
    for denial in denials {
        let told = found(answered(&world, &body("Success", denial, "")).await);
        assert_eq!((told.overall, told.devices[0].1), (Unknown, Unknown), "{denial}");
        let told = found(answered(&world, &body("Success", "", denial)).await);
        assert_eq!((told.overall, told.devices[0].1), (Succeeded, Unknown), "{denial}");
        for failed in [body("Failed", denial, ""), body("Failed", "", denial)] {
            assert_eq!(found(answered(&world, &failed).await).devices[0].1, Failed, "{failed}");
        }
    }
    for sub in [
        r#","Status":"Failed""#.to_owned(),
        r#","Status":"Success""#.to_owned(),
        r#","requestId":"zzz-9""#.to_owned(),
        r#","requestId":"{id}","RequestId":"zzz-9""#.to_owned(),
        r#","accountName":"0000999999-00009""#.to_owned(),
        r#","account":"0000999999-00009""#.to_owned(),
        r#","deviceResponse":{"accountName":"0000999999-00009"}"#.to_owned(),
        r#","deviceResponse":{"requestId":"zzz-9"}"#.to_owned(),
        r#","status":"Success""#.to_owned(),
        format!(r#","deviceIds":[{{"kind":"eid","id":"{}"}}]"#, other.as_str()),
        format!(r#","Ids":[{{"kind":"eid","id":"{}"}}]"#, other.as_str()),
    ] {
        for status in ["Success", "Failed"] {
            let told = found(answered(&world, &body(status, "", &sub)).await);
            assert_eq!(told.devices[0].1, Unknown, "{status}, {sub}");
        }
    }
    let fault = body("Success", "", r#","FaultResponse":"z""#);
    assert_eq!(found(answered(&world, &fault).await).devices[0].1, Unknown);
    for sub in [
        r#","requestId":"{id}","accountName":"0000123456-00001""#,
        r#","errorCode":null,"code":200"#,
        r#","errorMessage":null,"faultstring":"","failureReason":"None""#,
        r#","errorMessage":"Success","errorDescription":"No error","failureReason":"N/A""#,
        r#","account":" 0000123456-00001 ","deviceResponse":{"status":"Success"}"#,
        r#","deviceResponse":{"deviceProfileResponse":{"profileStatus":"ENABLED"}}"#,
    ] {
        assert_eq!(
            found(answered(&world, &body("Success", "", sub)).await).devices[0].1,
            Succeeded,
            "{sub}"
        );
    }
    // Two identifiers of one kind name no device.
    let ids = format!(
        r#"[{{"kind":"eid","id":"{}"}},{{"kind":"eid","id":"{}"}}]"#,
        other.as_str(),
        eid.as_str()
    );
    let sub = format!(r#"{{"ids":{ids},"status":"Success"}}"#);
    let two = format!(r#"{{"requestId":"{{id}}","status":"Success","subRequests":[{sub}]}}"#);
    assert_eq!(found(answered(&world, &two).await).devices[0].1, Unknown);
}

#[tokio::test]
async fn an_answer_may_name_the_account_that_was_asked_for() {
    let world = world(manual()).await;
    for name in [r#""0000123456-00001""#, "null", r#""""#] {
        let body = format!(r#"{{"requestId":"{{id}}","accountName":{name},"status":"Failed"}}"#);
        assert_eq!(found(answered(&world, &body).await).overall, StatusClass::Failed, "{name}");
    }
}

/// The documented example says Success above a pending device.
#[tokio::test]
async fn a_failure_of_the_whole_without_a_device_that_failed_is_not_believed() {
    use StatusClass::{Failed, Pending, Succeeded, Unknown};
    let world = world(manual()).await;
    for (overall, first, second, told) in [
        ("Failed", "Success", "Success", [Unknown, Unknown, Unknown]),
        ("Failed", "Success", "Failed", [Failed, Succeeded, Failed]),
        ("Failed", "Success", "Pending", [Failed, Succeeded, Pending]),
        ("Success", "Failed", "Failed", [Succeeded, Failed, Failed]),
    ] {
        let sub = |n, word| {
            format!(
                r#"{{"ids":[{{"kind":"eid","id":"{}"}}],"status":"{word}"}}"#,
                device(n).eid.as_str()
            )
        };
        let subs = format!("{},{}", sub(1, first), sub(2, second));
        let body =
            format!(r#"{{"requestId":"{{id}}","status":"{overall}","subRequests":[{subs}]}}"#);
        let answer = found(answered(&world, &body).await);
        let found = [answer.overall, answer.devices[0].1, answer.devices[1].1];
        assert_eq!(found, told, "{body}");
    }
}

#[tokio::test]
async fn entries_that_contradict_each_other_decide_no_device() {
    let world = world(manual()).await;
    let eid = device(1).eid;
    for (first, second) in [("Success", "Failed"), ("Failed", "Success"), ("Success", "Pending")] {
        let ids = format!(r#"[{{"kind":"eid","id":"{}"}}]"#, eid.as_str());
        let body = |subs: &str| {
            format!(r#"{{"requestId":"{{id}}","status":"Success","subRequests":[{subs}]}}"#)
        };
        let sub = |status| format!(r#"{{"ids":{ids},"status":"{status}"}}"#);
        let twice = body(&format!("{},{}", sub(first), sub(second)));
        let answer = found(answered(&world, &twice).await);
        assert!(
            answer.devices.iter().all(|(_, class)| *class == StatusClass::Unknown),
            "{answer:?}"
        );
        let ids = format!(r#"{{"kind":"eid","id":"{}","status":"{second}"}}"#, eid.as_str());
        let inside = body(&format!(r#"{{"status":"{first}","ids":[{ids}]}}"#));
        let answer = found(answered(&world, &inside).await);
        assert_eq!(answer.devices[0].1, StatusClass::Unknown, "{answer:?}");
    }
}

/// One entry may have the EID of a device, another its ICCID, and another no identifier.
#[tokio::test]
async fn entries_with_different_identifiers_of_a_device_contradict_each_other() {
    use StatusClass::{Failed, Pending, Succeeded, Unknown};
    let world = world(manual()).await;
    let (one, other) = (device(1), device(2));
    let id = |kind: &str, digits: &str| format!(r#"{{"kind":"{kind}","id":"{digits}"}}"#);
    let (eid, iccid) = (id("eid", one.eid.as_str()), id("Iccid", one.iccid.as_str()));
    let both = format!("[{eid},{iccid}]");
    let with_imei = format!("[{eid},{iccid},{}]", id("imei", "990013907835573"));
    let moved = format!("[{},{iccid}]", id("eid", other.eid.as_str()));
    let blank = id(" EID", &format!(" {} ", one.eid.as_str()));
    let sub = |ids: &str, word: &str| format!(r#"{{"ids":{ids},"status":"{word}"}}"#);
    let elsewhere = format!(r#"{{"deviceIds":{both},"status":"Failed"}}"#);
    let others = id("eid", other.eid.as_str());
    for (subs, classes) in [
        (vec![sub(&both, "Success"), sub(&iccid, "Failed")], vec![Unknown, Unknown]),
        (vec![sub(&eid, "Failed"), sub(&both, "Success")], vec![Unknown, Unknown]),
        (vec![sub(&both, "Pending"), sub(&iccid, "Success")], vec![Unknown, Unknown]),
        (vec![sub(&both, "Success"), sub(&with_imei, "Failed")], vec![Unknown, Unknown]),
        (vec![sub(&both, "Success"), sub(&moved, "Failed")], vec![Unknown, Unknown]),
        (vec![sub(&both, "Success"), sub(&blank, "Failed")], vec![Unknown, Unknown]),
        (vec![sub(&both, "Success"), elsewhere.clone()], vec![Unknown, Unknown]),
        (
            vec![sub(&eid, "Success"), sub(&iccid, "Failed"), sub(&both, "Success")],
            vec![Unknown, Unknown, Unknown],
        ),
        // An entry without an identifier may be about any device.
        (vec![sub(&both, "Success"), sub("[]", "Failed")], vec![Unknown, Failed]),
        (vec![sub(&id("esn", "1"), "Success"), sub(&both, "Failed")], vec![Succeeded, Unknown]),
        (vec![sub(&both, "Success"), sub("[]", "Pending")], vec![Succeeded, Pending]),
        // Entries that agree, and entries about two devices.
        (vec![sub(&both, "Success"), sub(&iccid, "Success")], vec![Succeeded, Succeeded]),
        (vec![sub(&blank, "Success"), sub(&others, "Failed")], vec![Succeeded, Failed]),
        (vec![elsewhere.clone(), sub(&others, "Success")], vec![Failed, Succeeded]),
    ] {
        for reversed in [false, true] {
            let (mut subs, mut classes) = (subs.clone(), classes.clone());
            if reversed {
                subs.reverse();
                classes.reverse();
            }
            let body = format!(
                r#"{{"requestId":"{{id}}","status":"Success","subRequests":[{}]}}"#,
                subs.join(",")
            );
            let answer = found(answered(&world, &body).await);
            let found: Vec<_> = answer.devices.iter().map(|(_, class)| *class).collect();
            assert_eq!(found, classes, "{body}");
        }
    }
}

#[tokio::test]
async fn an_unknown_request_is_not_known_and_another_account_is_refused() {
    let world = world(manual()).await;
    let request = world.request();
    let unknown = RequestId::parse("no-such-request").unwrap();
    assert_eq!(world.poll(&unknown).await.unwrap(), StatusLookup::NotKnown);
    for (name, kind) in [
        ("0000999999-00001", RefusalKind::AccountForbidden),
        ("0000000000-00000", RefusalKind::AccountNotFound),
    ] {
        let refused = poll_of(&world.client, &named(name), &request).await;
        assert!(matches!(refused, Err(Error::Refused(refusal)) if refusal.kind == kind));
    }
    for vague in [answer(404, "<html>"), answer(503, r#"{"errorCode":"503"}"#)] {
        world.handle.inject(Fault::always(Endpoint::Status, When::BeforeEffect, vague));
        assert!(matches!(world.poll(&request).await, Err(Error::OutcomeUnknown { .. })));
        world.handle.clear_faults();
    }
}

/// While polls take all of the rate, queries about external requests get one call in twenty, and
/// all are answered.
#[tokio::test]
async fn external_requests_get_their_share_and_no_more() {
    let world = configured(manual(), |config| config.calls_per_second = 100).await;
    let (account, polled, elsewhere) = (account(), world.request(), world.request());
    let polls = futures_util::future::join_all((0..100).map(|_| async {
        loop {
            found(world.poll(&polled).await);
        }
    }));
    let lookups = (0..10).map(|_| async {
        let asked = world.client.request_status(&account, &elsewhere, Purpose::External).await;
        found(asked.map(|(lookup, _)| lookup));
    });
    tokio::select! {
        _ = polls => unreachable!("they never end"),
        _ = futures_util::future::join_all(lookups) => {}
    }
    let ledger = world.handle.ledger();
    let (of_polls, of_lookups) = (ledger.polls_of(&polled), ledger.polls_of(&elsewhere));
    assert_eq!(of_lookups, 10);
    // Two of them may be sent before their share is due.
    assert!(of_polls >= 19 * (of_lookups - 3), "{of_polls} polls");
}

#[tokio::test]
async fn the_time_of_an_answer_does_not_include_the_wait_for_a_permit() {
    let world = configured(manual(), |config| config.calls_per_second = 2).await;
    let request = world.request();
    let began = Instant::now();
    // Three are sent at once. The others wait for 0.5, 1 and 1.5 seconds, 3 seconds together.
    let polls = (0..6).map(|_| poll(&world.client, &request));
    let polls = try_join_all(polls).await.unwrap();
    let took: Duration = polls.iter().map(|(_, took)| *took).sum();
    assert!(took < began.elapsed(), "{took:?} in {:?}", began.elapsed());
}
