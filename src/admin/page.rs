//! The page `/status` for people: one HTML file without scripts and external resources.
//!
//! It shows what `status` shows, the worst first. Every text is escaped. It contains no secret and
//! no identity of a device. It loads itself again every [`REFRESH_SECONDS`].

use std::{
    fmt::{self, Display, Write as _},
    sync::LazyLock,
};

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;
use jiff::Timestamp;

use crate::{
    config::show_duration,
    control::status::{
        StatusResponse,
        issues::{Issue, IssueLevel},
    },
};

const REFRESH_SECONDS: u32 = 10;

const STYLE: &str = include_str!("page.css");

/// Allows the page's own style and nothing else.
pub(super) static CONTENT_SECURITY_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("a policy is ASCII")
});

/// A text that is escaped when it is written.
struct Text<'a, T: Display + ?Sized>(&'a T);

impl<T: Display + ?Sized> Display for Text<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_str("\u{fffd}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A text in which what is between backticks is shown as code.
struct Marked<'a>(&'a str);

impl Display for Marked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, part) in self.0.split('`').enumerate() {
            if n % 2 == 0 {
                write!(f, "{}", Text(part))?;
            } else {
                write!(f, "<code>{}</code>", Text(part))?;
            }
        }
        Ok(())
    }
}

/// Returns the page of a gateway that has not opened its store yet.
pub(super) fn starting() -> String {
    let mut page = Page::begin("starting", "");
    page.banner(
        "warning",
        "The gateway is starting.",
        "It opens its store, which may take a minute after a crash. If it lasts, read its log.",
    );
    page.end()
}

pub(super) fn of(status: &StatusResponse, now: Timestamp) -> String {
    let title = status.issues.first().map_or("well", |issue| class(issue.level));
    let age = now.duration_since(status.started).unsigned_abs().as_secs();
    let about = format!("version {}, running for {}, {:.0}", status.version, duration(age), now);
    let mut page = Page::begin(title, &about);
    page.issues(&status.issues);
    page.text("<div class=cards>");
    page.open_requests(status);
    page.errors(status);
    page.unknown_orders(status);
    page.credentials(status);
    page.hosts(status);
    page.store(status);
    page.callbacks(status);
    page.text("</div>");
    page.end()
}

/// The class of an issue in the style.
fn class(level: IssueLevel) -> &'static str {
    match level {
        IssueLevel::Failure => "failure",
        IssueLevel::Warning => "warning",
    }
}

fn duration(seconds: u64) -> String {
    // Seconds do not matter after an hour.
    let shown = if seconds >= 3_600 { seconds - seconds % 60 } else { seconds };
    show_duration(std::time::Duration::from_secs(shown))
}

struct Page(String);

