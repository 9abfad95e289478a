//! The ways in which ThingSpace writes its answers.

use thingspace_gateway::simulator::{Identifiers, Overall, Words};

use super::*;

/// The ways in which ThingSpace may write the same thing.
fn shapes() -> impl Iterator<Item = Shape> {
    let styles = [
        Shape::default(),
        Shape { single_id: true, overall: Overall::Honest, ..Shape::default() },
        Shape {
            identifiers: Identifiers::All,
            numeric_imei: true,
            extras: true,
            ..Shape::default()
        },
        Shape { identifiers: Identifiers::All, single_id: true, extras: true, ..Shape::default() },
    ];
    let words = [Words::Documented, Words::Sdk, Words::Upper, Words::Mixed];
    let lists = [List::Documented, List::Sdk];
    styles.into_iter().flat_map(move |style| {
        words.into_iter().flat_map(move |words| lists.map(|list| Shape { list, words, ..style }))
    })
}

#[tokio::test]
async fn answers_of_any_shape_are_understood() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    for (at, shape) in shapes().enumerate() {
        upstream.sim.set_shape(shape);
        let id = place(&mut client, &format!("k{at}"), 0..4).await.unwrap();
        upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
        upstream.sim.finish(&id, &device(2).eid, DeviceResult::Failed);
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!(states(&status), [Succeeded, Pending, Failed, Pending], "{shape:?}");
        assert_eq!(status.state(), RequestState::Pending, "{shape:?}");
        upstream.sim.finish(&id, &device(1).eid, DeviceResult::Failed);
        upstream.sim.finish(&id, &device(3).eid, DeviceResult::Success);
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!(states(&status), [Succeeded, Failed, Failed, Succeeded], "{shape:?}");
        assert_eq!(status.state(), RequestState::PartiallySucceeded, "{shape:?}");
        assert_eq!(status.revision, 3);
    }
    gateway.stop().await;
}

/// A part with an identifier that the order does not have may be about any of its devices.
#[tokio::test]
async fn a_success_beside_a_part_about_no_device_is_not_told() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let parts = [
        ("imei", "990013907835573"),
        ("mdn", "5551234567"),
        ("iccid", "89141390780800784259"),
        ("iccid", "8914139078080078425"),
    ];
    let words = ["Failed", "Pending"].into_iter();
    let words = words.flat_map(|word| ["Failed", "Pending", "Success"].map(|all| (word, all)));
    let rows = parts.into_iter().flat_map(|part| words.clone().map(move |words| (part, words)));
    for (n, ((kind, digits), (word, overall))) in rows.enumerate() {
        let id = place(&mut client, &format!("k{n}"), [n]).await.unwrap();
        let eid = device(n).eid;
        let body = format!(
            r#"{{"requestId":"{id}","status":"{overall}","subrequests":[
                {{"ids":{{"kind":"eid","id":"{eid}"}},"status":"Success"}},
                {{"ids":{{"kind":"{kind}","id":"{digits}"}},"status":"{word}"}}]}}"#
        );
        let answer = What::Status {
            status: StatusCode::OK,
            content_type: "application/json",
            body: body.clone(),
        };
        upstream.sim.inject(Fault::once(Endpoint::Status, When::BeforeEffect, answer));
        assert_eq!(
            states(&get_status(&mut client, status_call(&id)).await.unwrap()),
            [Pending],
            "{body}"
        );
    }
    // The only part is about the only device.
    let id = place(&mut client, "only part", [99]).await.unwrap();
    let answer = What::Status {
        status: StatusCode::OK,
        content_type: "application/json",
        body: format!(
            r#"{{"requestId":"{id}","status":"Success","subrequests":[
                {{"ids":[{{"kind":"mdn","id":"5551234567"}}],"status":"Success"}}]}}"#
        ),
    };
    upstream.sim.inject(Fault::once(Endpoint::Status, When::BeforeEffect, answer));
    assert_eq!(states(&get_status(&mut client, status_call(&id)).await.unwrap()), [Succeeded]);
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_without_devices_holds_for_all() {
    let upstream = Upstream::manual().await;
    upstream.sim.set_shape(Shape { list: List::Absent, ..Shape::default() });
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let ends = [
        (DeviceResult::Success, Succeeded, RequestState::Succeeded),
        (DeviceResult::Failed, Failed, RequestState::Failed),
    ];
    for (outcome, device, request) in ends {
        let id = place(&mut client, &format!("{outcome:?}"), 0..2).await.unwrap();
        assert_eq!(states(&get_status(&mut client, status_call(&id)).await.unwrap()), [Pending; 2]);
        upstream.sim.finish_all(&id, outcome);
        let status = get_status(&mut client, status_call(&id)).await.unwrap();
        assert_eq!((states(&status), status.state()), (vec![device; 2], request));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn odd_words() {
    let upstream = Upstream::manual().await;
    let gateway = Gateway::start(upstream.quiet()).await;
    let mut client = gateway.client().await;
    let words = [
        ("In Progress", Pending),
        ("no such word", Pending),
        ("", Pending),
        ("QUEUED", Pending),
        ("warning", Waiting),
        ("On-Hold", Waiting),
        ("Completed", Succeeded),
        ("successful", Succeeded),
        ("Canceled", Failed),
        ("ERROR", Failed),
    ];
    let id = place(&mut client, "k", 0..words.len()).await.unwrap();
    for (at, (word, _)) in words.iter().enumerate() {
        upstream.sim.finish(&id, &device(at).eid, DeviceResult::Word(word));
    }
    let status = get_status(&mut client, status_call(&id)).await.unwrap();
    assert_eq!(states(&status), words.map(|(_, state)| state));
    // A final state never changes, with any later answer.
    upstream.sim.finish_all(&id, DeviceResult::Word("In Progress"));
    assert_eq!(get_status(&mut client, status_call(&id)).await.unwrap(), status);
    gateway.stop().await;
}
