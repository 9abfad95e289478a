//! The findings of `doctor`, and their formats.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _, io::Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::control::client::escape;

/// The result of one check. The worst one decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The check was not made. Says nothing about the gateway.
    Skipped,
    /// Nothing to do.
    Ok,
    /// The gateway works, but something is missing, will fail later, or cannot be checked from
    /// here.
    Warning,
    /// Something fails.
    Failure,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was checked, for example `clock`.
    pub(super) check: Cow<'static, str>,
    /// Which one of several, for example a host. Empty: there is only one.
    pub(super) subject: String,
    pub(super) found: String,
    /// What to do. Empty: nothing, or `found` says it.
    pub(super) action: String,
}

/// The findings of a run, in the order of the checks.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        level: Level,
        check: impl Into<Cow<'static, str>>,
        subject: &str,
        found: impl Into<String>,
        action: impl Into<String>,
    ) {
        let (check, subject, found, action) =
            (check.into(), subject.to_owned(), found.into(), action.into());
        self.findings.push(Finding { level, check, subject, found, action });
    }

    pub(super) fn ok(&mut self, check: &'static str, subject: &str, found: impl Into<String>) {
        self.add(Level::Ok, check, subject, found, "");
    }

    pub(super) fn skipped(&mut self, check: &'static str, subject: &str, why: impl Into<String>) {
        self.add(Level::Skipped, check, subject, why, "");
    }

    pub(super) fn warning(
        &mut self,
        check: &'static str,
        subject: &str,
        found: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.add(Level::Warning, check, subject, found, action);
    }

    pub(super) fn failure(
        &mut self,
        check: &'static str,
        subject: &str,
        found: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.add(Level::Failure, check, subject, found, action);
    }

    /// Whether a check found something worse than `ok`.
    pub(super) fn has_problem(&self, check: &'static str) -> bool {
        self.findings.iter().any(|found| found.check == check && found.level > Level::Ok)
    }

    /// Whether there is a finding about a subject.
    pub(super) fn has(&self, check: &str, subject: &str) -> bool {
        self.findings.iter().any(|found| found.check == check && found.subject == subject)
    }

    pub(super) fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    pub(super) fn write_text(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { level, check, subject, found, action } in &self.findings {
            let subject =
                if subject.is_empty() { String::new() } else { format!("{}: ", escape(subject)) };
            writeln!(
                out,
                "{:<8} {check:<width$}  {subject}{}",
                level.as_str(),
                indented(found, width)
            )?;
            if !action.is_empty() {
                writeln!(out, "{:<8} {:<width$}  Do: {}", "", "", indented(action, width))?;
            }
        }
        let [failures, warnings, skipped] =
            [Level::Failure, Level::Warning, Level::Skipped].map(|level| self.count(level));
        writeln!(out, "\nfailures: {failures}, warnings: {warnings}, not checked: {skipped}")?;
        Ok(())
    }

    pub(super) fn write_json(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            worst: Level,
            findings: &'a [Finding],
        }
        let whole = Whole { worst: self.worst(), findings: &self.findings };
        Ok(writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?)
    }

    /// Writes the text format of Prometheus, for the textfile collector of its node exporter.
    /// Checks that were not made have no sample.
    pub(super) fn write_prometheus(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        const NAME: &str = "thingspace_gateway_doctor";
        let mut worst = BTreeMap::new();
        for finding in self.findings.iter().filter(|finding| finding.level > Level::Skipped) {
            let level = worst.entry((&finding.check, &finding.subject)).or_insert(finding.level);
            *level = finding.level.max(*level);
        }
        let mut text = format!(
            "# HELP {NAME}_check The result of a check: 0 ok, 1 warning, 2 failure.\n# TYPE \
             {NAME}_check gauge\n"
        );
        for ((check, subject), level) in worst {
            let level = u8::from(level > Level::Ok) + u8::from(level > Level::Warning);
            writeln!(
                text,
                "{NAME}_check{{check=\"{check}\",subject=\"{}\"}} {level}",
                label(subject)
            )?;
        }
        let now = Timestamp::now().as_second();
        write!(
            text,
            "# HELP {NAME}_run_timestamp_seconds When the checks were made.\n# TYPE \
             {NAME}_run_timestamp_seconds gauge\n{NAME}_run_timestamp_seconds {now}\n"
        )?;
        Ok(out.write_all(text.as_bytes())?)
    }
}

/// Escapes a text, and indents its later lines.
fn indented(text: &str, width: usize) -> String {
    escape(text).replace('\n', &format!("\n{:<8} {:<width$}  ", "", ""))
}

/// Escapes the value of a label.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
