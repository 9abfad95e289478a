//! What this process knows of the streams from the last check and from messages since.

use std::{collections::BTreeSet, fmt, mem, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    names::NatsNames,
    record::{self, EVENTS, Streams, marks},
};
use crate::{
    proto::storage::StoreRecord,
    store::{CellName, Loss, Position},
};

/// The highest sequences of the three streams that are known in an epoch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Positions {
    /// 0: not known yet.
    epoch: u64,
    last: [u64; 3],
}

impl Positions {
    pub(super) fn of(record: &StoreRecord) -> Self {
        let last = record::streams(record).map(|stream| stream.map_or(0, |of| of.last_sequence));
        Self { epoch: record.epoch, last }
    }

    /// Returns the sequences, or zeros if they are of another epoch.
    pub(super) fn in_epoch(self, epoch: u64) -> [u64; 3] {
        if self.epoch == epoch { self.last } else { [0; 3] }
    }

    pub(super) fn epoch(self) -> u64 {
        self.epoch
    }
}

/// Epoch and sequences, separated by colons.
impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [events, cells, keys] = self.last;
        write!(f, "{}:{events}:{cells}:{keys}", self.epoch)
    }
}

impl FromStr for Positions {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Result<Vec<u64>, _> = text.split(':').map(str::parse).collect();
        let numbers: [u64; 4] = numbers.map_err(drop)?.try_into().map_err(drop)?;
        let [epoch, last @ ..] = numbers;
        Ok(Self { epoch, last })
    }
}

/// Identifies a message of a gateway in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MessageId {
    pub(super) sequence: u64,
    /// Its unique `Nats-Msg-Id`.
    pub(super) id: String,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The highest sequences that were found, acknowledged or delivered.
    pub(super) seen: Positions,
    /// The newest message of each stream that was acknowledged or delivered in the epoch of `seen`.
    newest: [Option<MessageId>; 3],
    /// A retained cell that must exist.
    pub(super) key_mark: Option<CellName>,
    pub(super) remembers_since: Option<Timestamp>,
    pub(super) cells_lost: bool,
    /// See [`StoreRecord::cell_subjects`]. The stored record has each of them.
    pub(super) cell_subjects: BTreeSet<String>,
    /// See [`StoreRecord::void_to`].
    pub(super) void_to: u64,
    pub(super) loss: Option<Loss>,
    /// The answer of this process to gateways that request the record.
    pub(super) record: Option<StoreRecord>,
    /// The servers' time at the last check, and the moment of that check.
    clock: Option<(Timestamp, Instant)>,
    /// This host's clock was wrong at the last check.
    clock_is_off: bool,
    /// Why a server's clock is not trusted.
    clock_error: Option<String>,
}

/// A larger difference between this host's clock and the servers' is logged.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// How far a server's clock may be ahead. Such a server deletes keys and events too early. That
/// does no harm, because they are kept for a day longer than they are needed.
const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(1);

/// Returns whether a server's clock, which shows `now`, is ahead of this host's clock and also of a
/// second time. That is the time that the server should show by the last check or, at the start,
/// the time of the newest message. So a host with a wrong clock, or one that was suspended, still
/// trusts its servers.
fn is_ahead(
    now: Timestamp,
    host: Timestamp,
    expected: Option<Timestamp>,
    newest: Option<Timestamp>,
) -> bool {
    let is_after = |time: Timestamp, other: Timestamp| time.duration_since(other) > MAX_AHEAD;
    is_after(now, host)
        && match (expected, newest) {
            (Some(expected), _) => is_after(now, expected),
            // If the newest message is in the host's future, the host's clock is wrong.
            (None, Some(newest)) => !is_after(newest, host),
            // A new store holds nothing that the server could delete.
            (None, None) => false,
        }
}

fn elapsed(since: Instant) -> SignedDuration {
    SignedDuration::try_from(since.elapsed()).unwrap_or_default()
}

impl Facts {
    /// Returns whether a check has succeeded since the process started.
    pub(super) fn has_checked(&self) -> bool {
        self.clock.is_some()
    }

    /// Fails while a server's clock is ahead. The text stays the same, so that it is logged once.
    pub(super) fn check_clocks(
        &mut self,
        names: &NatsNames,
        found: &Streams,
    ) -> Result<(), String> {
        let host = Timestamp::now();
        let expected = self.clock.and_then(|(then, at)| then.checked_add(elapsed(at)).ok());
        let stored = found.iter().flatten().filter(|stream| stream.state.last_seq > 0);
        let newest = stored.map(|stream| stream.state.last_time).max();
        let mut streams = found.iter().zip(names.streams());
        let ahead = streams.find_map(|(found, name)| {
            let now = found.as_ref()?.now;
            is_ahead(now, host, expected, newest).then_some((now, name))
        });
        let Some((now, name)) = ahead else {
            self.clock_error = None;
            return Ok(());
        };
        let why = self.clock_error.get_or_insert_with(|| {
            let hours = now.duration_since(host).as_hours();
            let other = match expected {
                Some(_) => "the time that it should show",
                None => "every stored message",
            };
            format!(
                "the clock of the NATS server that leads stream {name} is {hours} h ahead of this \
                 host's clock and of {other}. It deletes what is not old enough, so nothing is \
                 ordered. Stop that server and set its clock; if this host's clock is wrong, set \
                 that one"
            )
        });
        Err(why.clone())
    }

