//! Between the contract's messages and the domain's types.
//!
//! Inwards, everything wrong with a call is found at once, each with its field path; what comes out
//! has the right shape. Outwards, nothing is decided.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tonic_types::FieldViolation;
use tracing::warn;

use crate::{
    identity::{AccountName, Device, Digits, Invalid, Kind, RequestId},
    proto::esim,
    repeated::Repeated,
    requests::{
        Placement,
        fold::state::{Counts, DeviceState, DeviceStatus, RequestState},
        watch::Snapshot,
    },
    thingspace::Order,
};

/// The longest long poll. Proxies commonly give up after 60 s without an answer.
const MAX_WAIT: Duration = Duration::from_secs(50);

/// The most devices on a page.
const MAX_PAGE: usize = 1_000;

/// The longest `idempotency_key` and `service_plan`, in characters.
const MAX_TEXT: usize = 128;

/// ThingSpace refuses these anywhere in its input.
const FORBIDDEN: [char; 3] = ['\'', '<', '\\'];

/// Orders with identifiers whose check digits are wrong.
static WRONG_CHECK_DIGITS: Repeated = Repeated::new();

/// What is wrong with a call, collected.
#[derive(Debug, Default)]
pub(super) struct Violations(Vec<FieldViolation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation {
            field: field.into(),
            description: description.into(),
            reason: String::new(),
            localized_message: None,
        });
    }

    fn check<T>(&mut self, field: &str, parsed: Result<T, Invalid>) -> Option<T> {
        parsed.map_err(|Invalid(phrase)| self.add(field, phrase)).ok()
    }

    pub(super) fn into_inner(self) -> Vec<FieldViolation> {
        self.0
    }
}

/// What an order is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderRules {
    pub(super) max_devices: usize,
    pub(super) strict_checksums: bool,
}

pub(super) fn placement(
    request: esim::DownloadProfileRequest,
    rules: OrderRules,
) -> Result<Placement, Violations> {
    let mut wrong = Violations::default();
    let account = wrong.check("account_name", AccountName::parse(&request.account_name));
    let (devices, doubtful) = devices(&request.devices, rules, &mut wrong);
    if request.service_plan.chars().count() > MAX_TEXT {
        wrong.add("service_plan", format!("must be at most {MAX_TEXT} characters"));
    }
    if request.service_plan.contains(FORBIDDEN) || request.service_plan.contains(char::is_control) {
        wrong.add("service_plan", "must not contain ', <, \\ or control characters");
    }
    let key = request.idempotency_key;
    if key.is_empty() || key.len() > MAX_TEXT || !key.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        wrong.add("idempotency_key", format!("must be 1 to {MAX_TEXT} printable ASCII characters"));
    }
    match account {
        Some(account) if wrong.0.is_empty() => {
            if doubtful > 0
                && let Some(times) = WRONG_CHECK_DIGITS.count()
            {
                warn!(%account, identifiers = doubtful, times, "an order has identifiers with wrong check digits");
            }
            Ok(Placement {
                order: Order { account, devices, service_plan: request.service_plan },
                key,
            })
        }
        _ => Err(wrong),
    }
}

/// The devices, and how many of their identifiers have wrong check digits where that is allowed.
fn devices(
    devices: &[esim::DeviceIdentifiers],
    rules: OrderRules,
    wrong: &mut Violations,
) -> (Vec<Device>, usize) {
    if devices.is_empty() {
        wrong.add("devices", "must name at least one device");
    }
    if devices.len() > rules.max_devices {
        // The rest would only repeat it ten thousand times.
        wrong.add("devices", format!("must be at most {} devices", rules.max_devices));
        return (Vec::new(), 0);
    }
    let mut seen: HashMap<(Kind, &str), usize> = HashMap::with_capacity(2 * devices.len());
    let mut doubtful = 0;
    let mut parsed = Vec::with_capacity(devices.len());
    for (at, ids) in devices.iter().enumerate() {
        let mut device = Device::default();
        let given = [
            (Kind::Eid, &ids.eid, true),
            (Kind::Iccid, &ids.iccid, true),
            (Kind::Imei, &ids.imei, false),
        ];
        for (kind, text, required) in given {
            let path = || format!("devices[{at}].{}", kind.as_str());
            if text.is_empty() {
                if required {
                    wrong.add(path(), "is required");
                }
                continue;
            }
            if let Err(Invalid(phrase)) = kind.check(text) {
                wrong.add(path(), phrase);
                continue;
            }
            match seen.entry((kind, text)) {
                Entry::Occupied(first) => {
                    let phrase =
                        format!("is the same as devices[{}].{}", first.get(), kind.as_str());
                    wrong.add(path(), phrase);
                }
                Entry::Vacant(free) => {
                    free.insert(at);
                }
            }
            if let Err(Invalid(phrase)) = kind.checksum(text) {
                if rules.strict_checksums {
                    wrong.add(path(), phrase);
                } else {
                    doubtful += 1;
                }
            }
            *device.get_mut(kind) = Digits::new(text);
        }
        if !ids.mdn.is_empty() {
            wrong.add(format!("devices[{at}].mdn"), "must be empty in an order");
        }
        parsed.push(device);
    }
    (parsed, doubtful)
}

/// Whose request, and which.
pub(super) fn target(
    account: &str,
    request: &str,
    wrong: &mut Violations,
) -> Option<(AccountName, RequestId)> {
    let account = wrong.check("account_name", AccountName::parse(account));
    let request = wrong.check("request_id", RequestId::parse(request));
    account.zip(request)
}

