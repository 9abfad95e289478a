//! Prints results as JSON, or as sentences and tables. Escapes every character that could control a
//! terminal.

mod requests;

use std::{fmt::Write as _, io::Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    control::{
        callbacks::{AccountRegistrations, RegistrationResponse},
        logins::UnblockResponse,
        orders::{SettleResponse, UnknownOrderItem},
        quarantine::{QuarantineItem, QuarantinedCallback},
        status::{CallerCredentials, StatusResponse, issues::Issue},
        store::AcceptLossResponse,
    },
    identity::{AccountName, RequestId},
};

pub(super) use requests::{open, request};

pub(super) fn json(out: &mut dyn Write, value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // These characters occur only in strings, where JSON allows them as escapes.
        if c != '\n' && is_control(c) {
            write!(shown, "\\u{:04x}", u32::from(c))?;
        } else {
            shown.push(c);
        }
    }
    Ok(writeln!(out, "{shown}")?)
}

pub(super) fn status(out: &mut dyn Write, status: &StatusResponse) -> anyhow::Result<()> {
    let StatusResponse { store, store_memory, .. } = status;
    let unknown = status.unknown_orders.map(|count| count.to_string());
    let ready = match (&status.waits_for, &status.limited) {
        (Some(obstacle), _) => format!("no: {obstacle}"),
        (None, Some(limited)) => format!("yes, but {limited}"),
        (None, None) => if status.ready { "yes" } else { "no" }.to_owned(),
    };
    let config = status.config.as_ref().map(|file| file.display().to_string());
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    for Issue { what, action, .. } in &status.issues {
        row("to do", if action.is_empty() { what.clone() } else { format!("{what} {action}") });
    }
    if status.issues.is_empty() {
        row("to do", "nothing; everything is well".to_owned());
    }
    row("version", status.version.clone());
    row("configuration", config.unwrap_or_else(|| "none".to_owned()));
    row("ready", ready);
    row(
        "store",
        match &status.store_trouble {
            Some(trouble) if status.limited.is_none() => format!("{store}: {trouble}"),
            _ => store.clone(),
        },
    );
    if let Some(why) = &store_memory.unprotected {
        row("store not protected", why.clone());
    }
    if let Some(lost) = &store_memory.lost {
        let accept = "`store accept-loss` accepts it";
        row("store lost", format!("{}, noticed {:.0}; {accept}", lost.what, lost.noticed));
    }
    row("remembers since", since(store_memory.remembers_since));
    row("open requests", status.open_requests.to_string());
    row("open devices", status.open_devices.to_string());
    row("unknown orders", unknown.unwrap_or_else(|| "the store cannot be read".to_owned()));
    row("finished by callback", status.finished_by_callback.to_string());
    row("finished by poll", status.finished_by_poll.to_string());
    row("stray callbacks", status.stray_callbacks.to_string());
    for log in &status.unreadable_logs {
        row(&format!("damaged log {}", log.log), log.why.clone());
    }
    for login in &status.logins {
        row(&format!("credentials {}", login.credentials), login.standing.clone());
    }
    for host in &status.hosts {
        row(&format!("host {}", host.host), host.state());
    }
    row("open connections", status.connections.to_string());
    for (key, CallerCredentials { since: used, problem }) in &status.caller_credentials {
        let used = used
            .map_or_else(|| "not in use yet".to_owned(), |time| format!("in use since {time:.0}"));
        let why = problem.as_ref().map(|why| format!("; the newest is not: {why}"));
        row(key, used + &why.unwrap_or_default());
    }
    if let Some(expires) = status.grpc_certificate_expires {
        row("grpc certificate", format!("expires {expires:.0}"));
    }
    if let Some(expires) = status.callbacks_certificate_expires {
        row("callbacks certificate", format!("expires {expires:.0}"));
    }
    if !status.callbacks.is_empty() {
        let counts = status.callbacks.iter().map(|(outcome, count)| format!("{outcome} {count}"));
        row("callbacks", counts.collect::<Vec<_>>().join(", "));
    }
    if status.quarantine_evicted > 0 {
        let evicted = status.quarantine_evicted;
        row("quarantine", format!("full; {evicted} removed to make room since the start"));
    }
    for (account, standing) in &status.registrations {
        row(&format!("registration {account}"), standing.clone());
    }
    table(out, rows)
}

fn since(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "not known".to_owned(), |time| format!("{time:.0}"))
}

pub(super) fn accepted(out: &mut dyn Write, response: &AcceptLossResponse) -> anyhow::Result<()> {
    let since = since(response.remembers_since);
    let text = match &response.accepted {
        Some(what) if response.recovered => format!(
            "Accepted: {what}. The gateway has written the store again, and nothing is lost."
        ),
        Some(what) => format!("Accepted: {what}. Facts from before {since} may be missing."),
        None => format!("There is nothing to accept: the store has everything since {since}."),
    };
    Ok(writeln!(out, "{text}")?)
}

