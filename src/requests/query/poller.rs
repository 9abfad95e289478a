//! Polling: every open request is asked about now and then, until it is finished or given up.
//!
//! The schedule is the lease: a cell per request counts its polls. A replica that thinks a poll is
//! due looks there first: if the count has moved since it looked last, another replica has polled,
//! and it waits another interval from now; else it swaps, and polls only if the swap won. So a
//! thousand watchers, or ten replicas, cost one poll, and whoever sees no count move for an
//! interval of its own takes over.
//!
//! Each account waits for its turn to call ThingSpace by itself, and only then is the request
//! chosen that is polled: the one that is most urgent at that time. So the backlog of one account
//! delays no other account, and a request that somebody has just begun to watch does not wait for
//! those that were due before.

mod schedule;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};
use uuid::Uuid;

use super::asker::{Asker, For};
use crate::requests::{
    age, append,
    error::Error,
    fold::event::Kind,
    hub::{Hint, Hub, Tracked},
};
use crate::{
    config::PollingConfig,
    identity::{AccountName, RequestId},
    proto::storage,
    store::{CellName, LogName, Store, StoreError, Swap, decode_cell, load_cell, swap_cell},
    thingspace::{Client, PollTurn},
};
use schedule::{Counted, Schedule, Turn, Urgency, polled_elsewhere, rest_after};

/// The longest interval where callbacks arrive, watched or not.
const LONGEST_CALLED_BACK: Duration = Duration::from_mins(10);

/// The pause after a failure to store what was withheld.
const RELEASE_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Poller {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    asker: Arc<Asker>,
    config: PollingConfig,
}

/// What the poller waited for.
enum Step {
    /// An account has its turn to call ThingSpace. `None`: no call can be made now.
    Turn(AccountName, Option<PollTurn>),
    Polled(AccountName, RequestId, Polled),
    Released(RequestId, Polled),
}

/// What became of a poll.
#[derive(Debug)]
enum Polled {
    /// Asked, here or by another replica.
    Again(Counted),
    /// What was withheld has been told, and nothing was asked.
    Released,
    /// The request is closed.
    Done,
    /// The store did not let us.
    Failed,
}

impl Poller {
    pub fn new(
        store: Arc<dyn Store>,
        client: Client,
        hub: Arc<Hub>,
        asker: Arc<Asker>,
        config: PollingConfig,
    ) -> Self {
        Self { store, client, hub, asker, config }
    }

