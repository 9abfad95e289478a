//! A strict reader of the text formats of metrics.

use std::{collections::HashMap, net::SocketAddr};

use crate::harness::{Page, page_of};

/// The families of a scrape, by name.
#[derive(Debug, Default)]
pub struct Scrape(pub HashMap<String, Family>);

#[derive(Debug)]
pub struct Family {
    pub kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    /// What follows the family's name, such as `_bucket`.
    end: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Scrapes a gateway.
pub async fn scrape(admin: SocketAddr) -> Scrape {
    Scrape::parse(&get(admin, "text/plain").await.1, false)
}

/// Returns the type and the text of a scrape.
pub async fn get(admin: SocketAddr, accept: &str) -> (String, String) {
    let Page { status, headers, body } = page_of(admin, "/metrics", accept).await;
    assert_eq!(status, 200);
    (headers["content-type"].to_str().unwrap().to_owned(), body)
}

impl Scrape {
    /// Parses a text. Panics if it is not exactly as the format says, or repeats something.
    pub fn parse(text: &str, open_metrics: bool) -> Self {
        let body = if open_metrics {
            text.strip_suffix("# EOF\n").expect("the end is marked")
        } else {
            assert!(!text.contains("# EOF"));
            text
        };
        assert!(body.ends_with('\n'));
        let mut families = HashMap::new();
        let mut lines = body.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) =
                line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(line);
            assert!(is_name(name) && !help.is_empty(), "{line}");
            let line = lines.next().unwrap();
            let kind = line.strip_prefix(&format!("# TYPE {name} ")).expect(line).to_owned();
            if open_metrics && let Some(unit) = lines.peek().and_then(|l| l.strip_prefix("# UNIT "))
            {
                let unit = unit.strip_prefix(&format!("{name} ")).expect(unit);
                assert!(name.ends_with(&format!("_{unit}")), "{name} {unit}");
                lines.next();
            }
            let mut samples = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                samples.push(Sample::parse(line, name));
            }
            let family = Family { kind, samples };
            family.check(name, open_metrics);
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} twice");
        }
        Self(families)
    }

    /// The sum of the samples of a family with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.values(name, "", labels)
    }

    /// The number of values of a histogram with these labels.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.values(name, "_count", labels)
    }

    fn values(&self, name: &str, end: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| {
            sample.end == end
                && labels.iter().all(|(key, value)| {
                    sample.labels.iter().any(|(name, text)| name == key && text == value)
                })
        };
        let values: Vec<_> =
            self.0.get(name)?.samples.iter().filter(has).map(|sample| sample.value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

impl Family {
    fn check(&self, name: &str, open_metrics: bool) {
        assert!(!self.samples.is_empty(), "{name}");
        let mut seen = Vec::new();
        for sample in &self.samples {
            let Sample { end, labels, value } = sample;
            let ends: &[&str] = match &*self.kind {
                "counter" if open_metrics => &["_total"],
                "counter" | "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                kind => panic!("{name} is a {kind}"),
            };
            assert!(ends.contains(&&**end), "{name} {sample:?}");
            assert!(self.kind != "counter" || *value >= 0.0 && value.is_finite(), "{sample:?}");
            assert!(!seen.contains(&(end, labels)), "{name} {sample:?} twice");
            seen.push((end, labels));
        }
        assert_eq!(self.kind == "counter" && !open_metrics, name.ends_with("_total"), "{name}");
        if self.kind == "histogram" {
            self.check_histogram(name);
        }
    }

    fn check_histogram(&self, name: &str) {
        let of = |end: &'static str| self.samples.iter().filter(move |sample| sample.end == end);
        for count in of("_count") {
            let buckets: Vec<_> = of("_bucket")
                .filter_map(|bucket| {
                    let (mut labels, mut bound) = (bucket.labels.clone(), None);
                    labels.retain(|(key, value)| {
                        let is_bound = key == "le";
                        if is_bound {
                            bound = Some(number(value));
                        }
                        !is_bound
                    });
                    (labels == count.labels).then(|| (bound.unwrap(), bucket.value))
                })
                .collect();
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {buckets:?}");
            assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, count.value), "{name}");
            assert!(of("_sum").any(|sum| sum.labels == count.labels), "{name}");
        }
    }
}

impl Sample {
    fn parse(line: &str, family: &str) -> Self {
        let (name, mut rest) = line.split_at(line.find(['{', ' ']).expect(line));
        let end = name.strip_prefix(family).expect(line).to_owned();
        let mut labels = Vec::new();
        if let Some(after) = rest.strip_prefix('{') {
            rest = after;
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"").expect(line);
                assert!(is_name(key) && !key.contains(':'), "{line}");
                let close = unescaped_quote(after);
                labels.push((key.to_owned(), after[..close].to_owned()));
                rest = &after[close + 1..];
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            rest = &rest[1..];
        }
        let value = number(rest.strip_prefix(' ').expect(line));
        Self { end, labels, value }
    }
}

fn unescaped_quote(text: &str) -> usize {
    let mut escaped = false;
    text.find(|character| {
        let is_end = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        is_end
    })
    .unwrap()
}

fn number(text: &str) -> f64 {
    if text == "+Inf" { f64::INFINITY } else { text.parse().unwrap() }
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
}
