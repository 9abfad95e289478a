//! What the keeper knows, for those who cannot wait for it.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    names::Names,
    record::{self, EVENTS, Streams},
};
use crate::{
    proto::storage::StoreRecord,
    store::{CellName, Loss, Position},
};

/// The last sequences that were found, acknowledged or delivered in an epoch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// 0: not known yet.
    epoch: u64,
    last: [u64; 3],
}

impl Seen {
    pub(super) fn in_epoch(self, epoch: u64) -> [u64; 3] {
        if self.epoch == epoch { self.last } else { [0; 3] }
    }

    pub(super) fn epoch(self) -> u64 {
        self.epoch
    }

    /// What a record knows.
    pub(super) fn of(record: &StoreRecord) -> Self {
        let last = record::streams(record).map(|stream| stream.map_or(0, |of| of.last_sequence));
        Self { epoch: record.epoch, last }
    }
}

/// The epoch and the sequences, separated by colons.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [events, cells, keys] = self.last;
        write!(f, "{}:{events}:{cells}:{keys}", self.epoch)
    }
}

impl FromStr for Seen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Result<Vec<u64>, _> = text.split(':').map(str::parse).collect();
        let numbers: [u64; 4] = numbers.map_err(drop)?.try_into().map_err(drop)?;
        let [epoch, last @ ..] = numbers;
        Ok(Self { epoch, last })
    }
}

/// A message of ours in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) sequence: u64,
    /// Its `Nats-Msg-Id`, which no other message has.
    pub(super) id: String,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) seen: Seen,
    /// The newest message of each stream that was acknowledged or delivered in the epoch of `seen`.
    newest: [Option<Message>; 3],
    /// The retained cell that must be there.
    pub(super) key_mark: Option<CellName>,
    pub(super) remembers_since: Option<Timestamp>,
    pub(super) cells_lost: bool,
    /// See [`StoreRecord::cell_subjects`]. Each of them is in the stored record.
    pub(super) cell_subjects: BTreeSet<String>,
    /// See [`StoreRecord::void_to`].
    pub(super) void_to: u64,
    pub(super) loss: Option<Loss>,
    /// What this process tells gateways that ask.
    pub(super) record: Option<StoreRecord>,
    /// The servers' time at the last look, and when that was.
    clock: Option<(Timestamp, Instant)>,
    /// This host's clock was off at the last look.
    clock_is_off: bool,
    /// Why the servers' time is not believed.
    leap: Option<String>,
}

/// How far this host's clock may be off the servers' before that is reported.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// How far a server's clock may be ahead of the time that is expected. A server whose clock is
/// ahead deletes keys and events too early, and keeps them for a day longer than they are needed.
const LEAP: SignedDuration = SignedDuration::from_hours(1);

/// Whether a server's clock, which shows `now`, is wrong. It must be ahead of this host's clock,
/// and of one more witness: the time that has passed since the last look, or, at the start, the
/// newest message. So a host whose clock is wrong, or that was suspended, is no reason to distrust
/// a server.
fn is_ahead(
    now: Timestamp,
    host: Timestamp,
    expected: Option<Timestamp>,
    newest: Option<Timestamp>,
) -> bool {
    let is_after = |time: Timestamp, other: Timestamp| time.duration_since(other) > LEAP;
    is_after(now, host)
        && match (expected, newest) {
            (Some(expected), _) => is_after(now, expected),
            // Messages from the future are from servers that agree with this one.
            (None, Some(newest)) => !is_after(newest, host),
            // A new store has nothing to lose.
            (None, None) => false,
        }
}

impl Facts {
    /// Whether the streams were found to be right at least once.
    pub(super) fn knows_the_streams(&self) -> bool {
        self.clock.is_some()
    }

    /// Fails, always with the same words, while a server's clock is ahead.
    pub(super) fn check_clocks(&mut self, names: &Names, found: &Streams) -> Result<(), String> {
        let host = Timestamp::now();
        let elapsed = |at: Instant| SignedDuration::try_from(at.elapsed()).unwrap_or_default();
        let expected = self.clock.and_then(|(then, at)| then.checked_add(elapsed(at)).ok());
        let stored = found.iter().flatten().filter(|stream| stream.last_sequence > 0);
        let newest = stored.map(|stream| stream.last_time).max();
        let mut streams = found
            .iter()
            .zip(names.streams())
            .filter_map(|(found, name)| Some((found.as_ref()?, name)));
        let ahead = streams.find(|(found, _)| is_ahead(found.now, host, expected, newest));
        let Some((found, name)) = ahead else {
            self.leap = None;
            return Ok(());
        };
        let why = self.leap.get_or_insert_with(|| {
            let hours = found.now.duration_since(host).as_hours();
            let other = if expected.is_some() { "the time that it should show" } else { "every stored message" };
            format!(
                "the clock of the NATS server that leads stream {name} is {hours} h ahead of this host's clock and of \
                 {other}. It deletes what is not old enough, so nothing is ordered. Stop that server and set its clock; \
                 if this host's clock is wrong, set that one"
            )
        });
        Err(why.clone())
    }