    /// Polls until stopped. Questions under way end then, unless a caller waits for them; an answer
    /// that is there is stored.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut schedule = Schedule::default();
        let mut steps = JoinSet::new();
        loop {
            for account in schedule.begin_waiting(Instant::now()) {
                let poller = Arc::clone(&self);
                steps.spawn(async move {
                    let turn = poller.turn(&account).await;
                    Step::Turn(account, turn)
                });
            }
            while let Some((id, _)) = schedule.take_release(Instant::now()) {
                let poller = Arc::clone(&self);
                steps.spawn(async move {
                    let released = poller.release(&id).await;
                    Step::Released(id, released)
                });
            }
            let next = schedule.next();
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                hinted = self.hub.hints() => for (id, hint) in hinted {
                    self.look(&mut schedule, &id, hint);
                },
                Some(step) = steps.join_next() => match step {
                    Ok(Step::Turn(account, turn)) => {
                        let Some((id, at)) = schedule.take(&account, Instant::now()) else { continue };
                        let poller = Arc::clone(&self);
                        steps.spawn(async move {
                            let polled = poller.poll(&id, at.seen, turn).await;
                            Step::Polled(account, id, polled)
                        });
                    }
                    Ok(Step::Polled(account, id, polled)) => {
                        schedule.finished(&account);
                        self.settle(&mut schedule, &id, &polled);
                    }
                    Ok(Step::Released(id, released)) => self.settle(&mut schedule, &id, &released),
                    // It panicked, which was reported.
                    Err(_) => {}
                },
                () = due => {}
            }
        }
    }

    /// Waits for an account's turn to call ThingSpace.
    async fn turn(&self, account: &AccountName) -> Option<PollTurn> {
        let turn = self.client.prepare_poll(account).await;
        turn.inspect_err(|error| debug!(%error, "no poll can be made now")).ok()
    }

    /// A request is new here, or watched, or puzzling: its next poll may have to come sooner.
    fn look(&self, schedule: &mut Schedule, id: &RequestId, hint: Hint) {
        let Some(mut turn) = schedule.get(id).or_else(|| self.first_turn(id)) else { return };
        turn.hint = turn.hint.max(Some(hint));
        self.schedule(schedule, id, turn);
    }

    /// Where a request stands that was not polled here before. `None`: nobody knows whose it is.
    fn first_turn(&self, id: &RequestId) -> Option<Turn> {
        let tracked = self.hub.get(id)?;
        let (account, first, created) = {
            let request = &tracked.lock().request;
            (request.account.clone()?, request.first, request.create_time)
        };
        let age = age(&*self.store, first, created);
        let (now, longest) = (Instant::now(), self.longest(&tracked));
        Some(Turn::resumed(account, now, age, &self.config, longest, fastrand::f64()))
    }

    /// Notes when a request is due, unless it is under way.
    fn schedule(&self, schedule: &mut Schedule, id: &RequestId, mut turn: Turn) {
        if turn.due.is_some() {
            self.set_due(id, &mut turn);
        }
        schedule.set(id, turn);
    }

    fn settle(&self, schedule: &mut Schedule, id: &RequestId, polled: &Polled) {
        let now = Instant::now();
        let Some(before) = schedule.get(id) else { return };
        let turn = match polled {
            Polled::Done => {
                schedule.remove(id);
                // Somebody may have come while it was polled, whose hint found a poll under way.
                if self.hub.get(id).is_some_and(|tracked| is_polled(&tracked)) {
                    self.look(schedule, id, Hint::Look);
                }
                return;
            }
            Polled::Again(counted) => before.polled(now, *counted),
            Polled::Released => before,
            Polled::Failed => before.failed(now),
        };
        // It is under way no longer.
        self.schedule(schedule, id, Turn { due: Some((now, Urgency::Rest)), ..turn });
    }

    /// The longest interval of a request.
    fn longest(&self, tracked: &Tracked) -> Duration {
        let account = tracked.lock().request.account.clone();
        match account {
            Some(account) if self.hub.is_called_back(&account) => LONGEST_CALLED_BACK,
            _ if tracked.is_watched() => self.config.max_watched,
            _ => self.config.max,
        }
    }

    /// Says when a request is due: soon, if that is asked for, or in its turn; and when what was
    /// withheld has to be told.
    fn set_due(&self, id: &RequestId, turn: &mut Turn) {
        turn.due = Some((turn.last, Urgency::Rest));
        let Some(tracked) = self.hub.get(id) else { return };
        let took = tracked.asked().map_or(Duration::ZERO, |asked| asked.took);
        let longest = self.longest(&tracked);
        let longest =
            if turn.hint == Some(Hint::Soon) { self.config.min_age.min(longest) } else { longest };
        let urgency = match turn.hint {
            Some(Hint::Watched | Hint::Soon) => Urgency::First,
            Some(Hint::Look) | None if tracked.is_watched() || turn.count == 0 => Urgency::Watched,
            Some(Hint::Look) | None => Urgency::Rest,
        };
        turn.due = Some((turn.last + turn.interval(&self.config, longest, took), urgency));
        turn.release = tracked.withheld_until().map(|until| until.max(turn.last + RELEASE_RETRY));
    }

    /// Tells what was withheld for long enough.
    async fn release(&self, id: &RequestId) -> Polled {
        let Some(tracked) = self.hub.get(id) else { return Polled::Done };
        match self.asker.release(&tracked).await {
            Ok(()) if is_polled(&tracked) => Polled::Released,
            Ok(()) => Polled::Done,
            Err(error) => {
                say(id, &error);
                Polled::Failed
            }
        }
    }

    /// `seen`: what the request's cell said when this replica looked last.
    async fn poll(&self, id: &RequestId, seen: Option<u32>, turn: Option<PollTurn>) -> Polled {
        let Some(tracked) = self.hub.get(id) else { return Polled::Done };
        if !is_polled(&tracked) {
            return Polled::Done;
        }
        let (first, created) = {
            let request = &tracked.lock().request;
            (request.first, request.create_time)
        };
        let asked = match turn {
            Some(turn) => self.ask(id, &tracked, seen, turn).await,
            None => Polled::Failed,
        };
        if !is_polled(&tracked) {
            return Polled::Done;
        }
        if tracked.withheld_until().is_some() {
            return asked;
        }
        // Giving up cannot be undone, so no wall clock may bring it about.
        if age(&*self.store, first, created) >= self.config.give_up {
            return self.give_up(id).await;
        }
        asked
    }

    async fn ask(
        &self,
        id: &RequestId,
        tracked: &Arc<Tracked>,
        seen: Option<u32>,
        turn: PollTurn,
    ) -> Polled {
        let took = tracked.asked().map_or(Duration::ZERO, |asked| asked.took);
        let counted = match self.claim(id, seen, rest_after(took)).await {
            Ok(Claim::Ours(counted)) => counted,
            Ok(Claim::Others(counted)) => {
                debug!(request.id = %id, "another replica polls");
                return Polled::Again(counted);
            }
            Err(error) => {
                say(id, &error.into());
                return Polled::Failed;
            }
        };
        let asked = self
            .asker
            .refresh(tracked, Instant::now(), self.config.min_age, For::Poller(turn))
            .await;
        if let Err(error) = asked {
            say(id, &error);
        }
        Polled::Again(counted)
    }

    async fn give_up(&self, id: &RequestId) -> Polled {
        let event_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{id}/abandoned").as_bytes());
        let log = LogName::request(id.as_str());
        match append(
            &*self.store,
            &log,
            self.hub.first(id),
            event_id,
            Kind::Abandoned(storage::Abandoned {}),
        )
        .await
        {
            Ok(_) => {
                info!(request.id = %id, "gave up polling; the request is still pending");
                Polled::Done
            }
            Err(error) => {
                say(id, &error.into());
                Polled::Failed
            }
        }
    }

    /// Counts a poll in the request's cell, unless another replica has since this one looked.
    async fn claim(
        &self,
        id: &RequestId,
        seen: Option<u32>,
        rest: Duration,
    ) -> Result<Claim, StoreError> {
        let cell = CellName::retained(format!("poll/{id}"));
        let held = load_cell::<storage::Poll>(&*self.store, &cell).await?;
        let before = held.as_ref().map(|held| held.value.count);
        let version = held.as_ref().map(|held| held.version);
        if let Some(held) = held
            && polled_elsewhere(seen, before, self.store.exclusive())
        {
            return Ok(Claim::Others(counted(&held.value)));
        }
        let mut next = storage::Poll {
            count: before.unwrap_or(0).saturating_add(1),
            rest_ms: u32::try_from(rest.as_millis()).unwrap_or(u32::MAX),
            ..storage::Poll::default()
        };
        match swap_cell(&*self.store, &cell, version, &mut next).await? {
            // Its own rest follows from the answer.
            Swap::Swapped(_) => {
                Ok(Claim::Ours(Counted { count: next.count, rest: Duration::ZERO }))
            }
            Swap::Conflict(Some(held)) => Ok(Claim::Others(counted(&decode_cell(held.value)?))),
            // It has just expired: nobody polls.
            Swap::Conflict(None) => Ok(Claim::Others(Counted { count: 0, rest })),
        }
    }
}

/// Whose poll it is.
#[derive(Debug)]
enum Claim {
    Ours(Counted),
    Others(Counted),
}

fn counted(poll: &storage::Poll) -> Counted {
    Counted { count: poll.count, rest: Duration::from_millis(poll.rest_ms.into()) }
}

/// Client and store log their outages once; every open request repeating it would say no more.
fn say(id: &RequestId, error: &Error) {
    match error {
        Error::Internal(_) | Error::Store(StoreError::Corrupt(_) | StoreError::TooLarge(_)) => {
            error!(request.id = %id, %error, "a request cannot be polled");
        }
        error => debug!(request.id = %id, %error, "a request was not polled"),
    }
}

/// Open requests are, and one of others whose devices are not known yet as long as somebody watches
/// it.
fn is_polled(tracked: &Tracked) -> bool {
    let watched = tracked.is_watched();
    let request = &tracked.lock().request;
    !request.is_closed() || (watched && !request.known && !request.polling_stopped)
}
