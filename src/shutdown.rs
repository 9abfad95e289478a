//! Turns signals into tokens: the first SIGTERM, SIGINT or SIGHUP asks for a drain, the second one
//! for an immediate end.
//!
//! SIGHUP is sent when a terminal closes. It does not reload files: the gateway reads them again
//! without a signal.

use std::{io, pin::pin, task::Poll};

use futures_util::{Stream, StreamExt, stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two requests to stop. Tests cancel the tokens themselves.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled to ask for a drain.
    pub soft: CancellationToken,
    /// Cancelled to ask for an immediate end.
    pub hard: CancellationToken,
}

impl Stop {
    /// Returns tokens that the process's signals cancel. Must be called in a Tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let mut signals = kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()?;
        let signals = stream::poll_fn(move |context| {
            let received = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if received { Poll::Ready(Some(())) } else { Poll::Pending }
        });
        let stop = Self::default();
        tokio::spawn(relay(signals, stop.clone()));
        Ok(stop)
    }
}

async fn relay(signals: impl Stream<Item = ()>, stop: Stop) {
    let mut signals = pin!(signals);
    for token in [stop.soft, stop.hard] {
        if signals.next().await.is_none() {
            return;
        }
        token.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_stops() {
        for (signals, soft, hard) in
            [(0, false, false), (1, true, false), (2, true, true), (3, true, true)]
        {
            let stop = Stop::default();
            relay(stream::iter(vec![(); signals]), stop.clone()).await;
            assert_eq!(
                (stop.soft.is_cancelled(), stop.hard.is_cancelled()),
                (soft, hard),
                "{signals} signals"
            );
        }
    }
}
