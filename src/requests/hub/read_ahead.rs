//! Reads the logs that the follower is about to need, several at once. One after the other, a start
//! over a network with long round trips would take minutes.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt as _, stream};
use tracing::debug;

use super::{Folded, Hub};
use crate::{
    identity::RequestId,
    requests::{
        fold::event::{self, Kind},
        lock,
    },
    store::{Entry, Followed, LogClass, LogName},
};

/// Events that the follower looks ahead.
pub(super) const EVENTS: usize = 32;

/// Logs that are read at once.
const READS: usize = 16;

/// A log whose event is larger is read when its turn comes, in bytes: few such logs fit into memory
/// at once.
const LARGEST_EVENT: usize = 16 * 1024;

/// Logs that were read before their event is folded.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(HashMap<RequestId, Folded>);

impl ReadAhead {
    pub(super) fn take(&mut self, id: &RequestId) -> Option<Folded> {
        self.0.remove(id)
    }
}

impl Hub {
    /// Reads the logs that these events need. One that cannot be read is left to the follower,
    /// which tries until it can.
    pub(super) async fn read_ahead(&self, followed: &[Followed]) -> ReadAhead {
        let ids: HashSet<_> = followed.iter().filter_map(|followed| self.needs(followed)).collect();
        if ids.len() < 2 {
            return ReadAhead::default();
        }
        let reads: Vec<_> = ids.into_iter().map(|id| self.read_one(id)).collect();
        let mut reads = stream::iter(reads).buffer_unordered(READS);
        let mut ahead = HashMap::new();
        while let Some(read) = reads.next().await {
            ahead.extend(read);
        }
        ReadAhead(ahead)
    }

    async fn read_one(&self, id: RequestId) -> Option<(RequestId, Folded)> {
        match self.read(&id).await {
            Ok(folded) => Some((id, folded)),
            Err(error) => {
                debug!(request.id = %id, %error, "cannot read a log ahead");
                None
            }
        }
    }

    /// The request whose log an event needs.
    fn needs(&self, followed: &Followed) -> Option<RequestId> {
        let Followed::Event(LogName { class: LogClass::Request, id }, Entry { event, .. }) =
            followed
        else {
            return None;
        };
        let id = RequestId::parse(id).ok().filter(|_| event.len() <= LARGEST_EVENT)?;
        let kind = event::decode(event)?.kind;
        let projection = lock(&self.projection);
        let known = projection.requests.contains_key(&id) || projection.ahead.contains_key(&id);
        (!known && !matches!(kind, Some(Kind::CalledBack(_)))).then_some(id)
    }
}