/// A question, checked.
#[derive(Debug)]
pub(super) struct StatusCall {
    pub(super) account: AccountName,
    pub(super) request: RequestId,
    pub(super) max_age: Duration,
    /// Zero: answer at once.
    pub(super) wait: Duration,
    pub(super) after_revision: u64,
    /// `None`: BASIC.
    pub(super) page_size: Option<usize>,
    pub(super) page_token: String,
}

pub(super) fn status_call(
    request: esim::GetRequestStatusRequest,
) -> Result<StatusCall, Violations> {
    let mut wrong = Violations::default();
    let target = target(&request.account_name, &request.request_id, &mut wrong);
    let max_age = duration("max_age", request.max_age, &mut wrong);
    let wait = duration("wait", request.wait, &mut wrong).min(MAX_WAIT);
    let after_revision = u64::try_from(request.after_revision).unwrap_or_else(|_| {
        wrong.add("after_revision", "must not be negative");
        0
    });
    let page_size = usize::try_from(request.page_size).unwrap_or_else(|_| {
        wrong.add("page_size", "must not be negative");
        0
    });
    let page_size = match esim::StatusView::try_from(request.view) {
        Ok(esim::StatusView::Basic) => None,
        Ok(esim::StatusView::Full | esim::StatusView::Unspecified) => {
            Some(if page_size == 0 { MAX_PAGE } else { page_size.min(MAX_PAGE) })
        }
        Err(_) => {
            wrong.add("view", "is not a view this gateway knows");
            None
        }
    };
    match target {
        Some((account, request_id)) if wrong.0.is_empty() => Ok(StatusCall {
            account,
            request: request_id,
            max_age,
            wait,
            after_revision,
            page_size,
            page_token: request.page_token,
        }),
        _ => Err(wrong),
    }
}

fn duration(field: &str, given: Option<prost_types::Duration>, wrong: &mut Violations) -> Duration {
    let Some(given) = given else { return Duration::ZERO };
    Duration::try_from(given).unwrap_or_else(|_| {
        wrong.add(field, "must not be negative");
        Duration::ZERO
    })
}

/// A status without devices.
pub(super) fn status_header(snapshot: &Snapshot) -> esim::RequestStatus {
    esim::RequestStatus {
        account_name: snapshot.account.as_ref().map(ToString::to_string).unwrap_or_default(),
        request_id: snapshot.id.to_string(),
        state: state(snapshot.state).into(),
        counts: Some(counts(snapshot.counts)),
        devices: Vec::new(),
        revision: revision(snapshot.revision),
        create_time: Some(time(snapshot.create_time)),
        update_time: Some(time(snapshot.update_time)),
        polling_stopped: snapshot.polling_stopped,
    }
}

pub(super) fn device(status: &Arc<DeviceStatus>) -> esim::DeviceStatus {
    let text = |digits: &Digits| digits.as_str().to_owned();
    let ids = &status.device;
    esim::DeviceStatus {
        identifiers: Some(esim::DeviceIdentifiers {
            eid: text(&ids.eid),
            iccid: text(&ids.iccid),
            imei: text(&ids.imei),
            mdn: text(&ids.mdn),
        }),
        state: match status.state {
            DeviceState::Pending => esim::DeviceState::Pending,
            DeviceState::Waiting => esim::DeviceState::Waiting,
            DeviceState::Succeeded => esim::DeviceState::Succeeded,
            DeviceState::Failed => esim::DeviceState::Failed,
        }
        .into(),
        profile: status.profile.as_ref().map(|profile| esim::ProfileStatus {
            state: profile.state.clone(),
            status: profile.status.clone(),
            role: profile.role.clone(),
        }),
        fault: status
            .fault
            .as_ref()
            .map(|fault| esim::Fault { code: fault.code.clone(), message: fault.message.clone() }),
        update_time: Some(time(status.update_time)),
    }
}

pub(super) fn state(state: RequestState) -> esim::RequestState {
    match state {
        RequestState::Pending => esim::RequestState::Pending,
        RequestState::Succeeded => esim::RequestState::Succeeded,
        RequestState::PartiallySucceeded => esim::RequestState::PartiallySucceeded,
        RequestState::Failed => esim::RequestState::Failed,
    }
}

pub(super) fn counts(counts: Counts) -> esim::DeviceCounts {
    // An order has at most 10,000 devices.
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    esim::DeviceCounts {
        total: count(counts.total),
        pending: count(counts.pending()),
        succeeded: count(counts.succeeded),
        failed: count(counts.failed),
    }
}

pub(super) fn revision(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nginx and many load balancers end a call of which they have heard nothing for 60 s.
    #[test]
    fn a_long_poll_is_answered_before_proxies_give_up() {
        for (asked, held) in [(0, 0), (49, 49), (50, 50), (60, 50), (86_400, 50)] {
            let request = esim::GetRequestStatusRequest {
                account_name: "0000123456-00001".to_owned(),
                request_id: "r".to_owned(),
                wait: Some(prost_types::Duration { seconds: asked, nanos: 0 }),
                ..esim::GetRequestStatusRequest::default()
            };
            let call = status_call(request).unwrap();
            assert_eq!(call.wait, Duration::from_secs(held), "{asked} s");
        }
    }
}
