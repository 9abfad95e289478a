//! Reads the logs that the follower will need next, several at a time. Otherwise a start over a
//! network with long round trips would take minutes.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt as _, stream};
use tracing::debug;

use super::{Hub, TrackedState};
use crate::{
    identity::RequestId,
    requests::{
        fold::event::{self, Kind},
        lock,
    },
    store::{Entry, Followed, LogClass, LogName},
};

/// The maximum number of events for which logs are read ahead.
pub(super) const EVENTS: usize = 32;

/// The maximum number of logs that are read at the same time.
const READS: usize = 16;

/// Logs with a larger event, in bytes, are not read ahead, because few of them fit into memory.
const LARGEST_EVENT: usize = 16 * 1024;

/// Logs that were read ahead.
pub(super) type ReadAhead = HashMap<RequestId, TrackedState>;

impl Hub {
    /// Reads the logs that are needed to fold these events. If a read fails, the follower repeats
    /// it.
    pub(super) async fn read_ahead(&self, followed: &[Followed]) -> ReadAhead {
        let ids: HashSet<_> =
            followed.iter().filter_map(|followed| self.needed_request(followed)).collect();
        if ids.len() < 2 {
            return ReadAhead::default();
        }
        let reads: Vec<_> = ids.into_iter().map(|id| self.read_one(id)).collect();
        let mut reads = stream::iter(reads).buffer_unordered(READS);
        let mut ahead = ReadAhead::new();
        while let Some(read) = reads.next().await {
            ahead.extend(read);
        }
        ahead
    }

    async fn read_one(&self, id: RequestId) -> Option<(RequestId, TrackedState)> {
        match self.read(&id).await {
            Ok(folded) => Some((id, folded)),
            Err(error) => {
                debug!(request.id = %id, %error, "cannot read a log ahead");
                None
            }
        }
    }

    /// Returns the request whose log is needed to fold an event.
    fn needed_request(&self, followed: &Followed) -> Option<RequestId> {
        let Followed::Event(LogName { class: LogClass::Request, id }, Entry { event, .. }) =
            followed
        else {
            return None;
        };
        let id = RequestId::parse(id).ok().filter(|_| event.len() <= LARGEST_EVENT)?;
        let kind = event::decode(event)?.kind;
        let projection = lock(&self.projection);
        let known =
            projection.requests.contains_key(&id) || projection.closed_ahead.contains_key(&id);
        (!known && !matches!(kind, Some(Kind::CalledBack(_)))).then_some(id)
    }
}