    /// Takes note of a record, and of the servers' time.
    pub(super) fn learn(&mut self, record: &StoreRecord, now: Timestamp) {
        if self.seen.epoch != record.epoch {
            self.newest = Default::default();
        }
        let before = self.seen.in_epoch(record.epoch);
        self.seen = Seen::of(record);
        for (seen, before) in self.seen.last.iter_mut().zip(before) {
            *seen = before.max(*seen);
        }
        self.key_mark = record::oldest_key_mark(record, now);
        self.remembers_since = Timestamp::from_millisecond(record.remembers_since_ms).ok();
        self.cells_lost = record.cells_lost;
        self.void_to = record.void_to;
        self.cell_subjects = record.cell_subjects.iter().cloned().collect();
        self.loss = None;
        self.record = Some(record.clone());
        self.clock = Some((now, Instant::now()));
        self.compare_clocks(Timestamp::now().duration_since(now));
    }

    /// Reports, once per change, by how much this host's clock is ahead of the servers'.
    fn compare_clocks(&mut self, ahead: SignedDuration) {
        let is_off = ahead.abs() > CLOCK_TOLERANCE;
        match (std::mem::replace(&mut self.clock_is_off, is_off), is_off) {
            (false, true) if ahead.is_negative() => tracing::warn!(
                by = format_args!("{:#}", ahead.abs()),
                "the clock of the NATS servers is ahead of this host's. Set the wrong one. If it is a server's, stop that \
                 server at once: it deletes by its own clock what is not old enough"
            ),
            (false, true) => tracing::warn!(
                by = format_args!("{ahead:#}"),
                "the clock of the NATS servers is behind this host's. Set the wrong one"
            ),
            (true, false) => {
                tracing::info!("the clocks of this host and of the NATS servers agree again");
            }
            _ => {}
        }
    }

    /// A message was acknowledged or delivered.
    pub(super) fn saw(&mut self, epoch: u64, stream: usize, message: Message) {
        if self.seen.epoch != epoch {
            return;
        }
        let (last, newest) = (&mut self.seen.last[stream], &mut self.newest[stream]);
        *last = message.sequence.max(*last);
        if message.sequence > newest.as_ref().map_or(0, |newest| newest.sequence) {
            *newest = Some(message);
        }
    }

    /// The newest message of a stream that was acknowledged or delivered in an epoch.
    pub(super) fn newest(&self, epoch: u64, stream: usize) -> Option<Message> {
        self.newest[stream].clone().filter(|_| self.seen.epoch == epoch)
    }

    /// Where the stream of events ends, as far as is known.
    pub(super) fn end(&self) -> Option<Position> {
        let Seen { epoch, last } = self.seen;
        (epoch > 0).then_some(Position { epoch, sequence: last[EVENTS] })
    }

    /// How long ago the servers stamped something. Before their time is known, everything is new.
    pub(super) fn age(&self, time: Timestamp) -> Duration {
        let Some((then, at)) = self.clock else { return Duration::ZERO };
        let at_the_look = then.duration_since(time);
        let elapsed = SignedDuration::try_from(at.elapsed()).unwrap_or_default();
        at_the_look.saturating_add(elapsed).try_into().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ahead_if_nothing_agrees_with_it() {
        const DAYS: i64 = 40 * 24;
        let at = |hours| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        // What a running gateway expects decides, and so does its host.
        assert!(is_ahead(at(DAYS), at(0), Some(at(0)), Some(at(0))));
        assert!(is_ahead(at(DAYS), at(-DAYS), Some(at(0)), Some(at(0))));
        assert!(!is_ahead(at(1), at(0), Some(at(0)), Some(at(0))));
        // The host was suspended, or the server's clock was behind.
        assert!(!is_ahead(at(DAYS), at(DAYS), Some(at(0)), Some(at(0))));
        // The host's clock is wrong.
        for host in [-DAYS, DAYS] {
            assert!(!is_ahead(at(5), at(host), Some(at(5)), Some(at(0))));
        }
        // At the start the messages decide.
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
            // Relative to the servers, this host is off by so much.
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
