//! The results: a row for each measurement, in JSON for programs and in Markdown for people, and a
//! comparison with another report.

use std::{fmt::Write as _, fs, path::Path};

use serde::{Deserialize, Serialize};

/// A ratio may become worse by this factor before the check fails.
const TOLERANCE: f64 = 1.5;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What was measured with, by name.
    pub(crate) machine: Vec<(String, String)>,
    pub(crate) sections: Vec<Section>,
}

/// The rows about one subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) gateway: Spread,
    pub(crate) reference: Option<Reference>,
    /// Of the gateway's value to the reference's, in each run.
    pub(crate) ratio: Option<Spread>,
    pub(crate) goal: Option<Goal>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) value: Spread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    CpuMicros,
    CpuMillis,
    Millis,
    Bytes,
    Megabytes,
    Count,
}

/// The most that a ratio or the gateway's value should be.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Goal {
    Ratio(f64),
    Value(f64),
}

/// The values of several runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Self::CpuMicros => "µs CPU",
            Self::CpuMillis => "ms CPU",
            Self::Millis => "ms",
            Self::Bytes => "B",
            Self::Megabytes => "MB",
            Self::Count => "",
        }
    }

    /// Whether other work on the machine hardly changes a ratio of this unit. It changes times.
    fn is_steady(self) -> bool {
        self != Self::Millis
    }
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { median, min, max }
    }
}

impl Section {
    pub(crate) fn new(title: impl Into<String>, text: impl Into<String>) -> Self {
        Self { title: title.into(), text: text.into(), rows: Vec::new() }
    }

    /// Adds a row. A reference has a value for each of the gateway's.
    pub(crate) fn row(
        &mut self,
        (id, what): (impl Into<String>, impl Into<String>),
        unit: Unit,
        gateway: &[f64],
        reference: Option<(&str, &[f64])>,
        goal: Option<Goal>,
    ) {
        let ratio = reference.map(|(_, values)| {
            assert_eq!(values.len(), gateway.len());
            let ratios = gateway.iter().zip(values).map(|(value, reference)| value / reference);
            Spread::of(&ratios.collect::<Vec<_>>())
        });
        let reference = reference
            .map(|(name, values)| Reference { name: name.to_owned(), value: Spread::of(values) });
        let (id, what, gateway) = (id.into(), what.into(), Spread::of(gateway));
        let row = Row { id, what, unit, gateway, reference, ratio, goal };
        println!("{}", row.line());
        self.rows.push(row);
    }
}

impl Row {
    /// Whether the goal is met, if there is one.
    fn is_met(&self) -> Option<bool> {
        match self.goal? {
            Goal::Ratio(limit) => Some(self.ratio?.median <= limit),
            Goal::Value(limit) => Some(self.gateway.median <= limit),
        }
    }

    /// Returns the row of a table.
    fn line(&self) -> String {
        let unit = self.unit.text();
        let value = |spread: &Spread| format!("{} {unit}", show(spread.median)).trim().to_owned();
        let reference = self.reference.as_ref().map_or_else(String::new, |reference| {
            format!("{}: {}", reference.name, value(&reference.value))
        });
        let ratio = self.ratio.map_or_else(String::new, |ratio| {
            format!("**{:.2}** ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
        });
        let goal = match self.goal {
            None => String::new(),
            Some(Goal::Ratio(limit)) => format!("≤ {limit} ×"),
            Some(Goal::Value(limit)) => format!("≤ {} {unit}", show(limit)).trim().to_owned(),
        };
        let met = self.is_met().map_or("", |is_met| if is_met { "yes" } else { "**no**" });
        let cells = [&self.what, &value(&self.gateway), &reference, &ratio, &goal, met];
        format!("| {} |", cells.join(" | "))
    }
}

/// Writes a number with three digits that matter.
pub(crate) fn show(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.decimals$}")
}

impl Report {
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|section| &section.rows)
    }

    pub(crate) fn row(&self, id: &str) -> Option<&Row> {
        self.rows().find(|row| row.id == id)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.machine {
            let _ = writeln!(text, "- {name}: {value}");
        }
        for section in &self.sections {
            let _ = writeln!(text, "\n### {}\n\n{}\n", section.title, section.text);
            text += "| what | gateway | reference | ratio | goal | met |\n";
            text += "|---|---|---|---|---|---|\n";
            for row in &section.rows {
                let _ = writeln!(text, "{}", row.line());
            }
        }
        text
    }

    pub(crate) fn read(path: &Path) -> Self {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Returns the ratios that are worse than those of another report by more than the tolerance.
    /// Compares no times, because other work on the machine changes them.
    pub(crate) fn regressions(&self, committed: &Self) -> Vec<String> {
        let worse = |row: &Row| {
            let before = committed.row(&row.id)?.ratio?.median;
            let now = row.ratio?.median;
            let is_worse = row.unit.is_steady() && now > before * TOLERANCE;
            is_worse.then(|| format!("{}: {now:.2}, committed {before:.2}", row.what))
        };
        self.rows().filter_map(worse).collect()
    }

    /// Prints by how much each ratio of another report of the same plan differs.
    pub(crate) fn print_differences(&self, other: &Self) {
        for row in self.rows() {
            let Some((one, two)) = row.ratio.zip(other.row(&row.id).and_then(|row| row.ratio))
            else {
                continue;
            };
            let percent = (two.median / one.median - 1.0) * 100.0;
            println!("{percent:+6.1} %  {:.2} {:.2}  {}", one.median, two.median, row.id);
        }
    }
}
