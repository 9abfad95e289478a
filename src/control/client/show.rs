//! What is printed: JSON, or for people a sentence or a table, in which nothing can steer a terminal, whoever it came from.

use std::{fmt::Write as _, io::Write};

use serde::Serialize;

use crate::{
    control::{
        callbacks::{Done, Registered},
        logins::{Login, Unblocked},
        orders::UnknownOrder,
        quarantine::Quarantined,
        status::{Host, Status},
    },
    identity::AccountName,
};

pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

pub(super) fn status(out: &mut dyn Write, status: &Status) -> anyhow::Result<()> {
    let unknown = status.unknown_orders.map_or_else(|| "the store is away".to_owned(), |n| n.to_string());
    let ready = match &status.waits_for {
        Some(obstacle) => format!("no: {obstacle}"),
        None => if status.ready { "yes" } else { "no" }.to_owned(),
    };
    let store = match &status.store_trouble {
        Some(trouble) => format!("{}: {trouble}", status.store),
        None => status.store.clone(),
    };
    let mut rows = vec![
        ["ready".to_owned(), ready],
        ["store".to_owned(), store],
        ["open requests".to_owned(), status.open_requests.to_string()],
        ["open devices".to_owned(), status.open_devices.to_string()],
        ["unknown orders".to_owned(), unknown],
        ["finished by callback".to_owned(), status.finished_by_callback.to_string()],
        ["finished by poll".to_owned(), status.finished_by_poll.to_string()],
    ];
    let login = |login: &Login| [format!("credentials {}", login.credentials), login.standing.clone()];
    rows.extend(status.logins.iter().map(login));
    let host = |host: &Host| {
        let doing = match host.left_alone_ms {
            None => "is called".to_owned(),
            Some(wait) => format!("does not answer; the next attempt is made in {wait} ms at the earliest"),
        };
        [format!("host {}", host.host), doing]
    };
    rows.extend(status.hosts.iter().map(host));
    table(out, &rows)
}

pub(super) fn unblocked(out: &mut dyn Write, name: &str, done: &Unblocked) -> anyhow::Result<()> {
    let Unblocked { changed, rejections, lock } = done;
    if *changed {
        writeln!(
            out,
            "Credentials {name} are tried once more; `status` shows the result. ThingSpace may have counted \
             {rejections} rejected logins in a row and locks the user at {lock}."
        )?;
    } else {
        writeln!(out, "Nothing stops credentials {name}.")?;
    }
    Ok(())
}

pub(super) fn orders(out: &mut dyn Write, orders: &[UnknownOrder]) -> anyhow::Result<()> {
    if orders.is_empty() {
        return Ok(writeln!(out, "What became of every order is known.")?);
    }
    let head = ["ORDER", "ACCOUNT", "SENT", "DEVICES"].map(str::to_owned);
    let rows = orders.iter().map(|order| {
        [
            order.order_id.clone(),
            order.account.clone(),
            format!("{:.0}", order.sent_time),
            order.devices.to_string(),
        ]
    });
    table(out, &std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

pub(super) fn registered(out: &mut dyn Write, accounts: &[Registered]) -> anyhow::Result<()> {
    let head = ["ACCOUNT", "SERVICE", "HOST", "LEADS TO"].map(str::to_owned);
    let mut rows = vec![head];
    for Registered { account, registrations } in accounts {
        if registrations.is_empty() {
            rows.push([account, "-", "-", "nothing is registered"].map(str::to_owned));
        }
        for entry in registrations {
            let whose = if entry.ours { "this gateway" } else { "another" };
            rows.push([account, &entry.service, &entry.host, whose].map(str::to_owned));
        }
    }
    table(out, &rows)
}

pub(super) fn done(out: &mut dyn Write, account: &AccountName, done: Done) -> anyhow::Result<()> {
    let what = match done {
        Done::Unchanged => "is registered already",
        Done::Registered => "is registered",
        Done::Deregistered => "is not registered any more",
        Done::Rotated => "is registered with another user name and password",
        Done::NotRotated => "keeps its registration: change the files of its user name and password first",
    };
    Ok(writeln!(out, "Account {account} {what}.")?)
}

pub(super) fn quarantine(out: &mut dyn Write, kept: &[Quarantined]) -> anyhow::Result<()> {
    if kept.is_empty() {
        return Ok(writeln!(out, "The quarantine is empty.")?);
    }
    let head = ["ID", "ACCOUNT", "CAME", "BYTES"].map(str::to_owned);
    let rows = kept.iter().map(|one| {
        [one.id.to_string(), one.account.clone(), format!("{:.0}", one.time), one.bytes.to_string()]
    });
    table(out, &std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

pub(super) fn body(out: &mut dyn Write, body: &str) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", harmless(body))?)
}

fn table<const N: usize>(out: &mut dyn Write, rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(harmless(cell).chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{:width$}  ", harmless(cell))?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// With control characters written out, but for tabs and ends of lines.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}