pub(super) fn unblocked(
    out: &mut dyn Write,
    name: &str,
    force: bool,
    response: &UnblockResponse,
) -> anyhow::Result<()> {
    let UnblockResponse { changed, rejections, lock } = response;
    if !changed {
        return Ok(writeln!(out, "Logins with credentials {name} are not stopped.")?);
    }
    writeln!(
        out,
        "One more login with credentials {name} is allowed; `status` shows its result. {}",
        if force {
            format!(
                "The count of rejected logins starts again at {rejections}, because you have \
                 logged in elsewhere. If the next login is not accepted, the earlier count is \
                 restored. ThingSpace locks the user at {lock} rejected logins in a row."
            )
        } else {
            format!(
                "ThingSpace may have counted {rejections} rejected logins in a row and locks the \
                 user at {lock}."
            )
        }
    )?;
    Ok(())
}

pub(super) fn orders(out: &mut dyn Write, orders: &[UnknownOrderItem]) -> anyhow::Result<()> {
    if orders.is_empty() {
        return Ok(writeln!(out, "There are no orders with an unknown outcome.")?);
    }
    let rows = orders.iter().map(|order| {
        let UnknownOrderItem { order_id, account, sent_time, devices } = order;
        [order_id.clone(), account.clone(), format!("{sent_time:.0}"), devices.to_string()]
    });
    table(out, with_head(["ORDER", "ACCOUNT", "SENT", "DEVICES"], rows))
}

pub(super) fn settled(
    out: &mut dyn Write,
    order: &str,
    request: Option<&RequestId>,
    response: &SettleResponse,
) -> anyhow::Result<()> {
    if let Some(why) = &response.not_confirmed {
        writeln!(out, "Not confirmed: {why}.")?;
    }
    match request {
        Some(id) => writeln!(out, "Order {order} was accepted as request {id}.")?,
        None => {
            writeln!(out, "Order {order} was not placed; its idempotency key is free again.")?;
        }
    }
    Ok(())
}

pub(super) fn registrations(
    out: &mut dyn Write,
    accounts: &[AccountRegistrations],
) -> anyhow::Result<()> {
    let rows = accounts.iter().flat_map(|AccountRegistrations { account, registrations }| {
        let items = registrations.iter().map(|item| {
            let owner = match item {
                item if item.ours => "this gateway",
                item if item.same_address => "another gateway at this address, or a lost store",
                _ => "another system",
            };
            [account, &item.service, &item.host, owner].map(str::to_owned)
        });
        let none = [account, "-", "-", "nothing is registered"].map(str::to_owned);
        items.chain(registrations.is_empty().then_some(none))
    });
    table(out, with_head(["ACCOUNT", "SERVICE", "HOST", "LEADS TO"], rows))
}

pub(super) fn registration(
    out: &mut dyn Write,
    account: &AccountName,
    response: RegistrationResponse,
    path: bool,
) -> anyhow::Result<()> {
    let new = if path { "a new path secret" } else { "a new user name and password" };
    let state = match response {
        RegistrationResponse::Unchanged => "is registered already",
        RegistrationResponse::Registered => "is registered",
        RegistrationResponse::Deregistered => "is deregistered",
        RegistrationResponse::Rotated => &format!("is registered with {new}"),
        RegistrationResponse::RotatedOnly => &format!(
            "has {new} but no registration, because it was deregistered; `callbacks register` \
             registers it"
        ),
        RegistrationResponse::NotRotated => {
            "keeps its user name and password; change the files that hold them first"
        }
    };
    Ok(writeln!(out, "Account {account} {state}.")?)
}

pub(super) fn quarantine(out: &mut dyn Write, items: &[QuarantineItem]) -> anyhow::Result<()> {
    if items.is_empty() {
        return Ok(writeln!(out, "The quarantine is empty.")?);
    }
    let rows = items.iter().map(|QuarantineItem { id, account, time, bytes }| {
        [id.to_string(), account.clone(), format!("{time:.0}"), bytes.to_string()]
    });
    table(out, with_head(["ID", "ACCOUNT", "RECEIVED", "BYTES"], rows))
}

pub(super) fn body(out: &mut dyn Write, callback: &QuarantinedCallback) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", escape(&callback.body))?)
}

fn with_head<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Vec<[String; N]> {
    std::iter::once(head.map(str::to_owned)).chain(rows).collect()
}

fn table<const N: usize>(out: &mut dyn Write, rows: Vec<[String; N]>) -> anyhow::Result<()> {
    let rows: Vec<_> = rows.into_iter().map(|row| row.map(|cell| escape(&cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:width$}  ")?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Whether a character could control a terminal or change the direction of the text around it.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}')
}

/// Escapes control characters, except tabs and line feeds.
pub(crate) fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if is_control(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_controls_a_terminal() {
        let body = "\u{1b}[31m \u{9b}2J \u{202e}txt\u{2066} ö \u{7f}";
        let mut out = Vec::new();
        json(&mut out, &body).unwrap();
        let shown = String::from_utf8(out).unwrap();
        assert!(!shown.trim_end().contains(is_control), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), body);
        assert!(!escape(body).contains(is_control), "{:?}", escape(body));
        assert!(escape(body).contains('ö'));
    }
}
