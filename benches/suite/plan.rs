//! How much is measured: for the committed report, in a few minutes, or for a check in CI.

use std::time::Duration;

/// The size of everything.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Runs of each measurement. The servers take turns within each.
    pub(crate) runs: usize,
    /// The time of one load.
    pub(crate) load: Duration,
    /// Calls in flight of the load of status calls.
    pub(crate) in_flight: &'static [usize],
    /// Numbers of open watches.
    pub(crate) watches: &'static [usize],
    /// Runs of the measurements of watches.
    pub(crate) watch_runs: usize,
    /// The time until memory that is no longer needed is returned to the system: 10 s for jemalloc.
    pub(crate) settle: Duration,
    /// How long the processor time of idle watches is measured; zero: not at all.
    pub(crate) idle: Duration,
    /// Watches that are cut and resumed.
    pub(crate) storm: usize,
    /// Watchers of one request, beside a single one.
    pub(crate) watchers: usize,
    /// Numbers of requests in the store of a start.
    pub(crate) histories: &'static [usize],
    /// Numbers of open requests whose memory is measured. A smaller number disappears in the memory
    /// of the process itself.
    pub(crate) open: &'static [usize],
    /// Whether NATS is measured, too.
    pub(crate) nats: bool,
}

const HEARTBEATS: Duration = Duration::from_secs(75);
const SETTLE: Duration = Duration::from_secs(12);

pub(crate) const FULL: Plan = Plan {
    name: "full",
    runs: 5,
    load: Duration::from_secs(3),
    in_flight: &[1, 64, 256],
    watches: &[1_000, 20_000, 100_000],
    watch_runs: 5,
    settle: Duration::from_secs(20),
    idle: HEARTBEATS,
    storm: 20_000,
    watchers: 10_000,
    histories: &[20_000, 100_000],
    open: &[10_000, 100_000, 1_000_000],
    nats: true,
};

pub(crate) const QUICK: Plan = Plan {
    name: "quick",
    runs: 3,
    load: Duration::from_secs(1),
    watches: &[20_000],
    watch_runs: 3,
    settle: SETTLE,
    idle: Duration::ZERO,
    open: &[10_000, 100_000],
    nats: false,
    ..FULL
};

pub(crate) const SMOKE: Plan = Plan {
    name: "smoke",
    load: Duration::from_millis(500),
    in_flight: &[64],
    watch_runs: 1,
    storm: 5_000,
    watchers: 1_000,
    histories: &[20_000],
    open: &[10_000],
    ..QUICK
};

/// Names a bench's row of a plan with several sizes, for example `20k`.
pub(crate) fn short(number: usize) -> String {
    if number >= 1_000 { format!("{}k", number / 1_000) } else { number.to_string() }
}

/// Writes a number with separators of thousands.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Converts a number of things for arithmetic.
pub(crate) fn float(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("benches count up to millions"))
}
