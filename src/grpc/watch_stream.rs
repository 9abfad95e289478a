//! An open watch: a stream of messages that ends with a status and the token that resumes it.
//!
//! A message is made when the server asks for it. Between two messages the stream holds no devices.

use std::{future::pending, pin::Pin};

use futures_util::{Stream, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tonic::Status;

use super::{
    fragment::{self, Fragment, Partial},
    service::DEADLINE,
    status,
};
use crate::{
    proto::esim::WatchRequestResponse,
    requests::{
        Error,
        watch::{Watch, WatchEvent},
    },
    store::StoreError,
};

/// The messages of a watch.
pub(super) type WatchMessages =
    Pin<Box<dyn Stream<Item = Result<WatchRequestResponse, Status>> + Send>>;

/// What ends a watch early.
#[derive(Debug)]
pub(super) struct WatchEnds {
    pub(super) deadline: Option<Instant>,
    /// When the caller's token expires.
    pub(super) expires: Option<Instant>,
    /// Cancelled when the drain begins.
    pub(super) drain: CancellationToken,
}

/// Returns the messages of a watch. The drain waits until `call` is dropped. `token` is the token
/// with which the watch began.
pub(super) fn messages(
    watch: Watch,
    token: String,
    ends: WatchEnds,
    call: TaskTrackerToken,
) -> WatchMessages {
    let stream =
        WatchStream { watch, partial: Partial::Nothing, token, ends, ended: false, _call: call };
    Box::pin(stream::unfold(stream, WatchStream::step))
}

/// An open watch.
struct WatchStream {
    watch: Watch,
    partial: Partial,
    /// The last token that was sent.
    token: String,
    ends: WatchEnds,
    ended: bool,
    _call: TaskTrackerToken,
}

impl WatchStream {
    async fn step(mut self) -> Option<(Result<WatchRequestResponse, Status>, Self)> {
        if self.ended {
            return None;
        }
        match self.next().await {
            Ok(Some(message)) => Some((Ok(message), self)),
            Ok(None) => None,
            Err(status) => {
                self.ended = true;
                Some((Err(status), self))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<WatchRequestResponse>, Status> {
        // Checked first, because a timer for a past instant fires too late. By then the middleware
        // has ended the stream without its token.
        if self.ends.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(self.ended_by(&DEADLINE));
        }
        let (deadline, expired) = (reached(self.ends.deadline), reached(self.ends.expires));
        let event = tokio::select! {
            event = self.watch.next() => event,
            // A token exists only after a complete revision.
            () = self.ends.drain.cancelled(), if self.partial == Partial::Nothing => {
                Err(Error::Draining)
            }
            () = deadline => Err(DEADLINE),
            () = expired, if self.partial == Partial::Nothing => {
                return Err(status::expired(&self.token));
            }
        };
        let Some(event) = event.map_err(|error| self.ended_by(&error))? else { return Ok(None) };
        let Some(Fragment { event: message, completes, partial }) =
            fragment::next(&event, self.partial)
        else {
            // The rest of a partly sent revision is no longer available. The caller resumes before
            // that revision.
            let reason = "the history of the request is no longer complete".to_owned();
            return Err(self.ended_by(&Error::Store(StoreError::Unavailable(reason))));
        };
        self.partial = partial;
        let Some((position, revision)) = completes else {
            // The watch returns the same transitions again by itself, but has to keep a snapshot.
            if let WatchEvent::Snapshot(snapshot) = event {
                self.watch.pause(snapshot);
            }
            let (event, resume_token) = (Some(message), String::new());
            return Ok(Some(WatchRequestResponse { event, resume_token, more: true }));
        };
        self.token = self.watch.complete(position, revision);
        let (event, resume_token) = (Some(message), self.token.clone());
        Ok(Some(WatchRequestResponse { event, resume_token, more: false }))
    }
}

impl WatchStream {
    fn ended_by(&self, error: &Error) -> Status {
        status::of_watch(error, &self.token)
    }
}

/// Waits until this instant, or forever.
async fn reached(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
