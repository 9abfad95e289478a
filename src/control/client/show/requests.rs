//! Prints what is open, and a request with its history.

use std::{io::Write, time::Duration};

use super::{table, with_head};
use crate::{
    config::show_duration,
    control::requests::OpenList,
    requests::inspect::{OpenItem, RequestDetails},
};

pub(in crate::control::client) fn open(out: &mut dyn Write, list: &OpenList) -> anyhow::Result<()> {
    if list.totals.is_empty() {
        return Ok(writeln!(out, "Nothing is open.")?);
    }
    let totals = list.totals.iter().map(|total| {
        [
            text(total.account.as_deref()),
            total.state.as_str().to_owned(),
            total.count.to_string(),
            total.devices.to_string(),
            age(total.oldest_seconds),
        ]
    });
    table(out, with_head(["ACCOUNT", "STATE", "COUNT", "DEVICES", "OLDEST"], totals))?;
    writeln!(out)?;
    let items = list.items.iter().map(|item: &OpenItem| {
        let id = match (&item.request_id, &item.order_id) {
            (Some(request), _) => request.clone(),
            (None, order) => format!("order {}", text(order.as_deref())),
        };
        [
            id,
            text(item.account.as_deref()),
            item.state.as_str().to_owned(),
            age(item.age_seconds),
            format!("{} of {}", item.devices_with_result, item.devices),
            item.queried_seconds_ago
                .map_or_else(|| "-".to_owned(), |ago| format!("{} ago", age(ago))),
            item.watches.to_string(),
            text(item.caller.as_deref()),
        ]
    });
    let head = ["REQUEST", "ACCOUNT", "STATE", "AGE", "RESULTS", "QUERIED", "WATCHES", "CALLER"];
    table(out, with_head(head, items))?;
    if list.left_out > 0 {
        writeln!(
            out,
            "\n{} more are not listed; use --limit, --account or --older-than.",
            list.left_out
        )?;
    }
    Ok(())
}

pub(in crate::control::client) fn request(
    out: &mut dyn Write,
    details: &RequestDetails,
) -> anyhow::Result<()> {
    let RequestDetails { polling, devices_total, devices_succeeded, devices_failed, .. } = details;
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    row("request", details.request_id.clone());
    row("account", text(details.account.as_deref()));
    row(
        "order",
        details.order_id.clone().unwrap_or_else(|| "none: an external request".to_owned()),
    );
    row("ordered by", text(details.caller.as_deref()));
    row("state", format!("{}, revision {}", details.state, details.revision));
    row("age", format!("{}, since {:.0}", age(details.age_seconds), details.create_time));
    row("last change", format!("{:.0}", details.update_time));
    row(
        "devices",
        format!("{devices_total}: {devices_succeeded} succeeded, {devices_failed} failed"),
    );
    let polls = polling.polls.map_or_else(String::new, |polls| format!(", {polls} so far"));
    row(
        "polls",
        match (polling.active, polling.given_up) {
            (true, _) => format!("yes{polls}"),
            (false, true) => format!("no, because the gateway gave the request up{polls}"),
            (false, false) => format!("no{polls}"),
        },
    );
    if let Some(ago) = polling.queried_seconds_ago {
        row("last answer", format!("{} ago", age(ago)));
    }
    if let Some(failure) = &polling.failure {
        row("last query failed", failure.clone());
    }
    let watches = details.watches.iter().map(|item| format!("{} by {}", item.watches, item.caller));
    let watches: Vec<_> = watches.collect();
    row("watches here", if watches.is_empty() { "none".to_owned() } else { watches.join(", ") });
    table(out, rows)?;
    writeln!(out)?;
    let devices = details.devices.iter().map(|device| {
        [
            device.device.clone(),
            device.state.clone(),
            text(device.fault.as_deref()),
            format!("{:.0}", device.update_time),
        ]
    });
    table(out, with_head(["DEVICE", "STATE", "FAULT", "SINCE"], devices))?;
    let hidden = devices_total - details.devices.len();
    if hidden > 0 {
        writeln!(out, "{hidden} more devices are not shown.")?;
    }
    writeln!(out)?;
    let events = details
        .timeline
        .iter()
        .map(|event| [format!("{:.3}", event.time), event.event.clone(), event.text.clone()]);
    table(out, with_head(["TIME", "EVENT", "WHAT HAPPENED"], events))?;
    if details.events_left_out > 0 {
        writeln!(out, "{} events in the middle are not shown.", details.events_left_out)?;
    }
    Ok(())
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or("-").to_owned()
}

fn age(seconds: u64) -> String {
    show_duration(Duration::from_secs(seconds))
}
