//! What is printed: JSON, or for people a sentence or a table, in which nothing can steer a
//! terminal, whoever it came from.

use std::{fmt::Write as _, io::Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    control::{
        callbacks::{Done, Registered},
        logins::{Login, Unblocked},
        orders::UnknownOrder,
        quarantine::Quarantined,
        status::{Host, Status},
        store::Acceptance,
    },
    identity::AccountName,
};

pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Such characters stand in strings only, where JSON takes them written out.
        if c != '\n' && steers(c) {
            write!(shown, "\\u{:04x}", u32::from(c))?;
        } else {
            shown.push(c);
        }
    }
    Ok(writeln!(out, "{shown}")?)
}

pub(super) fn status(out: &mut dyn Write, status: &Status) -> anyhow::Result<()> {
    let unknown =
        status.unknown_orders.map_or_else(|| "the store is away".to_owned(), |n| n.to_string());
    let ready = match (&status.waits_for, &status.limited) {
        (Some(obstacle), _) => format!("no: {obstacle}"),
        (None, Some(limited)) => format!("yes, but {limited}"),
        (None, None) => if status.ready { "yes" } else { "no" }.to_owned(),
    };
    let store = match &status.store_trouble {
        Some(trouble) if status.limited.is_none() => format!("{}: {trouble}", status.store),
        _ => status.store.clone(),
    };
    let config =
        status.config.as_ref().map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    let mut rows = vec![
        ["version".to_owned(), status.version.clone()],
        ["configuration".to_owned(), config],
        ["ready".to_owned(), ready],
        ["store".to_owned(), store],
        ["remembers since".to_owned(), since(status.store_memory.remembers_since)],
        ["open requests".to_owned(), status.open_requests.to_string()],
        ["open devices".to_owned(), status.open_devices.to_string()],
        ["unknown orders".to_owned(), unknown],
        ["finished by callback".to_owned(), status.finished_by_callback.to_string()],
        ["finished by poll".to_owned(), status.finished_by_poll.to_string()],
        ["stray callbacks".to_owned(), status.stray_callbacks.to_string()],
    ];
    if let Some(lost) = &status.store_memory.lost {
        let what =
            format!("{}, noticed {:.0}; `store accept-loss` accepts it", lost.what, lost.noticed);
        rows.insert(4, ["store lost".to_owned(), what]);
    }
    if let Some(why) = &status.store_memory.unprotected {
        rows.insert(4, ["store not protected".to_owned(), why.clone()]);
    }
    let unreadable = status.unreadable_logs.iter();
    rows.extend(unreadable.map(|log| [format!("damaged log {}", log.log), log.why.clone()]));
    let login =
        |login: &Login| [format!("credentials {}", login.credentials), login.standing.clone()];
    rows.extend(status.logins.iter().map(login));
    let host = |host: &Host| {
        let doing = match host.left_alone_ms {
            None => "is called".to_owned(),
            Some(wait) => {
                format!("does not answer; the next attempt is made in {wait} ms at the earliest")
            }
        };
        [format!("host {}", host.host), doing]
    };
    rows.extend(status.hosts.iter().map(host));
    if let Some(expires) = status.callbacks_certificate_expires {
        rows.push(["callbacks certificate".to_owned(), format!("expires {expires:.0}")]);
    }
    if !status.callbacks.is_empty() {
        let counts = status.callbacks.iter().map(|(outcome, count)| format!("{outcome} {count}"));
        rows.push(["callbacks".to_owned(), counts.collect::<Vec<_>>().join(", ")]);
    }
    if status.quarantine_evicted > 0 {
        let evicted =
            format!("full; {} removed to make room since the start", status.quarantine_evicted);
        rows.push(["quarantine".to_owned(), evicted]);
    }
    let registrations = status.registrations.iter();
    rows.extend(
        registrations.map(|(account, how)| [format!("registration {account}"), how.clone()]),
    );
    table(out, &rows)
}

fn since(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "not known".to_owned(), |time| format!("{time:.0}"))
}

pub(super) fn accepted(out: &mut dyn Write, done: &Acceptance) -> anyhow::Result<()> {
    let since = since(done.remembers_since);
    match &done.accepted {
        Some(what) if done.recovered => writeln!(
            out,
            "Accepted: {what}. The gateway has written the store again, and nothing is forgotten."
        )?,
        Some(what) => writeln!(out, "Accepted: {what}. Nothing from before {since} is certain.")?,
        None => writeln!(
            out,
            "There is nothing to accept: the store remembers everything since {since}."
        )?,
    }
    Ok(())
}

pub(super) fn unblocked(
    out: &mut dyn Write,
    name: &str,
    force: bool,
    done: &Unblocked,
) -> anyhow::Result<()> {
    let Unblocked { changed, rejections, lock } = done;
    if *changed && force {
        writeln!(
            out,
            "Credentials {name} are tried once more; `status` shows the result. The count of rejected logins begins \
             anew at {rejections}, for you have logged in elsewhere; if the next login is not accepted, the earlier \
             count comes back. ThingSpace locks the user at {lock} rejected logins in a row."
        )?;
    } else if *changed {
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

pub(super) fn done(
    out: &mut dyn Write,
    account: &AccountName,
    done: Done,
    path: bool,
) -> anyhow::Result<()> {
    let rotated =
        if path { "another secret in its path" } else { "another user name and password" };
    let what = match done {
        Done::Unchanged => "is registered already",
        Done::Registered => "is registered",
        Done::Deregistered => "is not registered any more",
        Done::Rotated => &format!("is registered with {rotated}"),
        Done::RotatedOnly => &format!(
            "has {rotated}, and no registration, because it was deregistered: `callbacks register` makes one"
        ),
        Done::NotRotated => {
            "keeps its user name and password: change the files that hold them first"
        }
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

/// Whether a character could steer a terminal or turn the direction of the text around it.
fn steers(c: char) -> bool {
    let direction = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// With what could steer a terminal written out, but for tabs and ends of lines.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c if steers(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_steers_a_terminal() {
        let body = "\u{1b}[31m \u{9b}2J \u{202e}txt\u{2066} ö \u{7f}";
        let mut out = Vec::new();
        json(&mut out, &body).unwrap();
        let shown = String::from_utf8(out).unwrap();
        assert!(!shown.trim_end().contains(steers), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), body);
        assert!(!harmless(body).contains(steers), "{:?}", harmless(body));
        assert!(harmless(body).contains('ö'));
    }
}