    /// Takes over a record and the servers' time after a check that found no loss.
    pub(super) fn learn(&mut self, record: &StoreRecord, now: Timestamp) {
        if self.seen.epoch != record.epoch {
            self.newest = Default::default();
        }
        let before = self.seen.in_epoch(record.epoch);
        self.seen = Positions::of(record);
        for (seen, before) in self.seen.last.iter_mut().zip(before) {
            *seen = before.max(*seen);
        }
        self.key_mark = marks::oldest_key(record, now);
        self.remembers_since = Timestamp::from_millisecond(record.remembers_since_ms).ok();
        self.cells_lost = record.cells_lost;
        self.void_to = record.void_to;
        self.cell_subjects = record.cell_subjects.iter().cloned().collect();
        self.loss = None;
        self.record = Some(record.clone());
        self.clock = Some((now, Instant::now()));
        self.compare_clocks(Timestamp::now().duration_since(now));
    }

    /// Logs when this host's clock begins to differ from the servers', and when they agree again.
    /// `ahead`: how far this host's clock is ahead.
    fn compare_clocks(&mut self, ahead: SignedDuration) {
        let is_off = ahead.abs() > CLOCK_TOLERANCE;
        match (mem::replace(&mut self.clock_is_off, is_off), is_off) {
            (false, true) => {
                let relation = if ahead.is_negative() { "ahead of" } else { "behind" };
                tracing::warn!(
                    by = format_args!("{:#}", ahead.abs()),
                    "the clock of the NATS servers is {relation} this host's. Set the wrong one. \
                     Stop a server that is ahead: it deletes what is not old enough"
                );
            }
            (true, false) => {
                tracing::info!("the clocks of this host and of the NATS servers agree again");
            }
            _ => {}
        }
    }

    /// Remembers a message that was acknowledged or delivered.
    pub(super) fn saw(&mut self, epoch: u64, stream: usize, message: MessageId) {
        if self.seen.epoch != epoch {
            return;
        }
        let (last, newest) = (&mut self.seen.last[stream], &mut self.newest[stream]);
        *last = message.sequence.max(*last);
        if message.sequence > newest.as_ref().map_or(0, |newest| newest.sequence) {
            *newest = Some(message);
        }
    }

    /// Returns the newest message of a stream that was acknowledged or delivered in an epoch.
    pub(super) fn newest(&self, epoch: u64, stream: usize) -> Option<MessageId> {
        self.newest[stream].clone().filter(|_| self.seen.epoch == epoch)
    }

    /// Returns the end of the stream of events, as far as it is known.
    pub(super) fn end(&self) -> Option<Position> {
        let Positions { epoch, last } = self.seen;
        (epoch > 0).then_some(Position { epoch, sequence: last[EVENTS] })
    }

    /// Returns the age of a time stamp of the servers. Zero until the servers' time is known.
    pub(super) fn age(&self, time: Timestamp) -> Duration {
        let Some((then, at)) = self.clock else { return Duration::ZERO };
        let age = then.duration_since(time).saturating_add(elapsed(at));
        age.try_into().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ahead_if_nothing_agrees_with_it() {
        const DAYS: i64 = 40 * 24;
        let at = |hours| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        // A running gateway compares with the expected time and with its host's clock.
        assert!(is_ahead(at(DAYS), at(0), Some(at(0)), Some(at(0))));
        assert!(is_ahead(at(DAYS), at(-DAYS), Some(at(0)), Some(at(0))));
        assert!(!is_ahead(at(1), at(0), Some(at(0)), Some(at(0))));
        // The host was suspended, or the server's clock was behind.
        assert!(!is_ahead(at(DAYS), at(DAYS), Some(at(0)), Some(at(0))));
        // The host's clock is wrong.
        for host in [-DAYS, DAYS] {
            assert!(!is_ahead(at(5), at(host), Some(at(5)), Some(at(0))));
        }
        // At the start, the newest message is compared with the host's clock.
        assert!(is_ahead(at(DAYS), at(0), None, Some(at(-5))));
        assert!(is_ahead(at(DAYS), at(0), None, Some(at(0))));
        assert!(!is_ahead(at(DAYS), at(0), None, Some(at(DAYS - 5))));
        assert!(!is_ahead(at(DAYS), at(0), None, None));
        assert!(!is_ahead(at(-DAYS), at(0), None, Some(at(0))));
    }

    #[tokio::test(start_paused = true)]
    async fn age_goes_by_the_servers_clock_and_never_by_the_hosts() {
        let hours = SignedDuration::from_hours;
        let mut facts = Facts::default();
        assert_eq!(
            facts.age(Timestamp::MIN),
            Duration::ZERO,
            "nothing is old before the time is known"
        );
        for off in [hours(-40 * 24), hours(0), hours(40 * 24)] {
            // The servers' clock differs from this host's by `off`.
            let servers = Timestamp::now() + off;
            facts.learn(&StoreRecord::default(), servers);
            assert_eq!(facts.clock_is_off, !off.is_zero());
            assert_eq!(facts.age(servers - hours(2)), Duration::from_hours(2));
            assert_eq!(facts.age(servers + hours(2)), Duration::ZERO);
            tokio::time::advance(Duration::from_hours(1)).await;
            assert_eq!(facts.age(servers - hours(2)), Duration::from_hours(3));
        }
    }
}
