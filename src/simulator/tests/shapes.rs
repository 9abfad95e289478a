use super::*;
use crate::simulator::{DeviceResult, Identifiers, List, Overall, Shape, Words};

/// A request for two devices. The first has succeeded, the second is pending.
async fn half_done() -> (World, RequestId) {
    let world = world(manual()).await;
    let request = world.handle.add_request(account(), [device(1), device(2)]);
    world.handle.finish(&request, device(1).iccid.as_str(), DeviceResult::Success);
    (world, request)
}

#[tokio::test]
async fn the_example_of_the_documentation() {
    let (world, request) = half_done().await;
    let wanted = json!({
        "requestId": request.as_str(),
        "status": "Success",
        "subRequests": [
            {"ids": [{"id": device(1).iccid.as_str(), "kind": "iccid"}], "status": "Success"},
            {"ids": [{"id": device(2).iccid.as_str(), "kind": "iccid"}], "status": "Pending"},
        ],
    });
    assert_eq!(world.shown(&request).await, wanted);
}

#[tokio::test]
async fn the_model_of_the_sdk() {
    let (world, request) = half_done().await;
    world.handle.set_shape(Shape::sdk());
    world.handle.finish(&request, device(2).eid.as_str(), DeviceResult::Failed);
    let wanted = json!({
        "requestId": request.as_str(),
        "status": "Success",
        "subrequests": [
            {"ids": {"id": device(1).iccid.as_str(), "kind": "iccid"}, "status": "Success"},
            {"ids": {"id": device(2).iccid.as_str(), "kind": "iccid"}, "status": "Failure"},
        ],
    });
    assert_eq!(world.shown(&request).await, wanted);
}

#[tokio::test]
async fn everything_at_once() {
    let (world, request) = half_done().await;
    world.handle.finish_all(&request, DeviceResult::Failed);
    world.handle.finish(&request, device(2).eid.as_str(), DeviceResult::Word("Queued"));
    world.handle.set_shape(Shape {
        identifiers: Identifiers::All,
        words: Words::Upper,
        extras: true,
        numeric_imei: true,
        ..Shape::default()
    });
    let shown = world.shown(&request).await;
    assert_eq!(shown["status"], "PENDING");
    assert_eq!(shown["paging"]["hasMoreData"], false);
    let ids = json!([
        {"id": device(1).eid.as_str(), "kind": "eid", "status": "FAILED"},
        {"id": device(1).iccid.as_str(), "kind": "iccid", "status": "FAILED"},
        {"id": 1, "kind": "imei", "status": "FAILED"},
    ]);
    assert_eq!(shown["subRequests"][0], json!({"ids": ids, "status": "FAILED", "attempt": 1}));
    assert_eq!(shown["subRequests"][1]["status"], "Queued");
}

#[tokio::test]
async fn no_list_at_all() {
    let (world, request) = half_done().await;
    world.handle.set_shape(Shape { list: List::Absent, ..Shape::default() });
    let status = |word: &str| json!({"requestId": request.as_str(), "status": word});
    assert_eq!(world.shown(&request).await, status("Pending"));
    world.handle.finish_all(&request, DeviceResult::Success);
    assert_eq!(world.shown(&request).await, status("Success"));
    world.handle.set_overall(&request, Some("Warning"));
    assert_eq!(world.shown(&request).await, status("Warning"));
}

#[tokio::test]
async fn an_honest_overall_status() {
    let (world, request) = half_done().await;
    world.handle.set_shape(Shape { overall: Overall::Honest, ..Shape::default() });
    assert_eq!(world.shown(&request).await["status"], "Pending");
    world.handle.finish(&request, device(2).eid.as_str(), DeviceResult::Failed);
    assert_eq!(world.shown(&request).await["status"], "Failed");
}

#[tokio::test]
async fn words_in_any_spelling() {
    let world = world(manual()).await;
    let request = world.handle.add_request(account(), (0..4).map(device));
    world.handle.finish_all(&request, DeviceResult::Failed);
    world.handle.set_shape(Shape { words: Words::Mixed, ..Shape::default() });
    let shown = world.shown(&request).await;
    let words: Vec<_> = (0..4).map(|i| text(&shown["subRequests"][i]["status"])).collect();
    assert_eq!(words, ["Failed", "Failure", "FAILED", "failure"]);
}

#[tokio::test]
#[should_panic(expected = "has no device")]
async fn finishing_an_unknown_device_panics() {
    let (world, request) = half_done().await;
    world.handle.finish(&request, "89049032007008882600086299134038", DeviceResult::Success);
}
