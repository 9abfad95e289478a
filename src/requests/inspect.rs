//! What operators see of open requests and orders, and of one request and its history.
//!
//! Reads the projection and the store. Changes nothing, and sends nothing to ThingSpace. The
//! identities of devices are masked, unless an operator asks for them.

pub(crate) mod ages;
mod timeline;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use timeline::TimelineEvent;
use timeline::{Timeline, show_device};

use super::{
    Requests, age,
    fold::state::{DeviceState, DeviceStatus, Request, RequestState},
    hub::Tracked,
    orders::resolve::UnknownOrder,
};
use crate::{
    identity::{AccountName, RequestId},
    store::{LogName, StoreError},
};

/// The maximum number of devices of a request that are shown. The first ones without a result come
/// first.
const SHOWN_DEVICES: usize = 100;

/// The state of something that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpenState {
    /// An order that is being sent.
    Sending,
    /// An order of unknown outcome.
    Unknown,
    /// A request without any result.
    Pending,
    /// A request with results for some of its devices.
    Partial,
}

impl OpenState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sending => "sending",
            Self::Unknown => "unknown",
            Self::Pending => "pending",
            Self::Partial => "partial",
        }
    }
}

/// An open request, or an order without a known outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenItem {
    /// `None`: an order without a known outcome.
    pub(crate) request_id: Option<String>,
    /// `None`: an external request.
    pub(crate) order_id: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) state: OpenState,
    /// When the order was sent, or the request was first seen.
    pub(crate) create_time: Timestamp,
    /// By the store's time.
    pub(crate) age_seconds: u64,
    pub(crate) devices: usize,
    pub(crate) devices_with_result: usize,
    /// The caller that ordered, if it is known.
    pub(crate) caller: Option<String>,
    pub(crate) watches: usize,
    /// The time since ThingSpace answered this replica's last status query.
    pub(crate) queried_seconds_ago: Option<u64>,
}

/// A request with its history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RequestDetails {
    pub(crate) request_id: String,
    /// `None`: only callbacks name the request, and its account is not known.
    pub(crate) account: Option<String>,
    /// `None`: an external request.
    pub(crate) order_id: Option<String>,
    pub(crate) caller: Option<String>,
    pub(crate) state: String,
    pub(crate) revision: u64,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    pub(crate) age_seconds: u64,
    pub(crate) polling: Polling,
    pub(crate) watches: Vec<CallerWatches>,
    pub(crate) devices_total: usize,
    pub(crate) devices_succeeded: usize,
    pub(crate) devices_failed: usize,
    /// At most [`SHOWN_DEVICES`]. Those without a result come first.
    pub(crate) devices: Vec<DeviceDetails>,
    /// The events, oldest first.
    pub(crate) timeline: Vec<TimelineEvent>,
    /// The number of events that are left out of the middle of the timeline.
    pub(crate) events_left_out: usize,
}

/// How ThingSpace is asked about a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Polling {
    /// Whether the gateway polls the request.
    pub(crate) active: bool,
    /// Whether the gateway gave the request up.
    pub(crate) given_up: bool,
    /// The polls of all replicas. `None`: the store cannot be read, or the count has expired.
    pub(crate) polls: Option<u32>,
    /// The time since ThingSpace answered this replica's last status query.
    pub(crate) queried_seconds_ago: Option<u64>,
    /// Why the last status query of this replica failed, if that was less than ten minutes ago.
    pub(crate) failure: Option<String>,
}

/// The open watches of a caller at this replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CallerWatches {
    pub(crate) caller: String,
    pub(crate) watches: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceDetails {
    /// The identifiers, masked unless they are revealed.
    pub(crate) device: String,
    pub(crate) state: String,
    /// ThingSpace's code, if the device failed.
    pub(crate) fault: Option<String>,
    pub(crate) update_time: Timestamp,
}

/// How long the failure of a status query is shown.
const FAILURE_SHOWN: Duration = Duration::from_mins(10);

impl Requests {
    /// Returns everything that is open, oldest first.
    pub(crate) async fn open(&self) -> Result<Vec<OpenItem>, StoreError> {
        let orders = self.resolver.orders_without_outcome().await?;
        let orders =
            orders.into_iter().map(|(order, is_unknown)| self.open_order(order, is_unknown));
        let requests = self.hub.open_tracked();
        let requests = requests.iter().filter_map(|tracked| self.open_request(tracked));
        let mut open: Vec<_> = orders.chain(requests).collect();
        open.sort_by(|a, b| {
            (b.age_seconds, a.create_time, &a.request_id).cmp(&(
                a.age_seconds,
                b.create_time,
                &b.request_id,
            ))
        });
        Ok(open)
    }

    fn open_order(&self, order: UnknownOrder, is_unknown: bool) -> OpenItem {
        OpenItem {
            request_id: None,
            order_id: Some(order.order_id),
            account: Some(order.account),
            state: if is_unknown { OpenState::Unknown } else { OpenState::Sending },
            create_time: order.sent_time,
            age_seconds: age(&*self.store, order.first, order.sent_time).as_secs(),
            devices: order.devices,
            devices_with_result: 0,
            caller: order.caller,
            watches: 0,
            queried_seconds_ago: None,
        }
    }

