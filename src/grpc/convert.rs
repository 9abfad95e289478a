//! Converts between the messages of the API and the types of the domain.
//!
//! Reports all wrong fields of a call at once, each with its path. Checks only the form of fields,
//! not whether an account or a request exists.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tonic_types::FieldViolation;
use tracing::warn;

use crate::{
    identity::{AccountName, Device, Digits, IdentifierError, IdentifierKind, RequestId},
    log_throttle::LogThrottle,
    proto::esim,
    requests::{
        Placement,
        fold::state::{Counts, DeviceState, DeviceStatus, RequestState},
        watch::Snapshot,
    },
    thingspace::Order,
};

/// The longest long poll. Many proxies end a call after 60 s without an answer.
const MAX_WAIT: Duration = Duration::from_secs(50);

/// The largest page, in devices.
const MAX_PAGE: usize = 1_000;

/// The longest `idempotency_key` and `service_plan`, in characters.
const MAX_TEXT: usize = 128;

/// Characters that ThingSpace refuses in its input.
const FORBIDDEN: [char; 3] = ['\'', '<', '\\'];

static WRONG_CHECK_DIGITS: LogThrottle = LogThrottle::new();

#[derive(Debug, Default)]
pub(super) struct Violations(pub(super) Vec<FieldViolation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation {
            field: field.into(),
            description: description.into(),
            reason: String::new(),
            localized_message: None,
        });
    }

    fn check<T>(&mut self, field: &str, parsed: Result<T, IdentifierError>) -> Option<T> {
        parsed.map_err(|IdentifierError(phrase)| self.add(field, phrase)).ok()
    }
}

/// The configurable rules for orders.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderRules {
    pub(super) max_devices: usize,
    pub(super) strict_checksums: bool,
}

pub(super) fn placement(
    request: esim::DownloadProfileRequest,
    caller: &str,
    rules: OrderRules,
) -> Result<Placement, Violations> {
    let mut wrong = Violations::default();
    let account = wrong.check("account_name", AccountName::parse(&request.account_name));
    let (devices, wrong_checksums) = devices(&request.devices, rules, &mut wrong);
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
    let Some(account) = account.filter(|_| wrong.0.is_empty()) else { return Err(wrong) };
    if wrong_checksums > 0
        && let Some(times) = WRONG_CHECK_DIGITS.count()
    {
        warn!(
            %account,
            identifiers = wrong_checksums,
            times,
            "an order has identifiers with wrong check digits; ask its caller to correct them"
        );
    }
    let order = Order { account, devices, service_plan: request.service_plan };
    Ok(Placement { order, key, caller: caller.to_owned() })
}

/// Returns the devices of an order, and the number of allowed identifiers with wrong check digits.
fn devices(
    devices: &[esim::DeviceIdentifiers],
    rules: OrderRules,
    wrong: &mut Violations,
) -> (Vec<Device>, usize) {
    if devices.is_empty() {
        wrong.add("devices", "must name at least one device");
    }
    if devices.len() > rules.max_devices {
        // Checking the devices would only repeat this problem.
        wrong.add("devices", format!("must be at most {} devices", rules.max_devices));
        return (Vec::new(), 0);
    }
    let mut seen: HashMap<(IdentifierKind, &str), usize> =
        HashMap::with_capacity(2 * devices.len());
    let mut wrong_checksums = 0;
    let mut parsed = Vec::with_capacity(devices.len());
    for (at, ids) in devices.iter().enumerate() {
        let mut device = Device::default();
        let identifiers = [
            (IdentifierKind::Eid, &ids.eid, true),
            (IdentifierKind::Iccid, &ids.iccid, true),
            (IdentifierKind::Imei, &ids.imei, false),
        ];
        for (kind, text, required) in identifiers {
            let path = || format!("devices[{at}].{}", kind.as_str());
            if text.is_empty() {
                if required {
                    wrong.add(path(), "is required");
                }
                continue;
            }
            if let Err(IdentifierError(phrase)) = kind.check(text) {
                wrong.add(path(), phrase);
                continue;
            }
            match seen.entry((kind, text)) {
                Entry::Occupied(first) => wrong.add(
                    path(),
                    format!("is the same as devices[{}].{}", first.get(), kind.as_str()),
                ),
                Entry::Vacant(free) => {
                    free.insert(at);
                }
            }
            if let Err(IdentifierError(phrase)) = kind.checksum(text) {
                if rules.strict_checksums {
                    wrong.add(path(), phrase);
                } else {
                    wrong_checksums += 1;
                }
            }
            *device.get_mut(kind) = Digits::new(text);
        }
        if !ids.mdn.is_empty() {
            wrong.add(format!("devices[{at}].mdn"), "must be empty in an order");
        }
        parsed.push(device);
    }
    (parsed, wrong_checksums)
}

pub(super) fn target(
    account: &str,
    request: &str,
    wrong: &mut Violations,
) -> Option<(AccountName, RequestId)> {
    let account = wrong.check("account_name", AccountName::parse(account));
    let request = wrong.check("request_id", RequestId::parse(request));
    account.zip(request)
}

/// A status call with valid fields.
#[derive(Debug)]
pub(super) struct StatusCall {
    pub(super) account: AccountName,
    pub(super) request: RequestId,
    pub(super) max_age: Duration,
    pub(super) wait: Duration,
    pub(super) after_revision: u64,
    /// `None` for the view BASIC.
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
            wrong.add("view", "is not a view that this gateway knows");
            None
        }
    };
    let Some((account, request_id)) = target.filter(|_| wrong.0.is_empty()) else {
        return Err(wrong);
    };
    Ok(StatusCall {
        account,
        request: request_id,
        max_age,
        wait,
        after_revision,
        page_size,
        page_token: request.page_token,
    })
}

fn duration(field: &str, value: Option<prost_types::Duration>, wrong: &mut Violations) -> Duration {
    let Some(value) = value else { return Duration::ZERO };
    Duration::try_from(value).unwrap_or_else(|_| {
        wrong.add(field, "must not be negative");
        Duration::ZERO
    })
}

/// Converts the status of a request without its devices.
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

    /// nginx and many load balancers end a call after 60 s without an answer.
    #[test]
    fn a_long_poll_is_answered_before_proxies_end_it() {
        for (seconds, expected) in [(0, 0), (49, 49), (50, 50), (60, 50), (86_400, 50)] {
            let request = esim::GetRequestStatusRequest {
                account_name: "0000123456-00001".to_owned(),
                request_id: "r".to_owned(),
                wait: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..esim::GetRequestStatusRequest::default()
            };
            let call = status_call(request).unwrap();
            assert_eq!(call.wait, Duration::from_secs(expected), "{seconds} s");
        }
    }
}