impl Page {
    fn begin(title: &str, about: &str) -> Self {
        let mut page = Self(String::with_capacity(16 << 10));
        page.write(format_args!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta name=viewport \
             content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=refresh \
             content={REFRESH_SECONDS}>\n<title>thingspace-gateway: {}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<header><b>thingspace-gateway</b> \
             <span>{}</span></header>\n",
            Text(title),
            Text(about)
        ));
        page
    }

    fn end(mut self) -> String {
        self.text("\n</body>\n</html>\n");
        self.0
    }

    fn text(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// Texts in the arguments must be escaped.
    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(arguments);
    }

    fn banner(&mut self, class: &str, what: &str, action: &str) {
        self.write(format_args!(
            "<div class=\"banner {class}\"><h1>{}</h1><p>{}</p></div>\n",
            Marked(what),
            Marked(action)
        ));
    }

    fn issues(&mut self, issues: &[Issue]) {
        let Some((worst, others)) = issues.split_first() else {
            self.banner(
                "well",
                "Everything is well.",
                "Calls are answered. There is nothing to do.",
            );
            return;
        };
        self.banner(class(worst.level), &worst.what, &worst.action);
        if others.is_empty() {
            return;
        }
        self.text("<ul class=more>");
        for Issue { level, what, action, .. } in others {
            let class = class(*level);
            self.write(format_args!("<li class={class}>{} {}</li>", Marked(what), Marked(action)));
        }
        self.text("</ul>\n");
    }

    fn section(&mut self, title: &str, note: &str, body: impl FnOnce(&mut Self)) {
        self.write(format_args!("<section><h2>{} <span>{}</span></h2>", Text(title), Text(note)));
        body(self);
        self.text("</section>\n");
    }

    /// A row with a name and a value. The value must be escaped.
    fn row(&mut self, name: &str, value: impl Display) {
        self.write(format_args!("<tr><th>{}</th><td>{value}</td></tr>", Text(name)));
    }

    fn quiet(&mut self, text: &str) {
        self.write(format_args!("<p class=quiet>{}</p>", Marked(text)));
    }

    fn open_requests(&mut self, status: &StatusResponse) {
        let note = format!("{} with {} devices", status.open_requests, status.open_devices);
        self.section("Open requests", &note, |page| {
            let most = status.open_by_age.iter().map(|group| group.requests).max().unwrap_or(0);
            page.text(
                "<table><thead><tr><th>age<th><th class=number>requests\
                 <th class=number>devices</thead>",
            );
            for group in &status.open_by_age {
                let width = (group.requests * 100).checked_div(most).unwrap_or(0);
                page.write(format_args!(
                    "<tr><th>{}</th><td class=bar><svg viewBox=\"0 0 100 1\" \
                     preserveAspectRatio=none aria-hidden=true><rect width={width} height=1 />\
                     </svg></td><td class=number>{}</td><td class=number>{}</td></tr>",
                    Text(&group.age),
                    group.requests,
                    group.devices
                ));
            }
            page.text("</table>");
            page.quiet(&format!(
                "Finished since the start: {} by callbacks, {} by polls.",
                status.finished_by_callback, status.finished_by_poll
            ));
        });
    }

    fn errors(&mut self, status: &StatusResponse) {
        self.section("Errors of callers", "in the last hour, by reason", |page| {
            if status.errors.is_empty() {
                page.quiet("None.");
                return;
            }
            page.text("<table><thead><tr><th>reason<th>last (UTC)<th class=number>calls</thead>");
            for error in &status.errors {
                page.write(format_args!(
                    "<tr><td><code>{}</code></td><td>{}</td><td class=number>{}</td></tr>",
                    Text(&error.reason),
                    Text(&error.last.strftime("%H:%M:%S")),
                    error.calls
                ));
            }
            page.text("</table>");
        });
    }

    fn unknown_orders(&mut self, status: &StatusResponse) {
        let note = status.unknown_orders.map_or_else(String::new, |count| count.to_string());
        self.section("Orders of unknown outcome", &note, |page| {
            match status.unknown_orders {
                None => return page.quiet("The store cannot be read."),
                Some(0) => return page.quiet("None."),
                Some(_) => {}
            }
            page.text(
                "<table><thead><tr><th>order<th>account<th>sent<th class=number>devices\
                 </thead>",
            );
            for order in &status.oldest_unknown_orders {
                page.write(format_args!(
                    "<tr><td><code>{}</code></td><td class=fixed>{}</td><td>{}</td>\
                     <td class=number>{}</td></tr>",
                    Text(&order.order_id),
                    Text(&order.account),
                    Text(&format_args!("{:.0}", order.sent_time)),
                    order.devices
                ));
            }
            page.text("</table>");
            page.quiet(
                "Look in ThingSpace's portal, then run `orders settle ORDER --request-id REQUEST` \
                 or `orders settle ORDER --not-placed`.",
            );
        });
    }

    fn credentials(&mut self, status: &StatusResponse) {
        self.section("Credentials", "logins at ThingSpace", |page| {
            page.text("<table>");
            for login in &status.logins {
                let value = format!("{} {}", chip(login.healthy, "act"), Marked(&login.standing));
                page.row(&login.credentials, value);
            }
            page.text("</table>");
        });
    }

    fn hosts(&mut self, status: &StatusResponse) {
        self.section("ThingSpace", "", |page| {
            page.text("<table>");
            for host in &status.hosts {
                let bad = if host.left_alone_ms.is_some() { "down" } else { "look" };
                page.row(
                    &host.host,
                    format_args!("{} {}", chip(host.is_well(), bad), Text(&host.state())),
                );
            }
            page.text("</table>");
        });
    }

    fn store(&mut self, status: &StatusResponse) {
        let memory = &status.store_memory;
        self.section("Store", "", |page| {
            page.text("<table>");
            page.row("store", Text(&status.store));
            let trouble = memory.lost.as_ref().map(|lost| &lost.what);
            let trouble = trouble.or(status.store_trouble.as_ref());
            let state = trouble.map_or("can be read and written", String::as_str);
            page.row("state", format_args!("{} {}", chip(trouble.is_none(), "act"), Text(state)));
            if let Some(since) = memory.remembers_since {
                page.row("remembers since", Text(&format_args!("{since:.0}")));
            }
            let replicas = if status.shared_store {
                "any number of replicas share this store and see the same requests"
            } else {
                "one; only this process uses the store"
            };
            page.row("replicas", Text(replicas));
            if let Some(config) = &status.config {
                page.row("configuration", Text(&config.display()));
            }
            page.text("</table>");
        });
    }

    fn callbacks(&mut self, status: &StatusResponse) {
        self.section("Callbacks", "", |page| {
            if !status.takes_callbacks {
                page.quiet("Disabled. Results come by polling.");
                return;
            }
            page.text("<table>");
            for (account, standing) in &status.registrations {
                let good = standing == "registered";
                page.row(account, format_args!("{} {}", chip(good, "look"), Text(standing)));
            }
            for (outcome, count) in &status.callbacks {
                page.row(outcome, count);
            }
            if let Some(expires) = status.callbacks_certificate_expires {
                page.row("certificate expires", Text(&format_args!("{expires:.0}")));
            }
            page.text("</table>");
            if status.callbacks.is_empty() {
                page.quiet("None has arrived since the start.");
            }
        });
    }
}

fn chip(is_good: bool, bad: &str) -> String {
    let (class, text) = if is_good { ("good", "ok") } else { ("bad", bad) };
    format!("<span class=\"chip {class}\">{text}</span>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_contain_markup() {
        let text = Text("<script>alert('\"&\u{7}')</script>").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;&quot;&amp;\u{fffd}&#39;)&lt;/script&gt;");
    }
}
