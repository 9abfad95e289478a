//! `requests list` and `requests show`: what is open, and the history of a request.

use serde_json::Value;
use thingspace_gateway::simulator::DeviceResult;

use super::*;

/// The value of a field in each element of a list.
fn each<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap_or("-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_what_is_open_and_why() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    assert_eq!(told(&file, &["requests", "list"]).await, "Nothing is open.\n");

    let first = place(&mut client, "first", 0..3).await.unwrap();
    let second = place(&mut client, "second", [3]).await.unwrap();
    lose(&upstream, &mut client, "lost", 4).await;
    let held = HeldOrder::begin(&upstream, &client, "held", 5..6).await;
    let done = place(&mut client, "done", [6]).await.unwrap();
    upstream.sim.finish_all(&done, DeviceResult::Success);
    get_status(&mut client, status_call(&done)).await.unwrap();
    upstream.sim.finish(&first, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&first)).await.unwrap();
    let mut watching = watch(&mut client, &second, "").await.unwrap();
    watching.snapshot().await;

    let listed = json(&file, &["requests", "list"]).await;
    let items = &listed["items"];
    let mut states = each(items, "state");
    states.sort_unstable();
    assert_eq!(states, ["partial", "pending", "sending", "unknown"], "{listed}");
    assert_eq!(items[0]["request_id"], first.as_str(), "the oldest is first: {listed}");
    assert_eq!((&items[0]["devices"], &items[0]["devices_with_result"]), (&3.into(), &1.into()));
    assert_eq!((&items[0]["caller"], &items[0]["account"]), (&"anonymous".into(), &ACCOUNT.into()));
    assert!(items[0]["queried_seconds_ago"].is_number(), "{listed}");
    let watched = items.as_array().unwrap().iter().find(|item| item["watches"] == 1).unwrap();
    assert_eq!(watched["request_id"], second.as_str());
    assert_eq!(each(&listed["totals"], "state"), ["sending", "unknown", "pending", "partial"]);

    let limited = json(&file, &["requests", "list", "--limit", "1"]).await;
    assert_eq!(each(&limited["items"], "request_id"), [first.as_str()]);
    assert_eq!(limited["left_out"], 3);
    assert_eq!(limited["totals"], listed["totals"]);
    let text = told(&file, &["requests", "list", "--limit", "1"]).await;
    assert!(text.starts_with("ACCOUNT") && text.contains(first.as_str()), "{text}");
    assert!(text.ends_with("3 more are not listed; use --limit, --account or --older-than.\n"));
    let nothing = told(&file, &["requests", "list", "--older-than", "1h"]).await;
    assert_eq!(nothing, "Nothing is open.\n");
    let why = refused(&file, &["requests", "list", "--account", "0000999999-00001"]).await;
    assert!(why.contains("account 0000999999-00001 is in no [[credentials]] section"), "{why}");

    held.leave().open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_the_history_of_a_request() {
    let upstream = Upstream::manual().await;
    let process = Process::serve(&upstream.quiet(), upstream.dir.path());
    let file = upstream.dir.path().join("gateway.toml");
    let mut client = process.client().await;
    let id = place(&mut client, "key", 0..2).await.unwrap();
    upstream.sim.finish(&id, &device(0).eid, DeviceResult::Success);
    get_status(&mut client, status_call(&id)).await.unwrap();
    let mut watching =
        [watch(&mut client, &id, "").await.unwrap(), watch(&mut client, &id, "").await.unwrap()];
    for watching in &mut watching {
        watching.snapshot().await;
    }

    let shown = json(&file, &["requests", "show", id.as_str()]).await;
    assert_eq!(
        each(&shown["timeline"], "event"),
        ["ordered", "accepted_as", "accepted", "observed"],
        "{shown}"
    );
    assert_eq!((&shown["state"], &shown["polling"]["active"]), (&"pending".into(), &true.into()));
    let watches = serde_json::json!([{ "caller": "anonymous", "watches": 2 }]);
    assert_eq!(shown["watches"], watches);
    assert_eq!(each(&shown["devices"], "state"), ["pending", "succeeded"]);
    let text = told(&file, &["requests", "show", id.as_str()]).await;
    let masked = &device(0).eid[28..];
    assert!(text.contains(&format!("…{masked}")), "{text}");
    assert!(text.contains("watches here  2 by anonymous\n"), "{text}");
    for whole in [&device(0).eid, &device(1).iccid] {
        assert!(!text.contains(whole) && !shown.to_string().contains(whole), "{text}");
    }

    // The request is closed, and its watches end.
    upstream.sim.finish(&id, &device(1).eid, DeviceResult::Failed);
    get_status(&mut client, status_call(&id)).await.unwrap();
    for watching in watching {
        watching.rest().await;
    }
    eventually("nobody watches", async || {
        json(&file, &["requests", "show", id.as_str()]).await["watches"] == serde_json::json!([])
    })
    .await;
    let text = told(&file, &["requests", "show", id.as_str(), "--reveal"]).await;
    assert!(text.contains(&device(0).eid) && text.contains(&device(1).iccid), "{text}");
    assert!(text.contains("state         partially succeeded"), "{text}");

    // The identity of a device in the place of an id.
    let eid = &device(0).eid;
    let nobody = refused(&file, &["requests", "show", eid, "--reveal"]).await;
    assert!(nobody.starts_with("the store has no request with this id"), "{nobody}");
    process.terminate();
    let (_, log) = process.wait().await;
    assert!(!log.iter().any(|line| line.contains(eid)), "{log:#?}");
    let lines = audited(&log);
    let lines: Vec<_> = lines.iter().filter(|line| line["command"].is_string()).collect();
    let [revealed, failed] = lines[..] else { panic!("{lines:#?}") };
    assert_eq!(revealed["command"], "requests show --reveal");
    assert_eq!(
        (&revealed["request.id"], &revealed["outcome"]),
        (&id.as_str().into(), &"done".into())
    );
    assert_eq!((&revealed["account"], &revealed["devices"]), (&ACCOUNT.into(), &2.into()));
    let masked = format!("…{masked}");
    assert_eq!((&failed["request.id"], &failed["outcome"]), (&masked.into(), &"failed".into()));
}