    /// Returns `None` if the request has been closed meanwhile.
    fn open_request(&self, tracked: &Tracked) -> Option<OpenItem> {
        let watches = self.hub.watchers(&tracked.id).iter().map(|(_, watches)| watches).sum();
        let queried_seconds_ago = queried_seconds_ago(tracked);
        let folded = tracked.lock();
        let request = &folded.request;
        if request.is_closed() {
            return None;
        }
        let with_result = request.counts.succeeded + request.counts.failed;
        Some(OpenItem {
            request_id: Some(tracked.id.to_string()),
            order_id: request.order_id.clone(),
            account: request.account.as_ref().map(AccountName::to_string),
            state: if with_result == 0 { OpenState::Pending } else { OpenState::Partial },
            create_time: request.create_time,
            age_seconds: age(&*self.store, request.first, request.create_time).as_secs(),
            devices: request.counts.total,
            devices_with_result: with_result,
            caller: request.caller.as_deref().map(str::to_owned),
            watches,
            queried_seconds_ago,
        })
    }

    /// Returns a request with its history. `None`: the store has no such request. `reveal` shows
    /// the complete identities of devices.
    pub(crate) async fn details(
        &self,
        id: &RequestId,
        reveal: bool,
    ) -> Result<Option<RequestDetails>, StoreError> {
        let Some(id) = self.hub.spelling(id).await? else { return Ok(None) };
        let Some((tracked, changes)) = self.hub.attach(&id).await? else { return Ok(None) };
        // A subscriber counts as a watcher.
        drop(changes);
        let order_id = tracked.lock().request.order_id.clone();
        let mut timeline = Timeline::new(reveal);
        if let Some(order_id) = order_id {
            self.hub
                .read_events(&LogName::order(order_id), |entry, event| timeline.add(entry, event))
                .await?;
        }
        let log = LogName::request(id.as_str());
        self.hub.read_events(&log, |entry, event| timeline.add(entry, event)).await?;
        let (timeline, events_left_out) = timeline.end();
        let polls = self.poller.polls(&id).await.ok().flatten();
        let queried_seconds_ago = queried_seconds_ago(&tracked);
        let failure = tracked.query_failure(FAILURE_SHOWN).map(|error| error.to_string());
        let watches = self.hub.watchers(&id).into_iter();
        let watches = watches
            .map(|(caller, watches)| CallerWatches { caller: caller.to_string(), watches })
            .collect();
        let folded = tracked.lock();
        let request = &folded.request;
        Ok(Some(RequestDetails {
            request_id: id.to_string(),
            account: request.account.as_ref().map(AccountName::to_string),
            order_id: request.order_id.clone(),
            caller: request.caller.as_deref().map(str::to_owned),
            state: request_state(request).to_owned(),
            revision: request.revision,
            create_time: request.create_time,
            update_time: request.update_time,
            age_seconds: age(&*self.store, request.first, request.create_time).as_secs(),
            polling: Polling {
                active: !request.is_closed(),
                given_up: request.polling_stopped,
                polls,
                queried_seconds_ago,
                failure,
            },
            watches,
            devices_total: request.counts.total,
            devices_succeeded: request.counts.succeeded,
            devices_failed: request.counts.failed,
            devices: shown_devices(&request.devices, reveal),
            timeline,
            events_left_out,
        }))
    }
}

impl Requests {
    /// Returns whether several replicas can use the store.
    pub(crate) fn shares_store(&self) -> bool {
        !self.store.exclusive()
    }
}

fn queried_seconds_ago(tracked: &Tracked) -> Option<u64> {
    tracked.last_query().map(|query| query.at.elapsed().as_secs())
}

fn request_state(request: &Request) -> &'static str {
    if request.is_expired() {
        return "expired: its first events are lost";
    }
    match request.state() {
        RequestState::Pending => "pending",
        RequestState::Succeeded => "succeeded",
        RequestState::PartiallySucceeded => "partially succeeded",
        RequestState::Failed => "failed",
    }
}

fn shown_devices(devices: &[Arc<DeviceStatus>], reveal: bool) -> Vec<DeviceDetails> {
    let (open, done): (Vec<_>, Vec<_>) =
        devices.iter().partition(|device| !device.state.is_final());
    let shown = open.into_iter().chain(done).take(SHOWN_DEVICES);
    shown
        .map(|device| DeviceDetails {
            device: show_device(&device.device, reveal),
            state: device_state(device.state).to_owned(),
            fault: device.fault.as_ref().map(|fault| fault.code.clone()),
            update_time: device.update_time,
        })
        .collect()
}

fn device_state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Waiting => "waiting",
        DeviceState::Succeeded => "succeeded",
        DeviceState::Failed => "failed",
    }
}
