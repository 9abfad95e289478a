//! `/metrics`: the Prometheus text format 0.0.4, or OpenMetrics 1.0 for scrapers that prefer it.
//!
//! The crate `prometheus` writes only the first. OpenMetrics differs from it in three ways that
//! matter here: the name of a counter's family lacks `_total`, a family may state its unit, and the
//! text ends with `# EOF`.

use std::{fmt::Write, sync::OnceLock};

use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Registry, TextEncoder};

const OPEN_METRICS: &str = "application/openmetrics-text";

/// The units that the end of a family's name states.
const UNITS: [&str; 2] = ["seconds", "bytes"];

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// The answer to a scrape.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) content_type: &'static str,
    pub(crate) text: String,
}

/// Returns the reader that [`scrape`] uses.
pub(super) fn reader() -> anyhow::Result<PrometheusExporter> {
    let registry = REGISTRY.get_or_init(Registry::new).clone();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry);
    Ok(exporter.scope_info_enabled(false).build()?)
}

/// Collects all metrics. Blocks, because gauges are read now. `accept` is the header of the
/// request. `None`: metrics are off.
pub(crate) fn scrape(accept: Option<&str>) -> Option<Scrape> {
    let families = REGISTRY.get()?.gather();
    // It fails only for a family without values, and the registry returns none.
    let text = TextEncoder::new().encode_to_string(&families).unwrap_or_default();
    Some(if accept.is_some_and(prefers_open_metrics) {
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Scrape { content_type, text: to_open_metrics(&text) }
    } else {
        Scrape { content_type: "text/plain; version=0.0.4; charset=utf-8", text }
    })
}

/// Whether the header `Accept` gives OpenMetrics at least the weight of plain text.
fn prefers_open_metrics(accept: &str) -> bool {
    let weight = |kinds: &[&str]| {
        let weights = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next()?.to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            kinds.contains(&kind.as_str()).then(|| weight.unwrap_or(1.0))
        });
        weights.fold(0.0, f64::max)
    };
    let open_metrics = weight(&[OPEN_METRICS]);
    open_metrics > 0.0 && open_metrics >= weight(&["text/plain"])
}

fn to_open_metrics(text: &str) -> String {
    let mut converted = String::with_capacity(text.len() + 4_096);
    for line in text.lines() {
        let Some((keyword, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '))
        else {
            converted.push_str(line);
            converted.push('\n');
            continue;
        };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let family = name.strip_suffix("_total").unwrap_or(name);
        // In OpenMetrics, quotes are escaped in HELP, too.
        let rest = if keyword == "HELP" { rest.replace('"', "\\\"") } else { rest.to_owned() };
        let _ = writeln!(converted, "# {keyword} {family} {rest}");
        let unit = UNITS.into_iter().find(|unit| family.ends_with(&format!("_{unit}")));
        if let Some(unit) = unit.filter(|_| keyword == "TYPE") {
            let _ = writeln!(converted, "# UNIT {family} {unit}");
        }
    }
    converted.push_str("# EOF\n");
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_used_if_it_is_preferred() {
        for (accept, preferred) in [
            ("text/plain", false),
            ("*/*", false),
            ("", false),
            ("application/openmetrics-text; version=1.0.0", true),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2",
                true,
            ),
            ("application/openmetrics-text;q=0.3, text/plain", false),
            ("application/openmetrics-text;q=0", false),
        ] {
            assert_eq!(prefers_open_metrics(accept), preferred, "{accept}");
        }
    }

    #[test]
    fn counters_units_and_the_end_differ() {
        let text = "# HELP a_total calls, \"all\"\n# TYPE a_total counter\na_total{b=\"c\"} 1\n\
                    # HELP d_seconds d\n# TYPE d_seconds gauge\nd_seconds 0.5\n";
        let expected = "# HELP a calls, \\\"all\\\"\n# TYPE a counter\na_total{b=\"c\"} 1\n\
                        # HELP d_seconds d\n# TYPE d_seconds gauge\n# UNIT d_seconds seconds\n\
                        d_seconds 0.5\n# EOF\n";
        assert_eq!(to_open_metrics(text), expected);
    }
}
